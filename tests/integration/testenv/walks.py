"""What redirection does to packets: the walks of spec/inpod §4.7 and the corner cases of §4.9, in both families.

A module of tests imports everything from here and defines the fixture `capture`: a world of one node with a started daemon, the pods
client, server and outside (not in the mesh), and `capture.enrol(pod)` and `capture.unenrol(pod)`, by whoever makes the rules; the fixture
`capture_dns`, where the server is enrolled with its port 53 captured and nothing listens at 15053; and `capture_names`, where port 53 of
all pods is captured and the daemon answers, with NAMES behind it."""
import contextlib
import itertools
import select
import socket

import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.dns import Resolver, addresses
from testenv.netns import tell_peer

FAMILIES = ("ip", "ip6")
SO_MARK = 36
QUICK = 1.5 * SLOW  # seconds: long enough for an answer that would come


def lines(world, **fields):
    return len(world.daemon.lines("connection complete", **fields))


def proxied(world, call, **fields):
    """Calls, and tells whether the daemon saw a connection with these fields."""
    before = lines(world, **fields)
    result = call()
    eventually(lambda: lines(world, **fields) > before, f"an access line with {fields}")
    return result


def not_proxied(world, call):
    """Calls, then makes a connection that is proxied: what was before it has its line by then."""
    before = lines(world)
    result = call()
    proxied(world, lambda: world.outside.request(world.server.ip, 8080), direction="inbound")
    assert lines(world) == before + 1
    return result


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def marked(pod, mark, host, port):
    """A connection of an application that marks its packets itself."""
    with pod.netns.socket(family(host)) as s:
        s.settimeout(10 * SLOW)
        s.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        with pod.netns.inside():
            s.connect((host, port))
        s.sendall(b"hello")
        return s.recv(100)


@pytest.fixture
def captured(capture):
    for pod in (capture.client, capture.server):
        capture.enrol(pod)
    return capture


def test_walk_egress(captured):
    """To 15001 with the original destination, and on from a socket whose packets are left alone."""
    captured.outside.serve(7000, tell_peer)
    for ip in FAMILIES:
        server, outside = getattr(captured.server, ip), getattr(captured.outside, ip)
        assert proxied(captured, lambda: captured.client.request(server, 8080), direction="outbound") == b"hello world" * 2
        told = proxied(captured, lambda: captured.client.request(outside, 7000, b""), direction="outbound", dst__addr=f"{fmt(outside)}:7000")
        assert told.split()[0].decode() == getattr(captured.client, ip)


def fmt(address):
    return f"[{address}]" if ":" in address else address


def test_walk_plaintext_ingress(captured):
    """To 15006, and from there with the client's address as the source; the application's answers find the daemon."""
    captured.server.serve(7000, tell_peer)
    for ip in FAMILIES:
        told = proxied(captured, lambda: captured.outside.request(getattr(captured.server, ip), 7000, b""), direction="inbound")
        assert told.split()[0].decode() == getattr(captured.outside, ip)


def test_walk_hbone_ingress(captured):
    """15008 is not captured; what comes out of the tunnel has the client's address."""
    captured.server.serve(7000, tell_peer)
    for ip in FAMILIES:
        told = proxied(captured, lambda: captured.client.request(getattr(captured.server, ip), 7000, b""), direction="inbound",
                       src__identity=captured.client.identity)
        assert told.split()[0].decode() == getattr(captured.client, ip)


def test_walk_own_address_and_loopback(captured):
    for ip in FAMILIES:
        loopback = "::1" if ip == "ip6" else "127.0.0.1"
        own = getattr(captured.server, ip)
        assert not_proxied(captured, lambda: captured.server.request(own, 8080)) == b"hello world" * 2
        assert not_proxied(captured, lambda: captured.server.request(loopback, 8080)) == b"hello world" * 2


def test_walk_service_that_leads_back_to_its_caller(captured):
    """Captured; the last leg is from the pod's own address, not a spoofed one."""
    captured.server.serve(8081, tell_peer)
    for vip, own in (("10.96.0.9", captured.server.ip), ("fd00:96::9", captured.server.ip6)):
        told = proxied(captured, lambda v=vip: captured.server.request(v, 81, b""), direction="inbound", src__identity=captured.server.identity)
        assert told.split()[0].decode() == own


