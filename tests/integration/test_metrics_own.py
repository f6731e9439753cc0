"""What the reference's metrics lack, and series that age (the issue's text)."""
import json
import re

from testenv import eventually
from testenv.hbone import Tunnel, issue


def test_families_of_our_own(pair):
    """Tunnels, pool hits, handshakes and their time, buffers, certificates."""
    pair.start()
    pair.server.reflect(8080)
    out, into = pair.client.node.daemon, pair.server.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as a, pair.client.connect(pair.server.ip, 8080) as b:
        for s in (a, b):
            s.sendall(b"a")
            assert s.recv(1) == b"a"
        assert out.metric("ztunneld_tunnels", direction="outbound") == 1 == into.metric("ztunneld_tunnels", direction="inbound")
        assert out.metric("ztunneld_tunnels", direction="inbound") == 0
        hits, misses = (out.metric("ztunneld_pool_requests_total", result=r) for r in ("hit", "miss"))
        assert misses >= 1 and hits + misses == 2
        for daemon, role in ((out, "client"), (into, "server")):
            assert daemon.metric("ztunneld_tls_handshakes_total", role=role, result="ok") == 1
            assert daemon.metric("ztunneld_tls_handshake_duration_seconds_count", role=role) == 1
            assert daemon.metric("ztunneld_tls_handshakes_resumed_total", role=role) == 0
            assert 0 < daemon.metric("ztunneld_tls_handshake_duration_seconds_sum", role=role) < 5
        assert 0 < out.metric("ztunneld_certificate_expiry_seconds") <= 86400 and out.metric("ztunneld_certificates_available") == 1
        values = dict(out.metrics())
        names = {name for name, _ in values}
        assert names >= {"ztunneld_buffer_lent_bytes", "ztunneld_buffer_free_bytes", "ztunneld_log_queue_bytes", "ztunneld_metric_series",
                         "ztunneld_log_lines_dropped_total", "ztunneld_metric_label_sets_evicted_total", "ztunneld_certificate_requests_total"}
        assert not names & {"ztunneld_xds_connected", "ztunneld_xds_age_seconds"}  # there is no istiod here
    out.kill()
    eventually(lambda: into.metric("ztunneld_tunnels", direction="inbound") == 0)


def test_series_of_gone_peers_age_and_those_in_use_never(pair):
    other = pair.client.node.pod("other")
    pair.start(ZTUNNELD_METRICS_RETENTION="400ms")
    pair.server.reflect(8080)
    daemon = pair.server.node.daemon

    def opened(name):
        return daemon.metric("istio_tcp_connections_opened_total", source_workload=name)
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        assert other.request(pair.server.ip, 8080) and opened("other") == 1
        eventually(lambda: opened("other") == 0 and daemon.metric("ztunneld_metric_label_sets_evicted_total") >= 1)
        eventually(lambda: daemon.metric("istio_tcp_connections_closed_total", source_workload="other") == 0)
        assert opened("client") == 1 and daemon.metric("istio_tcp_received_bytes_total", source_workload="client") == 1
    eventually(lambda: opened("client") == 0)
    assert daemon.metric("istio_build") == 1


def test_a_bad_retention_is_refused(world):
    node = world.node()
    world.write()
    node.start(wait_ready=False, enrol=False, ZTUNNELD_METRICS_RETENTION="0")
    assert node.daemon.wait() == 1 and "ZTUNNELD_METRICS_RETENTION" in node.daemon.log()
    node.daemon = None


def test_hostile_names_break_neither_scrape_nor_dump_nor_log(world, tmp_path):
    """Baggage, forwarded host and authority of a peer without a record: quotes, newlines, bytes that are no UTF-8."""
    stranger, server = world.node().pod("stranger", protocol="TCP"), world.node().pod("server")
    world.pods.pop("stranger")
    world.start(LOG_FORMAT="json")
    server.reflect(8080)
    daemon = server.node.daemon
    cert = issue(daemon, stranger.identity, tmp_path / "cert")
    for evil in (b'a"b\\c', b"tab\there", b"\xff\xfe\xc0\xaf", b"\xe2\x80\xae", b"%0a%22"):
        with Tunnel(stranger, server.ip, cert) as t:
            stream = t.connect(f"{server.ip}:8080", extra=[("baggage", b"k8s.deployment.name=" + evil + b",service.name=" + evil),
                                                           ("forwarded", b'for="1.1.1.1:1";host=' + evil)])
            if t.status(stream)[0] == 200:
                dump = daemon.dump()
                assert dump["workloads"]
                t.send(stream, b"a", end=True)
                assert t.receive(stream) == b"a"
    text = daemon.http(15020, "/metrics")[1].decode()  # valid UTF-8 or an exception
    sample = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\.)*",?)*\})? [0-9.e+-]+')
    assert all(sample.fullmatch(x) for x in text.split("\n") if x and not x.startswith("#"))
    lines = eventually(lambda: [x for x in daemon.log().split("\n") if '"scope":"access"' in x])
    assert all(json.loads(x)["level"] for x in lines)
