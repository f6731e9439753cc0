"""Upgrade by overlap: two daemons side by side on a node, the old one leaves (spec/inpod §2.8, §3.9)."""
import contextlib
import multiprocessing
import os
import selectors
import signal
import socket
import subprocess
import threading

import pytest

from testenv import eventually
from testenv.daemon import SLOW

CONNECTS = 20000 if SLOW == 1 else 4000
RESTARTS = 10
THREADS = 128  # a daemon that pauses holds up half of the clients that call in that time; it must not be all
SUPPORT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support")


@pytest.fixture
def slow_close(tmp_path):
    """The environment in which a listener's close takes 50 ms."""
    library = str(tmp_path / "slow_close.so")
    subprocess.run(["cc", "-O1", "-D_GNU_SOURCE", "-shared", "-fPIC", os.path.join(SUPPORT, "slow_close.c"), "-o", library], check=True)
    return {"LD_PRELOAD": library, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"}


def answer(netns, port, go):
    """A server's process: a byte for a byte, then it closes, so that no client waits for its old connections. Nobody waits for another."""
    with netns.inside(), selectors.DefaultSelector() as ready:
        listener = socket.create_server(("", port), backlog=1024)
        ready.register(listener, selectors.EVENT_READ)
        go.set()
        while True:
            for key, _ in ready.select():
                if key.fileobj is listener:
                    ready.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                ready.unregister(key.fileobj)
                with key.fileobj as s, contextlib.suppress(OSError):  # the client says what went wrong
                    s.sendall(s.recv(1))


def connect_on(netns, address, done, stop, pipe):
    """A client's process: on each thread connect, a byte each way, close; what fails is told at the end."""
    failures = []

    def one():
        port, step = 0, "connect"
        try:
            with socket.create_connection(address, timeout=10 * SLOW) as s:
                port, step = s.getsockname()[1], "request"
                s.sendall(b"x")
                step = "answer"
                assert s.recv(1) == b"x", "closed"
        except (OSError, AssertionError) as e:
            failures.append(f"{netns.name} port {port}: {step}: {e!r}")

    def many():
        while not stop.is_set():
            one()
            with done.get_lock():
                done.value += 1

    with netns.inside():  # threads begin where the one that starts them is
        threads = [threading.Thread(target=many) for _ in range(THREADS)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    pipe.send(failures)


class Storm:
    """Connections through every port: 15001 and 15008 between captured pods, 15006 from a pod outside the mesh."""

    def __init__(self, pair):
        fork = multiprocessing.get_context("fork")
        client, server, outside = pair.client, pair.server, pair.nodes[0].pods["outside"]
        for pod in (client, server, outside):
            pod.netns.sysctl("net.ipv4.tcp_migrate_req", 0)
        self.stop, self.done, self.processes, self.pipes = fork.Event(), fork.Value("l", 0), [], []
        go = fork.Event()
        self.server = fork.Process(target=answer, args=(server.netns, 8080, go), daemon=True)
        self.server.start()
        assert go.wait(20)
        for pod in (client, outside):
            mine, theirs = fork.Pipe(False)
            self.pipes.append(mine)
            self.processes.append(fork.Process(target=connect_on, args=(pod.netns, (server.ip, 8080), self.done, self.stop, theirs),
                                               daemon=True))
            self.processes[-1].start()

    def reach(self, count):
        eventually(lambda: self.done.value >= count or not all(p.is_alive() for p in self.processes), f"{count} connects", 120 * SLOW)

    def end(self):
        """Every failure of every client."""
        self.stop.set()
        failures = [text for pipe in self.pipes for text in pipe.recv()]
        self.server.terminate()
        for p in [*self.processes, self.server]:
            p.join(20)
        return failures


def storm(pair, connects, restarts, **env):
    """Failures of so many connects while the nodes' daemons are replaced in turn."""
    pair.nodes[0].pod("outside", protocol="TCP")
    pair.start(RUST_LOG="warn", **env)
    s = Storm(pair)
    for i in range(restarts):
        s.reach((i + 1) * connects // (restarts + 1))
        old = pair.nodes[i % len(pair.nodes)].overlap()
        s.reach(s.done.value + 100)  # both serve
        old.signal(signal.SIGTERM)
        old.wait(30 * SLOW)
        old.check_clean()
    s.reach(connects)
    return s.end()


def test_storm_of_connects_across_ten_restarts(pair):
    """Rolling restart: new connections are never refused and never reset (spec/inpod §3.9)."""
    failures = storm(pair, CONNECTS, RESTARTS)
    assert not failures, f"{len(failures)} failures, first: {failures[:5]}"


def test_storm_with_a_pause_before_the_close(pair, slow_close):
    """What gathers in a queue that was emptied already, with net.ipv4.tcp_migrate_req off, is not lost either."""
    failures = storm(pair, CONNECTS, RESTARTS, **slow_close)
    assert not failures, f"{len(failures)} failures, first: {failures[:5]}"


def test_storm_with_a_pause_fails_when_nothing_is_handed_over(pair, slow_close):
    """The test before can fail: a naive close resets what waits."""
    failures = storm(pair, 4000, RESTARTS, **slow_close, ZT_TEST_NO_HANDOVER="1")
    assert failures
    assert "when another daemon takes over, connections that are being made may be reset" in pair.client.node.daemon.log()


def test_old_connections_stay_with_the_old_daemon_until_its_deadline(pair):
    """Both serve during a rolling upgrade; the old one closes its listeners on SIGTERM and keeps what it has."""
    pair.start(CONNECTION_TERMINATION_DEADLINE="3s")
    pair.server.reflect(8080)
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        olds = [node.overlap() for node in pair.nodes]
        assert pair.client.request(pair.server.ip, 8080) == b"hello world"
        for old in olds:
            old.signal(signal.SIGTERM)
            old.wait_line("received signal SIGTERM, starting shutdown")
        for i in range(20):
            assert pair.client.request(pair.server.ip, 8080) == b"hello world"
            s.sendall(b"b")
            assert s.recv(1) == b"b"
        assert all(old.process.poll() is None for old in olds)
        with pytest.raises(ConnectionResetError):
            s.recv(1)
    for old in olds:
        assert old.wait(20 * SLOW) == 0
        old.check_clean()
