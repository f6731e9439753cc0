"""Half-close and reset through the whole path (docs/halfclose.md, spec/dataplane §7.2, §15)."""
import hashlib
import itertools
import random
import socket
import struct
import threading
import time

import pytest

from testenv import eventually
from testenv.daemon import SLOW


@pytest.fixture(params=["tunnel", "passthrough"])
def path(pair, request):
    """The client through HBONE, and an uncaptured one through inbound passthrough."""
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    pair.start()
    pair.from_ = pair.client if request.param == "tunnel" else outside
    return pair


def test_client_ends_first_and_still_reads(path):
    def late(s, peer):
        got = b""
        while chunk := s.recv(4096):
            got += chunk
        s.sendall(b"after your end: " + got)
        s.shutdown(socket.SHUT_WR)
    path.server.serve(8080, late)
    assert path.from_.request(path.server.ip, 8080, b"abc") == b"after your end: abc"


def test_server_ends_first_and_still_reads(path):
    got = []
    def early(s, peer):
        s.sendall(b"bye")
        s.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := s.recv(4096):
            data += chunk
        got.append(data)
    path.server.serve(8080, early)
    with path.from_.connect(path.server.ip, 8080) as s:
        assert s.recv(3) == b"bye"
        assert s.recv(1) == b""
        for _ in range(10):
            s.sendall(b"x" * 1000)
        s.shutdown(socket.SHUT_WR)
        eventually(lambda: got and len(got[0]) == 10000, "the server has read it all")


def test_bulk_is_whole_and_counted_to_the_byte(path):
    """Much at once, each way its own length, against a reader that stalls now and then: every byte arrives once and is in the access log."""
    up, down = random.Random(1).randbytes(24 << 20), random.Random(2).randbytes(17 << 20)
    got = []

    def both(s, peer):
        reader = threading.Thread(target=lambda: got.append(slowly(s)))
        reader.start()
        s.sendall(down)
        s.shutdown(socket.SHUT_WR)
        reader.join()

    def slowly(s):
        digest = hashlib.sha256()
        for i in itertools.count():
            chunk = s.recv(1 << 18)
            if not chunk:
                return digest.digest()
            digest.update(chunk)
            if i % 50 == 0:
                time.sleep(0.01)

    path.server.serve(8080, both)
    with path.from_.connect(path.server.ip, 8080) as s:
        sender = threading.Thread(target=lambda: (s.sendall(up), s.shutdown(socket.SHUT_WR)))
        sender.start()
        assert slowly(s) == hashlib.sha256(down).digest()
        sender.join()
        eventually(lambda: got == [hashlib.sha256(up).digest()], "the server has read it all")
    line = path.server.node.daemon.wait_line("connection complete", direction="inbound")
    assert [int(line.fields[k]) for k in ("bytes_recv", "bytes_sent")] == [len(up), len(down)]


def test_end_without_data_crosses_both_ways(path):
    path.server.serve(8080, lambda s, peer: s.recv(1))
    assert path.from_.request(path.server.ip, 8080, b"") == b""


def test_server_first_protocol(path):
    """Nothing waits for the client to speak."""
    path.server.serve(8080, lambda s, peer: s.sendall(b"220 ready\r\n"))
    with path.from_.connect(path.server.ip, 8080) as s:
        assert s.recv(100) == b"220 ready\r\n"


def test_reset_of_the_application_ends_the_client(path):
    def abort(s, peer):
        s.recv(1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    path.server.serve(8080, abort)
    with path.from_.connect(path.server.ip, 8080) as s:
        s.sendall(b"x")
        try:
            assert s.recv(10) == b""
        except ConnectionResetError:
            pass


def test_large_transfer_is_intact_both_ways(path):
    """64 MiB each way at once, with an end in each direction."""
    import hashlib
    import os
    import threading
    path.server.reflect(8080)
    block = os.urandom(1 << 20)
    n = 64 // SLOW
    with path.from_.connect(path.server.ip, 8080) as s:
        s.settimeout(60 * SLOW)
        def push():
            for _ in range(n):
                s.sendall(block)
            s.shutdown(socket.SHUT_WR)
        thread = threading.Thread(target=push)
        thread.start()
        digest, total = hashlib.sha256(), 0
        while data := s.recv(1 << 20):
            digest.update(data)
            total += len(data)
        thread.join()
    want = hashlib.sha256()
    for _ in range(n):
        want.update(block)
    assert total == n << 20 and digest.digest() == want.digest()


def test_a_lost_peer_resets_the_application(pair):
    """The other node's daemon dies: what looks like an end might hide missing bytes, so the client gets a reset."""
    pair.start()
    pair.server.reflect(8080)
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        pair.server.node.daemon.kill()
        with pytest.raises(ConnectionResetError):
            s.recv(1)
    pair.server.node.daemon = None
