"""The dashboard and the alert rules in deploy/, by a real Prometheus that scrapes a running pair (the issue's text).

Every expression of the dashboard must give something, and every alert's expression must once its cause is there."""
import http.client
import json
import os
import signal
import urllib.parse

import pytest

from testenv import eventually
from testenv.daemon import SLOW

DEPLOY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../deploy")


def expressions():
    with open(os.path.join(DEPLOY, "grafana/ztunneld.json")) as f:
        panels = json.load(f)["panels"]
    return [(p["title"], t["expr"]) for p in panels for t in p.get("targets", ())]


class Prometheus:
    def __init__(self, netns, binary, directory, targets):
        config = {"global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
                  "rule_files": [os.path.abspath(os.path.join(DEPLOY, "prometheus/ztunneld.rules.yaml"))],
                  "scrape_configs": [{"job_name": "ztunneld", "static_configs": [{"targets": targets}]}]}
        path = os.path.join(directory, "prometheus.yml")
        with open(path, "w") as f:
            json.dump(config, f)
        self.netns = netns
        self.log = open(os.path.join(directory, "prometheus.log"), "w+")
        self.process = netns.popen(binary, f"--config.file={path}", f"--storage.tsdb.path={directory}/tsdb", "--web.listen-address=127.0.0.1:9090",
                                   stdout=self.log, stderr=self.log)

    def get(self, path):
        s = self.netns.socket()
        s.settimeout(10)
        with self.netns.inside():
            s.connect(("127.0.0.1", 9090))
        conn = http.client.HTTPConnection("127.0.0.1", 9090)
        conn.sock = s
        try:
            conn.request("GET", "/api/v1/" + path)
            reply = conn.getresponse()
            body = reply.read()
        finally:
            conn.close()
        assert reply.status == 200, body  # 503 while it starts
        return json.loads(body)["data"]

    def query(self, expression):
        return self.get("query?" + urllib.parse.urlencode({"query": expression}))["result"]

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture
def scraped(pair, need, tmp_path):
    """The pair with traffic, denials and a limit reached; one daemon without its istiod and one without its CA; and a Prometheus that scrapes all."""
    binary = need("prometheus")
    pair.policy("no-9090", action="Deny", rules=[[[{"destinationPorts": [9090]}]]])
    no_xds, no_ca = pair.node(), pair.node()
    no_ca.pod("lonely")
    pair.write()
    for node in (pair.client.node, pair.server.node):
        node.start(SECRET_TTL="30m", ZTUNNELD_PEER_CONNECTIONS_MAX="3", CONNECTION_TERMINATION_DEADLINE="60s")
    no_xds.start(wait_ready=False, enrol=False, XDS_ADDRESS="https://127.0.0.1:1", XDS_ROOT_CA="SYSTEM")
    no_ca.start(enrol=False, CA_ADDRESS="https://127.0.0.1:1", CA_ROOT_CA="SYSTEM", LOCAL_CA_PATH="")
    pair.server.echo(8080)
    eventually(lambda: no_xds.daemon.http(15020, "/metrics")[0] == 200)
    prometheus = Prometheus(pair.client.node.netns, binary, str(tmp_path), [f"{n.address}:15020" for n in pair.nodes])
    pair.prometheus = prometheus
    yield pair
    prometheus.close()


def traffic(world):
    """An answer, a denial, and a connection too many."""
    eventually(lambda: world.client.request(world.server.ip, 8080))  # once earlier ones no longer count
    assert world.client.refused(world.server.ip, 9090)
    held = []
    try:
        for _ in range(4):
            held.append(world.client.connect(world.server.ip, 8080))
            held[-1].sendall(b"a")
    except ConnectionError:
        pass
    finally:
        for s in held:
            s.close()
    return True


def test_dashboard_and_alerts_speak_of_what_is_there(scraped):
    prometheus, server = scraped.prometheus, scraped.server.node.daemon
    eventually(lambda: len(prometheus.query("up == 1")) == 4, timeout=20 * SLOW)
    assert not [r for g in prometheus.get("rules")["groups"] for r in g["rules"] if r["health"] == "err"]
    missing = dict((e, title) for title, e in expressions())
    assert len(missing) > 25

    def all_there():
        traffic(scraped)
        for expression in list(missing):
            if prometheus.query(expression.replace("$instance", ".*").replace("$__rate_interval", "5s")):
                del missing[expression]
        return not missing
    eventually(all_there, timeout=60 * SLOW, every=0.5, what=f"expressions {missing}")

    busy = scraped.client.node.pod("busy", protocol="TCP")
    busy.serve(15008, lambda s, peer: s.close())
    assert scraped.client.node.zds.add("uid-busy", "busy", "default", "busy", busy.netns.fd) != ""
    alerts = {rule["name"]: rule["query"] for group in prometheus.get("rules")["groups"] for rule in group["rules"]}
    assert prometheus.query(alerts.pop("ZtunneldLogLinesLost").replace("> 0", ">= 0"))  # nothing is lost here
    down = alerts.pop("ZtunneldDown")
    assert set(alerts) == {"ZtunneldCertificateExpiry", "ZtunneldCertificatesUnavailable", "ZtunneldXdsStale", "ZtunneldPodsPending",
                           "ZtunneldDenials", "ZtunneldLimitReached"}
    for name, expression in alerts.items():
        eventually(lambda e=expression: traffic(scraped) and prometheus.query(e), timeout=20 * SLOW, what=name, every=0.5)

    assert not prometheus.query(down)
    eventually(lambda: scraped.client.request(scraped.server.ip, 8080))
    with scraped.client.connect(scraped.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(2)
        server.signal(signal.SIGTERM)  # a drain takes the stats port away
        eventually(lambda: prometheus.query(down), timeout=20 * SLOW)
        assert server.status()["draining"] and server.process.poll() is None
