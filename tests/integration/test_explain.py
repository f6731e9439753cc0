"""`ztctl explain` compared with the real connection, for every row of spec/dataplane §2.2."""
import json

import pytest

from testenv import eventually
from testenv.netns import Server, echo

VIP = "10.96.1.{}"


@pytest.fixture
def mesh(world):
    n1, n2 = world.node(), world.node()
    w = world
    w.client, w.near = n1.pod("client"), n1.pod("near")
    w.far, w.plain, w.sick = n2.pod("far"), n2.pod("plain", protocol="TCP"), n2.pod("sick")
    w.guarded = n2.pod("guarded")
    w.client.workload["network"] = ""
    w.sick.workload["status"] = "Unhealthy"
    w.service("far-svc", [w.far], VIP.format(1))
    w.service("plain-svc", [w.plain], VIP.format(2))
    w.service("sick-svc", [w.sick], VIP.format(3))
    w.service("open-svc", [w.sick], VIP.format(4), loadBalancer={"routingPreferences": [], "mode": "Standard", "healthPolicy": "AllowAll"})
    w.service("pass-svc", [], n2.address, ports={9000: 9000},
              loadBalancer={"routingPreferences": [], "mode": "Passthrough", "healthPolicy": "OnlyHealthy"})
    w.service("named-svc", [w.far], VIP.format(5), ports={80: 8080})["ports"] = {"80": 0}  # a named port: the endpoint maps it
    w.service("named-nowhere", [], VIP.format(6), ports={80: 0})
    w.service("guarded-svc", [w.guarded], VIP.format(7))
    w.service("private-svc", [w.far], VIP.format(8), namespace="elsewhere", visibility="Namespace")
    w.service("v6-svc", [w.far], [VIP.format(9), "fd00:96::9"], ipFamilies="IPv6")
    w.policy("no-client", scope="WorkloadSelector", action="Deny",
             rules=[[[{"principals": [{"Exact": "cluster.local/ns/default/sa/client"}], "destinationPorts": [8080]}]]])
    w.guarded.workload["authorizationPolicies"] = ["default/no-client"]
    w.start()
    for pod in (w.client, w.near, w.far, w.plain, w.sick, w.guarded):
        pod.echo(8080)
        pod.echo(8081)
    w.outside = Server(n2.netns, 9000, echo)
    yield w
    w.outside.close()


def rows(w):
    far, plain = w.far, w.plain
    return {
        "A2 unknown address": (f"{w.nodes[1].address}:9001", None),
        "A2 workload elsewhere, HBONE": (f"{far.ip}:8080", f"{far.ip}:15008"),
        "A2 workload elsewhere, HBONE, IPv6": (f"[{far.ip6}]:8080", f"[{far.ip6}]:15008"),
        "A2 workload elsewhere, TCP": (f"{plain.ip}:8080", f"{plain.ip}:8080"),
        "A2 workload on this node, HBONE": (f"{w.near.ip}:8080", f"{w.near.ip}:15008"),
        "A1 service, HBONE endpoint": (VIP.format(1) + ":80", f"{far.ip}:15008"),
        "A1 service, TCP endpoint": (VIP.format(2) + ":80", f"{plain.ip}:8080"),
        "A1 service, port that it does not have": (VIP.format(1) + ":81", None),
        "A1 service, no healthy endpoint": (VIP.format(3) + ":80", None),
        "A1 service, unhealthy endpoints allowed": (VIP.format(4) + ":80", f"{w.sick.ip}:15008"),
        "A1 service, passthrough": (f"{w.nodes[1].address}:9000", f"{w.nodes[1].address}:9000"),
        "A1 service, named port": (VIP.format(5) + ":80", f"{far.ip}:15008"),
        "A1 service, named port that nobody maps": (VIP.format(6) + ":80", None),
        "A1 service, private to another namespace": (VIP.format(8) + ":80", None),
        "A1 service, IPv6 endpoints only": (VIP.format(9) + ":80", f"[{far.ip6}]:15008"),
        "authorization: denied": (f"{w.guarded.ip}:8080", f"{w.guarded.ip}:15008"),
        "authorization: denied by service": (VIP.format(7) + ":80", f"{w.guarded.ip}:15008"),
        "authorization: another port is allowed": (f"{w.guarded.ip}:8081", f"{w.guarded.ip}:15008"),
    }


