"""Unknowing applications in captured pods on two nodes: curl against HTTP/1.1 and HTTP/2 servers, iperf3 both ways."""
import hashlib
import http.server
import json
import os
import socketserver
import threading

import pytest

from testenv.daemon import SLOW

SIZE = 24 << 20


class Files(http.server.BaseHTTPRequestHandler):
    """PUT answers with the digest of what came; GET gives back the body."""
    protocol_version = "HTTP/1.1"
    body = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def chunks(self):
        if "content-length" in self.headers:
            left = int(self.headers["content-length"])
            while left and (piece := self.rfile.read(min(left, 65536))):
                left -= len(piece)
                yield piece
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_PUT(self):
        sum_ = hashlib.sha256()
        for piece in self.chunks():
            sum_.update(piece)
        answer = sum_.hexdigest().encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *what):
        pass


class InPod(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def __init__(self, pod, port, handler):
        super().__init__(("", port), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = pod.netns.socket()
        self.socket.bind(("", port))
        self.socket.listen(64)
        threading.Thread(target=self.serve_forever, daemon=True).start()


@pytest.fixture
def files(pair, tmp_path):
    """A body, its digest, and an HTTP/1.1 server in the server's pod."""
    pair.start()
    pair.body = os.urandom(SIZE)
    pair.digest = hashlib.sha256(pair.body).hexdigest()
    (tmp_path / "body").write_bytes(pair.body)
    pair.path = str(tmp_path / "body")
    server = InPod(pair.server, 8080, type("Handler", (Files,), {"body": pair.body}))
    pair.curl = lambda *options: pair.client.netns.run("curl", "-sS", "--fail", "-m", str(60 * SLOW), *options)
    yield pair
    server.shutdown()
    server.server_close()


def tunnelled(world):
    """Everything went through HBONE, and nothing failed."""
    world.server.node.daemon.wait_line("connection complete", direction="inbound")
    lines = world.client.node.daemon.lines("connection complete")
    assert all(x.fields["dst.addr"].endswith(":15008") and x.level == "info" for x in lines)


def test_download_http1(files, tmp_path):
    files.curl("-o", str(tmp_path / "got"), f"http://{files.server.ip}:8080/")
    assert hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest() == files.digest
    tunnelled(files)


@pytest.mark.parametrize("how", ["length", "chunked"])
def test_upload_http1(files, how):
    options = ["-T", files.path] + (["-H", "Transfer-Encoding: chunked"] if how == "chunked" else [])
    assert files.curl(*options, f"http://{files.server.ip}:8080/up") == files.digest
    tunnelled(files)


def test_parallel_downloads_http1(files, tmp_path):
    """Eight connections at once on one tunnel."""
    files.curl("-Z", "--parallel-immediate", "-o", str(tmp_path / "got-#1"), f"http://{files.server.ip}:8080/[1-8]")
    for i in range(1, 9):
        assert hashlib.sha256((tmp_path / f"got-{i}").read_bytes()).hexdigest() == files.digest
    tunnelled(files)


def test_http2_cleartext_both_ways(files, launch, need, tmp_path):
    """HTTP/2 inside of HTTP/2: nghttpd sends back what curl posts, and serves a file."""
    need("nghttpd")
    server = launch(files.server, "nghttpd", "--no-tls", "--echo-upload", "-d", str(tmp_path), "8090")
    files.server.netns.run("sh", "-c", "i=0; until ss -Hltn | grep -q :8090; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done")
    h2c = ["--http2-prior-knowledge", "-o", str(tmp_path / "got"), "-w", "%{http_version} %{http_code}"]
    for more, path in ((["-T", files.path], "echo"), ([], "body")):
        assert files.curl(*h2c, *more, f"http://{files.server.ip}:8090/{path}") == "2 200"
        assert hashlib.sha256((tmp_path / "got").read_bytes()).hexdigest() == files.digest
    assert server.process.poll() is None
    tunnelled(files)


@pytest.mark.parametrize("options", [["-R"], ["--bidir"], ["-P", "8"]], ids=["reverse", "bidirectional", "parallel"])
def test_iperf3(pair, launch, need, options):
    """Two seconds; what matters is that iperf3's own control connection agrees with its data about an orderly end."""
    need("iperf3")
    pair.start()
    server = launch(pair.server, "iperf3", "-s", "-1", "-p", "5201", "--forceflush")
    server.wait_for("Server listening")
    out = json.loads(launch(pair.client, "iperf3", "-J", "-c", pair.server.ip, "-p", "5201", "-t", "2", *options).finish())
    assert "error" not in out
    sums = [out["end"][k]["bytes"] for k in ("sum_received", "sum_received_bidir_reverse") if k in out["end"]]
    assert len(sums) == (2 if options == ["--bidir"] else 1) and min(sums) > 1 << 20
    lines = pair.client.node.daemon.lines("connection complete")  # iperf3 closes before it has read all: no word about errors here
    assert lines and all(x.fields["dst.addr"].endswith(":15008") for x in lines)