def test_walk_of_what_is_never_captured(captured):
    """UDP but for port 53, and ICMP."""
    for ip in FAMILIES:
        address, pod = getattr(captured.outside, ip), captured.outside
        with pod.netns.socket(family(address), socket.SOCK_DGRAM) as far, captured.client.netns.socket(family(address), socket.SOCK_DGRAM) as s:
            far.bind((address, 5000))
            far.settimeout(10 * SLOW)
            s.sendto(b"x", (address, 5000))
            assert far.recvfrom(10)[1][0] == getattr(captured.client, ip)
        captured.client.netns.run("ping", "-c", "1", "-W", "5", address)


def test_walk_with_no_application_or_no_daemon(captured):
    """Fails closed: the client is told, and nothing gets through uncaptured."""
    addresses = [captured.server.ip, captured.server.ip6]
    assert all(captured.outside.refused(a, 9999) for a in addresses)
    captured.daemon.kill()
    for pod, address in itertools.product((captured.outside, captured.client), addresses):
        with pytest.raises(ConnectionRefusedError):
            pod.connect(address, 8080)


NAMES = {("www.example.com", "A"): ["192.0.2.1"]}


def test_walk_dns(capture_names):
    """Whatever server a pod asks, over either protocol and family: the daemon answers, and asks its own resolver from the pod."""
    world = capture_names
    world.enrol(world.client)
    for nobody in ("198.51.100.1", "2001:db8:ffff::1"):
        resolver = Resolver(world.client, nobody, 53)
        for tcp in (False, True):
            assert addresses(resolver.ask("self.default.svc.cluster.local", tcp=tcp)) == ["10.96.0.9"]
            assert addresses(resolver.ask("www.example.com", tcp=tcp)) == ["192.0.2.1"]
    assert set(world.upstream.clients) == {world.client.ip}


# ---- §4.9 ----

@contextlib.contextmanager
def open_connections(*ends):
    """One for each (pod, address, port), with something said and answered on it."""
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(pod.connect(address, port)) for pod, address, port in ends]
        for s in made:
            s.sendall(b"a")
            assert s.recv(10) == b"aa"
        yield made


def established(world):
    """Connections into the server and out of it, made before it is enrolled."""
    world.outside.echo(7001)
    server, outside = world.server, world.outside
    return open_connections((outside, server.ip, 8080), (outside, server.ip6, 8080), (server, outside.ip, 7001), (server, outside.ip6, 7001))


def is_reset(s):
    try:
        s.sendall(b"b")
        return s.recv(10) != b"bb"
    except ConnectionResetError:
        return True


def test_corner_1_rules_reset_what_is_established(capture):
    with established(capture) as made:
        capture.enrol(capture.server)
        assert [is_reset(s) for s in made] == [True] * 4


def test_corner_3_removed_rules_reset_what_is_proxied(captured):
    client, server, outside = captured.client, captured.server, captured.outside
    with open_connections(*((pod, a, 8080) for pod in (outside, client) for a in (server.ip, server.ip6))) as made:
        for pod in (server, client):
            captured.unenrol(pod)
        assert [is_reset(s) for s in made] == [True] * 4


@pytest.mark.parametrize("what", ["rule del pref 32764", "route flush table 100"])
def test_corner_4_without_policy_rule_or_route_inbound_dials_hang(captured, what):
    captured.outside.echo(7001)
    captured.server.netns.ip(what, "-6 " + what)
    for ip in FAMILIES:
        assert captured.server.request(getattr(captured.outside, ip), 7001) == b"hello world" * 2
        with captured.outside.connect(getattr(captured.server, ip), 8080) as s:
            s.sendall(b"a")
            assert not select.select([s], [], [], QUICK)[0]


def test_corner_5_rp_filter_has_no_effect(capture):
    for interface in ("all", "default", "lo", "eth0"):
        capture.server.netns.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 1)
    capture.enrol(capture.server)
    capture.enrol(capture.client)
    for pod, identity in ((capture.outside, None), (capture.client, capture.client.identity)):
        fields = {"src__identity": identity} if identity else {}
        assert proxied(capture, lambda p=pod: p.request(capture.server.ip, 8080), direction="inbound", **fields) == b"hello world" * 2


UNPRIVILEGED = """
import socket
s = socket.socket()
try:
    s.setsockopt(socket.SOL_SOCKET, 36, 0x539)
except PermissionError:
    print("EPERM")
"""


