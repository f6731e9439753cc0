"""Every limit of docs/configuration.md is reached: the newest is turned away in the way the table says, it is counted and said once, and
who was served before goes on."""
import contextlib
import socket
import ssl
import time

import h2.errors
import h2.events
import h2.exceptions
import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import Tunnel, issue

MIB = 1 << 20
TURNED_AWAY = (ConnectionResetError, BrokenPipeError, ssl.SSLError, ConnectionAbortedError)


@pytest.fixture
def limited(world, tmp_path):
    """An echo on a captured pod, and an uncaptured pod with a certificate; limited.begin(KEY=value) starts it."""
    world.outsider = world.node().pod("outsider", protocol="TCP")
    world.second = world.nodes[0].pod("second", protocol="TCP")
    world.server = world.node().pod("server")

    def begin(**limits):
        world.start(ZTUNNELD_CONNECT_TIMEOUT=f"{4 * SLOW}s", **{"ZTUNNELD_" + k: str(v) for k, v in limits.items()})
        world.server.echo(8080)
        world.daemon = world.server.node.daemon
        world.cert = issue(world.daemon, world.outsider.identity, tmp_path / "cert")
        return world.daemon
    world.begin = begin
    world.tunnel = lambda pod=None: Tunnel(pod or world.outsider, world.server.ip, world.cert)
    world.authority = f"{world.server.ip}:8080"
    world.reached = lambda limit: world.daemon.metric("ztunneld_limit_reached_total", limit=limit)
    return world


def expect_said(limited, limit, maximum):
    line = limited.daemon.wait_line("limit reached, the newest is turned away", limit=limit)
    assert line.level == "warn" and line.fields["max"] == str(maximum) and line.fields["pod"] == limited.server.zds_uid
    assert limited.reached(limit) >= 1


def still_echoes(tunnel, stream):
    tunnel.send(stream, b"still", end=True)
    return tunnel.receive(stream) == b"stillstill"


@pytest.mark.parametrize("limit", ["pod_connections", "peer_connections"])
def test_a_connect_over_the_limit_of_connections_gets_503(limited, limit):
    limited.begin(**{limit.upper() + "_MAX": 3})
    with limited.tunnel() as t:
        held = [t.connect(limited.authority) for _ in range(3)]
        assert all(t.status(s)[0] == 200 for s in held)
        assert t.request(limited.authority)[0] == 503
        expect_said(limited, limit, 3)
        assert still_echoes(t, held[0])
        eventually(lambda: t.request(limited.authority)[0] == 200, "a place that came back")
        assert still_echoes(t, held[1])


def test_plaintext_over_the_peers_connections_is_reset(limited):
    limited.begin(PEER_CONNECTIONS_MAX=2)
    held = [limited.outsider.connect(limited.server.ip, 8080) for _ in range(2)]
    eventually(lambda: limited.daemon.activity()[0] == 2)
    assert limited.outsider.refused(limited.server.ip, 8080)
    expect_said(limited, "peer_connections", 2)
    assert limited.second.request(limited.server.ip, 8080, b"x") == b"xx", "another address has its own places"
    for s in held:
        s.sendall(b"x")
        assert s.recv(2) == b"xx"
        s.close()


def test_a_pod_over_its_connections_is_reset(limited):
    limited.begin(POD_CONNECTIONS_MAX=2)
    limited.outsider.reflect(8081)
    held = [limited.server.connect(limited.outsider.ip, 8081) for _ in range(2)]
    eventually(lambda: limited.daemon.activity()[0] == 2)
    assert limited.server.refused(limited.outsider.ip, 8081)
    expect_said(limited, "pod_connections", 2)
    for s in held:
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        s.close()


@pytest.mark.parametrize("limit", ["pod_tunnels", "peer_tunnels"])
def test_a_tunnel_over_the_limit_is_reset(limited, limit):
    limited.begin(**{limit.upper() + "_MAX": 2})
    first, second = limited.tunnel(), limited.tunnel()
    with pytest.raises(TURNED_AWAY):
        limited.tunnel().pump()
    expect_said(limited, limit, 2)
    if limit == "peer_tunnels":
        with limited.tunnel(limited.second) as other:
            assert other.request(limited.authority)[0] == 200
    else:
        with pytest.raises(TURNED_AWAY):
            limited.tunnel(limited.second).pump()
    stream = first.connect(limited.authority)
    assert first.status(stream)[0] == 200 and still_echoes(first, stream)
    second.close()
    eventually(lambda: tunnel_works(limited), "a place that came back")
    first.close()


