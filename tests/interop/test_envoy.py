"""A real Envoy, with a static bootstrap, as waypoint, ingress gateway and network gateway between two of our nodes."""
import collections
import concurrent.futures
import json
import os
import re

import envoy
import pytest
from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import issue

VIP = "10.96.5.1"
HOST = "echo.default.svc.cluster.local"


def http_server(name):
    """An HTTP/1.1 application that says who it is, and what it was asked."""
    def serve(s, peer):
        f = s.makefile("rwb")
        while line := f.readline():
            length, close, head = 0, False, b""
            while (header := f.readline().strip()):
                head += header + b"\n"
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
                close |= header.lower() == b"connection: close"
            body = f.read(length)
            text = f"{name} {peer[0].removeprefix('::ffff:')} {line.decode().strip()} {len(body)}\n".encode()
            f.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%s\r\n" % (len(text), b"connection: close\r\n" if close else b"") + text)
            f.flush()
            if close:
                return
    return serve


def fetch(pod, target, method="GET", path="/", body=b"", close=True):
    """(status, body) of one HTTP/1.1 request on a connection of its own; the connection's other end must come as FIN."""
    request = f"{method} {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {len(body)}\r\n"
    with pod.connect(*target) as s:
        s.sendall(request.encode() + (b"connection: close\r\n" if close else b"") + b"\r\n" + body)
        answer = b""
        while data := s.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


@pytest.fixture
def mesh(world, tmp_path, launch, envoy_binary):
    """A client, two versions of an application on another node, and a pod for the Envoy, which no daemon serves."""
    w = world
    w.client = w.node().pod("client")
    far = w.node()
    w.v1, w.v2, w.envoy_pod = far.pod("echo-v1", sa="echo"), far.pod("echo-v2", sa="echo"), far.pod("proxy")
    w.envoy_pod.enrolled = True  # that is: leave it alone
    w.svc = w.service("echo", [w.v1, w.v2], VIP)
    w.by_address = {"destination": f"/{w.envoy_pod.ip}", "hboneMtlsPort": 15008}
    w.backends = {"v1": (w.v1.ip, f"{w.v1.ip}:8080", 90), "v2": (w.v2.ip, f"{w.v2.ip}:8080", 10)}

    def start(**env):
        w.write()
        for node in w.nodes:
            node.start(**env)
        w.v1.serve(8080, http_server("v1"))
        w.v2.serve(8080, http_server("v2"))
        w.near, w.far = w.client.node.daemon, w.v1.node.daemon
        w.cert = issue(w.near, w.envoy_pod.identity, tmp_path / "envoy")
        return w

    def run(bootstrap, port=15008, pod=w.envoy_pod):
        path = str(tmp_path / f"envoy-{pod.name}.json")
        with open(path, "w") as f:
            json.dump(bootstrap, f)
        process = launch(pod, *envoy.command(envoy_binary, path))
        eventually(lambda: is_listening(pod, port) or process.process.poll() is not None, "Envoy's listener", 30 * SLOW)
        assert process.process.poll() is None, process.output
        return process
    w.up, w.run = start, run
    return w


def is_listening(pod, port):
    try:
        pod.connect("127.0.0.1", port).close()
        return True
    except OSError:
        return False


@pytest.fixture
def waypoint(mesh):
    mesh.svc["waypoint"] = mesh.by_address
    mesh.up(RUST_LOG="info,access=debug")
    mesh.process = mesh.run(envoy.waypoint(mesh.cert, mesh.backends))
    return mesh


def test_envoy_waypoint_allows_get_and_denies_post(waypoint):
    w = waypoint
    status, body = fetch(w.client, (VIP, 80))
    assert status == 200 and re.fullmatch(rf"v[12] {w.envoy_pod.ip} GET / HTTP/1.1 0\n", body)
    assert fetch(w.client, (VIP, 80), "POST", body=b"x") == (403, "RBAC: access denied")
    out = w.near.wait_line("connection complete", direction="outbound").fields
    assert out["dst.workload"] == "proxy" and out["dst.hbone_addr"] == f"{VIP}:80" and out["dst.service"] == HOST
    assert out["dst.identity"] == w.envoy_pod.identity
    into = w.far.wait_line("connection opened", direction="inbound").fields  # Envoy keeps it open
    assert into["src.identity"] == w.envoy_pod.identity and into["dst.hbone_addr"] in (f"{w.v1.ip}:8080", f"{w.v2.ip}:8080")


