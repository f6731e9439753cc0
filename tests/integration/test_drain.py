"""Drain, signals, restart (spec/dataplane §8, spec/interfaces §1.4, §1.5)."""
import signal
import time

import pytest
from hyperframe.frame import DataFrame, GoAwayFrame

from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import Tunnel, issue


def ended(daemon, code=0, timeout=20):
    assert daemon.wait(timeout) == code
    daemon.check_clean(code)
    daemon.process = None


def test_ztunnel_shutdown(pair):
    """After SIGTERM an open connection goes on, a new one fails, and the daemon ends when the last one has."""
    pair.start(CONNECTION_TERMINATION_DEADLINE="20s")
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("received signal SIGTERM, starting shutdown")
        def refused():
            try:
                pair.client.connect(pair.server.ip, 8080).close()
            except ConnectionRefusedError:
                return True
            return False
        eventually(refused, "listeners closed")
        s.sendall(b"b")
        assert s.recv(1) == b"b"
        assert daemon.process.poll() is None
    ended(daemon)
    assert "connection complete" in daemon.log()


@pytest.mark.parametrize("side", ["client", "server"])
def test_drain_deadline_cuts_what_is_left(pair, side):
    """At the deadline the application gets a reset, not a FIN that would look complete (spec/dataplane §16)."""
    pair.start(CONNECTION_TERMINATION_DEADLINE="1s")
    pair.server.reflect(8080)
    daemon = getattr(pair, side).node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        started = time.monotonic()
        daemon.signal(signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            s.recv(1)
        assert 0.9 <= time.monotonic() - started < 5 * SLOW
    ended(daemon)
    daemon.wait_line("drain duration expired with pending connections, forcefully shutting down")
    if side == "client":
        line = daemon.wait_line("connection complete", direction="outbound")
        assert line.fields["error"] == "connection closed due to connection drain"


def test_ports_close_at_once_and_ztctl_still_answers(pair):
    """Probes see connection refused for the whole drain; status says that it drains (C42)."""
    pair.start(CONNECTION_TERMINATION_DEADLINE="10s")
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        daemon.signal(signal.SIGTERM)
        for port in (15000, 15020, 15021):
            def refused(p=port):
                try:
                    daemon.http(p, "/")
                except ConnectionRefusedError:
                    return True
                return False
            eventually(refused, f"port {port} closed")
        assert daemon.status()["draining"] is True
    ended(daemon)


def test_sigint_twice_ends_at_once(pair):
    pair.start(CONNECTION_TERMINATION_DEADLINE="60s")
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        daemon.signal(signal.SIGINT)
        daemon.wait_line("received signal SIGINT, starting shutdown")
        daemon.signal(signal.SIGINT)
        assert daemon.wait(5 * SLOW) == 0
    assert "Double Ctrl+C, exit immediately" in daemon.log()
    daemon.process = None


def test_quitquitquit_drains(pair):
    pair.start()
    daemon = pair.client.node.daemon
    assert daemon.http(15000, "/quitquitquit")[0] == 405
    assert daemon.http(15000, "/quitquitquit", "POST")[:2] == (200, b"shutdown now\n")
    ended(daemon)


def test_server_says_goaway_and_serves_until_the_second(pair, tmp_path):
    """GOAWAY(2^31-1), then the real last stream; open streams run on (spec/dataplane §4.9, §14 row 3)."""
    outsider = pair.nodes[0].pod("outsider", protocol="TCP")
    pair.start(CONNECTION_TERMINATION_DEADLINE="20s")
    pair.server.reflect(8080)
    daemon = pair.server.node.daemon
    with Tunnel(outsider, pair.server.ip, issue(daemon, outsider.identity, tmp_path / "cert")) as t:
        stream = t.connect(f"{pair.server.ip}:8080")
        assert t.status(stream)[0] == 200
        daemon.signal(signal.SIGTERM)
        goaways = (f for f in t.frames() if isinstance(f, GoAwayFrame))
        first, second = next(goaways), next(goaways)
        assert (first.error_code, first.last_stream_id) == (0, 2**31 - 1)
        assert (second.error_code, second.last_stream_id) == (0, stream)
        assert daemon.process.poll() is None
        t.sock.sendall(DataFrame(stream, b"still open").serialize())
        assert next(f for f in t.frames() if isinstance(f, DataFrame)).data == b"still open"
    ended(daemon)


def test_restart_serves_again(pair):
    """Killed and started again: the pods are re-announced by ZDS and traffic goes on."""
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    for node in pair.nodes:
        node.daemon.kill()
    with pytest.raises(ConnectionRefusedError):
        pair.client.connect(pair.server.ip, 8080)  # fail closed
    for node in pair.nodes:
        node.start()
    eventually(lambda: pair.client.request(pair.server.ip, 8080) == b"hello worldhello world", "traffic after the restart")


def test_nothing_pending_drains_at_once(pair):
    pair.start(CONNECTION_TERMINATION_DEADLINE="60s")
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"  # leaves an idle tunnel
    started = time.monotonic()
    for node in (pair.client.node, pair.server.node):
        node.daemon.stop(20)
        node.daemon = None
    assert time.monotonic() - started < 5 * SLOW
