"""Waypoints (spec/dataplane §2.2, §2.5, §4.5, §4.8): who is sent through one, under which name, and what a captured one gets."""
import socket
import struct

import pytest

from testenv import eventually
from testenv.hbone import issue
from testenv.netns import Server, echo
from testenv.peer import Peer, PeerConnection

VIP = "10.96.4.1"


class Reflecting(PeerConnection):
    def on_data(self, stream, data):
        self.send(stream, data)

    def on_end(self, stream):
        self.h2.end_stream(stream)


@pytest.fixture
def mesh(world, tmp_path):
    """A client, a server with a service, and a waypoint pod that no daemon serves: a peer of ours takes its tunnels."""
    w = world
    w.client = w.node().pod("client")
    far = w.node()
    w.server, w.waypoint = far.pod("server"), far.pod("waypoint")
    w.waypoint.enrolled = True  # that is: leave it alone
    w.svc = w.service("server", [w.server], VIP)
    w.by_address = {"destination": f"/{w.waypoint.ip}", "hboneMtlsPort": 15008}

    def start(peer=True, **env):
        w.start(**env)
        w.server.echo(8080)
        w.daemon = w.client.node.daemon
        if peer:
            w.peer = Peer(w.waypoint, issue(w.daemon, w.waypoint.identity, tmp_path / "waypoint"), Reflecting)
        return w
    w.up = start
    return w


def goes_to_the_waypoint(w, target, authority):
    assert w.client.request(*target, b"hi") == b"hi"
    (_, _, headers), = w.peer.streams()
    assert headers[":authority"] == authority
    line = w.daemon.wait_line("connection complete", direction="outbound").fields
    assert line["dst.workload"] == "waypoint" and line["dst.identity"] == w.waypoint.identity
    assert line["dst.hbone_addr"] == authority and line["dst.addr"] == f"{w.waypoint.ip}:15008"
    return line


def test_workload_waypoint(mesh):
    mesh.server.workload["waypoint"] = mesh.by_address
    w = mesh.up()
    line = goes_to_the_waypoint(w, (w.server.ip, 8080), f"{w.server.ip}:8080")
    assert "dst.service" not in line
    # A service without a waypoint never uses its endpoint's.
    assert w.client.request(VIP, 80, b"hi") == b"hihi"
    assert len(w.peer.streams()) == 1


def test_service_waypoint(mesh):
    mesh.svc["waypoint"] = mesh.by_address
    w = mesh.up()
    line = goes_to_the_waypoint(w, (VIP, 80), f"{VIP}:80")
    assert line["dst.service"] == "server.default.svc.cluster.local"
    # Whoever addresses the pod itself goes past the service's waypoint.
    assert w.client.request(w.server.ip, 8080, b"hi") == b"hihi"
    assert len(w.peer.streams()) == 1


def test_service_waypoint_hostname(mesh):
    host = mesh.service("wp", [mesh.waypoint], "10.96.4.9", ports={15008: 15008})["hostname"]
    mesh.svc["waypoint"] = {"destination": f"default/{host}", "hboneMtlsPort": 15008}
    goes_to_the_waypoint(mesh.up(), (VIP, 80), f"{VIP}:80")


def test_service_waypoint_by_its_services_address(mesh):
    """The waypoint's service may name identities of its own."""
    mesh.service("wp", [mesh.waypoint], "10.96.4.9", ports={15008: 15008}, subjectAltNames=["spiffe://cluster.local/ns/x/sa/y"])
    mesh.svc["waypoint"] = {"destination": "/10.96.4.9", "hboneMtlsPort": 15008}
    goes_to_the_waypoint(mesh.up(), (VIP, 80), f"{VIP}:80")


def test_service_waypoint_workload_hostname(mesh):
    mesh.waypoint.workload["hostname"] = "waypoint.example.com"
    mesh.svc["waypoint"] = {"destination": "default/waypoint.example.com", "hboneMtlsPort": 15008}
    goes_to_the_waypoint(mesh.up(), (VIP, 80), f"{VIP}:80")


def test_a_waypoint_that_comes_and_goes_counts_for_new_connections(mesh):
    w = mesh.up()
    with w.client.connect(VIP, 80) as old:
        old.sendall(b"a")
        assert old.recv(2) == b"aa"
        w.svc["waypoint"] = w.by_address
        w.write()
        eventually(lambda: w.client.request(VIP, 80, b"hi") == b"hi", "the waypoint")
        old.sendall(b"b")
        assert old.recv(2) == b"bb"
    del w.svc["waypoint"]
    w.write()
    eventually(lambda: w.client.request(VIP, 80, b"hi") == b"hihi", "no waypoint")


