"""Python's h2 and ssl as the destination of our tunnels: answers, orders of frames and TLS ends that a foreign proxy may produce."""
import datetime
import os
import ssl
import time

import h2.errors
import h2.settings
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import server_context
from testenv.peer import PeerConnection
from tools import digest

SETTINGS_ACK = bytes([0, 0, 0, 4, 1, 0, 0, 0, 0])


class Reflecting(PeerConnection):
    def on_data(self, stream, data):
        self.send(stream, data)

    def on_end(self, stream):
        self.h2.end_stream(stream)


def works(world, data=b"hello world"):
    return world.client.request(world.pod.ip, 8080, data) == data


# ---- answers ----

@pytest.mark.parametrize("status, text", [(401, "401 Unauthorized"), (503, "503 Service Unavailable")])
def test_a_refusal_with_a_body_and_trailers(outbound, status, text):
    """An answer that has all that HTTP allows; the tunnel serves the next stream."""
    class Chatty(Reflecting):
        def on_request(self, stream, headers):
            if stream > 1:
                return self.answer(stream)
            self.answer(stream, status, extra=[("server", "h2"), ("content-type", "text/plain")])
            self.send(stream, b"no")
            self.h2.send_headers(stream, [("grpc-status", "7")], end_stream=True)
    peer = outbound.serve(Chatty)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    assert outbound.error().startswith(f"http status: {text}")
    assert works(outbound)
    assert len(peer.connections) == 1


def test_200_with_trailers_at_the_end(outbound):
    class Trailing(PeerConnection):
        def on_end(self, stream):
            self.send(stream, b"answer")
            self.h2.send_headers(stream, [("x-checksum", "1")], end_stream=True)
    outbound.serve(Trailing)
    assert outbound.client.request(outbound.pod.ip, 8080, b"GET") == b"answer"
    assert outbound.daemon.wait_line("connection complete").level == "info"


def test_200_with_end_stream(outbound):
    """An answer that is over at once: FIN to the client, whose own bytes still go out."""
    class Brief(PeerConnection):
        def on_request(self, stream, headers):
            self.answer(stream, end=True)
    peer = outbound.serve(Brief)
    assert outbound.client.request(outbound.pod.ip, 8080, b"one way") == b""
    (c, stream, _), = peer.streams()
    eventually(lambda: c.data[stream] == b"one way" and stream in c.ended)


def test_informational_answers_before_the_final_one(outbound):
    class Hinting(Reflecting):
        def on_request(self, stream, headers):
            self.answer(stream, 103, extra=[("link", "</x>")])
            self.answer(stream, 100)
            self.answer(stream)
    outbound.serve(Hinting)
    assert works(outbound)


# ---- orders of frames ----

class LateAck(Reflecting):
    """Says its SETTINGS ACK only when told to."""
    held = True

    def flush(self):
        data = self.h2.data_to_send()
        if self.held:
            data = data.replace(SETTINGS_ACK, b"")
        if data:
            self.sock.sendall(data)

    def release(self):
        self.held = False
        self.sock.sendall(SETTINGS_ACK)


def test_data_before_settings_ack(outbound):
    """Envoy's HEADERS and DATA may come before its SETTINGS ACK (spec/dataplane §15)."""
    peer = outbound.serve(LateAck)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        peer.newest().post(lambda c: c.release())
        s.sendall(b"b")
        assert s.recv(1) == b"b"


def test_settings_ack_never_sent(outbound):
    outbound.serve(LateAck)
    for _ in range(3):
        assert works(outbound)


def test_settings_changed_under_way(outbound):
    """INITIAL_WINDOW_SIZE down to nothing and up again, MAX_CONCURRENT_STREAMS lowered below what is open: bytes are only delayed."""
    peer = outbound.serve(Reflecting)
    codes = h2.settings.SettingCodes
    with outbound.client.connect(outbound.pod.ip, 8080) as s, outbound.client.connect(outbound.pod.ip, 8080) as t:
        for x in (s, t):
            x.sendall(b"a")
            assert x.recv(1) == b"a"
        c = peer.newest()
        c.post(lambda c: c.h2.update_settings({codes.INITIAL_WINDOW_SIZE: 0, codes.MAX_CONCURRENT_STREAMS: 1}))
        eventually(lambda: c.h2.local_settings.initial_window_size == 0)
        stream = max(x for x, _ in c.requests)
        before = len(c.data[stream])
        t.sendall(b"x" * 50_000)
        c.post(lambda c: c.h2.update_settings({codes.INITIAL_WINDOW_SIZE: 65535, codes.MAX_CONCURRENT_STREAMS: 100}))
        eventually(lambda: len(c.data[stream]) == before + 50_000)


