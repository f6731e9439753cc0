"""The tunnel's server side against a client of our own: what is refused, how, and what the log says (spec/dataplane §4)."""
import random
import socket
import ssl
import struct

import h2.events
import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import Tunnel, issue, tls_context


def test_connect_is_answered_200_and_carries_bytes(server):
    with server.tunnel() as t:
        stream = t.connect(f"{server.server.ip}:8080")
        status, headers = t.status(stream)
        assert status == 200
        assert "k8s.deployment.name=server" in headers["baggage"]
        t.send(stream, b"hello", end=True)
        assert t.receive(stream) == b"hellohello"


def test_response_baggage_can_be_switched_off(world, tmp_path):
    outsider, pod = world.node().pod("outsider", protocol="TCP"), world.node().pod("server")
    world.start(ENABLE_RESPONSE_BAGGAGE="false")
    pod.echo(8080)
    cert = issue(pod.node.daemon, outsider.identity, tmp_path / "cert")
    with Tunnel(outsider, pod.ip, cert) as t:
        status, headers = t.request(f"{pod.ip}:8080")
        assert status == 200 and "baggage" not in headers


@pytest.mark.parametrize("value", ["", "-" * 55, "0" * 55, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", "x" * 2000])
def test_a_traceparent_of_a_strange_form_hurts_nobody(server, value):
    """Nothing here needs it: it is not read."""
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080", extra=[("traceparent", value)])[0] == 200


def test_hbone_ip_mismatch(server):
    with server.tunnel() as t:
        assert t.request("10.99.0.1:8080")[0] == 400
    line = server.daemon.wait_line("connection failed")
    assert line.level == "warn" and line.fields["error"] == f"ip mismatch: {server.server.ip} != 10.99.0.1"
    assert server.daemon.metric("istio_tcp_connections_opened_total") == 0


@pytest.mark.parametrize("authority", ["nonsense", "host-without-port", "1.2.3.4", "10.1.0.1:99999", ":80"])
def test_malformed_authority_is_400(server, authority):
    with server.tunnel() as t:
        status, _ = t.request(authority)
        assert status in (400, "reset")
    if status == 400:
        assert "no valid authority pseudo header" in server.daemon.wait_line("connection failed").fields["error"]


def test_other_methods_are_400(server):
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080", method="GET", extra=[(":scheme", "https"), (":path", "/")])[0] == 400
    assert server.daemon.wait_line("connection failed").fields["error"] == "expected method CONNECT, got GET"


def test_connect_with_path_is_a_protocol_error(server):
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080", extra=[(":scheme", "https"), (":path", "/")]) == ("reset", 1)


def test_svc_hostname_port(server):
    with server.tunnel() as t:
        stream = t.connect("named.default.svc.cluster.local:80")
        assert t.status(stream)[0] == 200
        t.send(stream, b"a", end=True)
        assert t.receive(stream) == b"aa"


def test_svc_hostname_named_port(world, tmp_path):
    """The service's port is a name: the endpoint says which number it has."""
    outsider, pod = world.node().pod("outsider", protocol="TCP"), world.node().pod("server")
    world.service("named", [pod], "10.96.0.7")["ports"] = {"80": 0}
    world.start()
    pod.echo(8080)
    with Tunnel(outsider, pod.ip, issue(pod.node.daemon, outsider.identity, tmp_path / "cert")) as t:
        stream = t.connect("named.default.svc.cluster.local:80")
        assert t.status(stream)[0] == 200
        t.send(stream, b"a", end=True)
        assert t.receive(stream) == b"aa"


def test_unknown_hostname_is_503(server):
    with server.tunnel() as t:
        assert t.request("nobody.default.svc.cluster.local:80")[0] == 503
    assert "no service or workload for hostname: nobody" in server.daemon.wait_line("connection failed").fields["error"]


def test_closed_application_port_is_503(server):
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8089")[0] == 503
    line = server.daemon.wait_line("connection complete")
    assert line.fields["error"] == "connection failed: Connection refused (os error 111)"
    assert server.daemon.metric("istio_tcp_connections_failed_total", response_flags="CONNECT") == 1


@pytest.mark.parametrize("port", [15001, 15006, 15008])
def test_our_own_ports_are_503(server, port):
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:{port}")[0] == 503
    assert server.daemon.wait_line("connection failed").fields["error"] == "attempted recursive call to ourselves"


def handshake_fails(server, context):
    """True when the server ends the connection without HTTP/2 (its alert comes after our Finished)."""
    try:
        with server.tunnel(context=context) as t:
            t.request(f"{server.server.ip}:8080")
    except (ssl.SSLError, ConnectionError, AssertionError):
        return True
    return False


def test_no_client_certificate_is_refused(server):
    assert handshake_fails(server, tls_context())
    assert "tls handshake error: " in server.daemon.wait_line("connection failed", direction="inbound").fields["error"]


def test_trust_domain_mismatch_rejected(server, tmp_path):
    cert = issue(server.daemon, "spiffe://other.domain/ns/default/sa/outsider", tmp_path / "other")
    assert handshake_fails(server, tls_context(cert))
    error = server.daemon.wait_line("connection failed", direction="inbound").fields["error"]
    assert error.startswith("tls handshake error: ")
    assert "peer did not present the expected trustdomain (cluster.local)" in error


def test_a_foreign_root_is_refused(server, tmp_path):
    directory = tmp_path / "foreign"
    directory.mkdir()
    import subprocess
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/",
                    "-addext", f"subjectAltName=URI:{server.outsider.identity}", "-keyout", directory / "key.pem", "-out",
                    directory / "cert-chain.pem"], check=True, capture_output=True)
    assert handshake_fails(server, tls_context(str(directory)))
    server.daemon.wait_line("connection failed", direction="inbound")


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"A" * 64, random.Random(1).randbytes(512), b"\x00" * 32],
                         ids=["http", "hello", "noise", "zeros"])
