"""What a connection that cannot be made looks like to the client, in the log and in the metrics (spec/dataplane §2.10, spec/interfaces §7.6)."""
import contextlib
import threading
import time

import pytest

from testenv import eventually
from testenv.daemon import SLOW

NFT_DROP = """
table inet firewall {
  chain in { type filter hook input priority 0; policy accept; tcp dport 15008 drop; }
}
"""


def failed(daemon, flag, reporter):
    return daemon.metric("istio_tcp_connections_failed_total", response_flags=flag, reporter=reporter)


def refused_early(pair, ip, error):
    """A reset, a warning, no connection counted."""
    assert pair.client.refused(ip, 80)
    daemon = pair.client.node.daemon
    line = daemon.wait_line("connection failed", direction="outbound")
    assert line.level == "warn" and line.fields["error"] == error
    assert daemon.metric("istio_tcp_connections_opened_total") == 0


def test_no_healthy_upstream(pair):
    """A service all of whose endpoints are unhealthy: refused early, no metric, a reset."""
    pair.server.workload["status"] = "Unhealthy"
    pair.service("down", [pair.server], "10.96.0.4")
    pair.start()
    pair.server.echo(8080)
    refused_early(pair, "10.96.0.4", "no healthy upstream: 10.96.0.4:80")


def test_port_that_the_service_does_not_have(pair):
    pair.service("narrow", [pair.server], "10.96.0.4")
    pair.start()
    assert pair.client.refused("10.96.0.4", 81)
    line = pair.client.node.daemon.wait_line("connection failed", direction="outbound")
    assert line.fields["error"] == "no healthy upstream: 10.96.0.4:81"


@pytest.mark.parametrize("gateway, error", [
    ({"destination": "far/10.9.9.1", "hboneMtlsPort": 15008}, "unknown network gateway: far/10.9.9.1:15008"),
    (None, "no valid routing destination for workload: Workload{server with uid %s (HBONE)}")])
def test_another_network_without_a_way_there_is_refused_early(pair, gateway, error):
    pair.service("far", [pair.server], "10.96.0.4")
    pair.server.workload["network"] = "far"
    if gateway:
        pair.server.workload["networkGateway"] = gateway
    pair.start()
    refused_early(pair, "10.96.0.4", error.replace("%s", pair.server.workload["uid"]))


def test_an_address_that_names_no_service_has_no_way_to_another_network(pair):
    """The address is a pod's here and a service's VIP where the client says it is: what leads away is not what was asked for."""
    third = pair.nodes[1].pod("third")
    third.workload["network"], pair.client.workload["network"] = "third", "other"
    pair.service("elsewhere", [third], "10.96.0.4")["vips"] = [f"other/{pair.server.ip}"]
    pair.start()
    refused_early(pair, pair.server.ip, f"no service for target address: {pair.server.ip}:80")


def test_wait_for_workload_delay_fails(pair):
    """The configuration does not know the pod that calls: after the wait a warning and a reset."""
    pair.client.workload["name"] = "somebody-else"
    pair.start(ZTUNNELD_LOCAL_WORKLOAD_WAIT="400ms")
    started = time.monotonic()
    assert pair.client.refused(pair.server.ip, 8080)
    assert 0.35 < time.monotonic() - started < 4 * SLOW
    line = pair.client.node.daemon.wait_line("connection failed", direction="outbound")
    assert line.fields["error"] == "failed to fetch information about local workload: client.default (client)"


def test_wait_for_workload_eventually(pair):
    """The record arrives while the connection waits; unrelated changes of the file do not end the wait."""
    pair.client.workload["name"] = "somebody-else"
    pair.start(ZTUNNELD_LOCAL_WORKLOAD_WAIT="20s")
    pair.server.echo(8080)
    got = []
    thread = threading.Thread(target=lambda: got.append(pair.client.request(pair.server.ip, 8080, timeout=20)))
    thread.start()
    pair.service("unrelated", [pair.server], "10.96.0.200")
    pair.write()
    daemon = pair.client.node.daemon
    eventually(lambda: [s for s in daemon.dump()["services"] if s["name"] == "unrelated"], "the unrelated change")
    assert not got
    pair.client.workload["name"] = "client"
    pair.write()
    thread.join(20)
    assert got == [b"hello worldhello world"]


def test_certificate_unavailable_is_an_identity_error(pair):
    """The CA signs no certificate that lives as long as the client's node wants: the reason is in the log, the flag and the dump (C30)."""
    pair.write()
    pair.server.node.start()
    daemon = pair.client.node.start(SECRET_TTL="100y")
    assert pair.client.refused(pair.server.ip, 8080)
    line = daemon.wait_line("connection complete", direction="outbound")
    assert line.level == "error" and line.fields["error"].startswith("identity error: signing ")
    assert failed(daemon, "IDENTITY_ERROR", "source") == 1
    certificate = next(c for c in daemon.dump()["certificates"] if c["identity"] == pair.client.identity)
    assert certificate["state"].startswith("Unavailable: signing ")