@pytest.mark.parametrize("frame", [bytes([0, 0, 8, 0xbe, 0, 0, 0, 0, 1]) + b"whatever", bytes([0, 0, 0, 0xef, 0xff, 0, 0, 0, 0]),
                                   bytes([0, 0, 5, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 16])])
def test_unknown_frames_are_ignored(outbound, frame):
    """GREASE and PRIORITY, on the stream and on the connection."""
    class Greasing(Reflecting):
        def on_data(self, stream, data):
            self.raw(frame)
            self.send(stream, data)
            self.raw(frame)
    outbound.serve(Greasing)
    assert works(outbound)


def test_padded_data(outbound):
    class Padding(Reflecting):
        def on_data(self, stream, data):
            for i in range(0, len(data), 1000):
                self.h2.send_data(stream, data[i:i + 1000], pad_length=200)
    outbound.serve(Padding)
    assert works(outbound, os.urandom(20_000))


def test_pings_of_the_peer_are_answered_under_load(outbound):
    """A PING with every piece of data; Envoy sends one each second and gives us two."""
    class Pinging(Reflecting):
        sent = answered = slowest = 0

        def on_data(self, stream, data):
            super().on_data(stream, data)
            if self.sent == self.answered:
                self.sent += 1
                self.at = time.monotonic()
                self.h2.ping(b"%8d" % self.sent)

        def event(self, event):
            if type(event).__name__ == "PingAckReceived":
                self.answered += 1
                self.slowest = max(self.slowest, time.monotonic() - self.at)
            super().event(event)
    peer = outbound.serve(Pinging)
    block = os.urandom(10_000)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        for _ in range(200):
            s.sendall(block)
            got = b""
            while len(got) < len(block):
                got += s.recv(65536)
            assert got == block
    c = peer.newest()
    eventually(lambda: c.answered == c.sent > 20)
    assert c.slowest < 1 * SLOW


# ---- how a stream ends ----

@pytest.mark.parametrize("code", ["NO_ERROR", "CANCEL", "CONNECT_ERROR"])
def test_data_then_reset_is_all_delivered_and_ends_with_fin(outbound, code):
    """Envoy's way to end (spec/dataplane §15), with DATA in many frames just before."""
    body = os.urandom(60_000)

    class Envoy(PeerConnection):
        def on_end(self, stream):
            for i in range(0, len(body), 4096):
                self.send(stream, body[i:i + 4096])
            self.reset(stream, h2.errors.ErrorCodes[code])
    outbound.serve(Envoy)
    assert digest(outbound.client.request(outbound.pod.ip, 8080, b"GET")) == digest(body)
    assert outbound.daemon.wait_line("connection complete").level == "info" or code == "CANCEL"


