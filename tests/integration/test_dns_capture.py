"""What a pod sees: port 53 captured by the agent's rules, listeners and their end."""
import socket

import dns.message
import dns.rcode
import pytest

from testenv import eventually
from testenv.dns import Resolver, Upstream, addresses

CAPTURE = """
table inet ztunneld-dns {
  chain raw_out { type filter hook output priority -300; policy accept;
    udp dport 53 meta mark and 0xfff == 0x539 ct zone set 1
  }
  chain raw_pre { type filter hook prerouting priority -300; policy accept;
    udp sport 53 meta mark and 0xfff != 0x539 ct zone set 1
  }
  chain nat_out { type nat hook output priority -101; policy accept;
    oifname != "lo" meta mark and 0xfff != 0x539 udp dport 53 redirect to :15053
    ip daddr != 127.0.0.1 tcp dport 53 meta mark and 0xfff != 0x539 redirect to :15053
  }
}
"""


@pytest.fixture
def mesh(world):
    node = world.node()
    world.client, world.server = node.pod("client", namespace="ns1"), node.pod("echo", namespace="ns2")
    world.service("echo", [world.server], "10.96.0.1", namespace="ns2")
    world.upstream = Upstream(node.netns, node.address, {("www.example.com", "A"): ["192.0.2.1"]})
    node.resolv_conf(node.address)
    yield world
    world.upstream.close()


def test_captured_questions_to_any_server_are_answered(mesh):
    mesh.start()
    mesh.client.netns.run("nft", "-f", "-", input=CAPTURE)
    r = Resolver(mesh.client, host="198.51.100.1", port=53)  # nobody is there
    for tcp in (False, True):
        assert addresses(r.ask("echo.ns2", tcp=tcp)) == ["10.96.0.1"]
        assert addresses(r.ask("www.example.com", tcp=tcp)) == ["192.0.2.1"]
    assert set(mesh.upstream.clients) == {mesh.client.ip}  # from the pod's namespace, past its own rules


def test_a_pod_without_ipv6_on_lo_is_served_on_ipv4(mesh):
    mesh.client.netns.sysctl("net.ipv6.conf.lo.disable_ipv6", 1)
    mesh.write()
    node = mesh.nodes[0]
    daemon = node.start(enrol=False)
    for pod in (mesh.client, mesh.server):
        assert node.zds.add(pod.zds_uid, pod.name, pod.namespace, pod.sa, pod.netns.fd) == ""
    assert addresses(Resolver(mesh.client).ask("echo.ns2")) == ["10.96.0.1"]
    assert addresses(Resolver(mesh.server, "::1").ask("echo.ns2")) == ["10.96.0.1"]
    eventually(lambda: sorted(line.fields["address"] for line in daemon.lines("starting local DNS server")) ==
               ["127.0.0.1:15053", "127.0.0.1:15053", "[::1]:15053"], "a line for each address")


def sockets(pod):
    lines = pod.netns.run("ss", "-Hlntu").splitlines()
    return {(line.split()[0], line.split()[4]) for line in lines}


def test_c17_sockets_of_dns_and_socks5(mesh):
    mesh.start()
    assert {("udp", "127.0.0.1:15053"), ("tcp", "127.0.0.1:15053"), ("udp", "[::1]:15053"), ("tcp", "[::1]:15053")} <= sockets(mesh.client)
    assert not any("15080" in address for _, address in sockets(mesh.client))


def test_socks5_and_ipv4_only_sockets(mesh):
    mesh.start(UNSTABLE_ENABLE_SOCKS5="true", IPV6_ENABLED="false")
    found = sockets(mesh.client)
    assert {("tcp", "127.0.0.1:15080"), ("tcp", "127.0.0.1:15053"), ("udp", "127.0.0.1:15053")} <= found
    assert not any("[::" in address for _, address in found)


def test_the_listen_address_can_be_moved(mesh):
    mesh.start(ISTIO_META_DNS_PROXY_ADDR="localhost:5353")
    assert addresses(Resolver(mesh.client, port=5353).ask("echo.ns2")) == ["10.96.0.1"]


def test_without_the_proxy_pods_still_have_names(mesh):
    """ENABLE_PROXY=false: DNS alone."""
    mesh.write()
    node = mesh.nodes[0]
    node.start(enrol=False, ENABLE_PROXY="false")
    assert node.zds.add(mesh.client.zds_uid, "client", "ns1", "client", mesh.client.netns.fd) == ""
    assert addresses(Resolver(mesh.client).ask("echo.ns2")) == ["10.96.0.1"]
    assert not any("15001" in address for _, address in sockets(mesh.client))


def test_a_removed_pod_leaves_no_socket(mesh):
    mesh.start()
    mesh.client.unenrol()
    eventually(lambda: not any("15053" in address for _, address in sockets(mesh.client)), "its sockets to go")
    client = mesh.client
    assert client.node.zds.add(client.zds_uid, client.name, client.namespace, client.sa, client.netns.fd) == ""
    assert addresses(Resolver(mesh.client).ask("echo.ns2")) == ["10.96.0.1"]


def test_drain_answers_what_is_under_way(mesh):
    daemon = mesh.start().nodes[0].daemon
    release = []

    def slow(query, answer, tcp):
        eventually(lambda: release, "the drain to begin")
        return [answer]
    mesh.upstream.behave = slow
    with mesh.client.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.connect(("127.0.0.1", 15053))
        s.send(dns.message.make_query("www.example.com", "A").to_wire())
        eventually(lambda: mesh.upstream.count(), "the question upstream")
        daemon.signal(15)
        daemon.wait_line("shutting down the DNS server")
        release.append(True)
        assert addresses(dns.message.from_wire(s.recv(4096))) == ["192.0.2.1"]
    daemon.wait()
    daemon.wait_line("dns server drained")


def test_readiness_names_the_dns_proxy(mesh):
    daemon = mesh.start().nodes[0].daemon
    assert daemon.lines_with("Task 'dns proxy' complete")
