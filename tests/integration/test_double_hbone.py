"""Double HBONE (spec/dataplane §2.7): a service whose endpoints are in another network, behind a gateway."""
import collections
import concurrent.futures
import json
import re

import pytest

from testenv import eventually
from testenv.gateway import Gateway
from testenv.hbone import issue
from testenv.peer import Peer, PeerConnection

VIP = "10.96.2.1"
HOST = "far.default.svc.cluster.local"


@pytest.fixture
def far(world, tmp_path):
    """A client here, two endpoints in the network "remote", and between them a gateway that no daemon serves."""
    w = world
    n1, n2 = w.node(), w.node()
    w.client = n1.pod("client")
    w.endpoints = [n2.pod(f"far{i}", sa="far") for i in (1, 2)]
    w.gateway_pod = n2.pod("gateway")
    w.gateway_pod.enrolled = True  # that is: leave it alone
    for pod in n2.pods.values():
        pod.workload["network"] = "remote"
    w.by_address = {"destination": f"remote/{w.gateway_pod.ip}", "hboneMtlsPort": 15008}
    w.svc = w.service("far", w.endpoints, VIP, subjectAltNames=[w.endpoints[0].identity])

    def start(gateway_ref=None, port=15008, **env):
        for pod in w.endpoints:
            pod.workload["networkGateway"] = gateway_ref or w.by_address
        w.write()
        n1.start(**env)
        n2.start(NETWORK="remote", **env)
        for pod in w.endpoints:
            pod.echo(8080)
        w.daemon, w.far_daemon = n1.daemon, n2.daemon
        w.cert = issue(w.daemon, w.gateway_pod.identity, tmp_path / "gateway")
        w.gateway = Gateway(w.gateway_pod, w.cert, w.endpoints, port)
        return w
    w.up = start
    w.line = lambda: w.daemon.wait_line("connection complete", direction="outbound")
    return w


def test_double_hbone1(far):
    """Gateway by IP: destination workload and identity are the inner peer's, hbone_addr is hostname:port, dst.addr the gateway."""
    far.up()
    assert far.client.request(VIP, 80) == b"hello world" * 2
    line = far.line().fields
    assert line["dst.addr"] == f"{far.gateway_pod.ip}:15008" and line["dst.hbone_addr"] == f"{HOST}:80"
    assert line["dst.workload"] == "far1" and line["dst.namespace"] == "default" and line["dst.service"] == HOST
    assert line["dst.identity"] == far.endpoints[0].identity and line["src.identity"] == far.client.identity
    assert (line["bytes_sent"], line["bytes_recv"]) == ("11", "22") and "error" not in line
    inbound = far.far_daemon.wait_line("connection complete", direction="inbound").fields
    assert inbound["src.workload"] == "client" and inbound["src.identity"] == far.client.identity  # by its baggage: another network
    labels = dict(reporter="source", destination_workload="far1", destination_canonical_service="far1", destination_app="far1",
                  destination_principal=far.endpoints[0].identity, destination_service=HOST, connection_security_policy="mutual_tls")
    assert far.daemon.metric("istio_tcp_connections_opened_total", **labels) == 1
    assert far.daemon.metric("istio_tcp_connections_closed_total", response_flags="-", **labels) == 1


def test_double_hbone2(far):
    """Gateway by the hostname of a service that maps its port."""
    host = far.service("ew", [far.gateway_pod], "10.96.2.9", ports={15009: 15008})["hostname"]
    far.up({"destination": f"default/{host}", "hboneMtlsPort": 15009})
    assert far.client.request(VIP, 80) == b"hello world" * 2
    line = far.line().fields
    assert line["dst.addr"] == f"{far.gateway_pod.ip}:15008" and line["dst.hbone_addr"] == f"{HOST}:80"


def test_x_forwarded_network_is_on_the_inner_connect_only(far, tmp_path):
    """Both CONNECTs name host:port; only the inner one says from which network it comes."""
    far.endpoints.pop().workload["services"] = {}
    far.endpoints[0].enrolled = True  # a peer of ours looks at what is inside
    far.up()

    class Reflecting(PeerConnection):
        def on_data(self, stream, data):
            self.send(stream, data)

        def on_end(self, stream):
            self.send(stream, b"", end=True)
    inside = Peer(far.endpoints[0], issue(far.daemon, far.endpoints[0].identity, tmp_path / "far"), Reflecting)
    with far.client.connect(VIP, 80) as s:
        client = f"{far.client.ip}:{s.getsockname()[1]}"
        s.sendall(b"x")
        assert s.recv(1) == b"x"
    (_, _, outer), = far.gateway.peer.streams()
    (_, _, inner), = inside.streams()
    for headers in (outer, inner):
        assert headers[":method"] == "CONNECT" and headers[":authority"] == f"{HOST}:80"
        assert headers["forwarded"] == f'for="{client}";host={HOST}'
        assert "k8s.namespace.name=default" in headers["baggage"]
        assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", headers["traceparent"])
    assert "x-forwarded-network" not in outer
    assert inner["x-forwarded-network"] == ""
    line = far.line().fields  # that peer says nothing of itself: an empty set
    assert "dst.workload" not in line and line["dst.identity"] == far.endpoints[0].identity