@pytest.mark.parametrize("code", ["INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "ENHANCE_YOUR_CALM", "PROTOCOL_ERROR", "HTTP_1_1_REQUIRED"])
def test_other_resets_are_failures(outbound, code):
    class Failing(PeerConnection):
        def on_data(self, stream, data):
            self.reset(stream, h2.errors.ErrorCodes[code])
    peer = outbound.serve(Failing)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        s.sendall(b"x")
        try:
            assert s.recv(1) == b""
        except ConnectionResetError:
            pass
    assert outbound.error().startswith("receive: h2 failed")
    assert not works_quietly(outbound) and len(peer.connections) == 1, "one stream's failure is not the tunnel's"


def works_quietly(world):
    try:
        return works(world)
    except OSError:
        return False


def test_refused_stream_is_tried_again(outbound):
    """REFUSED_STREAM proves that nothing was processed (RFC 9113, 8.7)."""
    class Shy(Reflecting):
        refused = False

        def on_request(self, stream, headers):
            if self is self.peer.connections[0] and not self.refused:
                self.refused = True
                return self.reset(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            self.answer(stream)
    outbound.serve(Shy)
    assert works(outbound)
    assert outbound.daemon.wait_line("connection complete").level == "info"


def test_reset_before_the_answer(outbound):
    class Rude(PeerConnection):
        def on_request(self, stream, headers):
            self.reset(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
    outbound.serve(Rude)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    assert "INTERNAL_ERROR" in outbound.error()
    assert outbound.failed("H2_HANDSHAKE_FAILURE") == 1


# ---- how a tunnel ends ----

def test_goaway_race(outbound):
    """Streams above the last id go to a new tunnel, those below stay; nobody loses a byte (spec/dataplane §15)."""
    class Leaving(Reflecting):
        def on_request(self, stream, headers):
            if self is self.peer.connections[0] and stream > 5:
                if stream == 7:
                    self.raw(bytes([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0]))  # GOAWAY(5, NO_ERROR)
                return
            self.answer(stream)
    peer = outbound.serve(Leaving)
    sockets = []
    for i in range(6):
        sockets.append(outbound.client.connect(outbound.pod.ip, 8080))
        sockets[-1].sendall(b"early")
        if i < 3:
            assert sockets[-1].recv(5, 0x100) == b"early"
    for i, s in enumerate(sockets):
        if i >= 3:
            assert s.recv(5, 0x100) == b"early"
        s.sendall(b"later")
        assert s.recv(5, 0x100) == b"later"
        s.close()
    assert len(peer.connections) == 2
    assert sorted(len(c.requests) for c in peer.connections)[0] >= 3
    first = peer.connections[0]
    assert all(first.data[stream] == b"" for stream, _ in first.requests if stream > 5), "bytes went out before the answer"
    eventually(lambda: not first.alive, "the old tunnel closes with its last stream")
    assert not [x for x in outbound.daemon.lines("connection complete") if x.level == "error"]


@pytest.mark.parametrize("how", ["fin", "close_notify", "goaway"])
def test_an_idle_tunnel_closed_by_the_peer(outbound, how):
    """The next connection opens a new one; no request is lost, at whatever moment it comes."""
    peer = outbound.serve(Reflecting)

    def leave(c):
        if how == "goaway":
            c.goaway(2**31 - 1)
            c.flush()
        if how == "close_notify":
            c.sock.settimeout(0.1)
            try:
                c.sock.unwrap()
            except (OSError, ssl.SSLError):
                pass
        c.sock.shutdown(2)
    for i in range(5):
        assert works(outbound)
        c = peer.newest(i + 1)
        c.post(leave)
        if i % 2:
            eventually(lambda: not c.alive)
        else:
            eventually(lambda: outbound.daemon.activity() == (0, 0))
    assert not [x for x in outbound.daemon.lines("connection complete") if x.level == "error"]


def test_a_peer_that_is_killed_and_comes_back(outbound, tmp_path):
    peer = outbound.serve(Reflecting)
    assert works(outbound)
    c = peer.newest()
    outbound.pod.servers.pop().close()
    c.post(lambda c: c.sock.shutdown(2))
    eventually(lambda: not c.alive)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    from testenv.peer import Peer
    Peer(outbound.pod, str(tmp_path / "cert"), Reflecting)
    assert works(outbound)


def test_goaway_with_an_error_ends_what_is_open(outbound):
    class Angry(PeerConnection):
        def on_data(self, stream, data):
            self.h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM, last_stream_id=stream)
            self.flush()
            self.sock.shutdown(2)
    peer = outbound.serve(Angry)
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        s.sendall(b"x")
        try:
            assert s.recv(1) == b""
        except ConnectionResetError:
            pass
    assert outbound.error()
    assert outbound.daemon.activity() == (0, 0)
    assert len(peer.connections) == 1


# ---- time limits ----

def gives_up(world, flag="CONNECT"):
    """The client is reset after the time limit, neither before nor long after."""
    started = time.monotonic()
    assert world.client.refused(world.pod.ip, 8080)
    assert 1 * SLOW < time.monotonic() - started < 6 * SLOW
    world.error()
    assert world.failed(flag) == 1


def test_settings_never_sent(outbound):
    class Mute(PeerConnection):
        def run(self):
            while self.sock.recv(65536):
                pass
    outbound.serve(Mute)
    gives_up(outbound, "H2_HANDSHAKE_FAILURE")
    assert outbound.error() == "http2 handshake failed: timed out waiting for SETTINGS"


def test_connect_never_answered(outbound):
    class Silent(PeerConnection):
        def on_request(self, stream, headers):
            pass
    peer = outbound.serve(Silent)
    gives_up(outbound)
    assert len(peer.streams()) == 1


# ---- TLS ----

def test_only_tls_1_2(outbound):
    def old(cert):
        context = server_context(cert)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context
    peer = outbound.serve(Reflecting, context=old)
    assert outbound.client.refused(outbound.pod.ip, 8080)
    assert outbound.error().startswith("io error: ")
    assert outbound.failed("CONNECT") == 1
    assert not peer.connections


def test_another_identity(outbound):
    outbound.serve(Reflecting, identity="spiffe://cluster.local/ns/default/sa/impostor")
    assert outbound.client.refused(outbound.pod.ip, 8080)
    error = outbound.error()
    assert error.startswith("io error: ") and "identity verification error: peer did not present the expected SAN" in error
    assert outbound.pod.identity in error
    assert outbound.failed("CONNECT") == 1


def sign(world, cert_dir, identity, not_before, not_after, eku=x509.oid.ExtendedKeyUsageOID.SERVER_AUTH):
    """A certificate of the mesh's own root, with what the daemon would not issue, in place of the one in cert_dir."""
    with open(os.path.join(world.directory, "ca", "root.pem"), "rb") as f:
        pem = f.read()
    ca_key = serialization.load_pem_private_key(pem, None)
    ca = x509.load_pem_x509_certificate(pem[pem.index(b"-----BEGIN CERT"):])
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.utcnow()
    cert = (x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(ca.subject).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now + not_before).not_valid_after(now + not_after)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
            .add_extension(x509.ExtendedKeyUsage([eku]), critical=False)
            .sign(ca_key, hashes.SHA256()))
    with open(os.path.join(cert_dir, "cert-chain.pem"), "wb") as f:
        f.write(cert.public_bytes(serialization.Encoding.PEM) + ca.public_bytes(serialization.Encoding.PEM))
    with open(os.path.join(cert_dir, "key.pem"), "wb") as f:
        f.write(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


DAY = datetime.timedelta(days=1)
SERVER_AUTH, CLIENT_AUTH = x509.oid.ExtendedKeyUsageOID.SERVER_AUTH, x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH


@pytest.mark.parametrize("begin, end, eku, accepted", [
    (-2 * DAY, -DAY, SERVER_AUTH, False), (DAY, 2 * DAY, SERVER_AUTH, False), (-DAY, DAY, CLIENT_AUTH, False),
    (-DAY, DAY, SERVER_AUTH, True)], ids=["expired", "not-yet-valid", "wrong-usage", "good"])
def test_certificates_signed_by_another_library(outbound, begin, end, eku, accepted):
    def context(cert):
        sign(outbound, cert, outbound.pod.identity, begin, end, eku)
        return server_context(cert)
    outbound.serve(Reflecting, context=context)
    if accepted:
        assert works(outbound)
        return
    assert outbound.client.refused(outbound.pod.ip, 8080)
    assert outbound.error().startswith("io error: ")
    assert outbound.failed("CONNECT") == 1


def test_a_server_that_selects_no_alpn_is_tolerated(outbound):
    def silent(cert):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(os.path.join(cert, "root-cert.pem"))
        context.load_cert_chain(os.path.join(cert, "cert-chain.pem"), os.path.join(cert, "key.pem"))
        return context
    peer = outbound.serve(Reflecting, context=silent)
    assert works(outbound)
    assert peer.newest().sock.selected_alpn_protocol() is None


@pytest.mark.parametrize("tickets", [0, 2, 8])
def test_session_tickets_are_tolerated_and_one_is_used(outbound, tickets):
    """The next tunnel to the same server resumes where the server gave a ticket."""
    peer = outbound.serve(Reflecting, num_tickets=tickets)
    for i in range(2):
        assert works(outbound)
        c = peer.newest(i + 1)
        assert c.sock.session_reused == (tickets > 0 and i > 0)
        c.post(lambda c: c.sock.shutdown(2))
        eventually(lambda: outbound.daemon.activity() == (0, 0))


def test_what_the_client_offers(outbound):
    peer = outbound.serve(Reflecting)
    assert works(outbound)
    c = peer.newest()
    assert c.sock.version() == "TLSv1.3" and c.sock.selected_alpn_protocol() == "h2"
    assert ("URI", outbound.client.identity) in c.sock.getpeercert()["subjectAltName"]
    assert c.h2.remote_settings.enable_push == 0
