"""Go's crypto/tls and golang.org/x/net/http2 as the destination of our tunnels (gopeer serve)."""
import os
import signal

import pytest

from testenv import eventually
from testenv.daemon import SLOW

ECHO, EARLY, COUNT, ABORT = 7, 9, 19, 99  # ports that gopeer serves itself; for others it dials the authority


@pytest.fixture
def go(outbound, gopeer, launch):
    def start(*options, **env):
        cert = outbound.begin(**env)
        outbound.go = launch(outbound.pod, gopeer, "serve", "-listen", f"{outbound.pod.ip}:15008", "-cert", cert, *options)
        outbound.go.wait_for("listening")
        return outbound
    return start


def tunnels(world):
    return {line.split("tunnel=")[1].split()[0] for line in world.go.lines("stream ")}


def exchange(s, data):
    s.sendall(data)
    got = b""
    while len(got) < len(data):
        got += s.recv(65536)
    assert got == data


def upload_and_count(world, size):
    """Sends size bytes and FIN; returns (bytes that the server counted, bytes of its answer)."""
    got = world.client.request(world.pod.ip, COUNT, os.urandom(size), timeout=60 * SLOW)
    count, _, rest = got.partition(b"\n")
    return int(count), len(rest)


def test_bytes_and_ends_both_ways(go):
    """CONNECT, date and server in the answer, END_STREAM either way; the certificate that Go verified is the client's."""
    w = go()
    data = os.urandom(300_000)
    with w.client.connect(w.pod.ip, ECHO) as s:
        for i in range(0, len(data), 10_000):
            exchange(s, data[i:i + 10_000])
        s.shutdown(1)
        assert s.recv(1) == b""
    line, = w.go.lines("stream ")
    assert f"client={w.client.identity}" in line and "method=CONNECT" in line and f"authority={w.pod.ip}:{ECHO}" in line
    assert w.daemon.wait_line("connection complete").level == "info"


def test_an_application_behind_the_go_server(go):
    w = go()
    w.pod.reflect(8080)
    data = os.urandom(2_000_000)
    with w.client.connect(w.pod.ip, 8080) as s:
        for i in range(0, len(data), 50_000):
            exchange(s, data[i:i + 50_000])


@pytest.mark.parametrize("window", [65535, 1 << 20])
def test_bulk_through_small_windows_in_16_kib_frames(go, window):
    """Sixteen MiB up through the peer's windows, half-close, eight MiB down."""
    w = go("-window", str(window))
    assert upload_and_count(w, 16 << 20) == (16 << 20, 8 << 20)


def test_many_streams_share_one_tunnel(go):
    w = go()
    sockets = [w.client.connect(w.pod.ip, ECHO) for _ in range(80)]
    for i, s in enumerate(sockets):
        exchange(s, b"%d" % i * 1000)
    assert tunnels(w) == {"1"}
    for s in sockets:
        s.close()
    eventually(lambda: w.daemon.activity() == (0, 1))


def test_max_concurrent_streams_below_our_own_limit(go):
    """Thirty connections at once to a server that takes four streams a tunnel: more tunnels, nothing refused."""
    w = go("-streams", "4")
    sockets = [w.client.connect(w.pod.ip, ECHO) for _ in range(30)]
    for s in sockets:
        s.sendall(b"x")
    for s in sockets:
        assert s.recv(1) == b"x"
    assert max(int(line.split("open=")[1].split()[0]) for line in w.go.lines("stream ")) <= 4
    for s in sockets:
        s.close()
    eventually(lambda: w.daemon.activity()[0] == 0)
    assert not w.daemon.lines("connection complete", direction="outbound", error="*")


def test_goaway_with_streams_open(go):
    """http.Server.Shutdown: what is open goes on, a new connection goes to the new server over a new tunnel."""
    w = go()
    old = [w.client.connect(w.pod.ip, ECHO) for _ in range(5)]
    for s in old:
        exchange(s, b"before")
    os.kill(w.go.process.pid, signal.SIGUSR1)
    w.go.wait_for("listening", 2)
    with w.client.connect(w.pod.ip, ECHO) as new:
        exchange(new, b"new")
        assert tunnels(w) == {"1", "2"}
        for s in old:
            exchange(s, b"after" * 1000)
            s.close()
        exchange(new, b"still")
    w.go.wait_for("closed")
    assert [x.level for x in w.daemon.lines("connection complete")].count("error") == 0


def test_graceful_shutdown_under_steady_load_loses_nothing(go):
    """New connections all the time while the server restarts behind GOAWAY: each gets its answer, except that one may meet the moment
    in which nobody listens."""
    w = go()
    refused = 0
    for i in range(120):
        if i % 30 == 15:
            os.kill(w.go.process.pid, signal.SIGUSR1)
        try:
            with w.client.connect(w.pod.ip, ECHO) as s:
                exchange(s, b"%d" % i)
        except OSError:
            refused += 1
    errors = [x.fields.get("error", "") for x in w.daemon.lines("connection complete") if x.level == "error"]
    assert all("refused" in e for e in errors) and len(errors) == refused <= 4


def test_a_handler_that_returns_early(go):
    """END_STREAM and RST_STREAM(NO_ERROR): all of the answer, then FIN; what we still send is nobody's business any more."""
    w = go()
    with w.client.connect(w.pod.ip, EARLY) as s:
        assert s.recv(3, 0x100) == b"bye"  # MSG_WAITALL
        assert s.recv(1) == b""
    assert w.daemon.wait_line("connection complete").level == "info"


def test_a_handler_that_aborts(go):
    """RST_STREAM(INTERNAL_ERROR) in the midst: the client has the part, then an end; the tunnel and its other streams stay."""
    w = go()
    with w.client.connect(w.pod.ip, ECHO) as other:
        exchange(other, b"a")
        with w.client.connect(w.pod.ip, ABORT) as s:
            s.sendall(b"x")
            assert s.recv(4, 0x100) == b"part"
            try:
                assert s.recv(1) == b""
            except ConnectionResetError:
                pass
        assert w.error().startswith("receive: h2 failed")
        exchange(other, b"b")
    assert tunnels(w) == {"1"}
    assert w.failed("CONNECT") == 1


def test_a_refusal(go):
    w = go()
    assert w.client.refused(w.pod.ip, 401)
    assert w.error().startswith("http status: 401 Unauthorized")


def test_a_reset_client_resets_only_its_stream(go):
    """Applications that close with unread data, fifty in a row, beside one that goes on."""
    w = go()
    with w.client.connect(w.pod.ip, ECHO) as kept:
        exchange(kept, b"a")
        for _ in range(50):
            with w.client.connect(w.pod.ip, ECHO) as s:
                s.sendall(b"x" * 100_000)
                assert s.recv(1) == b"x"
        exchange(kept, b"b" * 100_000)
    assert tunnels(w) == {"1"}
    eventually(lambda: w.daemon.activity()[0] == 0)
