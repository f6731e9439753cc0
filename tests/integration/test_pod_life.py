"""Pods of every kind, coming and going in every order (spec/inpod §1.3-1.6, §2)."""
import os
import socket
import threading

import pytest

from testenv import eventually
from testenv.daemon import BINARY, Daemon
from testenv.netns import Namespace
from testenv.zds import ZdsServer

SUPPORT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support")
PORTS = (15001, 15006, 15008)


def listening(netns):
    """{(address, port)} of TCP listeners in a namespace."""
    return {tuple(line.split()[3].rsplit(":", 1)) for line in netns.run("ss", "-Hltn").splitlines()}


def drop_address(pod, family):
    """The pod has addresses of the other family only."""
    if family == 6:
        pod.netns.sysctl("net.ipv6.conf.eth0.disable_ipv6", 1)
    else:
        pod.netns.ip("addr flush dev eth0")
    pod.workload["workloadIps"] = [pod.ip if family == 6 else pod.ip6]


@pytest.mark.parametrize("family", [4, 6])
def test_pods_of_one_family(pair, family):
    for pod in (pair.client, pair.server):
        drop_address(pod, 10 - family)
    pair.start()
    pair.server.echo(8080)
    host = pair.server.ip if family == 4 else pair.server.ip6
    assert pair.client.request(host, 8080) == b"hello worldhello world"
    assert pair.client.node.daemon.wait_line("connection complete", direction="outbound").fields["dst.identity"] == pair.server.identity


def test_host_without_ipv6(pair):
    """socket(AF_INET6) fails: wildcard listeners are IPv4, everything works, nobody had to configure it (spec/inpod §10 row 7)."""
    pair.write()
    for node in pair.nodes:
        node.zds = ZdsServer(os.path.join(node.directory, "zds.sock"))
        node.daemon = Daemon(node.netns, node.directory, node.environment(), binary=os.path.join(SUPPORT, "without_ipv6.py"),
                             args=(BINARY, "proxy", "ztunnel")).start()
        for pod in node.pods.values():
            pod.enrol()
    for pod in pair.pods.values():
        assert {("0.0.0.0", str(port)) for port in PORTS} <= listening(pod.netns)
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    assert not pair.client.node.daemon.lines("WARN")
    assert "address=0.0.0.0:15008" in pair.client.node.daemon.log()


def sandbox(node, name):
    """A pod's namespace with nothing in it."""
    ns = Namespace(f"{node.world.prefix}-{name}")
    node.more = getattr(node, "more", []) + [ns]
    return ns


@pytest.fixture
def node(world):
    n = world.node()
    n.pod("bystander")
    world.start()
    yield n
    for ns in getattr(n, "more", ()):
        ns.close()


def serves(ns):
    """Every port of the pod takes connections."""
    for port in PORTS:
        with ns.socket() as s, ns.inside():
            s.connect(("127.0.0.1", port))
    return True


def refuses(ns):
    for port in PORTS:
        with ns.socket() as s, ns.inside():
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return False
    return True


@pytest.mark.parametrize("order", ["deleted first", "added first"])
def test_two_pods_with_one_name_in_succession(pair, order):
    """A StatefulSet's pod comes again: another uid and namespace, the same name, account and address."""
    pair.start()
    zds, old = pair.server.node.zds, pair.server
    old.echo(8080)
    assert pair.client.request(old.ip, 8080) == b"hello worldhello world"
    ns = sandbox(old.node, "again")
    try:
        if order == "deleted first":
            assert zds.delete(old.zds_uid) == ""
        assert zds.add("uid-again", old.name, old.namespace, old.sa, ns.fd) == ""
        if order == "added first":
            assert zds.delete(old.zds_uid) == ""
        assert refuses(old.netns) and serves(ns)
        state = old.node.daemon.dump()["workloadState"]
        assert list(state) == ["uid-again"] and state["uid-again"]["state"] == "Up"
        # The address moves to the new namespace, and traffic with it.
        index = old.ip.rsplit(".", 1)[1]
        old.netns.ip("link set eth0 down", "addr flush dev eth0")
        old.node.netns.ip(f"link del v{index}", f"link add v{index} type veth peer name eth0 netns {ns.name}",
                          f"addr add 10.{old.node.index}.0.254/32 dev v{index}", f"link set v{index} up", f"route add {old.ip} dev v{index}")
        ns.ip(f"addr add {old.ip}/32 dev eth0", "link set eth0 up", f"route add 10.{old.node.index}.0.254 dev eth0",
              f"route add default via 10.{old.node.index}.0.254 dev eth0")
        old.close()
        old.netns = ns
        old.servers = []
        old.redirect()
        old.echo(8080)
        eventually(lambda: pair.client.request(old.ip, 8080) == b"hello worldhello world", "traffic to the new pod", 20)
    finally:
        if old.netns is not ns:
            ns.close()
        old.node.more = []