def split(target):
    host, port = target.rsplit(":", 1)
    return host.strip("[]"), int(port)


def real(client, target):
    """The connection itself: (what came back, the client's own access line)."""
    daemon = client.node.daemon
    before = len(daemon.log().splitlines())
    try:
        answer = client.request(*split(target), b"hi", timeout=5)
    except OSError:
        answer = b""
    def ours():
        for line in daemon.lines()[before:]:
            if line.scope == "access" and line.fields.get("direction") == "outbound" and line.message != "connection opened":
                return line
    return answer, eventually(ours, "an access line for " + target)


def compare(client, target, next_hop):
    """Problems, as text."""
    told = json.loads(client.node.daemon.ztctl("-o", "json", "explain", f"default/{client.name}", target))
    answer, line = real(client, target)
    route, problems = told.get("route"), []
    def same(what, a, b):
        if a != b:
            problems.append(f"{what}: explain says {a!r}, the connection {b!r}")
    if line.message == "connection failed":
        same("error", told.get("routeError"), line.fields["error"])
        return problems
    same("next hop", route["nextHop"], line.fields["dst.addr"])
    same("authority", route.get("authority"), line.fields.get("dst.hbone_addr"))
    same("protocol", route["protocol"].removeprefix("DOUBLE"), "HBONE" if "dst.hbone_addr" in line.fields else "TCP")
    same("service", route.get("service"), f"default/{line.fields['dst.service']}" if "dst.service" in line.fields else None)
    same("endpoint", route.get("endpoint"), f"default/{line.fields['dst.workload']}" if "dst.workload" in line.fields else None)
    if "dst.identity" in line.fields:
        same("identities", route["expectedIdentities"], [line.fields["dst.identity"]])
    if told["authorization"]["verdict"] in ("allow", "deny"):
        same("verdict", told["authorization"]["verdict"], "allow" if answer == b"hihi" else "deny")
    if next_hop and route["nextHop"] != next_hop:
        problems.append(f"next hop is {route['nextHop']}, should be {next_hop}")
    return problems


def test_explain_agrees_with_the_connection_in_every_row(mesh):
    problems = []
    for name, (target, next_hop) in rows(mesh).items():
        problems += [f"{name}: {p}" for p in compare(mesh.client, target, next_hop)]
    assert not problems, "\n".join(problems)


@pytest.fixture
def gated(world):
    """Waypoints and gateways by their records; nobody needs to be there to be told apart."""
    w = world
    n1, n2 = w.node(), w.node()
    w.client, w.waypoint = n1.pod("client"), n1.pod("waypoint")
    w.server, w.remote, w.stranded, w.lost = (n2.pod(name) for name in ("server", "remote", "stranded", "lost"))
    w.far_waypoint, w.gateway = n2.pod("far-waypoint"), n2.pod("gateway")
    at = lambda pod, network="": {"destination": f"{network}/{pod.ip}", "hboneMtlsPort": 15008}
    for pod in (w.remote, w.stranded, w.lost, w.far_waypoint, w.gateway):
        pod.workload["network"] = "elsewhere"
    w.remote.workload["networkGateway"] = w.far_waypoint.workload["networkGateway"] = at(w.gateway, "elsewhere")
    w.lost.workload["networkGateway"] = {"destination": "elsewhere/10.99.0.1", "hboneMtlsPort": 15008}
    w.server.workload["waypoint"] = at(w.waypoint)
    w.service("wp", [w.waypoint], VIP.format(50), ports={15008: 15008})
    unknown = {"destination": "default/nobody.example.com", "hboneMtlsPort": 15008}
    for i, (name, pods, more) in enumerate([
            ("plain", [w.server], {}), ("by-address", [w.server], {"waypoint": at(w.waypoint)}),
            ("by-name", [w.server], {"waypoint": {"destination": "default/wp.default.svc.cluster.local", "hboneMtlsPort": 15008}}),
            ("unknown", [w.server], {"waypoint": unknown}), ("far-waypoint", [w.server], {"waypoint": at(w.far_waypoint, "elsewhere")}),
            ("remote", [w.remote], {"subjectAltNames": [w.remote.identity]}), ("stranded", [w.stranded], {}), ("lost", [w.lost], {}),
            ("open", [], {"waypoint": at(w.waypoint), "loadBalancer": {"routingPreferences": [], "mode": "Passthrough",
                                                                      "healthPolicy": "OnlyHealthy"}})], 51):
        w.service(name, pods, VIP.format(i), **more)
    w.start()
    w.server.echo(8080)
    return w