def test_waypoint_of_another_namespace(mesh, tmp_path):
    other = mesh.waypoint.node.pod("wp-elsewhere", namespace="infra")
    other.enrolled = True
    host = mesh.service("wp", [other], "10.96.4.9", namespace="infra", ports={15008: 15008})["hostname"]
    mesh.svc["waypoint"] = {"destination": f"infra/{host}", "hboneMtlsPort": 15008}
    w = mesh.up()
    peer = Peer(other, issue(w.daemon, other.identity, tmp_path / "infra"), Reflecting)
    assert w.client.request(VIP, 80, b"hi") == b"hi"
    assert [headers[":authority"] for _, _, headers in peer.streams()] == [f"{VIP}:80"]


def test_external_addresses_go_through_the_egress_waypoint_by_address_and_by_prefix(mesh):
    """Before a service names them they are passed through; then its waypoint gets them under their own address."""
    w = mesh
    outside = w.nodes[1].netns
    outside.ip("addr add 203.0.113.5/32 dev lo", "addr add 203.0.113.9/32 dev lo")
    w.nodes[0].netns.ip(f"route add 203.0.113.0/24 via {w.nodes[1].address}")
    server = Server(outside, 8080, echo)
    try:
        w.up()
        assert w.client.request("203.0.113.5", 8080, b"hi") == b"hihi"
        assert "dst.hbone_addr" not in w.daemon.wait_line("connection complete", direction="outbound").fields
        external = {"routingPreferences": [], "mode": "Passthrough", "healthPolicy": "AllowAll"}
        w.service("exact", [], "203.0.113.5", ports={8080: 8080}, waypoint=w.by_address, loadBalancer=external)
        w.service("prefix", [], [], ports={8080: 8080}, waypoint=w.by_address, loadBalancer=external,
                  cidrVips=[{"network": "", "cidr": "203.0.113.8/29"}])
        w.write()
        for ip in ("203.0.113.5", "203.0.113.9"):
            eventually(lambda: w.client.request(ip, 8080, b"hi") == b"hi", "the waypoint")
        assert {headers[":authority"] for _, _, headers in w.peer.streams()} == {"203.0.113.5:8080", "203.0.113.9:8080"}
    finally:
        server.close()


def test_a_waypoint_that_cannot_be_resolved_is_never_passed_by(mesh):
    mesh.svc["waypoint"] = {"destination": "/10.99.99.99", "hboneMtlsPort": 15008}
    mesh.server.workload["waypoint"] = {"destination": "default/nowhere.example.com", "hboneMtlsPort": 15008}
    w = mesh.up(peer=False)
    assert w.client.refused(VIP, 80) and w.client.refused(w.server.ip, 8080)
    w.daemon.wait_line("connection failed", count=2)
    errors = [line.fields["error"] for line in w.daemon.lines("connection failed")]
    assert errors == ["unknown waypoint: /10.99.99.99:15008", "unknown waypoint: default/nowhere.example.com:15008"]


def test_a_waypoint_that_is_down_is_never_passed_by(mesh):
    mesh.svc["waypoint"] = mesh.by_address
    w = mesh.up(peer=False)
    assert w.client.refused(VIP, 80)
    line = w.daemon.wait_line("connection complete", direction="outbound").fields
    assert "Connection refused" in line["error"] and line["dst.workload"] == "waypoint"


def test_weighted_waypoints_share_by_weight(mesh, tmp_path):
    other = mesh.waypoint.node.pod("canary")
    other.enrolled = True
    refs = [{"destination": mesh.by_address, "weight": 80},
            {"destination": {"destination": f"/{other.ip}", "hboneMtlsPort": 15008}, "weight": 20}]
    mesh.svc["weightedWaypoints"] = refs
    w = mesh.up()
    canary = Peer(other, issue(w.daemon, other.identity, tmp_path / "canary"), Reflecting)
    for _ in range(200):
        assert w.client.request(VIP, 80, b"hi") == b"hi"
    assert 15 <= len(canary.streams()) <= 75 and len(canary.streams()) + len(w.peer.streams()) == 200
    # All weights zero: the single one, and without it none.
    refs[0]["weight"] = refs[1]["weight"] = 0
    w.write()
    eventually(lambda: w.client.request(VIP, 80, b"hi") == b"hihi", "the server itself")


