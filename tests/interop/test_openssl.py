"""The openssl program at either end: s_client against port 15008, s_server as the destination of a tunnel."""
import os
import re
import subprocess

import h2.config
import h2.connection
import h2.events
import pytest

from testenv import eventually
from testenv.hbone import Tunnel
from tools import Pipe


def credentials(cert):
    return ["-cert", os.path.join(cert, "cert-chain.pem"), "-cert_chain", os.path.join(cert, "cert-chain.pem"),
            "-key", os.path.join(cert, "key.pem"), "-CAfile", os.path.join(cert, "root-cert.pem")]


def s_client(server, *options, cert=True, seconds=1):
    """Everything that s_client says about one connection; it stays a moment, so that a ticket would be seen."""
    where = ["-connect", f"{server.server.ip}:15008"]
    own = credentials(server.cert) if cert else []
    run = server.outsider.netns.command("sh", "-c", f"sleep {seconds} | exec \"$@\"", "sh", "openssl", "s_client", *where, *own, *options)
    return subprocess.run(run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode(errors="replace")


def test_the_server_profile(server):
    """spec/dataplane §4.2: TLS 1.3, AES-256-GCM preferred, X25519, h2, a certificate request that names the roots. A ticket is the
    number of a session that the server keeps, not the session itself."""
    said = s_client(server, "-alpn", "h2", "-verify_return_error")
    assert "New, TLSv1.3, Cipher is TLS_AES_256_GCM_SHA384" in said
    assert "Server Temp Key: X25519" in said
    assert "ALPN protocol: h2" in said
    assert "Verify return code: 0 (ok)" in said
    assert "Acceptable client certificate CA names" in said
    assert "Requested Signature Algorithms" in said
    tickets = said.split("TLS session ticket:\n")[1:]
    assert tickets and all(len(re.findall(r"^ +[0-9a-f]{4} - ", t.split("\n\n")[0], re.M)) == 2 for t in tickets)  # 32 bytes
    assert "Reused" not in said


@pytest.mark.parametrize("offer, chosen", [
    ("TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256", {"TLS_AES_256_GCM_SHA384"}),
    ("TLS_AES_128_GCM_SHA256", {"TLS_AES_128_GCM_SHA256"}),
    ("TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256", {"TLS_AES_128_GCM_SHA256"}),
    ("TLS_CHACHA20_POLY1305_SHA256", set())])
def test_suites(server, offer, chosen):
    said = s_client(server, "-alpn", "h2", "-ciphersuites", offer, seconds=0.3)
    assert set(re.findall(r"New, TLSv1.3, Cipher is (\S+)", said)) == chosen


@pytest.mark.parametrize("offer, chosen", [("X25519:P-256", "X25519"), ("P-256", "ECDH, prime256v1"), ("P-384", "ECDH, secp384r1"),
                                           ("P-521", None), ("X448", None)])
def test_groups(server, offer, chosen):
    said = s_client(server, "-alpn", "h2", "-groups", offer, seconds=0.3)
    assert (f"Server Temp Key: {chosen}" in said) if chosen else ("Server Temp Key" not in said)


def test_alpn(server):
    assert "No ALPN negotiated" in s_client(server, seconds=0.3)  # a client that offers none is accepted
    assert "ALPN protocol: h2" in s_client(server, "-alpn", "http/1.1,h2", seconds=0.3)
    assert "no application protocol" in s_client(server, "-alpn", "http/1.1", seconds=0.3)
    server.daemon.wait_line("connection failed", direction="inbound")


def test_tls_1_2_is_refused(server):
    assert "alert protocol version" in s_client(server, "-tls1_2", "-alpn", "h2", seconds=0.3)


def test_no_certificate_is_refused(server):
    said = s_client(server, "-alpn", "h2", cert=False)
    assert "alert certificate required" in said or "alert handshake failure" in said
    assert "tls handshake error: " in server.daemon.wait_line("connection failed", direction="inbound").fields["error"]


def test_there_is_nothing_to_resume(server):
    """Without a ticket there is no session: s_client -reconnect does six full handshakes, without early data."""
    said = s_client(server, "-alpn", "h2", "-reconnect")
    assert said.count("New, TLSv1.3, Cipher is") == 6 and "Reused, TLSv1.3" not in said
    assert said.count("Early data was not sent") == 6


class PipeTunnel(Tunnel):
    """HTTP/2 of ours over the TLS of s_client."""

    def __init__(self, server):
        self.sock = Pipe(server.outsider.netns, "openssl", "s_client", "-quiet", "-no_ign_eof", "-alpn", "h2", "-connect",
                         f"{server.server.ip}:15008", *credentials(server.cert))
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, validate_inbound_headers=False))
        self.h2.initiate_connection()
        self.events = []
        self.flush()


