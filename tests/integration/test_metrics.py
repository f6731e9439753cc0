"""Traffic metrics of real connections, and what a scrape looks like (spec/interfaces §6, checks C31, C33, C35, C48)."""
import re

from testenv import eventually
from testenv.hbone import Tunnel, issue

STABLE = {"istio_build", "istio_tcp_connections_opened", "istio_tcp_connections_closed", "istio_tcp_received_bytes",
          "istio_tcp_sent_bytes", "process_open_fds", "process_max_fds"}  # the help of all others says that they may change


def families(text):
    return dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))


def test_stats_exist(pair):
    """Every family has its type and its help; those that may change say so."""
    pair.start()
    pair.server.echo(8080)
    daemon = pair.client.node.daemon
    fresh = daemon.http(15020, "/metrics")[1].decode()
    assert "istio_tcp_" not in fresh and "istio_dns_" not in fresh and fresh.endswith("# EOF\n")
    assert pair.client.request(pair.server.ip, 8080)
    daemon.wait_line("connection complete")
    text = daemon.http(15020, "/stats/prometheus")[1].decode()
    helps = families(text)
    for name in ("istio_build", "istio_tcp_connections_opened", "istio_tcp_connections_closed", "istio_tcp_received_bytes",
                 "istio_tcp_sent_bytes", "workload_manager_active_proxy_count", "workload_manager_proxies_started"):
        assert name in helps or name + "_total" in helps, (name, sorted(helps))
    for name, words in helps.items():
        assert ("unstable" in words) == (name.removesuffix("_total") not in STABLE), (name, words)
    assert set(helps) == set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    assert daemon.metrics()["istio_build", frozenset({("component", "ztunnel"), ("tag", "unknown")})] == 1


def test_tcp_connections_metrics(pair):
    """Opened 1 and closed 0 while it is open, closed 1 afterwards; on both sides."""
    pair.start()
    pair.server.reflect(8080)
    sides = ((pair.client.node.daemon, "source"), (pair.server.node.daemon, "destination"))
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        for daemon, reporter in sides:
            assert daemon.metric("istio_tcp_connections_opened_total", reporter=reporter) == 1
            assert daemon.metric("istio_tcp_connections_closed_total", reporter=reporter) == 0
    for daemon, reporter in sides:
        eventually(lambda d=daemon, r=reporter: d.metric("istio_tcp_connections_closed_total", reporter=r) == 1)


def test_tcp_bytes_metrics(pair):
    """What was sent and what came back, in each side's own words."""
    pair.start()
    pair.server.echo(8080)
    assert len(pair.client.request(pair.server.ip, 8080, b"x" * 100_000)) == 200_000
    for daemon, reporter in ((pair.client.node.daemon, "source"), (pair.server.node.daemon, "destination")):
        daemon.wait_line("connection complete")
        assert daemon.metric("istio_tcp_received_bytes_total", reporter=reporter) == 100_000
        assert daemon.metric("istio_tcp_sent_bytes_total", reporter=reporter) == 200_000


def test_mutual_tls_labels_C35(pair):
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080)
    daemon = pair.server.node.daemon
    line = daemon.wait_line("connection complete", direction="inbound")
    assert line.fields["dst.hbone_addr"] == f"{pair.server.ip}:8080" and line.fields["dst.addr"] == f"{pair.server.ip}:15008"
    assert daemon.metric("istio_tcp_connections_closed_total", reporter="destination", connection_security_policy="mutual_tls",
                         source_principal=pair.client.identity, destination_principal=pair.server.identity,
                         source_workload="client", destination_workload="server", request_protocol="tcp") == 1


def test_baggage_of_a_peer_never_breaks_a_scrape_C48(world, tmp_path):
    """A peer without a record names itself in its baggage; quotes and backslashes are escaped."""
    stranger, server = world.node().pod("stranger", protocol="TCP"), world.node().pod("server")
    world.pods.pop("stranger")
    world.start()
    server.echo(8080)
    daemon = server.node.daemon
    cert = issue(daemon, stranger.identity, tmp_path / "cert")
    with Tunnel(stranger, server.ip, cert) as t:
        stream = t.connect(f"{server.ip}:8080", extra=[("baggage", 'k8s.deployment.name=we"ird\\,k8s.namespace.name=a} b{,service.name=x')])
        assert t.status(stream)[0] == 200
        t.send(stream, b"a", end=True)
        assert t.receive(stream) == b"aa"
    line = daemon.wait_line("connection complete", direction="inbound")
    assert line.fields["src.identity"] == stranger.identity
    labels = next(dict(have) for (name, have) in daemon.metrics() if name == "istio_tcp_connections_opened_total")
    assert labels["source_workload"] == 'we\\"ird\\\\' and labels["source_workload_namespace"] == "a} b{"
    text = daemon.http(15020, "/metrics")[1].decode()
    sample = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\.)*",?)*\})? [0-9.e+-]+')
    assert all(sample.fullmatch(x) for x in text.splitlines() if not x.startswith("#"))


def test_incoming_baggage_parsing_feature_gate(world, tmp_path):
    """Switched off, a peer's baggage says nothing."""
    stranger, server = world.node().pod("stranger", protocol="TCP"), world.node().pod("server")
    world.pods.pop("stranger")
    world.start(ENABLE_RESPONSE_BAGGAGE="false")
    server.echo(8080)
    daemon = server.node.daemon
    with Tunnel(stranger, server.ip, issue(daemon, stranger.identity, tmp_path / "cert")) as t:
        assert t.request(f"{server.ip}:8080", extra=[("baggage", "k8s.deployment.name=web,service.name=x")])[0] == 200
        assert daemon.metric("istio_tcp_connections_opened_total", source_workload="unknown", source_canonical_service="unknown") == 1


def test_hbone_metrics_access(world):
    """A mesh client scrapes the daemon itself over HBONE: the listener in its own namespace serves it (spec/inpod §2.9)."""
    n1, n2 = world.node(), world.node()
    client = n1.pod("client")
    world.more_workloads.append({
        "uid": "cluster1//Pod/istio-system/ztunnel-n2", "name": "ztunnel-n2", "namespace": "istio-system", "serviceAccount": "ztunnel",
        "trustDomain": "cluster.local", "workloadIps": [n2.address], "protocol": "HBONE", "node": "n2", "workloadName": "ztunnel",
        "canonicalName": "ztunnel", "canonicalRevision": "latest", "clusterId": "Kubernetes", "services": {},
    })
    world.write()
    n1.start()
    daemon = n2.start(POD_NAMESPACE="istio-system", POD_NAME="ztunnel-n2", SERVICE_ACCOUNT="ztunnel")
    answer = client.request(n2.address, 15020, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200") and b"istio_build" in answer
    line = daemon.wait_line("connection complete", direction="inbound")
    assert line.fields["dst.identity"] == "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
    assert line.fields["dst.workload"] == "ztunnel-n2" and line.fields["src.identity"] == client.identity
    assert line.fields["dst.addr"] == f"{n2.address}:15008" and line.fields["dst.hbone_addr"] == f"{n2.address}:15020"
    assert daemon.metric("istio_tcp_connections_opened_total", reporter="destination", destination_workload="ztunnel") == 1