def test_garbage_on_15008_ends_with_a_log_line(server, garbage):
    with server.outsider.connect(server.server.ip, 15008) as s:
        s.sendall(garbage)
        with pytest.raises((ConnectionResetError, BrokenPipeError, EOFError)):
            while s.recv(4096):
                pass
            raise EOFError
    server.daemon.wait_line("connection failed", direction="inbound")
    with server.tunnel() as t:  # nobody else noticed
        assert t.request(f"{server.server.ip}:8080")[0] == 200


def test_a_slow_handshake_is_cut(server):
    with server.outsider.connect(server.server.ip, 15008) as s:
        s.sendall(b"\x16\x03\x01")
        s.settimeout(10 * SLOW)
        try:
            assert s.recv(1) == b""
        except ConnectionResetError:
            pass
    server.daemon.wait_line("connection failed", direction="inbound")


def test_a_reset_at_every_stage_leaves_nothing(server):
    """RST after connect, in the handshake, after it, with a stream open: descriptors and memory return to where they were."""
    def abort(s):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        s.close()

    def one_round():
        s = server.outsider.connect(server.server.ip, 15008)
        abort(s)
        s = server.outsider.connect(server.server.ip, 15008)
        s.sendall(b"\x16\x03\x01\x02\x00")
        abort(s)
        t = server.tunnel()
        abort(t.sock)
        t = server.tunnel()
        t.connect(f"{server.server.ip}:8080")
        abort(t.sock)
        t = server.tunnel()
        stream = t.connect(f"{server.server.ip}:8080")
        assert t.status(stream)[0] == 200
        t.send(stream, b"x" * 1000)
        abort(t.sock)

    one_round()
    def settled():
        return server.daemon.activity() == (0, 0) and server.daemon.open_fds()
    fds = eventually(settled)
    for _ in range(20):
        one_round()
    eventually(lambda: settled() == fds, f"{fds} descriptors")


def test_a_stalled_reader_slows_no_other_stream(server):
    """Eight streams whose client does not read, one that does: the ninth still gets its bytes (spec/dataplane §16)."""
    def source(s, peer):
        block = b"z" * 65536
        for _ in range(256):
            s.sendall(block)
        s.shutdown(socket.SHUT_WR)
    server.server.serve(9000, source)
    with server.tunnel() as t:
        t.h2.increment_flow_control_window(2**30)
        stalled = [t.connect(f"{server.server.ip}:9000") for _ in range(8)]
        for stream in stalled:
            assert t.status(stream)[0] == 200
        reader = t.connect(f"{server.server.ip}:9000")
        assert t.status(reader)[0] == 200
        total = 0
        while total < 16 * 1024 * 1024:
            data = t.sock.recv(262144)
            assert data, "the connection ended"
            for event in t.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.stream_id == reader:
                    total += len(event.data)
                    t.h2.increment_flow_control_window(event.flow_controlled_length, reader)
            t.flush()
        assert total == 16 * 1024 * 1024