def tunnel_works(limited):
    try:
        with limited.tunnel() as t:
            return t.request(limited.authority)[0] == 200
    except TURNED_AWAY:
        return False


@pytest.mark.parametrize("limit", ["pod_handshakes", "peer_handshakes"])
def test_handshakes_over_the_rate_are_reset(limited, limit):
    limited.begin(**{limit.upper() + "_PER_S": 2})
    with limited.tunnel() as kept:
        stream = kept.connect(limited.authority)
        assert kept.status(stream)[0] == 200
        until = time.monotonic() + 20 * SLOW
        while limited.reached(limit) == 0:
            assert time.monotonic() < until
            for _ in range(20):
                with contextlib.suppress(*TURNED_AWAY):  # the reset may come before connect returns
                    limited.outsider.connect(limited.server.ip, 15008).close()
        expect_said(limited, limit, 2)
        assert still_echoes(kept, stream)
    eventually(lambda: tunnel_works(limited), "the next second", 10 * SLOW)


def test_dials_over_the_limit_get_503(limited):
    limited.begin(POD_DIALS_MAX=1)
    limited.server.netns.run("nft", "-f", "-", input="""
table inet hole {
  chain in { type filter hook input priority 0; policy accept; tcp dport 9999 drop; }
}
""")
    with limited.tunnel() as t:
        waiting = t.connect(f"{limited.server.ip}:9999")
        refused = t.connect(f"{limited.server.ip}:9999")
        assert t.status(refused)[0] == 503
        expect_said(limited, "pod_dials", 1)
        line = limited.daemon.wait_line("connection complete", direction="inbound")
        assert line.fields["error"] == "limit reached: pending dials of the pod"
        assert t.status(waiting)[0] == 503, "its own time limit"
        assert t.request(limited.authority)[0] == 200


def push(t, stream, n):
    """Sends n bytes as far as the windows go; False when the stream was reset."""
    chunk = b"q" * 16384
    for _ in range(n // len(chunk)):
        while t.h2.local_flow_control_window(stream) < len(chunk):
            if not t.pump():
                return False
            if any(isinstance(e, h2.events.StreamReset) and e.stream_id == stream for e in t.events):
                return False
        try:
            t.send(stream, chunk)
        except h2.exceptions.StreamClosedError:
            return False
    return True


def test_bytes_queued_for_readers_that_do_not_read_are_capped(limited):
    """The stream that began to wait last is reset with ENHANCE_YOUR_CALM; the connection through the same tunnel whose application reads,
    and the one that waited first, go on."""
    limited.begin(POD_QUEUED_BYTES_MAX=MIB)
    daemon, taken = limited.daemon, []

    def stall(s, peer):
        taken.append(s)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        eventually(lambda: getattr(stall, "go", False), timeout=60 * SLOW)
        while s.recv(65536):
            pass
    limited.server.serve(9100, stall)
    with limited.tunnel() as t:
        good = t.connect(limited.authority)
        assert t.status(good)[0] == 200
        before = daemon.status()["memoryLiveBytes"]
        streams = [t.connect(f"{limited.server.ip}:9100") for _ in range(3)]
        assert all(t.status(s)[0] == 200 for s in streams)
        for s in streams:  # more than the kernel takes for a socket that nobody reads
            push(t, s, 4 * MIB - 65536)
        expect_said(limited, "pod_queued_bytes", MIB)
        assert daemon.status()["memoryLiveBytes"] < before + 3 * MIB
        reset = t.wait(h2.events.StreamReset)
        assert reset.error_code == h2.errors.ErrorCodes.ENHANCE_YOUR_CALM and reset.stream_id in streams
        line = daemon.wait_line("connection complete", direction="inbound", error="limit reached: bytes queued for the pod")
        assert line.level == "error"
        assert still_echoes(t, good)
        stall.go = True
    eventually(lambda: daemon.activity() == (0, 0), timeout=20 * SLOW)