def test_explain_agrees_where_waypoints_and_gateways_are(gated):
    w = gated
    vip = lambda i: VIP.format(50 + i) + ":80"
    waypoint, gateway, server = f"{w.waypoint.ip}:15008", f"{w.gateway.ip}:15008", f"{w.server.ip}:15008"
    table = [  # who, where to, next hop (None: refused)
        ("A1 service without a waypoint does not use the workload's", w.client, vip(1), server),
        ("A1 waypoint by address", w.client, vip(2), waypoint),
        ("A1 waypoint by hostname", w.client, vip(3), waypoint),
        ("A1 unknown waypoint", w.client, vip(4), None),
        ("A1 waypoint in another network", w.client, vip(5), gateway),
        ("C endpoint in another network", w.client, vip(6), gateway),
        ("C endpoint in another network, no gateway", w.client, vip(7), None),
        ("C endpoint in another network, unknown gateway", w.client, vip(8), None),
        ("A1 passthrough with a waypoint", w.client, vip(9), waypoint),
        ("C workload waypoint", w.client, f"{w.server.ip}:8080", waypoint),
        ("C from its waypoint", w.waypoint, f"{w.server.ip}:8080", server),
    ]
    problems = []
    for name, client, target, next_hop in table:
        problems += [f"{name}: {p}" for p in compare(client, target, next_hop)]
        told = json.loads(client.node.daemon.ztctl("-o", "json", "explain", f"default/{client.name}", target))
        if ("route" in told) != bool(next_hop):
            problems.append(f"{name}: {told.get('route') or told['routeError']}")
    assert not problems, "\n".join(problems)


def test_explain_names_the_policy_and_whose_verdict_it_is(mesh):
    daemon = mesh.client.node.daemon
    denied = json.loads(daemon.ztctl("-o", "json", "explain", "default/client", f"{mesh.guarded.ip}:8080"))["authorization"]
    assert denied["verdict"] == "deny" and denied["reason"] == "explicitly denied by: default/no-client"
    assert denied["decidedBy"] == "the other node" and denied["node"] == "n2"
    assert denied["sourceIdentity"] == mesh.client.identity
    assert any("default/no-client" in step for step in denied["steps"])
    near = json.loads(daemon.ztctl("-o", "json", "explain", "default/client", f"{mesh.near.ip}:8080"))["authorization"]
    assert (near["verdict"], near["decidedBy"]) == ("allow", "this node")
    outside = json.loads(daemon.ztctl("-o", "json", "explain", "default/client", f"{mesh.nodes[1].address}:9001"))["authorization"]
    assert outside["verdict"] == "none"


def test_explain_takes_hostnames_and_speaks_to_people(mesh):
    daemon = mesh.client.node.daemon
    text = daemon.ztctl("explain", "default/client", "far-svc.default.svc.cluster.local:80")
    assert f"=> HBONE to {mesh.far.ip}:15008, CONNECT {mesh.far.ip}:8080" in text and "=> allow" in text
    assert mesh.far.identity in text


@pytest.mark.parametrize("src, dst, text", [
    ("default/nobody", "10.0.0.1:80", "no workload default/nobody is known here"),
    ("client", "10.0.0.1:80", "NAMESPACE/POD"),
    ("default/client", "10.0.0.1", "ADDRESS:PORT"),
    ("default/client", "10.0.0.1:99999", "99999 is not a port"),
    ("default/client", "nowhere.default.svc.cluster.local:80", "neither an address nor the full hostname"),
])
def test_explain_refuses_what_it_cannot_mean(pair, src, dst, text):
    pair.start()
    done = pair.client.node.daemon.ztctl("explain", src, dst, check=False)
    assert done.returncode == 1 and text in done.stderr and done.stderr.startswith("ztctl: ")
