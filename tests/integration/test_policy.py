"""Authorization end to end: new connections, open ones, strict mode (spec/dataplane §5, §6, §13.11)."""
import signal
import time

import pytest

from testenv import eventually
from testenv.daemon import SLOW

pytestmark = pytest.mark.threads

ANY_PLAINTEXT = {"notPrincipals": [{"Presence": []}]}  # matches a connection without identity


def allow(*principals):
    return [[[{"principals": [{"Exact": p} for p in principals]}]]]


def test_policy(pair):
    """ALLOW for another principal: the client is refused with a reset, and the server says why."""
    pair.policy("only-other", rules=allow("cluster.local/ns/default/sa/other"))
    pair.start()
    pair.server.echo(8080)
    assert pair.client.refused(pair.server.ip, 8080)
    line = pair.server.node.daemon.wait_line("connection complete", direction="inbound")
    assert line.level == "error"
    assert line.fields["error"] == "connection closed due to policy rejection: allow policies exist, but none allowed"
    out = pair.client.node.daemon.wait_line("connection complete", direction="outbound")
    assert out.fields["error"] == "http status: 401 Unauthorized"
    for daemon, flag, reporter in ((pair.server.node.daemon, "DENY", "destination"), (pair.client.node.daemon, "CONNECT", "source")):
        assert daemon.metric("istio_tcp_connections_failed_total", response_flags=flag, reporter=reporter) == 1


def test_a_refusal_over_a_warm_tunnel_resets_an_open_connection(pair):
    """However quick the refusal: connect() succeeds, and the reset comes after the client's first byte, or without one."""
    pair.policy("nobody", rules=[])
    pair.start()
    for speaks in [True] * 200 + [False]:
        with pair.client.connect(pair.server.ip, 8080) as s:
            if speaks:
                s.sendall(b"hello")
            with pytest.raises(ConnectionResetError):
                s.recv(1)
    daemon = pair.client.node.daemon
    daemon.wait_line("connection complete", direction="outbound", count=201)
    eventually(lambda: daemon.metric("istio_tcp_connections_failed_total", response_flags="CONNECT", reporter="source") == 201, "all counted")


def test_deny_beats_allow_and_is_named(pair):
    pair.policy("all", rules=[[]])
    pair.policy("no-client", action="Deny", rules=allow("cluster.local/ns/default/sa/client"))
    pair.start()
    pair.server.echo(8080)
    assert pair.client.refused(pair.server.ip, 8080)
    line = pair.server.node.daemon.wait_line("connection complete", direction="inbound")
    assert line.fields["error"].endswith("explicitly denied by: default/no-client")


def test_policy_cuts_open_connections_with_a_reset(pair):
    """A tightened policy resets connections that it no longer allows, within 100 ms of the file's change, and leaves the rest alone."""
    friend = pair.nodes[0].pod("friend")
    pair.start()
    pair.server.reflect(8080)
    with pair.client.connect(pair.server.ip, 8080) as cut, friend.connect(pair.server.ip, 8080) as kept:
        for s in (cut, kept):
            s.sendall(b"x")
            assert s.recv(1) == b"x"
        pair.policy("only-friend", rules=allow("cluster.local/ns/default/sa/friend"))
        pair.write()
        changed = time.monotonic()
        with pytest.raises(ConnectionResetError):
            cut.recv(1)
        assert time.monotonic() - changed < 2 * SLOW
        kept.sendall(b"y")
        assert kept.recv(1) == b"y"
    line = pair.server.node.daemon.wait_line("connection complete", direction="inbound", src__workload="client")
    assert line.fields["error"] == "connection closed due to policy change"
    pair.server.node.daemon.wait_line("connection complete", direction="inbound", src__workload="friend")