def test_a_service_without_that_port_is_503(server):
    with server.tunnel() as t:
        assert t.request("named.default.svc.cluster.local:81")[0] == 503
    line = server.daemon.wait_line("connection failed", direction="inbound")
    assert line.fields["error"] == "requested service named.default.svc.cluster.local:81 found, but cannot resolve port"


def test_a_service_without_an_address_is_503_where_the_application_wants_one(server):
    """The PROXY header names the service's address; a headless service has none (spec/dataplane §4.6)."""
    server.server.workload["applicationTunnel"] = {"port": 8080, "protocol": "PROXY"}
    server.service("headless", [server.server], "10.96.0.8", ports={80: 8080})["vips"] = []
    server.write()
    daemon = server.daemon
    eventually(lambda: [x for x in daemon.dump()["services"] if x["name"] == "headless"], "the change")
    with server.tunnel() as t:
        assert t.request("headless.default.svc.cluster.local:80")[0] == 503
    line = daemon.wait_line("connection failed", direction="inbound")
    assert line.level == "warn"
    assert line.fields["error"] == "requested service headless.default.svc.cluster.local found, but has no IP addresses"
    assert daemon.metric("istio_tcp_connections_opened_total") == 0


def test_a_pod_whose_record_is_gone_is_503_after_the_wait(server):
    """The tunnel stands; the workload's record goes away; a CONNECT waits for it and is refused early, without metrics."""
    server.server.node.daemon.stop()
    server.server.node.start(ZTUNNELD_LOCAL_WORKLOAD_WAIT="300ms")
    server.daemon = server.server.node.daemon
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080")[0] == 200
        opened = server.daemon.metric("istio_tcp_connections_opened_total")
        server.server.workload["name"] = "somebody-else"
        server.write()
        eventually(lambda: [w for w in server.daemon.dump()["workloads"] if w["name"] == "somebody-else"], "the change")
        assert t.request(f"{server.server.ip}:8080")[0] == 503
    line = server.daemon.wait_line("connection failed", direction="inbound")
    assert line.fields["error"] == "failed to fetch information about local workload: server.default (server)"
    assert server.daemon.metric("istio_tcp_connections_opened_total") == opened


def test_a_client_that_leaves_before_the_answer_is_counted(server):
    """RST_STREAM while the application is being dialled: H2 in log and flag, and the dial ends."""
    server.server.netns.run("nft", "-f", "-", input="""
table inet hole {
  chain in { type filter hook input priority 0; policy accept; tcp dport 9999 drop; }
}
""")
    with server.tunnel() as t:
        stream = t.connect(f"{server.server.ip}:9999")
        eventually(lambda: server.daemon.activity()[0] == 1)
        t.h2.reset_stream(stream, 8)
        t.flush()
        line = server.daemon.wait_line("connection complete", direction="inbound")
        assert line.fields["error"] == "h2 failed: the client reset the stream before it was answered"
    assert server.daemon.metric("istio_tcp_connections_failed_total", response_flags="H2_HANDSHAKE_FAILURE") == 1


def test_an_application_that_ends_after_its_tunnel_is_an_error_while_closing(server):
    """RST_STREAM, and only then the application's FIN: nobody is left to hear of it."""
    with server.tunnel() as t:
        stream = t.connect(f"{server.server.ip}:8080")
        assert t.status(stream)[0] == 200
        t.h2.reset_stream(stream, 8)
        t.flush()
        line = server.daemon.wait_line("connection complete", direction="inbound")
    assert line.level == "error" and line.fields["error"] == "while closing connection: stream no longer needed"
    eventually(lambda: server.daemon.metric("istio_tcp_connections_failed_total", response_flags="CONNECT", reporter="destination") == 1)
