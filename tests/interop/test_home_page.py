"""The admin server's home page in a real browser, and what a browser can be made to ask (the issue's text; spec/interfaces §4.1)."""
import http.server
import re
import subprocess
import threading

import pytest

from testenv.daemon import SLOW


@pytest.fixture
def browse(need, tmp_path):
    chromium = need("chromium")

    def dump(netns, url, *options):
        """The document as it is after its script has run for five of the browser's own seconds."""
        done = subprocess.run(netns.command(chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                                             "--disable-extensions", "--disable-background-networking", "--disable-component-update",
                                             f"--user-data-dir={tmp_path}/chromium", "--virtual-time-budget=5000", *options, "--dump-dom", url), text=True, capture_output=True, timeout=60 * SLOW)
        assert done.returncode == 0, done.stderr
        return done
    return dump


def cells(document, table):
    """The texts of a table's rows."""
    body = re.search(rf'<table id="{table}">(.*?)</table>', document, re.S)[1]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", body, re.S)]


def test_home_page_is_live_in_a_browser(pair, browse):
    """Pods with their tunnels, connections, certificates with their ages, recent denials; nothing comes from elsewhere."""
    pair.policy("no-9090", action="Deny", rules=[[[{"destinationPorts": [9090]}]]])
    evil = "<img src=x onerror=document.title='taken'>"
    pair.start()
    pair.server.reflect(8080)
    assert pair.client.refused(pair.server.ip, 9090)
    netns, daemon = pair.server.node.netns, pair.server.node.daemon
    pair.server.node.zds.add("uid-evil", evil, "default", "evil", pair.client.node.netns.fd)  # a name that is no text for a page
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        done = browse(netns, "http://127.0.0.1:15000/")
    page = done.stdout
    assert "<title>Ztunnel Admin</title>" in page and 'data-live="yes"' in page, done.stderr[-3000:]
    pods = cells(page, "pods")
    assert pods[0][:6] == ["Pod", "State", "Connections in", "out", "Tunnels in", "out"]
    assert ["default/server", "Up", "1", "0", "1"] in [row[:5] for row in pods]
    assert any("&lt;img" in row[0] for row in pods[1:]), pods
    assert any(row[0] == "default/server" and row[1] == "inbound" and row[6] == pair.client.identity for row in cells(page, "connections")[1:])
    certificate = next(row for row in cells(page, "certificates")[1:] if row[0] == pair.server.identity)
    assert re.fullmatch(r"\d+[smhd].*", certificate[3]) and re.fullmatch(r"\d+[hd].*", certificate[4]) and certificate[5] == "Available"
    denial = cells(page, "denials")[1]
    assert denial[1] == "default/server" and denial[6] == "default/no-9090 (Deny)" and denial[7] == "1"
    for path in ("config_dump", "debug/pprof/heap", "debug/pprof/heap/profiling", "debug/pprof/profile", "logging", "quitquitquit"):
        assert f'href="{path}"' in page
    assert not re.search(r'(src|href)="?(https?:)?//', page)
    daemon.ztctl("status")


def test_a_name_that_resolves_to_loopback_is_refused(world, browse):
    """DNS rebinding: the page of evil.example may not read what is on this machine."""
    node = world.node()
    world.start()
    page = browse(node.netns, "http://evil.example:15000/config_dump", "--host-resolver-rules=MAP evil.example 127.0.0.1").stdout
    assert "the Host is not localhost" in page and "workloads" not in page
    assert node.daemon.http(15000, "/config_dump", headers={"Host": "evil.example:15000"})[0] == 403
    for host in ("localhost", "LOCALHOST:15000", "127.0.0.1:15000", "[::1]:15000"):
        assert node.daemon.http(15000, "/config_dump", headers={"Host": host})[0] == 200


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"""<script>fetch("http://127.0.0.1:15000/quitquitquit", {method: "POST", mode: "no-cors"})
            .then(() => document.title = "sent", () => document.title = "failed")</script>"""
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_a_post_of_another_site_is_refused(world, browse):
    """Any page that a browser on the node shows could otherwise end the daemon."""
    node = world.node()
    world.start()
    with node.netns.inside():
        server = http.server.HTTPServer(("127.0.0.1", 9999), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        page = browse(node.netns, "http://127.0.0.1:9999/").stdout
    finally:
        server.shutdown()
        server.server_close()
    assert "<title>sent</title>" in page
    assert not node.daemon.lines_with("explicit shutdown") and node.daemon.status()["draining"] is False
    post = lambda **headers: node.daemon.http(15000, "/logging", "POST", headers=headers)[0]
    assert post(Origin="http://127.0.0.1:9999") == 403 and post(Origin="null") == 403
    assert post(Origin="http://127.0.0.1:15000") == 200 and post() == 200
