"""Beside istio-cni: its own node agent decides, in real namespaces, what our daemon serves."""
import os
import socket
import threading

import pytest

from istio_cni import BACKENDS, describe
from testenv import eventually
from testenv.daemon import SLOW, Daemon
from testenv.netns import Namespace


@pytest.fixture
def mesh(world, istio):
    """A client and a server on two nodes, daemons started, nothing enrolled."""
    world.client, world.server = world.node().pod("client"), world.node().pod("server")
    world.service("echo", [world.server], ["10.96.0.9", "fd00:96::9"])
    world.agents = [istio(node) for node in world.nodes]
    world.write()
    for node in world.nodes:
        node.start(enrol=False)
    world.server.echo(8080)
    return world


def enrol(world):
    for agent, pod in zip(world.agents, (world.client, world.server)):
        assert agent.add(pod) == ""


def served(daemon):
    return {uid: w["state"] for uid, w in daemon.dump()["workloadState"].items()}


def tunnelled(world, address):
    before = len(world.server.node.daemon.lines("connection complete", direction="inbound"))
    assert world.client.request(address, 80 if "96" in address else 8080) == b"hello world" * 2
    line = world.server.node.daemon.wait_line("connection complete", count=before + 1, direction="inbound")
    return line.fields.get("src.identity") == world.client.identity


def test_istio_cni_adds_and_removes_a_pod(mesh):
    agent = mesh.agents[1]
    enrol(mesh)
    assert agent.status_of(mesh.server) == "enabled"
    assert served(mesh.server.node.daemon) == {mesh.server.zds_uid: "Up"}
    for address in (mesh.server.ip, mesh.server.ip6, "10.96.0.9", "fd00:96::9"):
        assert tunnelled(mesh, address), address
    assert agent.remove(mesh.server) == ""
    assert agent.status_of(mesh.server) is None
    eventually(lambda: served(mesh.server.node.daemon) == {})
    assert "ISTIO" not in mesh.server.netns.run("iptables-nft-save")
    assert mesh.agents[0].remove(mesh.client) == ""
    assert mesh.client.request(mesh.server.ip, 8080) == b"hello world" * 2


def test_istio_cni_stalls_a_pod_while_no_daemon_is_connected(world, istio):
    pod = world.node().pod("pod")
    agent = istio(world.nodes[0])
    assert "no ztunnel connection" in agent.add(pod)
    assert agent.status_of(pod) == "pending"
    outside = world.nodes[0].pod("outside", protocol="TCP")
    pod.echo(8080)
    with pytest.raises(ConnectionRefusedError):  # rules without listeners: closed, not open
        outside.connect(pod.ip, 8080)
    world.write()
    world.nodes[0].start(enrol=False)
    assert agent.add(pod) == "" and agent.status_of(pod) == "enabled"  # as the agent's retry does
    assert outside.request(pod.ip, 8080) == b"hello world" * 2


def test_istio_cni_sends_a_new_daemon_the_snapshot(mesh):
    enrol(mesh)
    node = mesh.server.node
    node.daemon.stop()
    eventually(lambda: mesh.agents[1].connections() == 0)
    node.start(enrol=False)
    assert served(node.daemon) == {mesh.server.zds_uid: "Up"}
    assert tunnelled(mesh, mesh.server.ip)


def test_istio_cni_sends_a_daemon_that_follows_a_killed_one_the_snapshot(mesh):
    enrol(mesh)
    node = mesh.server.node
    node.daemon.kill()
    node.start(enrol=False)
    assert served(node.daemon) == {mesh.server.zds_uid: "Up"} and tunnelled(mesh, mesh.server.ip6)


