"""The tunnel's client side against a server of our own: what is sent, and what each answer does (spec/dataplane §2.10, §3, §15)."""
import re
import socket

import h2.errors
import h2.settings
import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import issue
from testenv.peer import Peer, PeerConnection


class Reflecting(PeerConnection):
    def on_data(self, stream, data):
        self.send(stream, data)

    def on_end(self, stream):
        self.h2.end_stream(stream)


@pytest.fixture
def outbound(world, tmp_path):
    """A captured client whose destination is a pod of ours that no daemon serves: outbound.serve(kind) starts both."""
    world.client, world.pod = world.node().pod("client"), world.node().pod("peer")
    world.pod.enrolled = True  # that is: leave it alone
    world.service("peers", [world.pod], "10.96.0.5")

    def serve(kind=Reflecting, identity=None, alpn=("h2",), **env):
        world.write()
        world.daemon = world.nodes[0].start(ZTUNNELD_CONNECT_TIMEOUT=f"{2 * SLOW}s", **env)
        cert = issue(world.daemon, identity or world.pod.identity, tmp_path / "cert")
        from testenv.hbone import server_context
        return Peer(world.pod, cert, kind, context=server_context(cert, alpn))
    world.serve = serve
    world.error = lambda: world.daemon.wait_line("connection complete", direction="outbound").fields["error"]
    return world


def outbound_flag(daemon, flag):
    return daemon.metric("istio_tcp_connections_failed_total", reporter="source", response_flags=flag)


def test_connect_request_headers(outbound):
    """CONNECT with authority, baggage, forwarded and traceparent; no scheme, no path; the VIP only in forwarded's host."""
    peer = outbound.serve()
    with outbound.client.connect("10.96.0.5", 80) as s:
        port = s.getsockname()[1]
        s.sendall(b"x")
        assert s.recv(1) == b"x"
    (_, _, headers), = peer.streams()
    assert headers[":method"] == "CONNECT" and headers[":authority"] == f"{outbound.pod.ip}:8080"
    assert ":scheme" not in headers and ":path" not in headers
    assert headers["baggage"] == ("k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,"
                                  "service.name=client,service.version=v1")
    assert headers["forwarded"] == f'for="{outbound.client.ip}:{port}";host=peers.default.svc.cluster.local'
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", headers["traceparent"])
    assert "x-forwarded-network" not in headers


def test_extra_headers_and_data_right_behind_the_answer_are_taken(outbound):
    """A 200 with date and server, DATA before anything was asked for: a server-first protocol through an Envoy."""
    class Eager(PeerConnection):
        def on_request(self, stream, headers):
            self.answer(stream, extra=[("date", "Thu, 01 Jan 1970 00:00:00 GMT"), ("server", "envoy")])
            self.send(stream, b"220 ready\r\n", end=True)
    outbound.serve(Eager)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        assert s.recv(100) == b"220 ready\r\n"
        assert s.recv(100) == b""


def test_data_before_a_reset_is_delivered_and_ends_with_fin(outbound):
    """Envoy's way to end: DATA, then RST_STREAM(CONNECT_ERROR) without END_STREAM (spec/dataplane §15)."""
    class Envoy(PeerConnection):
        def on_end(self, stream):
            self.send(stream, b"z" * 16000)
            self.flush()
            self.reset(stream, h2.errors.ErrorCodes.CONNECT_ERROR)
    outbound.serve(Envoy)
    assert outbound.client.request(outbound.pod.ip, 8080, b"GET") == b"z" * 16000


@pytest.mark.parametrize("status, text", [(400, "400 Bad Request"), (401, "401 Unauthorized"), (503, "503 Service Unavailable"),
                                          (429, "429 Too Many Requests"), (299, "299 <unknown status code>")])
def test_a_refusal_names_its_status_and_resets_the_client(outbound, status, text):
    class Refusing(PeerConnection):
        def on_request(self, stream, headers):
            self.answer(stream, status, end=True)
    peer = outbound.serve(Refusing)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    assert outbound.error().startswith(f"http status: {text}")
    assert outbound_flag(outbound.daemon, "CONNECT") == 1
    (c, stream, _), = peer.streams()
    assert c.data[stream] == b"", "bytes of the client went out before the answer"


def test_nothing_is_read_from_the_client_before_the_answer(outbound):
    class Slow(Reflecting):
        def on_request(self, stream, headers):
            pass
    peer = outbound.serve(Slow)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        s.sendall(b"early")
        c = peer.newest()
        eventually(lambda: c.requests, "the request")
        stream = c.requests[0][0]
        assert c.data[stream] == b""
        c.post(lambda c: c.answer(stream))
        assert s.recv(5) == b"early"


def test_goaway_ends_reuse_but_not_open_streams(outbound):
    """GOAWAY(2^31-1): the next connection gets a new tunnel, what is open goes on, and the old tunnel closes with its last stream."""
    peer = outbound.serve()
    with outbound.client.connect(outbound.pod.ip, 8080) as old:
        old.sendall(b"a")
        assert old.recv(1) == b"a"
        first = peer.newest()
        first.post(lambda c: (c.goaway(2**31 - 1), c.h2.ping(b"seen it?")))
        eventually(lambda: first.pongs, "the daemon has read the GOAWAY")
        with outbound.client.connect(outbound.pod.ip, 8080) as new:
            new.sendall(b"b")
            assert new.recv(1) == b"b"
            assert len(peer.connections) == 2 and len(peer.connections[1].requests) == 1
        old.sendall(b"c")
        assert old.recv(1) == b"c" and first.alive
    eventually(lambda: not first.alive, "the old tunnel has closed")