def test_a_namespace_that_vanished(node):
    """Its name and links are gone without a Del: nobody else notices, and the Del that comes late gives everything back."""
    daemon, fds = node.daemon, node.daemon.open_fds()
    gone = sandbox(node, "gone")
    assert node.zds.add("u", "gone", "default", "gone", gone.fd) == ""
    assert serves(gone)
    node.more.remove(gone)
    node.zds.pods.pop("u")
    gone.close()
    assert daemon.dump()["workloadState"]["u"]["state"] == "Up"
    assert serves(node.pods["bystander"].netns)
    assert daemon.http(15021, "/healthz/ready")[0] == 200
    assert node.zds.delete("u") == ""
    eventually(lambda: daemon.open_fds() == fds, "all descriptors given back")


def test_a_namespace_that_vanished_is_left_out_of_the_next_snapshot(node):
    daemon, fds = node.daemon, node.daemon.open_fds()
    gone = sandbox(node, "gone")
    assert node.zds.add("u", "gone", "default", "gone", gone.fd) == ""
    node.more.remove(gone)
    node.zds.pods.pop("u")
    gone.close()
    node.zds.disconnect()
    eventually(lambda: "u" not in daemon.dump()["workloadState"], "reconciled with the snapshot")
    eventually(lambda: daemon.open_fds() == fds, "all descriptors given back")
    assert daemon.metric("workload_manager_proxies_started_total") == 2  # nobody else was started again


def test_a_bad_pod_harms_nobody_else(node):
    """Its start fails again and again; others come and go meanwhile; with its Del the node is ready at once."""
    daemon, good, bad = node.daemon, sandbox(node, "good"), sandbox(node, "bad")
    blocker = bad.socket(socket.AF_INET6)
    blocker.bind(("::", 15001))
    blocker.listen(1)
    assert "Address already in use" in node.zds.add("bad", "bad", "default", "bad", bad.fd)
    assert {port for _, port in listening(bad)} == {"15001"}  # nothing was left open
    for i in range(10):
        assert node.zds.add(f"good{i}", "good", "default", "good", good.fd) == "" and serves(good)
        assert node.zds.delete(f"good{i}") == "" and refuses(good)
    eventually(lambda: daemon.http(15021, "/healthz/ready")[0] == 500)
    assert b"pod default/bad cannot be started: failed to bind to address [::]:15001" in daemon.http(15021, "/healthz/ready")[1]
    assert "default/bad" in daemon.ztctl("pods") and "Address already in use" in daemon.ztctl("pods")
    assert node.zds.delete("bad") == ""
    eventually(lambda: daemon.http(15021, "/healthz/ready")[:2] == (200, b"ready\n"), "ready without it", 2)
    blocker.close()



def test_service_restart_under_calls_that_all_succeed(world):
    """TestServiceRestart: the pods behind a service are replaced one after the other: each leaves the endpoints, ends, comes again."""
    node, servers = world.node(), [world.node().pod(f"server{i}") for i in range(2)]
    client = node.pod("client")
    world.service("echo", servers, "10.96.0.1")
    world.start()
    for pod in servers:
        pod.echo(8080)
    results, stop = [], threading.Event()

    def calls():
        while not stop.wait(0.04):
            try:
                results.append(client.request("10.96.0.1", 80) == b"hello worldhello world")
            except OSError as e:
                results.append(e)

    def endpoints():
        dump = node.daemon.dump()
        return {e["workloadUid"] for s in dump["services"] for e in s["endpoints"].values()}

    caller = threading.Thread(target=calls)
    caller.start()
    try:
        for pod in servers:
            services = pod.workload["services"]
            pod.workload["services"] = {}
            world.write()
            eventually(lambda p=pod: p.uid not in endpoints(), "out of the endpoints")
            eventually(lambda p=pod: p.node.daemon.activity()[0] == 0, "no call under way")
            pod.servers.pop().close()
            assert pod.node.zds.delete(pod.zds_uid) == ""
            assert pod.node.zds.add(pod.zds_uid + "-again", pod.name, pod.namespace, pod.sa, pod.netns.fd) == ""
            pod.echo(8080)
            pod.workload["services"] = services
            world.write()
            eventually(lambda p=pod: p.uid in endpoints(), "among the endpoints again")
            done = len(results)
            eventually(lambda d=done: len(results) >= d + 20, "calls")
    finally:
        stop.set()
        caller.join()
    assert all(r is True for r in results) and len(results) > 40, [r for r in results if r is not True]