@pytest.mark.parametrize("known", ["add", "keep"])
def test_istio_cni_restart_interrupts_nothing(mesh, istio, known):
    """The new agent knows the pod's namespace (Add) or not yet (Keep)."""
    enrol(mesh)
    node, other = mesh.server.node, mesh.server.node.pod("other")
    assert mesh.agents[1].add(other) == ""
    with mesh.client.connect(mesh.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(2) == b"aa"
        mesh.agents[1].kill()
        eventually(lambda: node.daemon.http(15021, "/healthz/ready")[0] == 500)
        s.sendall(b"b")
        assert s.recv(2) == b"bb"
        pods, without = ([mesh.server], []) if known == "add" else ([], [mesh.server])
        istio(node, *pods, without_netns=without)
        eventually(lambda: node.daemon.http(15021, "/healthz/ready")[0] == 200)
        assert served(node.daemon) == {mesh.server.zds_uid: "Up"}  # the other one went meanwhile
        s.sendall(b"c")
        assert s.recv(2) == b"cc"
    assert tunnelled(mesh, mesh.server.ip)
    assert node.daemon.metric("workload_manager_proxies_started_total") == 2
    assert node.daemon.metric("workload_manager_active_proxy_count") == 1
    assert node.zds.add(other) == ""  # one that had to wait while there was no agent
    assert served(node.daemon) == {mesh.server.zds_uid: "Up", other.zds_uid: "Up"}


def test_istio_cni_pod_in_a_new_sandbox(mesh):
    enrol(mesh)
    sandbox = mesh.server.node.pod("sandbox")
    sandbox.zds_uid, sandbox.name = mesh.server.zds_uid, "server"
    assert mesh.agents[1].add(sandbox) == ""
    daemon = mesh.server.node.daemon
    assert served(daemon) == {mesh.server.zds_uid: "Up"}
    eventually(lambda: daemon.metric("workload_manager_active_proxy_count") == 1)
    assert daemon.metric("workload_manager_proxies_started_total") == 2
    sandbox.connect(sandbox.ip, 15008).close()
    with pytest.raises(ConnectionRefusedError):
        mesh.server.connect(mesh.server.ip, 15008)


def test_istio_cni_is_told_of_a_pod_that_cannot_be_served_and_no_other_is_harmed(mesh):
    enrol(mesh)
    agent, node = mesh.agents[1], mesh.server.node
    pod = node.pod("occupied")
    with pod.netns.socket(socket.AF_INET6) as s:
        s.bind(("::", 15008))
        s.listen()
        error = agent.add(pod)
        assert error.startswith("got ack error: failure to start proxy : ") and "15008" in error
        assert agent.status_of(pod) == "pending"
        assert tunnelled(mesh, mesh.server.ip)
        assert agent.connections() == 1
    assert agent.add(pod) == "" and agent.status_of(pod) == "enabled"
    assert served(node.daemon) == {mesh.server.zds_uid: "Up", pod.zds_uid: "Up"}


def test_istio_cni_is_told_of_a_namespace_that_is_none(mesh, tmp_path):
    """The agent itself refuses a path that is no namespace; what gets through to the daemon is one of another kind."""
    enrol(mesh)
    agent = mesh.agents[1]
    (tmp_path / "file").write_text("")
    for path in (str(tmp_path / "file"), "/nowhere"):
        error = agent.call("add", **describe(mesh.server, uid="none", netns=path))
        assert "pod add cannot be retried" in error
    error = agent.call("add", **describe(mesh.server, uid="none", netns="/proc/self/ns/uts"))
    assert error
    assert agent.connections() == 1 and served(mesh.server.node.daemon) == {mesh.server.zds_uid: "Up"}
    assert tunnelled(mesh, mesh.server.ip)


def test_istio_cni_removes_a_pod_whose_namespace_is_gone(mesh):
    enrol(mesh)
    node = mesh.server.node
    pod = node.pod("brief")
    assert mesh.agents[1].add(pod) == ""
    node.pods.pop("brief").close()
    assert mesh.agents[1].remove(pod, deleted=True) == ""
    eventually(lambda: served(node.daemon) == {mesh.server.zds_uid: "Up"})
    assert mesh.agents[1].remove(pod, deleted=True) == ""  # Dels of unknown pods are fine


@pytest.mark.parametrize("backend", BACKENDS)
def test_istio_cni_enrols_many_pods_at_once(world, istio, backend):
    node = world.node()
    pod = node.pod("model")
    agent = istio(node, backend=backend)
    world.write()
    node.start(enrol=False)
    namespaces = [Namespace(f"{world.prefix}-m{i}") for i in range(40)]
    try:
        adds = [agent.ask("add", **describe(pod, uid=f"uid-{i}", name=f"many-{i}", netns=n.path, ips=[f"10.9.0.{i + 1}"], timeoutMs=30000))
                for i, n in enumerate(namespaces)]
        assert {a.result(60 * SLOW)["error"] for a in adds} == {""}
        assert len(served(node.daemon)) == 40
        dels = [agent.ask("remove", **describe(pod, uid=f"uid-{i}", name=f"many-{i}", ips=[f"10.9.0.{i + 1}"])) for i in range(40)]
        assert {d.result(60 * SLOW)["error"] for d in dels} == {""}
        eventually(lambda: served(node.daemon) == {})
    finally:
        for n in namespaces:
            n.close()


def test_istio_cni_serves_two_daemons_during_an_upgrade(mesh, istio):
    """New pods go to the newest daemon, removals to both; when the newest goes, the one before it gets the next."""
    enrol(mesh)
    agent, node = mesh.agents[1], mesh.server.node
    old, new_pod = node.daemon, node.pod("daemon2", protocol="TCP")
    directory = os.path.join(node.directory, "second")
    os.makedirs(directory)
    new = Daemon(new_pod.netns, directory, node.environment() | {"ZTUNNELD_CTL_SOCKET": os.path.join(directory, "ctl.sock")}).start()
    try:
        assert served(new) == {mesh.server.zds_uid: "Up"}
        first, second = node.pod("first"), node.pod("second")
        assert agent.add(first) == ""
        assert first.zds_uid in served(new) and first.zds_uid not in served(old)
        assert agent.remove(mesh.server) == ""
        assert mesh.server.zds_uid not in served(new) and mesh.server.zds_uid not in served(old)
    finally:
        new.stop()
    eventually(lambda: agent.connections() == 1)
    assert agent.add(second) == ""
    assert second.zds_uid in served(old)


def test_istio_cni_after_a_reboot_of_the_node(world, istio):
    """Nothing is known of the pods' namespaces yet: Keep of pods that a new daemon does not have, and no address of theirs."""
    node = world.node()
    pod, outside = node.pod("pod"), node.pod("outside", protocol="TCP")
    pod.echo(8080)
    agent = istio(node, without_netns=[pod])
    world.write()
    node.start(enrol=False)  # ready
    assert served(node.daemon) == {}
    assert agent.add(pod) == ""
    assert served(node.daemon) == {pod.zds_uid: "Up"}
    assert outside.request(pod.ip, 8080) == b"hello world" * 2


def test_istio_cni_enrols_and_unenrols_a_running_pod_under_load(mesh):
    """Each change of the rules resets what is open; all that starts between two changes succeeds."""
    enrol(mesh)
    outcomes, stop = [], threading.Event()

    def call():
        while not stop.wait(0.02):  # as often whether it fails or not
            try:
                outcomes.append(mesh.client.request(mesh.server.ip, 8080, timeout=2 * SLOW) == b"hello world" * 2)
            except OSError:
                outcomes.append(False)
    caller = threading.Thread(target=call)
    caller.start()
    try:
        for change, protocol in ((mesh.agents[1].remove, "TCP"), (mesh.agents[1].add, "HBONE")) * 3:
            assert change(mesh.server) == ""
            mesh.server.workload["protocol"] = protocol  # as istiod does when it sees the annotation
            mesh.write()
            eventually(lambda n=len(outcomes): sum(outcomes[n:]) > 40, f"calls to a pod of {protocol}")
    finally:
        stop.set()
        caller.join()
    assert sum(outcomes) >= len(outcomes) / 2, outcomes
