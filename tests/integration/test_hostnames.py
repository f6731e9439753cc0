"""Workloads that have only a hostname (spec/dataplane §2.6): asked for on demand, from the daemon's own namespace, without the mark."""
import pytest

from testenv import eventually
from testenv.dns import Resolver, Upstream, addresses

HOST = "backend.example.com"


@pytest.fixture
def mesh(world):
    node = world.node()
    world.client, world.server = node.pod("client"), node.pod("server", protocol="TCP")
    world.upstream = Upstream(node.netns, node.address, {(HOST, "A"): [world.server.ip], (HOST, "AAAA"): [world.server.ip6],
                                                         ("empty.example.com", "TXT"): ["x"]})
    node.resolv_conf(node.address, more="search example.com\noptions timeout:1 attempts:1\n")
    world.vips = 0

    def entry(hostname, name):
        world.vips += 1
        vip = f"10.96.0.{world.vips}"
        service = world.service(name, [], [vip, f"fd00:96::{world.vips}"])
        world.more_workloads.append({
            "uid": f"cluster1//{name}", "name": name, "namespace": "default", "serviceAccount": name, "hostname": hostname,
            "protocol": "TCP", "node": "", "network": "", "workloadIps": [],
            "services": {f"default/{service['hostname']}": {"80": 8080}}})
        return vip
    world.entry = entry
    world.server.echo(8080)
    yield world
    world.upstream.close()


def test_on_demand_dns_request(mesh):
    vip = mesh.entry(HOST, "entry")
    daemon = mesh.start().nodes[0].daemon
    for _ in range(2):
        assert mesh.client.request(vip, 80) == b"hello worldhello world"
    assert daemon.metric("istio_on_demand_dns_total", hostname=HOST, source_workload="client", source_principal=mesh.client.identity) == 2
    assert sorted(mesh.upstream.asked) == [(HOST, "A", "udp"), (HOST, "AAAA", "udp")]  # the second from the cache
    assert set(mesh.upstream.clients) == {mesh.nodes[0].address}  # our own namespace
    line = daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["dst.addr"] == f"{mesh.server.ip}:8080" and line.fields["dst.workload"] == "entry"


def test_service_entry_inlined_workload_entry_of_the_client_s_family(mesh):
    mesh.entry(HOST, "entry")
    daemon = mesh.start().nodes[0].daemon
    assert mesh.client.request("fd00:96::1", 80) == b"hello worldhello world"
    assert daemon.wait_line("connection complete", direction="outbound").fields["dst.addr"] == f"[{mesh.server.ip6}]:8080"


def test_service_entry_selects_workload_entry_by_ip_and_by_hostname(mesh):
    by_name = mesh.entry(HOST, "named")
    by_ip = mesh.entry("", "numbered")
    mesh.more_workloads[-1]["workloadIps"] = [mesh.server.ip]
    mesh.start()
    for vip in (by_name, by_ip):
        assert mesh.client.request(vip, 80) == b"hello worldhello world"


def test_service_entry_selects_uncaptured_pod(mesh):
    """Its name gives the VIP of either family, which leads to a pod outside of the mesh, with its port mapped."""
    service = mesh.service("external", [mesh.server], ["240.240.0.1", "2001:2::1"])
    service["hostname"] = "serviceentry.istio.io"
    mesh.server.workload["services"] = {"default/serviceentry.istio.io": {"80": 8080}}
    mesh.start()
    for kind, vip in (("A", "240.240.0.1"), ("AAAA", "2001:2::1")):
        assert addresses(Resolver(mesh.client).ask("serviceentry.istio.io", kind)) == [vip]
        assert mesh.client.request(vip, 80) == b"hello worldhello world"


def test_the_search_list_is_ours(mesh):
    vip = mesh.entry("backend", "entry")
    mesh.start()
    assert mesh.client.request(vip, 80) == b"hello worldhello world"
    assert {name for name, _, _ in mesh.upstream.asked} == {HOST}  # no dots: the search list comes first


def test_the_hosts_file_comes_first(mesh, tmp_path):
    vip = mesh.entry("static.example.com", "entry")
    hosts = tmp_path / "hosts"
    hosts.write_text(f"127.0.0.1 localhost\n# {mesh.server.ip} wrong\n{mesh.server.ip}\tother Static.example.com # ours\n")
    mesh.nodes[0].mounts["/etc/hosts"] = str(hosts)
    mesh.start()
    assert mesh.client.request(vip, 80) == b"hello worldhello world"
    assert mesh.upstream.asked == []


def test_no_answer_and_no_address_are_told_apart(mesh):
    silent, empty = mesh.entry("silent.test", "silent"), mesh.entry("empty.example.com", "empty")
    daemon = mesh.start().nodes[0].daemon
    mesh.upstream.behave = lambda query, answer, tcp: [] if "silent" in query.question[0].name.to_text() else [answer]
    assert mesh.client.refused(empty, 80) and mesh.client.refused(silent, 80)
    for error in ("ip addresses were resolved for workload cluster1//empty, but valid dns response had no A/AAAA records",
                  "no ip addresses were resolved for workload: cluster1//silent"):
        daemon.wait_line("connection failed", error=error)
