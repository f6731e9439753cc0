"""Both families: through the tunnel, in passthrough, and on nodes that have IPv6 switched off (spec/dataplane §1.1, spec/inpod §2.5)."""
from testenv import eventually
from testenv.netns import Server, reflect
from testenv.world import RULES


def listening(netns):
    """{(address, port)} of TCP listeners in a namespace."""
    found = set()
    for line in netns.run("ss", "-Hltn").splitlines():
        host, port = line.split()[3].rsplit(":", 1)
        found.add((host.split("%")[0], int(port)))
    return found


def test_ipv6_goes_through_the_tunnel(pair):
    pair.service("six", [pair.server], "fd00:96::1")
    pair.start()
    pair.server.echo(8080)
    for host, port in ((pair.server.ip6, 8080), ("fd00:96::1", 80)):
        assert pair.client.request(host, port) == b"hello worldhello world"
    line = pair.client.node.daemon.wait_line("connection complete", count=2, direction="outbound")
    assert line.fields["dst.addr"] == f"[{pair.server.ip6}]:15008" and line.fields["dst.hbone_addr"] == f"[{pair.server.ip6}]:8080"
    assert line.fields["src.addr"].startswith(f"[{pair.client.ip6}]:")


def test_ipv6_passes_through(pair):
    pair.start()
    server = Server(pair.nodes[1].netns, 9000, reflect)
    try:
        assert pair.client.request("fd00:18::2", 9000) == b"hello world"
    finally:
        server.close()


def test_ipv4_client_of_a_service_with_ipv6_endpoints(pair):
    pair.service("six", [pair.server], "10.96.0.6", ipFamilies="IPv6")
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request("10.96.0.6", 80) == b"hello worldhello world"
    line = pair.client.node.daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["dst.addr"] == f"[{pair.server.ip6}]:15008"


def test_ipv6_disabled_listens_on_ipv4_only(pair):
    """C17, the part with IPV6_ENABLED=false; IPv4 is served as ever."""
    pair.start(IPV6_ENABLED="false")
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    assert {x for x in listening(pair.client.netns)} == {("0.0.0.0", 15001), ("0.0.0.0", 15006), ("0.0.0.0", 15008)}
    assert listening(pair.client.node.netns) == {("127.0.0.1", 15000), ("0.0.0.0", 15020), ("0.0.0.0", 15021)}


def test_kernel_without_ipv6_in_the_pod(pair):
    """The namespace has IPv6 disabled; the daemon still serves it."""
    client = pair.client
    client.netns.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    client.enrolled = True
    pair.start()
    assert client.node.zds.add(client.zds_uid, client.name, client.namespace, client.sa, client.netns.fd) == ""
    client.netns.ip("route replace local 0.0.0.0/0 dev lo table 100", "rule add fwmark 0x111/0xfff pref 32764 lookup 100")
    client.netns.run("nft", "-f", "-", input=RULES)
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"


def test_one_listener_serves_both_families(pair):
    pair.start()
    assert {port for _, port in listening(pair.client.netns)} == {15001, 15006, 15008}
    assert eventually(lambda: len(listening(pair.client.netns)) == 3)
    for host in ("127.0.0.1", "::1"):
        pair.client.connect(host, 15008).close()
