"""The first connections: captured pods on one node and on two, a service, plaintext from and to outside."""
import pytest

from testenv import eventually

pytestmark = pytest.mark.threads


def bytes_counted(daemon, reporter):
    return (daemon.metric("istio_tcp_received_bytes_total", reporter=reporter),
            daemon.metric("istio_tcp_sent_bytes_total", reporter=reporter))


def check_echo_accounting(client, server):
    """11 bytes up, 22 down; each side logs and counts them its own way (namespaced case *_captured_inpod)."""
    source, destination = client.node.daemon, server.node.daemon
    out = source.wait_line("connection complete", direction="outbound", src__workload=client.name)
    assert (out.fields["bytes_sent"], out.fields["bytes_recv"]) == ("11", "22")
    assert out.fields["src.identity"] == client.identity and out.fields["dst.identity"] == server.identity
    assert out.fields["dst.hbone_addr"] == f"{server.ip}:8080" and out.fields["dst.addr"] == f"{server.ip}:15008"
    inbound = destination.wait_line("connection complete", direction="inbound", dst__workload=server.name)
    assert (inbound.fields["bytes_sent"], inbound.fields["bytes_recv"]) == ("22", "11")
    assert inbound.fields["src.identity"] == client.identity and inbound.fields["dst.identity"] == server.identity
    for daemon, reporter in ((source, "source"), (destination, "destination")):
        assert daemon.metric("istio_tcp_connections_opened_total", reporter=reporter) == 1
        assert daemon.metric("istio_tcp_connections_closed_total", reporter=reporter) == 1
        assert bytes_counted(daemon, reporter) == (11, 22)


def test_cross_node_captured_inpod(pair):
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    check_echo_accounting(pair.client, pair.server)


def test_local_captured_inpod(world):
    node = world.node()
    client, server = node.pod("client"), node.pod("server")
    world.start()
    server.echo(8080)
    assert client.request(server.ip, 8080) == b"hello worldhello world"
    check_echo_accounting(client, server)


def test_server_uncaptured_inpod(world):
    client, server = world.node().pod("client"), world.node().pod("server", protocol="TCP")
    world.start()
    server.echo(8080)
    assert client.request(server.ip, 8080) == b"hello worldhello world"
    line = client.node.daemon.wait_line("connection complete", direction="outbound")
    assert "src.identity" not in line.fields and "dst.identity" not in line.fields
    assert line.fields["dst.addr"] == f"{server.ip}:8080"


def test_client_uncaptured_inpod(world):
    client, server = world.node().pod("client", protocol="TCP"), world.node().pod("server")
    world.start()
    server.echo(8080)
    assert client.request(server.ip, 8080) == b"hello worldhello world"
    line = server.node.daemon.wait_line("connection complete", direction="inbound")
    assert "src.identity" not in line.fields and line.fields["src.workload"] == "client"


def test_service_loadbalancing(world):
    """Every request hits one endpoint; local TCP and remote HBONE endpoints both get some."""
    n1, n2 = world.node(), world.node()
    client = n1.pod("client")
    a, b = n1.pod("a", protocol="TCP"), n2.pod("b")
    world.service("echo", [a, b], "10.96.0.1")
    world.start()
    hits = [p.serve(8080, lambda s, peer, n=p.name: s.sendall(n.encode())) for p in (a, b)]
    answers = {client.request("10.96.0.1", 80, b"") for _ in range(50)}
    assert answers == {b"a", b"b"} and sum(h.accepted for h in hits) == 50
    eventually(lambda: len(n1.daemon.lines("connection complete", dst__service="echo.default.svc.cluster.local")) == 50)
    n2.daemon.wait_line("connection complete", dst__service="echo.default.svc.cluster.local")


def test_source_address_is_kept(pair):
    """The application sees the client's own address, through the tunnel and in passthrough."""
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    pair.start()
    from testenv.netns import tell_peer
    pair.server.serve(8080, tell_peer)
    for pod in (pair.client, outside):
        assert pod.request(pair.server.ip, 8080, b"").split()[0] == pod.ip.encode()
        assert pod.request(pair.server.ip6, 8080, b"").split()[0] == pod.ip6.encode()


def test_unknown_destination_passes_through(pair):
    """An address the mesh does not know is dialled as it is."""
    pair.start()
    outside = pair.nodes[1].netns
    from testenv.netns import Server, reflect
    server = Server(outside, 9000, reflect)
    try:
        assert pair.client.request(pair.nodes[1].address, 9000) == b"hello world"
    finally:
        server.close()
    line = pair.client.node.daemon.wait_line("connection complete", direction="outbound")
    assert "dst.workload" not in line.fields


def test_plaintext_churn_meets_no_port_of_our_own(pair):
    """The dial with the client's address must not take a port that the client uses: connection tracking would mix them up, and
    the client's next connection from that port would be lost. Resets leave their entries behind for seconds, so collisions were common."""
    import socket
    import struct
    import threading
    outside = pair.nodes[0].pod("outside", protocol="TCP")
    pair.start()

    def abort(s, peer):
        s.recv(100)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    pair.server.serve(8080, abort)
    failures = []

    def churn():
        for _ in range(250):
            try:
                with outside.connect(pair.server.ip, 8080) as s:
                    s.sendall(b"x")
                    s.recv(1)
            except ConnectionResetError:
                pass
            except OSError as e:
                failures.append(e)

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert failures == []