def test_a_request_that_goaway_proves_unprocessed_is_tried_again(outbound):
    """The stream met the GOAWAY on the wire: the client notices nothing (spec/dataplane §15, GOAWAY race)."""
    class Leaving(Reflecting):
        def on_request(self, stream, headers):
            if self is self.peer.connections[0]:
                self.goaway(0)
            else:
                self.answer(stream)
    peer = outbound.serve(Leaving)
    assert outbound.client.request(outbound.pod.ip, 8080) == b"hello world"
    assert len(peer.connections) == 2
    assert outbound.daemon.wait_line("connection complete").level == "info"


def test_a_tunnel_that_the_peer_closed_is_not_handed_out(outbound):
    """Idle tunnel closed from the other end, then a new connection: nothing fails."""
    peer = outbound.serve()
    for round_ in range(3):
        assert outbound.client.request(outbound.pod.ip, 8080) == b"hello world"
        c = peer.newest(round_ + 1)
        c.post(lambda c: c.sock.shutdown(socket.SHUT_RDWR))
        eventually(lambda: not c.alive)
    assert not [x for x in outbound.daemon.lines("connection complete") if x.level == "error"]


def test_a_peer_with_another_identity_is_refused(outbound):
    outbound.serve(identity="spiffe://cluster.local/ns/default/sa/impostor")
    assert outbound.client.refused(outbound.pod.ip, 8080)
    error = outbound.error()
    assert error.startswith("io error: ") and "identity verification error: peer did not present the expected SAN (" in error
    assert outbound.pod.identity in error and "got spiffe://cluster.local/ns/default/sa/impostor" in error
    assert outbound_flag(outbound.daemon, "CONNECT") == 1


def test_a_peer_that_never_answers_connect_is_given_up(outbound):
    class Silent(PeerConnection):
        def on_request(self, stream, headers):
            pass
    outbound.serve(Silent)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    outbound.error()
    assert outbound_flag(outbound.daemon, "CONNECT") == 1


def test_a_peer_that_never_shakes_hands_is_given_up(outbound):
    outbound.serve()
    outbound.pod.servers.pop().close()
    outbound.pod.serve(15008, lambda s, peer: s.recv(1) and s.recv(100000) and s.recv(1))
    assert outbound.client.refused(outbound.pod.ip, 8080)
    outbound.error()
    assert outbound_flag(outbound.daemon, "CONNECT") == 1


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 200], ids=["http1", "zeros"])
def test_a_peer_that_speaks_no_http2_is_a_failed_handshake(outbound, said):
    class Strange(PeerConnection):
        def run(self):
            self.sock.sendall(said)
            self.sock.recv(65536)
            self.sock.close()
    outbound.serve(Strange)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    assert outbound.error().startswith(("http2 handshake failed: ", "h2 failed: "))
    assert outbound_flag(outbound.daemon, "H2_HANDSHAKE_FAILURE") == 1


def test_the_peers_limit_of_streams_is_honoured(outbound):
    """MAX_CONCURRENT_STREAMS below our own limit: more connections, more tunnels, no failure."""
    class Narrow(Reflecting):
        settings = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2}
    peer = outbound.serve(Narrow)
    assert outbound.client.request(outbound.pod.ip, 8080) == b"hello world"
    open_ = [outbound.client.connect(outbound.pod.ip, 8080) for _ in range(5)]
    for s in open_:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
    for c in peer.connections:
        assert len([x for x, _ in c.requests if x not in c.ended]) <= 2
    for s in open_:
        s.close()


def test_small_windows_of_the_peer_do_not_lose_bytes(outbound):
    class Small(Reflecting):
        settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1000}
    outbound.serve(Small)
    block = bytes(range(256)) * 400
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        got = b""
        for i in range(0, len(block), 10240):
            s.sendall(block[i:i + 10240])
            while len(got) < min(i + 10240, len(block)):
                got += s.recv(65536)
        assert got == block


@pytest.mark.parametrize("code, text", [(h2.errors.ErrorCodes.INTERNAL_ERROR, "receive: h2 failed: INTERNAL_ERROR"),
                                        (h2.errors.ErrorCodes.REFUSED_STREAM, "receive: h2 failed: REFUSED_STREAM")])
def test_a_stream_that_is_reset_names_its_code(outbound, code, text):
    """The log names the code, the client sees a reset, and other streams of the tunnel go on."""
    class Resetting(PeerConnection):
        def on_data(self, stream, data):
            if data == b"reset me":
                self.reset(stream, code)
            else:
                self.send(stream, data)
    outbound.serve(Resetting)
    with outbound.client.connect(outbound.pod.ip, 8080) as kept, outbound.client.connect(outbound.pod.ip, 8080) as s:
        kept.sendall(b"a")
        assert kept.recv(1) == b"a"
        s.sendall(b"reset me")
        with pytest.raises(ConnectionResetError):
            while s.recv(100):
                pass
            raise AssertionError("FIN instead of a reset")
        line = outbound.daemon.wait_line("connection complete", direction="outbound", error=text)
        assert line.level == "error" and outbound_flag(outbound.daemon, "CONNECT") == 1
        kept.sendall(b"b")
        assert kept.recv(1) == b"b"


def test_a_destination_that_leaves_before_all_is_written_says_so(outbound):
    """RST_STREAM(STREAM_CLOSED) against an upload: what was still to be written is not lost in silence."""
    class Leaving(PeerConnection):
        def on_data(self, stream, data):
            if stream not in self.ended:
                self.ended.add(stream)
                self.reset(stream, h2.errors.ErrorCodes.STREAM_CLOSED)
    outbound.serve(Leaving)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                s.sendall(b"x" * 65536)
    line = outbound.daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["error"] == "send: destination disconnected before all data was written"
    assert outbound_flag(outbound.daemon, "CONNECT") == 1
