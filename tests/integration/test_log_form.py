"""Log lines over real connections: plain and JSON, levels, and changing them while running (spec/interfaces §7, checks C25, C39 to C41)."""
import json
import re

from testenv import eventually

PLAIN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\t(error|warn|info|debug|trace)\t[^\t]+\t[^\t]*\t.*")
ORDER = ["src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster", "dst.addr", "dst.hbone_addr", "dst.service",
         "dst.workload", "dst.namespace", "dst.identity", "dst.cluster", "direction", "bytes_sent", "bytes_recv", "duration", "error"]


def traffic(pair):
    pair.server.echo(8080)
    assert pair.client.request("10.96.0.1", 80) == b"hello worldhello world"
    assert pair.client.refused(pair.server.ip, 8099)


def test_plain_lines_C40(pair):
    pair.service("echo", [pair.server], "10.96.0.1")
    pair.start(RUST_LOG="debug")
    traffic(pair)
    for node in pair.nodes:
        daemon = node.daemon
        daemon.wait_line("connection complete", count=2)
        head = None
        for text in daemon.log().splitlines():
            if PLAIN.fullmatch(text) or text.endswith("\trunning with config: "):
                head = text
                assert not text.split("\t")[2].startswith("ztunnel::"), text
            else:  # only the start-up dump of the configuration has lines of its own
                assert head and "running with config" in head, text
        for line in daemon.lines("connection complete"):
            assert line.scope == "access"
            keys = [k for k in re.findall(r"(?:^|\s)([\w.]+)=", line.text.split("\t")[4])]
            assert keys == [k for k in ORDER if k in keys], keys


def test_json_lines_C39(pair):
    pair.service("echo", [pair.server], "10.96.0.1")
    pair.start(LOG_FORMAT="json", RUST_LOG="debug")
    traffic(pair)
    daemon = pair.client.node.daemon
    def complete():
        return [x for x in (json.loads(t) for t in daemon.log().splitlines()) if x.get("message") == "connection complete"]
    from testenv import eventually
    good, bad = eventually(lambda: len(complete()) == 2 and complete())
    for text in daemon.log().splitlines():
        record = json.loads(text)
        assert list(record)[:3] == ["level", "time", "scope"], text
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["time"])
    assert good["scope"] == "access" and good["level"] == "info"
    assert (good["bytes_sent"], good["bytes_recv"]) == (11, 22)
    assert good["src.identity"] == pair.client.identity and good["dst.service"] == "echo.default.svc.cluster.local"
    assert good["dst.hbone_addr"] == f"{pair.server.ip}:8080" and re.fullmatch(r"\d+ms", good["duration"])
    assert bad["level"] == "error" and bad["error"] == "http status: 503 Service Unavailable"
    assert [k for k in good if k in ORDER] == [k for k in ORDER if k in good]


def test_levels_change_while_running_C25(pair):
    pair.start()
    pair.server.echo(8080)
    daemon = pair.client.node.daemon
    assert pair.client.request(pair.server.ip, 8080)
    daemon.wait_line("connection complete")
    assert not daemon.lines("connection opened")
    assert daemon.http(15000, "/logging?level=debug", "POST")[0] == 200
    assert pair.client.request(pair.server.ip, 8080)
    daemon.wait_line("connection opened", direction="outbound")
    daemon.wait_line("connection complete", count=2)
    assert daemon.http(15000, "/logging?level=off", "POST")[0] == 200
    size = len(daemon.log())
    assert pair.client.request(pair.server.ip, 8080)
    eventually(lambda: daemon.metric("istio_tcp_connections_closed_total", reporter="source") == 3)  # its line would have been written by now
    assert daemon.http(15000, "/logging?reset", "POST")[0] == 200
    assert pair.client.request(pair.server.ip, 8080)
    daemon.wait_line("connection complete", count=3)
    assert daemon.log()[size:].count("connection complete") == 1


def test_access_lines_can_be_switched_off_C41(pair):
    pair.start(RUST_LOG="info,access=off")
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080)
    daemon = pair.client.node.daemon
    assert daemon.lines() and not [x for x in daemon.lines() if x.scope == "access"]


def test_an_empty_filter_means_errors_only_C41(pair):
    pair.start(RUST_LOG="")
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080)
    assert pair.client.refused(pair.server.ip, 8099)
    daemon = pair.client.node.daemon
    daemon.wait_line("connection complete")
    assert {x.level for x in daemon.lines()} == {"error"}
