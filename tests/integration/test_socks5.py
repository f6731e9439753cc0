"""SOCKS5 on 15080 (spec/dataplane §9, RFC 1928)."""
import random
import socket
import struct

import pytest

from testenv import eventually
from testenv.dns import Upstream, read_exactly

GREETING = b"\5\1\0"
OK = b"\5\0\0\1" + bytes(6)


@pytest.fixture
def mesh(world):
    node = world.node()
    world.client, world.server = node.pod("client", namespace="ns1"), node.pod("echo", namespace="ns2")
    world.service("echo", [world.server], ["10.96.0.1", "fd00:96::1"], namespace="ns2")
    world.upstream = Upstream(node.netns, node.address, {("www.example.com", "A"): [world.server.ip]})
    node.resolv_conf(node.address)
    world.up = lambda **env: world.start(**{"UNSTABLE_ENABLE_SOCKS5": "true"} | env).nodes[0].daemon
    world.server.echo(8080)
    yield world
    world.upstream.close()


def negotiate(pod, request, greeting=GREETING):
    """The socket, past the method choice, with the request sent."""
    s = pod.connect("127.0.0.1", 15080)
    s.sendall(greeting)
    assert read_exactly(s, 2) == b"\5\0"
    s.sendall(request)
    return s


def by_ip(ip, port):
    if ":" in ip:
        return b"\5\1\0\4" + socket.inet_pton(socket.AF_INET6, ip) + struct.pack("!H", port)
    return b"\5\1\0\1" + socket.inet_aton(ip) + struct.pack("!H", port)


def by_name(name, port):
    name = name if isinstance(name, bytes) else name.encode()
    return b"\5\1\0\3" + bytes([len(name)]) + name + struct.pack("!H", port)


def echoes(s):
    with s:
        assert read_exactly(s, 10) == OK
        s.sendall(b"hello")
        s.shutdown(socket.SHUT_WR)
        return read_exactly(s, 100) == b"hellohello"


def test_connect_by_address_and_name(mesh):
    daemon = mesh.up()
    for request in (by_ip("10.96.0.1", 80), by_ip("fd00:96::1", 80), by_ip(mesh.server.ip, 8080), by_ip(mesh.server.ip6, 8080),
                    by_name("echo.ns2", 80), by_name("www.example.com", 8080), by_name("10.96.0.1", 80)):
        assert echoes(negotiate(mesh.client, request)), request
    lines = daemon.wait_line("connection complete", count=7, direction="outbound", src__workload="client")
    assert lines.fields["src.identity"] == mesh.client.identity


def test_hostname_request_local(mesh):
    daemon = mesh.up()
    assert echoes(negotiate(mesh.client, by_name("echo.ns2.svc.cluster.local", 80)))
    line = daemon.wait_line("connection complete", direction="outbound", dst__service="echo.ns2.svc.cluster.local")
    assert (line.fields["bytes_sent"], line.fields["bytes_recv"]) == ("5", "10")


def test_what_follows_the_request_at_once_is_not_lost(mesh):
    mesh.up()
    with mesh.client.connect("127.0.0.1", 15080) as s:
        s.sendall(GREETING + by_ip("10.96.0.1", 80) + b"early")
        s.shutdown(socket.SHUT_WR)
        assert read_exactly(s, 100) == b"\5\0" + OK + b"earlyearly"


def test_more_methods_are_fine_when_none_is_among_them(mesh):
    mesh.up()
    assert echoes(negotiate(mesh.client, by_ip("10.96.0.1", 80), b"\5\3\2\1\0"))


@pytest.mark.parametrize("greeting", [b"\4\1\0", b"\5\0", b"\5\1\2", b"\5\2\1\2"], ids=["version", "none", "password", "others"])
def test_bad_greetings(mesh, greeting):
    mesh.up()
    with mesh.client.connect("127.0.0.1", 15080) as s:
        s.sendall(greeting)
        assert read_exactly(s, 100) == b"\5\7\0\1" + bytes(6)


@pytest.mark.parametrize("request_, code", [
    (b"\4\1\0\1" + bytes(6), 7), (b"\5\2\0\1" + bytes(6), 7), (b"\5\3\0\1" + bytes(6), 7), (b"\5\1\0\2" + bytes(6), 7),
    (b"\5\1\0\3\0\0\0", 7), (by_name(b"\xff\xfe", 80), 7), (by_name(b"a\0b", 80), 7), (by_name("no.example.com", 80), 4),
    (by_name("a..b", 80), 4), (by_name("echo.ns2", 80)[:-2], 1),
], ids=["version", "bind", "udp", "type", "empty", "utf8", "nul", "unknown", "no-name", "cut"])
def test_bad_requests(mesh, request_, code):
    daemon = mesh.up()
    s = negotiate(mesh.client, request_)
    if code == 1:
        s.shutdown(socket.SHUT_WR)
    with s:
        assert read_exactly(s, 100) == bytes([5, code]) + b"\0\1" + bytes(6)
    assert daemon.metric("istio_tcp_connections_opened_total") == 0


def test_a_name_without_the_dns_proxy_is_a_violation(mesh):
    mesh.up(ISTIO_META_DNS_CAPTURE="false")
    with negotiate(mesh.client, by_name("echo.ns2", 80)) as s:
        assert read_exactly(s, 100)[1] == 7
    assert echoes(negotiate(mesh.client, by_ip("10.96.0.1", 80)))


def test_our_own_ports_are_denied(mesh):
    daemon = mesh.up()
    for port in (15001, 15006, 15008, 15080):
        with negotiate(mesh.client, by_ip("127.0.0.1", port)) as s:
            with pytest.raises(ConnectionResetError):
                while s.recv(100):
                    pass
    daemon.wait_line("connection failed", count=4, direction="outbound")


def test_garbage_at_every_byte_leaks_nothing(mesh):
    daemon = mesh.up()
    before = daemon.open_fds()
    good = GREETING + by_name("echo.ns2", 80)
    rng = random.Random(1928)
    for at in range(len(good)):
        for tail in (b"", rng.randbytes(20)):
            with mesh.client.connect("127.0.0.1", 15080) as s:
                s.sendall(good[:at] + tail)
    assert echoes(negotiate(mesh.client, by_name("echo.ns2", 80)))
    eventually(lambda: daemon.open_fds() <= before + 4, "descriptors to be closed")  # a tunnel's may stay
    eventually(lambda: daemon.metric("istio_tcp_sockets_open", reporter="source") == 0, "the gauge to come down")


def test_a_silent_client_is_given_up(mesh):
    mesh.up()
    with mesh.client.connect("127.0.0.1", 15080, timeout=60) as s:
        s.sendall(b"\5")
        assert read_exactly(s, 100)[:2] == b"\5\1"  # after ten seconds


def test_a_negotiation_holds_a_place_among_the_pods_connections(mesh):
    daemon = mesh.up(ZTUNNELD_POD_CONNECTIONS_MAX="2")
    held = [mesh.client.connect("127.0.0.1", 15080) for _ in range(2)]
    for s in held:
        s.sendall(GREETING)
        assert read_exactly(s, 2) == b"\5\0"
    assert mesh.client.refused("127.0.0.1", 15080)
    assert daemon.metric("ztunneld_limit_reached_total", limit="pod_connections") == 1
    for s in held:
        s.sendall(by_ip("10.96.0.1", 80))
        assert echoes(s)


def test_nobody_listens_unless_enabled(mesh):
    mesh.up(UNSTABLE_ENABLE_SOCKS5="false")
    with pytest.raises(ConnectionRefusedError):
        mesh.client.connect("127.0.0.1", 15080)