def test_corner_8_an_application_that_marks_itself_bypasses_egress_only(captured):
    captured.outside.echo(7001)
    for ip in FAMILIES:
        server, outside = getattr(captured.server, ip), getattr(captured.outside, ip)
        assert not_proxied(captured, lambda: marked(captured.client, 0x539, outside, 7001)) == b"hello" * 2
        assert proxied(captured, lambda: marked(captured.outside, 0x539, server, 8080), direction="inbound") == b"hello" * 2
        said = captured.client.netns.run("setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", UNPRIVILEGED)
        assert said == "EPERM\n"


SEEN = """
table inet seen
delete table inet seen
table inet seen {
  chain pre { type filter hook prerouting priority -400;
    tcp dport 7001 mark and 0xfff == 0 counter
    tcp dport 7001 mark and 0xfff != 0 counter
  }
}
"""


def test_corner_9_the_mark_does_not_leave_the_namespace(captured):
    """Seen from the node: packets of the daemon, which left the pod with its mark, have none."""
    captured.outside.echo(7001)
    for ip in FAMILIES:
        node, outside = captured.nodes[0].netns, getattr(captured.outside, ip)
        node.run("nft", "-f", "-", input=SEEN)
        assert proxied(captured, lambda: captured.client.request(outside, 7001), direction="outbound") == b"hello world" * 2
        unmarked, with_mark = [int(line.split("packets ")[1].split()[0]) for line in node.run("nft", "list", "table", "inet", "seen").splitlines()
                               if "packets" in line]
        assert unmarked > 3 and with_mark == 0


def test_corner_10_only_the_low_bits_of_foreign_marks_count(captured):
    captured.outside.echo(7001)
    for ip in FAMILIES:
        outside = getattr(captured.outside, ip)
        assert proxied(captured, lambda: marked(captured.client, 0x1000, outside, 7001), direction="outbound") == b"hello" * 2
        assert not_proxied(captured, lambda: marked(captured.client, 0xf539, outside, 7001)) == b"hello" * 2
        with captured.client.netns.socket(family(outside)) as s:  # the mark of answers: to lo, by the policy route
            s.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x7111)
            s.settimeout(QUICK)
            with captured.client.netns.inside(), pytest.raises(OSError):
                s.connect((outside, 7001))


class DnsStub:
    """In the place of the daemon's DNS proxy: knows what came to 15053 of either address."""

    def __init__(self, pod):
        self.pod, self.sockets = pod, {}
        for address in ("127.0.0.1", "::1"):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                s = self.sockets[address, kind] = pod.netns.socket(family(address), kind)
                s.settimeout(10 * SLOW)
                s.bind((address, 15053))
        for address in ("127.0.0.1", "::1"):
            self.sockets[address, socket.SOCK_STREAM].listen()

    def asked_by_udp(self):
        """How many questions came; what is sent last is known to come last."""
        n = 0
        for address in ("127.0.0.1", "::1"):
            with self.pod.netns.socket(family(address), socket.SOCK_DGRAM) as last:
                last.sendto(b"last", (address, 15053))
            while self.sockets[address, socket.SOCK_DGRAM].recv(100) != b"last":
                n += 1
        return n

    def asked_by_tcp(self):
        n = 0
        for address in ("127.0.0.1", "::1"):
            with self.pod.connect(address, 15053) as last:
                while True:
                    s, peer = self.sockets[address, socket.SOCK_STREAM].accept()
                    s.close()
                    if peer == last.getsockname():
                        break
                    n += 1
        return n

    def close(self):
        for s in self.sockets.values():
            s.close()


def ask_udp(pod, address):
    with pod.netns.socket(family(address), socket.SOCK_DGRAM) as s, contextlib.suppress(ConnectionRefusedError):
        s.sendto(b"question", (address, 53))


def ask_tcp(pod, address):
    with pod.netns.socket(family(address)) as s, pod.netns.inside(), contextlib.suppress(OSError):
        s.settimeout(QUICK)
        s.connect((address, 53))


def test_corner_6_port_53_over_udp_and_tcp(capture_dns):
    """UDP that stays in the pod is left alone, TCP to 127.0.0.53 and to the pod's own address is not."""
    pod, other = capture_dns.server, capture_dns.outside
    stub = DnsStub(pod)
    for address, udp, tcp in ((other.ip, 1, 1), (other.ip6, 1, 1), ("127.0.0.53", 0, 1), (pod.ip, 0, 1), (pod.ip6, 0, 1),
                              ("127.0.0.1", 0, 0), ("::1", 0, 0)):
        ask_udp(pod, address)
        ask_tcp(pod, address)
        assert (address, stub.asked_by_udp(), stub.asked_by_tcp()) == (address, udp, tcp)
    stub.close()
