"""Discovery by Istio's own code: what its API server is told reaches the daemons, and they keep in step whatever becomes of the stream."""
import peer as kube
import pytest
from testenv import eventually

WEB, VIP = "web.default.svc.cluster.local", "10.96.0.1"


def responses(daemon):
    """(records, removals) of every Address response."""
    return [(int(line.fields["size"]), int(line.fields["removes"]))
            for line in daemon.lines("received response", type_url=kube.ADDRESS_TYPE)]


def names(daemon, kind):
    return {r["name"] for r in daemon.dump()[kind]}


def explain(daemon, source, destination):
    return daemon.ztctl("explain", source, destination)


@pytest.fixture
def story(mesh):
    """A client on one node, a server behind a service on the other, traffic between them."""
    mesh.client, mesh.server = mesh.node().pod("client"), mesh.node().pod("server")
    mesh.plane.apply(kube.service("default", "web", [VIP], "server", {80: 8080}))
    mesh.start()
    mesh.server.echo()
    mesh.near, mesh.far = mesh.client.node.daemon, mesh.server.node.daemon
    mesh.works = lambda: mesh.client.request(VIP, 80, b"hello") == b"hellohello"
    eventually(mesh.works, "traffic")
    return mesh


def test_istiod_empty_mesh_is_acknowledged_and_ready(mesh):
    node = mesh.node()
    mesh.start()
    mesh.wait_synced()
    assert names(node.daemon, "workloads") == {"ztunnel-n1"} and not node.daemon.lines_with("Nack")


def test_istiod_traffic_follows_what_it_says(story):
    line = story.near.wait_line("connection complete", direction="outbound")
    assert line.fields["src.identity"] == story.client.identity and line.fields["dst.identity"] == story.server.identity, line
    story.plane.apply(kube.service("default", "web", [VIP], "server", {81: 8080}))
    eventually(lambda: story.client.request(VIP, 81) == b"hello world" * 2, "the changed port")
    second = story.server.node.pod("second")
    second.serve(8080, lambda s, _: s.sendall(b"second"))
    second.enrol()
    story.plane.apply(kube.service("default", "web", [VIP], "second", {80: 8080}))
    story.publish(second)
    eventually(lambda: story.client.request(VIP, 80) == b"second", "the other pod behind the service")
    story.plane.delete("Pod", "default", "second")
    eventually(lambda: "second" not in names(story.near, "workloads"), "the pod to be forgotten")
    story.plane.delete("Service", "default", "web")
    eventually(lambda: "web" not in names(story.near, "services"), "the service to be forgotten")
    assert not story.near.lines_with("Nack") and not story.far.lines_with("Nack")


def test_istiod_policies_come_change_and_go(story):
    def refused():
        return story.client.refused(VIP, 80)
    story.plane.apply(kube.authorization_policy("default", "nothing"))
    eventually(refused, "a policy that allows nothing")
    principal = story.client.identity.removeprefix("spiffe://")
    allow = {"rules": [{"from": [{"source": {"principals": [principal]}}], "to": [{"operation": {"ports": ["8080"]}}]}]}
    story.plane.apply(kube.authorization_policy("default", "client", **allow))
    eventually(story.works, "the client's own policy")
    story.plane.apply(kube.authorization_policy("default", "deny", action="DENY", selector={"matchLabels": {"app": "server"}}, **allow))
    eventually(refused, "a denial for these pods")
    story.plane.delete("AuthorizationPolicy", "default", "deny")
    eventually(story.works, "the denial to be gone")
    for name in ("client", "nothing"):
        story.plane.delete("AuthorizationPolicy", "default", name)
    eventually(lambda: not story.far.dump()["policies"], "no policy at all")
    assert story.works() and not story.far.lines_with("Nack")


def test_istiod_strict_mode_refuses_plain_text(story):
    outsider = story.client.node.pod("outsider", protocol="TCP")
    story.publish(outsider)
    assert outsider.request(story.server.ip, 8080, b"hello") == b"hellohello"
    story.plane.apply(kube.peer_authentication("default", "strict", "STRICT"))
    eventually(lambda: outsider.refused(story.server.ip, 8080), "plain text refused")
    assert story.works()
    story.plane.apply(kube.peer_authentication("default", "strict", "PERMISSIVE"))
    eventually(lambda: outsider.request(story.server.ip, 8080, b"hello") == b"hellohello", "plain text again")


def test_istiod_service_entry_has_its_endpoint(story):
    outside = story.server.node.pod("outside", protocol="TCP")
    outside.serve(9000, lambda s, _: s.sendall(b"outside"))
    story.plane.apply(kube.service_entry("default", "ext", "ext.example.com", "240.0.0.9", [outside.ip], {80: 9000}))
    eventually(lambda: story.client.request("240.0.0.9", 80) == b"outside", "the ServiceEntry's address")
    story.plane.delete("ServiceEntry", "default", "ext")
    eventually(lambda: "ext" not in names(story.near, "services"), "the ServiceEntry to be forgotten")


def test_istiod_waypoint_is_the_next_hop(story):
    waypoint = story.server.node.pod("waypoint")
    story.plane.apply(kube.service("default", "waypoint", ["10.96.0.9"], "waypoint", {15008: 15008}),
                       kube.waypoint("default", "waypoint", "10.96.0.9"))
    story.publish(waypoint, labels={"gateway.networking.k8s.io/gateway-name": "waypoint"})
    story.plane.apply(kube.service("default", "web", [VIP], "server", {80: 8080}, {"istio.io/use-waypoint": "waypoint"}))

    def through():
        text = explain(story.near, "default/client", f"{VIP}:80")
        return waypoint.ip in text and waypoint.identity in text
    eventually(through, "the waypoint in between")
    story.plane.apply(kube.service("default", "web", [VIP], "server", {80: 8080}))
    eventually(story.works, "no waypoint any more")


