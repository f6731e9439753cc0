"""A dial that fails in TCP, TLS or HTTP/2 set-up moves on to another endpoint; what an endpoint says, or who it is, does not."""
import pytest

from testenv.daemon import SLOW
from testenv.hbone import issue
from testenv.peer import Peer, PeerConnection

VIP = "10.96.3.1"
FAILOVERS = "ztunneld_outbound_failovers_total"


@pytest.fixture
def mesh(world, tmp_path):
    """A client and a service of which one endpoint works. `bad` are more of them that no daemon serves."""
    w = world
    w.client = w.node().pod("client")
    w.good = w.node().pod("good", sa="echo")
    w.bad = []

    def start(n_bad=1, protocol="HBONE", good=True, **env):
        for i in range(n_bad):
            pod = w.nodes[1].pod(f"bad{i}", sa="echo", protocol=protocol)
            pod.enrolled = True  # that is: leave it alone
            w.bad.append(pod)
        if not good:
            w.good.workload["status"] = "Unhealthy"
        w.service("echo", [w.good, *w.bad], VIP)
        w.start(ZTUNNELD_CONNECT_TIMEOUT=f"{3 * SLOW}s", **env)
        w.good.echo(8080)
        w.daemon = w.client.node.daemon
        w.cert = issue(w.daemon, w.good.identity, tmp_path / "cert")
        return w
    w.up = start
    return w


def try_until_bad(w, seen, tries=40):
    """Connects until the bad endpoint was met; every connection must be served. Returns how many there were."""
    for i in range(tries):
        assert w.client.request(VIP, 80, b"hi") == b"hihi"
        if seen():
            return i + 1
    raise AssertionError("the bad endpoint was never tried")


def failovers(w):
    return w.daemon.metric(FAILOVERS)


def test_a_refused_dial_goes_to_another_endpoint_which_is_counted_and_logged(mesh):
    w = mesh.up()
    n = try_until_bad(w, lambda: failovers(w) == 1)
    line = w.daemon.wait_line("an endpoint cannot be reached, the connection goes to another one").fields
    assert line["addr"] == f"{w.bad[0].ip}:15008" and line["next"] == f"{w.good.ip}:15008" and "refused" in line["error"]
    assert line["endpoint"] == w.bad[0].uid
    w.daemon.wait_line("connection complete", direction="outbound", count=n)
    access = w.daemon.lines("connection complete", direction="outbound")
    assert all(a.fields["dst.workload"] == "good" and "error" not in a.fields for a in access)
    # One connection, one record: opened and closed agree in every label.
    for family in ("opened", "closed"):
        assert w.daemon.metric(f"istio_tcp_connections_{family}_total", destination_workload="good") == n == len(access)
        assert w.daemon.metric(f"istio_tcp_connections_{family}_total", destination_workload="bad0") == 0


def test_an_endpoint_that_just_failed_is_avoided(mesh):
    w = mesh.up()
    try_until_bad(w, lambda: failovers(w) == 1)
    for _ in range(30):
        assert w.client.request(VIP, 80, b"hi") == b"hihi"
    assert failovers(w) == 1
    assert "could not be reached a moment ago" in w.daemon.ztctl("-o", "json", "explain", "default/client", f"{VIP}:80")


def test_a_plain_dial_goes_to_another_endpoint_too(mesh):
    w = mesh.up(protocol="TCP")
    try_until_bad(w, lambda: failovers(w) == 1)


def test_a_silent_endpoint_takes_its_share_of_the_budget_only(mesh):
    w = mesh.up()
    w.bad[0].netns.run("nft", "-f", "-", input="table inet mute { chain in { type filter hook input priority 0; drop; }; }")
    n = try_until_bad(w, lambda: failovers(w) == 1)
    line = w.daemon.wait_line("an endpoint cannot be reached, the connection goes to another one").fields
    assert "maybe a NetworkPolicy is blocking HBONE port 15008" in line["error"]
    w.daemon.wait_line("connection complete", direction="outbound", count=n)
    slowest = max(int(a.fields["duration"][:-2]) for a in w.daemon.lines("connection complete", direction="outbound"))
    assert slowest < 3000 * SLOW * 2 / 3


class Deaf(PeerConnection):
    """TLS is set up; then it ends without a word of HTTP/2."""

    def run(self):
        self.sock.close()


def hang_up(s, _):
    s.recv(1)


@pytest.mark.parametrize("stage", ["tls", "h2"])
def test_a_handshake_that_breaks_off_goes_to_another_endpoint(mesh, stage):
    w = mesh.up()
    if stage == "tls":
        w.bad[0].serve(15008, hang_up)
    else:
        Peer(w.bad[0], w.cert, Deaf)
    try_until_bad(w, lambda: failovers(w) == 1)


@pytest.mark.parametrize("status", [400, 401, 503])
def test_an_answer_is_final(mesh, status):
    class Refusing(PeerConnection):
        def on_request(self, stream, headers):
            self.answer(stream, status, end=True)
    w = mesh.up()
    peer = Peer(w.bad[0], w.cert, Refusing)
    for _ in range(60):
        if w.client.refused(VIP, 80):
            break
    assert len(peer.streams()) == 1 and failovers(w) == 0
    line = w.daemon.wait_line("connection complete", dst__workload="bad0").fields
    assert line["error"].startswith(f"http status: {status}")


def test_a_wrong_identity_is_final(mesh, tmp_path):
    w = mesh.up()
    peer = Peer(w.bad[0], issue(w.daemon, "spiffe://cluster.local/ns/default/sa/impostor", tmp_path / "impostor"))
    for _ in range(60):
        if w.client.refused(VIP, 80):
            break
    line = w.daemon.wait_line("connection complete", dst__workload="bad0").fields
    assert "identity verification error" in line["error"] and failovers(w) == 0
    assert not peer.streams()


def test_three_endpoints_are_tried_and_no_more(mesh):
    w = mesh.up(n_bad=5, good=False)
    servers = [pod.serve(15008, hang_up) for pod in w.bad]
    assert w.client.refused(VIP, 80)
    assert sum(s.accepted for s in servers) == 3 and max(s.accepted for s in servers) == 1
    assert failovers(w) == 2
    line = w.daemon.wait_line("connection complete", direction="outbound")
    assert "io error" in line.fields["error"] and line.fields["dst.workload"].startswith("bad")
    assert w.daemon.metric("istio_tcp_connections_failed_total", reporter="source", response_flags="CONNECT") == 1


def test_open_connections_decide_between_two_endpoints(mesh):
    """Among equals the one with fewer connections is taken: 20 that stay open are split evenly."""
    w = mesh.up(protocol="TCP")
    w.bad[0].echo(8080)
    held = [w.client.connect(VIP, 80) for _ in range(20)]
    for s in held:
        s.sendall(b"x")
        assert s.recv(2)
    opened = [w.daemon.metric("istio_tcp_connections_opened_total", destination_workload=name) for name in ("good", "bad0")]
    assert sorted(opened) == [10, 10], opened
    for s in held:
        s.close()