def test_a_client_that_is_the_waypoint_goes_direct(mesh):
    """A captured waypoint has done its work: its own way to the workload is not through itself."""
    mesh.waypoint.enrolled = False
    mesh.server.workload["waypoint"] = mesh.by_address
    w = mesh.up(peer=False)
    assert w.waypoint.request(w.server.ip, 8080, b"hi") == b"hihi"
    line = w.waypoint.node.daemon.wait_line("connection complete", direction="outbound", **{"src.workload": "waypoint"}).fields
    assert line["dst.workload"] == "server" and line["dst.addr"] == f"{w.server.ip}:15008"


# ---- captured waypoints: the sandwich ----

def forwards_to(w, seen):
    """The waypoint's application: notes what it sees first, and passes the rest on to the server."""
    def serve(s, peer):
        seen.append((peer, s.getsockname()))
        header = s.recv(16, socket.MSG_WAITALL) if w.proxy_protocol else b""
        if header:
            seen[-1] += (header, s.recv(struct.unpack(">H", header[14:16])[0], socket.MSG_WAITALL))
        with w.waypoint.connect(w.server.ip, 8080) as up:
            while data := s.recv(65536):
                up.sendall(data)
            up.shutdown(socket.SHUT_WR)
            while data := up.recv(65536):
                s.sendall(data)
        s.shutdown(socket.SHUT_WR)
    return serve


def test_sandwich_waypoint_plain(mesh):
    """Tunnel NONE with a port: the daemon delivers there, whatever port was asked for; the waypoint's own way out does not come back."""
    w = mesh
    w.waypoint.enrolled, w.proxy_protocol, seen = False, False, []
    w.waypoint.workload["applicationTunnel"] = {"protocol": "NONE", "port": 15088}
    w.server.workload["waypoint"] = w.by_address
    w.up(peer=False)
    w.waypoint.serve(15088, forwards_to(w, seen))
    assert w.client.request(w.server.ip, 8080, b"hi") == b"hihi"
    assert len(seen) == 1 and seen[0][0][0].endswith(w.client.ip) and seen[0][1][0].endswith(w.waypoint.ip)
    server_side = w.server.node.daemon.wait_line("connection complete", **{"dst.workload": "server", "direction": "inbound"}).fields
    assert server_side["src.identity"] == w.waypoint.identity


def test_sandwich_waypoint_proxy_protocol(mesh):
    """Tunnel PROXY: the application, on loopback, is told whom the client wanted and who it is. The waypoint's service lists no port."""
    w = mesh
    w.waypoint.enrolled, w.proxy_protocol, seen = False, True, []
    w.waypoint.workload["applicationTunnel"] = {"protocol": "PROXY", "port": 15088}
    host = w.service("wp", [w.waypoint], "10.96.4.9", ports={1: 1})
    host["ports"] = {}
    w.svc["waypoint"] = {"destination": f"default/{host['hostname']}", "hboneMtlsPort": 15008}
    w.up(peer=False)
    w.waypoint.serve(15088, forwards_to(w, seen), host="127.0.0.1")
    with w.client.connect(VIP, 80) as s:
        port = s.getsockname()[1]
        s.sendall(b"hi")
        s.shutdown(socket.SHUT_WR)
        assert s.recv(100) == b"hihi"
    (_, _, header, rest), = seen
    assert header[:12] == b"\r\n\r\n\0\r\nQUIT\n" and header[12:14] == b"\x21\x11"
    src, dst = socket.inet_ntoa(rest[:4]), socket.inet_ntoa(rest[4:8])
    assert (src, dst, struct.unpack(">H", rest[10:12])[0]) == (w.client.ip, VIP, 80) and port
    assert rest[12] == 0xd0 and rest[15:15 + struct.unpack(">H", rest[13:15])[0]].decode() == w.client.identity


@pytest.mark.parametrize("target", ["workload", "service"])
def test_a_captured_waypoint_takes_only_what_is_attached_to_it(mesh, target):
    """Destination validation: our own waypoint pod accepts the authority of what names it, and of nothing else."""
    from testenv.hbone import Tunnel
    w = mesh
    w.waypoint.enrolled = False
    outsider = w.node().pod("outsider", protocol="TCP")
    (w.server.workload if target == "workload" else w.svc)["waypoint"] = w.by_address
    w.up(peer=False)
    w.waypoint.echo(8080)
    w.waypoint.echo(80)
    cert = issue(w.daemon, outsider.identity, w.directory + "/outsider")
    attached, other = (f"{w.server.ip}:8080", f"{VIP}:80") if target == "workload" else (f"{VIP}:80", f"{w.server.ip}:8080")
    with Tunnel(outsider, w.waypoint.ip, cert) as t:
        assert t.request(attached)[0] == 200
        assert t.request(other)[0] == 400
        assert t.request("10.99.0.1:80")[0] == 400