def test_envoy_waypoint_splits_90_to_10(waypoint):
    w = waypoint
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: fetch(w.client, (VIP, 80), path=f"/{i}"), range(400)))
    assert {status for status, _ in answers} == {200}
    share = collections.Counter(body.split()[0] for _, body in answers)
    assert 10 <= share["v2"] <= 85, share  # 40 expected
    # Every one of them ended with FIN towards the client and counts as an ordinary end, however Envoy resets.
    w.near.wait_line("connection complete", direction="outbound", count=400)
    for daemon in (w.near, w.far):
        failed = [line for line in daemon.lines("connection complete") if "error" in line.fields]
        assert not failed, failed[:3]


def test_envoys_goaway_every_ten_streams_loses_no_stream(mesh):
    mesh.svc["waypoint"] = mesh.by_address
    w = mesh.up()
    w.run(envoy.waypoint(w.cert, w.backends, streams=10))
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: fetch(w.client, (VIP, 80), path=f"/{i}")[0], range(400)))
    assert answers == [200] * 400


def test_envoys_small_windows_and_pings_do_not_stall(mesh):
    """64 KiB windows on Envoy's side both ways, and a PING each second that must be answered while bytes wait."""
    mesh.svc["waypoint"] = mesh.by_address
    w = mesh.up()
    w.run(envoy.waypoint(w.cert, w.backends, window=65536))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = [pool.submit(fetch, w.client, (VIP, 80), "GET", "/", os.urandom(16 << 20)) for _ in range(4)]
        for status, body in [f.result(60 * SLOW) for f in got]:
            assert status == 200 and body.endswith(f" {16 << 20}\n")


def test_envoy_waypoints_own_policy_denial_and_dead_application_are_503(waypoint):
    """Envoy turns our 401 and 503 on CONNECT into an HTTP 503."""
    w = waypoint
    w.policy("only-client", scope="Namespace", action="Allow", rules=[[[{"principals": [{"Exact": "cluster.local/ns/default/sa/client"}]}]]])
    w.write()
    rejected = dict(direction="inbound", src__identity=w.envoy_pod.identity,
                    error="connection closed due to policy rejection: allow policies exist, but none allowed")
    eventually(lambda: fetch(w.client, (VIP, 80))[0] == 503 and w.far.lines("connection complete", **rejected), "the policy")
    # The waypoint's principal restores it: service- and workload-addressed traffic alike comes from there.
    w.policies[0]["rules"] = [[[{"principals": [{"Exact": "cluster.local/ns/default/sa/proxy"}]}]]]
    w.write()
    eventually(lambda: fetch(w.client, (VIP, 80))[0] == 200, "the new policy")
    for pod in (w.v1, w.v2):
        for server in pod.servers:
            server.close()
    assert fetch(w.client, (VIP, 80))[0] == 503


def test_envoy_waypoint_knows_the_client_by_its_pods_identity(mesh):
    """A policy of Envoy's own that names who may use the tunnel."""
    mesh.svc["waypoint"] = mesh.by_address
    other = mesh.client.node.pod("other")
    w = mesh.up()
    w.run(envoy.waypoint(w.cert, w.backends, clients=[w.client.identity]))
    assert fetch(w.client, (VIP, 80))[0] == 200
    assert other.refused(VIP, 80)