def test_server_without_a_certificate_says_signing_error(pair):
    """The early denial of a tunnel that the server has no certificate for (spec/interfaces §7.6)."""
    pair.write()
    pair.client.node.start()
    daemon = pair.server.node.start(SECRET_TTL="100y")
    assert pair.client.refused(pair.server.ip, 8080)
    line = daemon.wait_line("connection failed", direction="inbound")
    assert line.level == "warn" and line.fields["error"].startswith("signing error: signing ")


def test_hbone_connect_timeout_suspects_a_network_policy(pair):
    pair.start(ZTUNNELD_CONNECT_TIMEOUT="1s")
    pair.server.netns.run("nft", "-f", "-", input=NFT_DROP)
    started = time.monotonic()
    assert pair.client.refused(pair.server.ip, 8080)
    assert time.monotonic() - started < 5 * SLOW
    daemon = pair.client.node.daemon
    line = daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["error"].startswith("connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: ")
    assert failed(daemon, "NETWORK_POLICY", "source") == 1


def test_network_policy_that_opens_15008_only(pair):
    """What comes through the tunnel is served, plaintext is not let in (Istio's TestK8sNetPol)."""
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    pair.start()
    pair.server.echo(8080)
    pair.server.netns.run("nft", "-f", "-", input="""
table inet firewall {
  chain in { type filter hook input priority 0; policy accept;
    iifname "eth0" ct state new meta l4proto tcp tcp dport != 15008 drop
  }
}
""")
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    with pytest.raises(TimeoutError):
        outside.connect(pair.server.ip, 8080, timeout=0.5)


def test_waiters_of_one_tunnel_fail_together(pair):
    """Forty connections to a node that is not there: all decided within one time limit, and nothing is left (spec/dataplane §16)."""
    pair.start(ZTUNNELD_CONNECT_TIMEOUT="1s")
    pair.server.netns.run("nft", "-f", "-", input=NFT_DROP)
    daemon = pair.client.node.daemon
    fds = daemon.open_fds()
    started = time.monotonic()
    sockets = [pair.client.connect(pair.server.ip, 8080) for _ in range(40)]
    for s in sockets:
        with contextlib.suppress(ConnectionError):
            s.sendall(b"x")
    for s in sockets:
        with contextlib.suppress(ConnectionResetError):
            assert s.recv(1) == b""
        s.close()
    assert time.monotonic() - started < 5 * SLOW  # one limit, not forty
    daemon.wait_line("connection complete", direction="outbound", count=40)
    eventually(lambda: daemon.open_fds() == fds, "all descriptors given back")


def test_server_node_without_a_daemon(pair):
    """Connection refused on 15008: an I/O error, flag CONNECT."""
    pair.start()
    pair.server.unenrol()
    assert pair.client.refused(pair.server.ip, 8080)
    daemon = pair.client.node.daemon
    line = daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["error"] == "io error: Connection refused (os error 111)"
    assert failed(daemon, "CONNECT", "source") == 1


def test_application_that_is_not_there(pair):
    """The server's daemon cannot reach the application: 503 on the wire, flag CONNECT on both sides (C36)."""
    pair.start()
    assert pair.client.refused(pair.server.ip, 8080)
    inbound = pair.server.node.daemon.wait_line("connection complete", direction="inbound")
    assert inbound.level == "error" and inbound.fields["error"] == "connection failed: Connection refused (os error 111)"
    outbound = pair.client.node.daemon.wait_line("connection complete", direction="outbound")
    assert outbound.fields["error"] == "http status: 503 Service Unavailable"
    assert failed(pair.server.node.daemon, "CONNECT", "destination") == 1
    assert failed(pair.client.node.daemon, "CONNECT", "source") == 1


def test_plain_destination_that_is_not_there(world):
    client, server = world.node().pod("client"), world.node().pod("server", protocol="TCP")
    world.start()
    assert client.refused(server.ip, 8080)
    line = client.node.daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["error"] == "io error: Connection refused (os error 111)"
    assert failed(client.node.daemon, "CONNECT", "source") == 1


@pytest.mark.parametrize("captured", [True, False])
def test_application_that_listens_on_loopback_only(pair, captured):
    """Connecting succeeds, since the daemon accepts; then a reset (spec/inpod §4.9 row 7)."""
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    pair.start()
    from testenv import netns
    pair.server.serve(8080, netns.echo, host="127.0.0.1")
    assert (pair.client if captured else outside).refused(pair.server.ip, 8080)


def test_recursive_calls_end_early(pair):
    """C38: to our own port on loopback, without redirection: a warning, no connection counted."""
    pair.start()
    daemon = pair.client.node.daemon
    with contextlib.suppress(ConnectionError):  # at any point: connecting is not waited for before the reset
        with pair.client.connect("127.0.0.1", 15001) as s:
            s.sendall(b"x")
            assert s.recv(1) == b""
    line = daemon.wait_line("connection failed", direction="outbound")
    assert line.level == "warn" and line.fields["error"] == "attempted recursive call to ourselves"
    assert daemon.metric("istio_tcp_connections_opened_total") == 0
