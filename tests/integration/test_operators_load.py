"""The operators' servers under clients that are many, slow or wrong (the issue's text; spec/interfaces §3)."""
import socket
import threading

import pytest

from testenv import eventually
from testenv.daemon import SLOW

BAD = [b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
       b"GET /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
       b"POST /logging?level=%ff%00%0a HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
       b"POST /logging HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n"]


def connect(daemon, port):
    s = daemon.netns.socket()
    s.settimeout(10 * SLOW)
    with daemon.netns.inside():
        s.connect(("127.0.0.1", port))
    return s


@pytest.mark.parametrize("port", [15000, 15020, 15021])
def test_malformed_requests_harm_nobody(world, port):
    node = world.node()
    world.start()
    daemon = node.daemon
    for bad in BAD:
        with connect(daemon, port) as s:
            s.sendall(bad)
            try:
                s.shutdown(socket.SHUT_WR)
                answer = s.recv(65536)
            except ConnectionError:
                answer = b""
            assert b" 200 OK" not in answer.split(b"\r\n")[0] or bad.startswith(b"POST /logging?"), (bad[:60], answer[:200])
    assert daemon.http(15021, "/healthz/ready")[0] == 200 and daemon.http(15020, "/metrics")[0] == 200
    assert daemon.dump()["workloads"] == []


def test_hundreds_of_parallel_and_slow_clients_are_served(world):
    node = world.node()
    world.start()
    daemon = node.daemon
    silent = [connect(daemon, 15000) for _ in range(100)]
    slow = []
    for _ in range(20):
        slow.append(connect(daemon, 15020))
        slow[-1].sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")  # and nothing is read
    failed = []

    def ask(port, path):
        try:
            for _ in range(5):
                assert daemon.http(port, path)[0] == 200
        except (AssertionError, OSError) as e:
            failed.append((port, repr(e)))
    threads = [threading.Thread(target=ask, args=where) for where in
               [(15000, "/config_dump"), (15020, "/metrics"), (15021, "/healthz/ready")] * 25]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failed == []
    for s in silent:
        assert s.recv(1) == b""  # closed without an answer after 2 s
    for s in silent + slow:
        s.close()
    eventually(lambda: daemon.open_fds() < 60)