def test_one_connection_has_one_backend_and_through_envoy_all(mesh):
    """Without a waypoint a connection is led to one endpoint; a waypoint leads each request."""
    w = mesh.up()
    w.backends = {name: (ip, authority, 50) for name, (ip, authority, _) in w.backends.items()}
    w.run(envoy.waypoint(w.cert, w.backends))

    def backends_of_one_connection():
        seen = set()
        with w.client.connect(VIP, 80) as s:
            for _ in range(30):
                s.sendall(f"GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode())
                answer = b""
                while not answer.endswith(b" 0\n"):
                    piece = s.recv(65536)
                    assert piece, answer
                    answer += piece
                seen.add(answer.partition(b"\r\n\r\n")[2].split()[0])
        return seen
    assert len(backends_of_one_connection()) == 1
    w.svc["waypoint"] = w.by_address
    w.write()
    eventually(lambda: backends_of_one_connection() == {b"v1", b"v2"}, "the waypoint")


def test_envoy_ingress_gateway_to_envoy_waypoint(mesh):
    """Gateway, waypoint, pods: a tunnel each, and the far one's client is the waypoint."""
    w = mesh
    outside, gateway = w.nodes[0].pod("outside", protocol="TCP"), w.nodes[0].pod("gateway")
    gateway.enrolled = True
    w.up(RUST_LOG="info,access=debug")
    w.run(envoy.waypoint(w.cert, w.backends, clients=[gateway.identity]))
    cert = issue(w.near, gateway.identity, os.path.join(w.directory, "ingress"))
    w.run(envoy.ingress_gateway(cert, 8000, {"wp": (w.envoy_pod.ip, f"{VIP}:80", 1)}), 8000, gateway)
    assert fetch(outside, (gateway.ip, 8000))[0] == 200
    assert fetch(outside, (gateway.ip, 8000), "POST")[0] == 403
    assert w.far.wait_line("connection opened", direction="inbound").fields["src.identity"] == w.envoy_pod.identity


def test_envoy_killed_and_restarted_loses_no_request(waypoint):
    w = waypoint
    assert fetch(w.client, (VIP, 80))[0] == 200
    w.process.end()
    assert w.client.refused(VIP, 80)
    w.run(envoy.waypoint(w.cert, w.backends))
    assert [fetch(w.client, (VIP, 80))[0] for _ in range(20)] == [200] * 20


def test_envoy_waypoint_takes_a_large_body_and_keeps_connections_apart(waypoint):
    """Refused bodies as large as many windows neither stall nor touch what runs beside them."""
    w = waypoint
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        gets = [pool.submit(fetch, w.client, (VIP, 80), "GET", f"/{i}", os.urandom(1 << 20)) for i in range(12)]
        for future in gets:
            status, body = future.result(60 * SLOW)
            assert status == 200 and body.endswith(f" {1 << 20}\n")


def test_envoy_ingress_gateway_is_admitted_by_its_identity(mesh):
    """Plain HTTP in, HBONE out with the gateway's identity, which the policy names; a client without it is refused."""
    w = mesh
    outside = w.nodes[0].pod("outside", protocol="TCP")
    w.policy("only-gateway", scope="Namespace", action="Allow", rules=[[[{"principals": [{"Exact": "cluster.local/ns/default/sa/proxy"}]}]]])
    w.up(RUST_LOG="info,access=debug")
    w.run(envoy.ingress_gateway(w.cert, 8000, w.backends), 8000)
    status, body = fetch(outside, (w.envoy_pod.ip, 8000))
    assert status == 200 and body.split()[1] == w.envoy_pod.ip
    assert w.far.wait_line("connection opened", direction="inbound").fields["src.identity"] == w.envoy_pod.identity
    assert w.client.refused(VIP, 80)
    line = w.far.wait_line("connection complete", direction="inbound", src__identity=w.client.identity).fields
    assert "policy rejection" in line["error"]
    # Several requests over one tunnel of Envoy's.
    assert [fetch(outside, (w.envoy_pod.ip, 8000))[0] for _ in range(20)] == [200] * 20


@pytest.fixture
def remote(mesh):
    """The application is in another network, and Envoy is the gateway to it."""
    w = mesh
    w.svc["ports"] = {"80": 8080, "81": 8081}
    for pod in (w.v1, w.v2, w.envoy_pod):
        pod.workload["network"] = "far"
    for pod in (w.v1, w.v2):
        pod.workload["networkGateway"] = {"destination": f"far/{w.envoy_pod.ip}", "hboneMtlsPort": 15008}
        pod.workload["services"][f"default/{HOST}"] = w.svc["ports"]
    w.svc["subjectAltNames"] = [w.v1.identity]
    w.write()
    w.client.node.start()
    w.v1.node.start(NETWORK="far")
    w.v1.serve(8080, http_server("v1"))
    w.v2.serve(8080, http_server("v2"))
    w.near, w.far = w.client.node.daemon, w.v1.node.daemon
    cert = issue(w.near, w.envoy_pod.identity, os.path.join(w.directory, "gateway"))
    w.run(envoy.network_gateway(cert, [w.v1.ip, w.v2.ip]))
    return w


def test_envoy_network_gateway_for_double_hbone(remote):
    """Over 1,000 connections each far endpoint gets between half and twice its share; identities and labels are the far end's."""
    w = remote
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: fetch(w.client, (VIP, 80), path=f"/{i}"), range(1000)))
    assert {status for status, _ in answers} == {200}
    share = collections.Counter(body.split()[0] for _, body in answers)
    assert all(250 <= share[name] <= 1000 for name in ("v1", "v2")), share
    line = w.near.wait_line("connection complete", direction="outbound", count=1000).fields
    assert line["dst.addr"] == f"{w.envoy_pod.ip}:15008" and line["dst.hbone_addr"] == f"{HOST}:80"
    assert line["dst.workload"] in ("echo-v1", "echo-v2") and line["dst.identity"] == w.v1.identity and "error" not in line
    into = w.far.wait_line("connection complete", direction="inbound", count=1000).fields
    assert into["src.workload"] == "client" and into["src.identity"] == w.client.identity
    assert w.near.activity()[1] <= 9


def test_half_close_through_envoys_network_gateway_and_two_tunnels(remote):
    """The client's end arrives, and what comes after it comes back; also without data."""
    w = remote
    for pod in (w.v1, w.v2):
        pod.echo(8081)
    assert w.client.request(VIP, 81, b"x" * 100000) == b"x" * 200000
    assert w.client.request(VIP, 81, b"") == b""
