"""nghttp2's own programs. nghttp, nghttpd and h2load know no CONNECT, so they cannot carry bytes through a tunnel; what they can do is be
strict HTTP/2 ends of other requests: nghttp -v shows every frame of a refusal, h2load asks a bounded number of times as fast as it can.
h2load has no client certificate: it goes through gopeer's pipe, which has one. (nghttpd serves in test_curl.py.)"""
import os
import re

import pytest

from testenv import eventually
from testenv.daemon import SLOW


def nghttp(server, *options):
    cert = server.cert
    return server.outsider.netns.run("timeout", str(20 * SLOW), "nghttp", "-v", f"--cert={os.path.join(cert, 'cert-chain.pem')}",
                                     f"--key={os.path.join(cert, 'key.pem')}", *options, f"https://{server.server.ip}:15008/", check=False)


def test_get_is_answered_400(server, need):
    need("nghttp")
    said = nghttp(server)
    assert "The negotiated protocol: h2" in said
    assert ":status: 400" in said
    assert "SETTINGS_MAX_CONCURRENT_STREAMS(0x03):200" in said
    assert "[ERROR]" not in said
    assert server.daemon.wait_line("connection failed").fields["error"] == "expected method CONNECT, got GET"


def test_post_with_a_body_is_answered_400(server, need, tmp_path):
    """The body is on its way when the answer comes; the tunnel survives it, twenty times."""
    need("nghttp")
    (tmp_path / "body").write_bytes(b"b" * 300_000)
    said = nghttp(server, "-m", "20", "-d", str(tmp_path / "body"))
    assert len(re.findall(r":status: 400", said)) == 20
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080")[0] == 200


def test_without_a_certificate_there_is_no_http2(server, need):
    need("nghttp")
    said = server.outsider.netns.run("timeout", str(20 * SLOW), "nghttp", "-v", f"https://{server.server.ip}:15008/", check=False)
    assert ":status" not in said
    server.daemon.wait_line("connection failed", direction="inbound")


def still_serves(server):
    with server.tunnel() as t:
        stream = t.connect(f"{server.server.ip}:8080")
        assert t.status(stream)[0] == 200
        t.send(stream, b"a", end=True)
        assert t.receive(stream) == b"aa"
    eventually(lambda: server.daemon.activity() == (0, 0))


def test_a_bounded_flood_of_requests(server, need, gopeer, launch):
    """Five thousand GETs over eight tunnels, a hundred at a time each: all answered, and the daemon is as it was."""
    need("h2load")
    pipe = launch(server.outsider, gopeer, "pipe", "-listen", "127.0.0.1:7000", "-to", f"{server.server.ip}:15008", "-cert", server.cert,
                  "-identity", server.server.identity)
    pipe.wait_for("listening")
    load = ["timeout", str(60 * SLOW), "h2load", "-n", "5000", "-c", "8", "-m", "100", "http://127.0.0.1:7000/"]
    server.outsider.netns.run(*load)
    still_serves(server)
    before = server.daemon.status()["memoryLiveBytes"], server.daemon.open_fds()
    said = server.outsider.netns.run(*load)
    assert "5000 done" in said and "5000 4xx" in said and "0 errored, 0 timeout" in said
    still_serves(server)
    assert server.daemon.status()["memoryLiveBytes"] < before[0] + 300_000
    assert server.daemon.open_fds() <= before[1]


@pytest.mark.parametrize("clients", [100])
def test_a_bounded_flood_of_handshakes_without_certificates(server, need, clients):
    need("h2load")
    server.outsider.netns.run("timeout", str(60 * SLOW), "h2load", "-n", str(clients), "-c", str(clients),
                              f"https://{server.server.ip}:15008/", check=False)
    still_serves(server)