@pytest.mark.parametrize("letter", [b"k", b"K"], ids=["update", "update-requested"])
def test_key_updates_of_a_client(server, letter):
    """New keys for one direction, and for both, in the midst of a stream (RFC 8446, 4.6.3)."""
    server.server.reflect(8090)
    with PipeTunnel(server) as t:
        stream = t.connect(f"{server.server.ip}:8090")
        assert t.status(stream)[0] == 200
        for i in range(20):
            data = os.urandom(4000)
            t.send(stream, data)
            got = b""
            while len(got) < len(data):
                got += t.wait(h2.events.DataReceived, stream).data
            assert got == data
            t.sock.command(letter)
        t.send(stream, b"", end=True)
        assert t.receive(stream) == b""
    line = server.daemon.wait_line("connection complete", direction="inbound")
    assert line.level == "info" and line.fields["bytes_recv"] == "80000"


@pytest.mark.parametrize("letter", [b"k", b"K"], ids=["update", "update-requested"])
def test_key_updates_of_a_server(outbound, letter):
    """s_server carries the HTTP/2 of Python's h2; after each piece it changes its keys, and asks for ours to change."""
    cert = outbound.begin()
    pipe = Pipe(outbound.pod.netns, "openssl", "s_server", "-accept", f"{outbound.pod.ip}:15008", "-alpn", "h2", "-tls1_3", "-naccept", "1",
                "-Verify", "3", "-verify_return_error", *credentials(cert))
    try:
        eventually(lambda: f"{outbound.pod.ip}:15008" in outbound.pod.netns.run("ss", "-Hltn"))
        with outbound.client.connect(outbound.pod.ip, 8080) as s:
            serve_one(pipe, s, letter)
    finally:
        pipe.close()
    assert outbound.daemon.wait_line("connection complete").fields["bytes_sent"] == "20000"


def serve_one(pipe, app, letter):
    said = pipe.skip_to(b"PRI * HTTP/2.0")
    assert b"CIPHER is TLS_AES_256_GCM_SHA384" in said
    server = h2.connection.H2Connection(h2.config.H2Configuration(
        client_side=False, header_encoding="utf-8", validate_outbound_headers=False, validate_inbound_headers=False))
    server.initiate_connection()
    stream, got = None, b""
    pipe.sendall(server.data_to_send())
    for i in range(21):  # the request, then twenty pieces
        goal = i * 1000
        if i:
            app.sendall(bytes([i]) * 1000)
        while stream is None or len(got) < goal:
            for event in server.receive_data(pipe.recv(65536)):
                if isinstance(event, h2.events.RequestReceived):
                    stream = event.stream_id
                    server.send_headers(stream, [(":status", "200")])
                elif isinstance(event, h2.events.DataReceived):
                    got += event.data
                    server.send_data(stream, event.data)
                    server.acknowledge_received_data(event.flow_controlled_length, stream)
            pipe.sendall(server.data_to_send())
        if i:
            assert app.recv(1000, 0x100) == bytes([i]) * 1000
            pipe.command(letter)


@pytest.mark.parametrize("said", [None, "HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "http1"])
def test_a_tls_peer_without_http2(outbound, launch, said):
    """The handshake is finished, the HTTP/2 is not: a failed handshake at once when the peer talks, at the time limit when it does not."""
    cert = outbound.begin()
    peer = launch(outbound.pod, "openssl", "s_server", "-accept", f"{outbound.pod.ip}:15008", "-alpn", "h2", "-tls1_3", "-Verify", "3",
                  *credentials(cert))
    peer.wait_for("ACCEPT")
    with outbound.client.connect(outbound.pod.ip, 8080) as s:
        peer.wait_for("CIPHER is TLS_AES_256_GCM_SHA384")
        if said:
            peer.say(said)
        with pytest.raises(ConnectionResetError):
            assert s.recv(1) == b"never"
    assert outbound.error().startswith("http2 handshake failed: ")
    assert outbound.failed("H2_HANDSHAKE_FAILURE") == 1
    assert "Shared ciphers:TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256\n" in peer.output
    assert "Supported groups: x25519:secp256r1:secp384r1\n" in peer.output