def test_istiod_restart_without_change_sends_nothing_again(story):
    before = len(responses(story.near))
    story.plane.kill()
    eventually(lambda: story.near.lines_with("connection error"), "the stream's end to be noticed")
    assert story.works(), "traffic needs no control plane"
    story.plane.start()
    story.near.wait_line("Stream established", timeout=30, count=2)
    story.wait_synced()
    held = story.near.lines("sending initial request", type_url=kube.ADDRESS_TYPE)[-1]
    assert int(held.fields["resources"]) == len(story.near.dump()["workloads"]) + len(story.near.dump()["services"])
    assert set(responses(story.near)[before:]) <= {(0, 0)}
    assert story.works()


def test_istiod_forced_disconnect_is_answered_at_once(story):
    story.plane.command("debug", f"/debug/force_disconnect?proxyID=ztunnel-n1.{kube.SYSTEM}")
    story.near.wait_line("Stream established", count=2)
    story.wait_synced()
    assert story.works()


def test_istiod_removal_while_it_was_down(story):
    story.plane.kill()
    story.plane.delete("Pod", "default", "server")
    story.plane.apply(kube.authorization_policy("default", "nothing"))
    story.plane.start()
    eventually(lambda: "server" not in names(story.near, "workloads"), "the pod to be forgotten", 30)
    assert any(removes for _, removes in responses(story.near))
    eventually(lambda: "nothing" in names(story.near, "policies"), "the new policy", 30)
    assert "web" in names(story.near, "services")


def test_istiod_connections_that_age(mesh):
    """istiod says GOAWAY every two seconds and drops the connection a second later; nobody notices."""
    mesh.plane.argv += ["-max-age", "2s"]
    client, server = mesh.node().pod("client"), mesh.node().pod("server")
    mesh.start()
    server.echo()
    daemon = client.node.daemon
    for n in range(2, 4):
        daemon.wait_line("Stream established", timeout=20, count=n)
        assert client.request(server.ip, 8080, b"hello") == b"hellohello"
    mesh.plane.kill()
    del mesh.plane.argv[-2:]
    mesh.plane.start()


def test_istiod_bad_tokens_keep_the_state(story):
    """Expired, for another audience, forged: the stream is refused and retried, what was known stays, a good token ends it."""
    node = story.client.node
    for broken in (("istio-ca", "-1"), ("another-audience",), None):
        story.give_token(node, *(broken or ()), text=None if broken else "forged.token")
        seen = len(story.near.lines_with("UNAUTHENTICATED"))
        story.plane.kill()
        story.plane.start()
        eventually(lambda n=seen: len(story.near.lines_with("UNAUTHENTICATED")) > n + 1, "refusals", 30)
        assert story.works()
        established = len(story.near.lines("Stream established"))
        story.give_token(node)
        story.near.wait_line("Stream established", timeout=30, count=established + 1)
        story.wait_synced()


def test_istiod_wrong_cluster_is_refused(mesh):
    node = mesh.node()
    mesh.write()
    mesh.plane.start()
    daemon = node.start(wait_ready=False, ISTIO_META_CLUSTER_ID="elsewhere")
    eventually(lambda: daemon.lines_with("UNAUTHENTICATED"), "a refusal")
    assert daemon.http(15021, "/healthz/ready")[0] == 500
    daemon.stop()
    node.start()


def test_istiod_wrong_namespace_is_refused(mesh):
    node = mesh.node()
    mesh.write()
    mesh.plane.start()
    daemon = node.start(wait_ready=False, POD_NAMESPACE="elsewhere")
    eventually(lambda: daemon.lines_with("PERMISSION_DENIED"), "a refusal")
    assert daemon.http(15021, "/healthz/ready")[0] == 500
    daemon.stop()
    node.start()


def test_istiod_fifty_thousand_workloads(mesh):
    """One response of over 4 MiB, and a reconnect that names all of it."""
    entries, each = 50, 1000  # endpoints of a ServiceEntry are workloads too, and cost the API server's stand-in much less than pods
    count = entries * each
    for i in range(entries):
        mesh.plane.apply(kube.service_entry("default", f"many-{i}", f"many-{i}.example.com", f"240.1.0.{i}",
                                             [f"10.{100 + i}.{j >> 8}.{j & 255}" for j in range(each)], {80: 80}))
    client, server = mesh.node().pod("client"), mesh.node().pod("server")
    mesh.start()
    daemon = client.node.daemon
    assert len(daemon.dump()["workloads"]) == count + 4
    assert any(n >= count for n, _ in responses(daemon))
    server.echo()
    assert client.request(server.ip, 8080, b"hello") == b"hellohello"
    before = len(responses(daemon))
    mesh.plane.command("stop")
    mesh.plane.command("serve")
    daemon.wait_line("Stream established", timeout=30, count=2)
    mesh.wait_synced()
    mesh.plane.delete("ServiceEntry", "default", "many-7")
    eventually(lambda: sum(removes for _, removes in responses(daemon)[before:]) > each, "the removal of a thousand and their service", 30)
    eventually(lambda: len(daemon.dump()["workloads"]) == count - each + 4, "the rest", 30)