def test_a_workloads_new_policy_list_cuts_open_connections(pair):
    """Stricter than the reference: a selector policy that starts to apply is judged at once (spec/dataplane §14 row 5)."""
    pair.policy("deny-client", scope="WorkloadSelector", action="Deny", rules=allow("cluster.local/ns/default/sa/client"))
    pair.start()
    pair.server.reflect(8080)
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        pair.server.workload["authorizationPolicies"] = ["default/deny-client"]
        pair.write()
        with pytest.raises(ConnectionResetError):
            s.recv(1)


def test_strict_mode_refuses_plaintext_only(pair):
    """The form istiod sends: a static DENY of connections without a principal, named by the workload."""
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    pair.policy("istio_converted_static_strict", namespace="istio-system", scope="WorkloadSelector", action="Deny",
                rules=[[[ANY_PLAINTEXT]]])
    pair.server.workload["authorizationPolicies"] = ["istio-system/istio_converted_static_strict"]
    pair.start()
    pair.server.echo(8080)
    assert outside.refused(pair.server.ip, 8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    line = pair.server.node.daemon.wait_line("connection complete", direction="inbound", src__workload="outside")
    assert line.fields["error"].endswith("explicitly denied by: istio-system/istio_converted_static_strict")
    pair.server.workload["authorizationPolicies"] = []
    pair.write()
    eventually(lambda: outside.request(pair.server.ip, 8080) == b"hello worldhello world", "permissive mode")


def test_strict_mode_with_a_permissive_port(pair):
    """PeerAuthentication STRICT with portLevelMtls 8081 PERMISSIVE: plaintext is refused but on that port; and the other way round."""
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    plaintext_but_8081 = pair.policy("converted", scope="WorkloadSelector", action="Deny",
                                     rules=[[[ANY_PLAINTEXT], [{"notDestinationPorts": [8081]}]]])
    pair.server.workload["authorizationPolicies"] = ["default/converted"]
    pair.start()
    pair.server.echo(8080)
    pair.server.echo(8081)
    assert outside.refused(pair.server.ip, 8080)
    assert outside.request(pair.server.ip, 8081) == b"hello worldhello world"
    plaintext_but_8081["rules"] = [[[ANY_PLAINTEXT], [{"destinationPorts": [8081]}]]]
    pair.write()
    eventually(lambda: outside.refused(pair.server.ip, 8081), "the new rule")
    assert outside.request(pair.server.ip, 8080) == b"hello worldhello world"
    for port in (8080, 8081):
        assert pair.client.request(pair.server.ip, port) == b"hello worldhello world"


def test_decisions_are_logged_with_their_policy(pair):
    pair.policy("only-client", rules=allow("cluster.local/ns/default/sa/client"))
    pair.policy("would-deny", action="Deny", rules=[[]], dry_run=True)
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    daemon = pair.server.node.daemon
    assert daemon.wait_line("allow policy match").fields["policy"] == "default/only-client"
    assert daemon.wait_line("dry-run: deny policy match").fields["policy"] == "default/would-deny"


def test_policy_by_port_and_source_address(pair):
    """The port is the application's, not 15008; the source is the pod's own address."""
    pair.policy("port", rules=[[[{"destinationPorts": [8080], "sourceIps": [f"{pair.client.ip}/32"]}]]])
    pair.start()
    pair.server.echo(8080)
    pair.server.echo(8081)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    assert pair.client.refused(pair.server.ip, 8081)


def test_policy_watcher_lifecycle_goes_on_while_draining(pair):
    """A policy that comes while the daemon drains still cuts what it forbids (spec/dataplane §14 row 5)."""
    pair.start(CONNECTION_TERMINATION_DEADLINE="60s")
    pair.server.reflect(8080)
    daemon = pair.server.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("received signal SIGTERM, starting shutdown")
        pair.policy("nothing")
        pair.write()
        with pytest.raises(ConnectionResetError):
            s.recv(1)
    assert daemon.wait(20) == 0
    daemon.check_clean()
    daemon.process = None
    assert daemon.wait_line("connection complete", direction="inbound").fields["error"] == "connection closed due to policy change"
