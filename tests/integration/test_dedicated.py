"""Dedicated mode: one workload, its own namespace, no CNI (spec/inpod §5, checks C6, C17, C34)."""
import contextlib
import os
import socket

import pytest

from testenv import Daemon, eventually
from testenv.daemon import SLOW


@pytest.fixture
def dedicated(world):
    """dedicated(pod, **env) starts a daemon inside a pod's own namespace, with the pod's traffic led to it."""
    daemons = []

    def start(pod, wait_ready=True, redirect=True, **env):
        directory = os.path.join(world.directory, pod.name)
        os.makedirs(directory, exist_ok=True)
        settings = {
            "XDS_ADDRESS": "", "LOCAL_XDS_PATH": world.file, "LOCAL_CA_PATH": os.path.join(world.directory, "ca"),
            "PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": f"{pod.namespace}/{pod.name}/{pod.sa}", "NODE_NAME": pod.node.name,
            "PACKET_MARK": "1337", "ISTIO_META_DNS_CAPTURE": "false", "CONNECTION_TERMINATION_DEADLINE": "2s",
            "ZTUNNELD_CTL_SOCKET": os.path.join(directory, "ctl.sock"), "INPOD_UDS": os.path.join(directory, "none.sock")} | env
        daemon = Daemon(pod.netns, directory, {k: v for k, v in settings.items() if v is not None})
        daemons.append(daemon)
        daemon.start(wait_ready)
        if redirect:
            pod.redirect()
        return daemon
    yield start
    with contextlib.ExitStack() as stack:
        for daemon in daemons:
            stack.callback(daemon.stop)


def two(world):
    client, server = world.node().pod("client"), world.node().pod("server")
    world.write()
    return client, server


def test_cross_node_captured_dedicated(world, dedicated):
    client, server = two(world)
    source, destination = dedicated(client), dedicated(server)
    server.echo(8080)
    assert client.request(server.ip, 8080) == b"hello worldhello world"
    out = source.wait_line("connection complete", direction="outbound")
    assert out.fields["dst.addr"] == f"{server.ip}:15008" and out.fields["dst.identity"] == server.identity
    assert out.fields["src.identity"] == client.identity
    inbound = destination.wait_line("connection complete", direction="inbound")
    assert inbound.fields["src.identity"] == client.identity and inbound.fields["bytes_recv"] == "11"
    assert "workloadState" not in source.dump()
    assert source.status()["mode"] == "dedicated"


def test_another_san_is_a_warning_P18(world, dedicated):
    """istiod says who we are: no impersonation is asked for, and a certificate of somebody else is used and named in a warning."""
    client, server = two(world)
    world.control_plane()
    world.write()
    world.istiod.reply = lambda identity, csr, context: world.istiod.sign("spiffe://cluster.local/ns/istio-system/sa/ztunnel", csr, context)
    daemon = dedicated(client, **world.istiod.environment())
    dedicated(server, **world.istiod.environment())
    server.echo(8080)
    client.refused(server.ip, 8080)  # the server's certificate names somebody else, too
    line = eventually(lambda: daemon.lines_with("expected identity"))[0]
    assert "\twarn\t" in line and f"expected identity {client.identity}, got spiffe://cluster.local/ns/istio-system/sa/ztunnel" in line
    assert set(world.istiod.signatures) == {None}


@pytest.mark.parametrize("captured", ["client", "server"])
def test_plaintext_dedicated(world, dedicated, captured):
    """server_uncaptured_dedicated and client_uncaptured_dedicated."""
    client, server = world.node().pod("client"), world.node().pod("server")
    for pod in (client, server):
        if pod.name != captured:
            pod.workload["protocol"] = "TCP"
    world.write()
    daemon = dedicated(client if captured == "client" else server)
    server.echo(8080)
    assert client.request(server.ip, 8080) == b"hello worldhello world"
    line = daemon.wait_line("connection complete", direction="outbound" if captured == "client" else "inbound")
    assert "src.identity" not in line.fields and "dst.identity" not in line.fields


def test_one_plaintext_connection_is_counted_C34(world, dedicated):
    """Five bytes up, seven down."""
    client, server = world.node().pod("client"), world.node().pod("server", protocol="TCP")
    world.write()
    daemon = dedicated(client)
    def five_then_seven(s, peer):
        got = b""
        while len(got) < 5:
            got += s.recv(5)
        s.sendall(b"seven..")
        s.shutdown(socket.SHUT_WR)
        s.recv(1)
    server.serve(8080, five_then_seven)
    assert client.request(server.ip, 8080, b"five.") == b"seven.."
    line = daemon.wait_line("connection complete")
    assert line.level == "info" and (line.fields["bytes_sent"], line.fields["bytes_recv"]) == ("5", "7")
    assert "src.identity" not in line.fields
    labels = {"reporter": "source", "connection_security_policy": "unknown", "response_flags": "-"}
    assert daemon.metric("istio_tcp_connections_opened_total", **labels) == 1
    assert daemon.metric("istio_tcp_connections_closed_total", **labels) == 1
    assert daemon.metric("istio_tcp_received_bytes_total", reporter="source") == 5
    assert daemon.metric("istio_tcp_sent_bytes_total", reporter="source") == 7
    assert eventually(lambda: daemon.activity() == (0, 0))


def test_sockets_of_dedicated_mode_C17(world, dedicated):
    client = world.node().pod("client")
    world.write()
    dedicated(client)
    found = set()
    for line in client.netns.run("ss", "-Hltn").splitlines():
        host, port = line.split()[3].rsplit(":", 1)
        found.add((host.strip("[]"), int(port)))
    assert {x for x in found if x[1] == 15000} == {("127.0.0.1", 15000), ("::1", 15000)}
    assert {x for x in found if x[1] != 15000} == {("*", port) for port in (15001, 15006, 15008, 15020, 15021)}


@pytest.mark.parametrize("port, name", [(15008, "inbound"), (15006, "inbound_plaintext"), (15001, "outbound")])
def test_conflicting_bind_error(world, dedicated, port, name):
    """A taken port is a failed start in dedicated mode: nobody would retry."""
    client = world.node().pod("client")
    world.write()
    client.serve(port, lambda s, peer: None)
    daemon = dedicated(client, wait_ready=False, redirect=False)
    assert daemon.wait(30 * SLOW) == 1
    errors = [x for x in daemon.log().splitlines() if x.startswith("Error: ")]
    assert len(errors) == 1 and "Address already in use" in errors[0] and f":{port}" in errors[0], daemon.log()
    daemon.check_clean(1)
    daemon.process = None


def test_policy_and_strict_mode_in_dedicated_mode(world, dedicated):
    client, server = two(world)
    world.policy("nothing")
    world.write()
    dedicated(client)
    daemon = dedicated(server)
    server.echo(8080)
    assert client.refused(server.ip, 8080)
    assert daemon.wait_line("connection complete").fields["error"].endswith("allow policies exist, but none allowed")
    world.policies.clear()
    world.write()
    eventually(lambda: client.request(server.ip, 8080) == b"hello worldhello world", "after the policy is gone")
