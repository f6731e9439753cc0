"""The rules that istio-cni's own code writes, by each of its back ends, seen from the wire with our daemon behind them."""
import pytest

from istio_cni import BACKENDS, KUBELET_UID
from testenv.walks import *  # noqa: F401,F403
from testenv.walks import FAMILIES, NAMES, fmt, not_proxied, proxied
from testenv.dns import Upstream
from testenv.netns import tell_peer
from testenv.ztcni import BACKENDS as OUR_BACKENDS
from testenv.ztcni import Ztcni


@pytest.fixture(params=BACKENDS)
def redirect(world, istio, request):
    upstreams = []

    def start(dns=False):
        node = world.node()
        if dns:
            node.resolv_conf(node.address)
            world.upstream = Upstream(node.netns, node.address, NAMES)
            upstreams.append(world.upstream)
        world.client, world.server, world.outside = node.pod("client"), node.pod("server"), node.pod("outside", protocol="TCP")
        world.service("self", [world.server], ["10.96.0.9", "fd00:96::9"], ports={81: 8081})
        world.write()
        world.agent = istio(node, backend=request.param, dns=dns)
        world.daemon = node.start(enrol=False)
        world.server.echo(8080)

        def enrol(pod, **annotations):
            assert world.agent.add(pod, **annotations) == ""

        def unenrol(pod):
            assert world.agent.remove(pod) == ""
        world.enrol, world.unenrol = enrol, unenrol
        return world
    yield start
    for upstream in upstreams:
        upstream.close()


@pytest.fixture
def capture_names(redirect):
    return redirect(dns=True)


@pytest.fixture
def capture(redirect):
    return redirect()


@pytest.fixture
def capture_dns(redirect):
    """Off for all pods, on for this one."""
    world = redirect()
    world.enrol(world.server, **{"ambient.istio.io/dns-capture": "true"})
    return world


def test_walk_of_a_probe(captured):
    """The kubelet reaches the application itself, and is seen at the probes' own address; all others are captured."""
    captured.server.serve(7000, tell_peer)
    node = captured.nodes[0].netns
    for ip in FAMILIES:
        address = getattr(captured.server, ip)

        def probe():
            code = f"import socket; s = socket.create_connection(('{address}', 7000), 10); print(s.recv(100).decode().split()[0])"
            return node.run("setpriv", f"--reuid={KUBELET_UID}", "--clear-groups", "/usr/bin/python3", "-c", code)
        assert not_proxied(captured, probe).strip() == ("fd16:9254:7127:1337:ffff:ffff:ffff:ffff" if ip == "ip6" else "169.254.7.127")
        told = proxied(captured, lambda: captured.outside.request(address, 7000, b""), direction="inbound")
        assert told.split()[0].decode() == getattr(captured.outside, ip)


def test_pod_in_ingress_mode(capture):
    capture.enrol(capture.client)
    capture.enrol(capture.server, **{"ambient.istio.io/bypass-inbound-capture": "true"})
    capture.server.serve(7000, tell_peer)
    capture.client.echo(8080)
    for ip in FAMILIES:
        server, client = getattr(capture.server, ip), getattr(capture.client, ip)
        assert capture.outside.request(server, 7000, b"").split()[0].decode() == getattr(capture.outside, ip)
        assert proxied(capture, lambda: capture.client.request(server, 8080), direction="inbound") == b"hello world" * 2
        assert proxied(capture, lambda: capture.server.request(client, 8080), direction="outbound") == b"hello world" * 2
        assert not capture.daemon.lines("connection complete", dst__addr=f"{fmt(server)}:7000")


def rules_of(pod):
    """All there are, without counters and times."""
    legacy = [line.split(" [")[0] for line in pod.netns.run("iptables-legacy-save").splitlines() if not line.startswith("#")]
    return pod.netns.run("nft", "-s", "list", "ruleset"), legacy


@pytest.mark.parametrize("backend", OUR_BACKENDS)
def test_ztcni_keeps_away_from_a_pod_of_istio_cni(captured, tmp_path, backend):
    """Nothing of either side is touched, and each goes on when the other is gone."""
    node = captured.nodes[0]
    other = Ztcni(node, "--backend", backend, "--socket", str(tmp_path / "other.sock"))
    try:
        rules = rules_of(captured.server)
        assert "istio-cni manages this namespace" in other.add(captured.server)
        captured.server.enrolled = True
        code, said = other.check()
        assert code == 1 and "default/server" in said and "istio-cni manages this namespace" in said
        assert other.remove(captured.server) == ""
        assert rules_of(captured.server) == rules
    finally:
        other.close()
    assert proxied(captured, lambda: captured.client.request(captured.server.ip, 8080), direction="inbound") == b"hello world" * 2