def test_an_unhealthy_near_endpoint_hands_over_to_the_other_network(far):
    """Failover by network: the near endpoint as long as it is healthy, then the far ones, then the near one again."""
    w = far
    near = w.nodes[0].pod("near", sa="far")
    near.workload["services"] = dict(w.endpoints[0].workload["services"])
    w.svc["loadBalancer"] = {"routingPreferences": ["Network"], "mode": "Failover", "healthPolicy": "OnlyHealthy"}
    w.up()
    near.serve(8080, lambda s, _: s.sendall(b"near"))
    for status, answer in (("Healthy", b"near"), ("Unhealthy", b"hihi"), ("Healthy", b"near")):
        near.workload["status"] = status
        w.write()
        eventually(lambda: w.client.request(VIP, 80, b"hi") == answer, f"{answer} while near is {status}")
        assert [w.client.request(VIP, 80, b"hi") for _ in range(8)] == [answer] * 8


def test_a_near_endpoint_that_cannot_be_dialled_hands_over_to_the_other_network(far):
    w = far
    near = w.nodes[0].pod("near", sa="far")
    near.enrolled = True  # nobody serves it
    near.workload["services"] = dict(w.endpoints[0].workload["services"])
    w.svc["loadBalancer"] = {"routingPreferences": ["Network"], "mode": "Failover", "healthPolicy": "OnlyHealthy"}
    w.up()
    assert [w.client.request(VIP, 80, b"hi") for _ in range(8)] == [b"hihi"] * 8
    assert w.daemon.metric("ztunneld_outbound_failovers_total") == 1


@pytest.mark.parametrize("sans, why", [(["spiffe://cluster.local/ns/default/sa/other"], "wrong"), ([], "none")])
def test_an_inner_peer_must_be_one_of_the_service(far, sans, why):
    """The endpoint's own identity does not count: nobody knows which one answers. Without a list nobody can pass."""
    far.svc["subjectAltNames"] = sans
    far.up()
    assert far.client.refused(VIP, 80)
    line = far.line().fields
    assert "identity verification error" in line["error"]
    assert line["dst.workload"] == "gateway"
    assert far.daemon.metric("istio_tcp_connections_failed_total", response_flags="CONNECT", destination_workload="gateway") == 1
    assert far.daemon.metric("ztunneld_outbound_failovers_total") == 0
    assert len(far.gateway.peer.streams()) == 1


@pytest.mark.parametrize("status", [401, 503])
def test_a_refusing_gateway_is_named(far, status):
    far.up()
    far.gateway.refuse_with = status
    assert far.client.refused(VIP, 80)
    assert far.line().fields["error"].startswith(f"http status: {status}")
    assert len(far.gateway.peer.streams()) == 1


def test_half_close_and_much_data_through_two_tunnels(far):
    far.up()
    data = bytes(range(256)) * 1024
    got = far.client.request(VIP, 80, data)  # the echo's chunks twice each: as many of every octet
    assert len(got) == 2 * len(data) and collections.Counter(got) == {octet: 2048 for octet in range(256)}


def test_inner_tunnels_are_few_short_lived_and_reach_every_endpoint(far):
    """Over 1,000 connections: at most 8 inner tunnels side by side, at most 100 streams each, one outer tunnel, and each endpoint gets
    between half and twice its share."""
    far.up()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda i: far.client.request(VIP, 80, b"%d" % i), range(1000)):
            assert answer
    far.far_daemon.wait_line("connection complete", direction="inbound", count=1000)
    served = collections.Counter()
    for line in far.far_daemon.lines("connection complete", direction="inbound"):
        served[line.fields["dst.workload"]] += 1
    assert sum(served.values()) == 1000
    assert all(250 <= served[pod.name] <= 1000 for pod in far.endpoints), served
    streams = far.gateway.peer.streams()
    assert len(far.gateway.peer.connections) == 1
    assert 10 <= len(streams) <= 40, "as many tunnels as 1,000 streams of at most 100 take, and few more"
    eventually(lambda: far.daemon.activity()[1] <= 8 + 1, "retired tunnels to end")
