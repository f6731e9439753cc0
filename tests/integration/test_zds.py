"""Pods coming and going over ZDS (spec/inpod §1, §2; checks C19, C20, C29, C46, C47)."""
import os

import pytest

from testenv import eventually
from testenv.zds import ZdsServer

pytestmark = pytest.mark.threads


def ready(daemon):
    return daemon.http(15021, "/healthz/ready")[:2]


def test_readiness_follows_the_zds_connection(pair):
    """C20: ready, then only the workload proxy manager pending while the CNI is away, then ready again; traffic goes on all the time."""
    pair.start()
    pair.server.echo(8080)
    node = pair.server.node
    assert ready(node.daemon) == (200, b"ready\n")
    node.zds.close()
    eventually(lambda: ready(node.daemon) == (500, b"not ready, pending: workload proxy manager\n"), "not ready without the CNI")
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    pods = node.zds.pods
    node.zds = ZdsServer(os.path.join(node.directory, "zds.sock"), pods)
    eventually(lambda: ready(node.daemon) == (200, b"ready\n"), "ready again", 30)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    assert node.daemon.metric("workload_manager_proxies_started_total") == 1


def test_not_ready_before_the_first_snapshot(world):
    node = world.node()
    node.pod("a")
    world.write()
    daemon = node.start(enrol=False, wait_ready=False)
    daemon.wait_ready()  # the ZDS server of the test sends its empty snapshot at once
    node.zds.close()
    eventually(lambda: ready(daemon)[0] == 500)


def test_server_shutdown(pair):
    """CNI delete: the pod's connections break at once, new ones get no answer (namespaced test_server_shutdown)."""
    pair.start()
    pair.server.reflect(8080)
    daemon = pair.server.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        assert pair.server.node.zds.delete(pair.server.zds_uid) == ""
        with pytest.raises(ConnectionResetError):
            assert s.recv(1) != b""
            raise ConnectionResetError
    with pytest.raises(OSError):
        assert pair.client.request(pair.server.ip, 8080) == b"never"
    assert daemon.metric("workload_manager_active_proxy_count") == 0
    assert daemon.metric("workload_manager_proxies_stopped_total") == 1


def test_two_pods_added_one_removed(world):
    """C46."""
    node = world.node()
    a = node.pod("a")
    node.pod("b")
    world.start()
    assert node.daemon.metric("workload_manager_active_proxy_count") == 2
    a.unenrol()
    eventually(lambda: node.daemon.metric("workload_manager_active_proxy_count") == 1)
    assert node.daemon.metric("workload_manager_proxies_started_total") == 2
    eventually(lambda: node.daemon.metric("workload_manager_proxies_stopped_total") == 1)
    assert set(node.daemon.dump()["workloadState"]) == {"uid-b"}


def test_occupied_port_keeps_the_pod_pending_until_it_is_free(world):
    """C47: error acknowledgement, pending, not ready; then up without another Add."""
    node = world.node()
    pod = node.pod("a")
    world.write()
    blocker = pod.serve(15008, lambda s, peer: None)
    daemon = node.start(enrol=False, ZTUNNELD_ZDS_RETRY="200ms")
    error = node.zds.add(pod.zds_uid, pod.name, pod.namespace, pod.sa, pod.netns.fd)
    assert error.startswith("failure to start proxy : ") and "Address already in use" in error
    assert daemon.metric("workload_manager_pending_proxy_count") == 1
    reason = "failed to bind to address [::]:15008: Address already in use (os error 98)"
    told = f"not ready, pending: workload proxy manager\nworkload proxy manager: pod default/a cannot be started: {reason}\n"
    eventually(lambda: ready(daemon)[1] == told.encode(), "the reason in the readiness")
    state = daemon.dump()["workloadState"][pod.zds_uid]
    assert (state["state"], state["reason"]) == ("Pending", reason)
    assert reason in daemon.ztctl("pods")
    assert daemon.metric("workload_manager_proxy_start_failures_total", reason=reason) >= 1
    blocker.close()
    eventually(lambda: ready(daemon)[0] == 200, "up after the port is free")
    assert daemon.dump()["workloadState"][pod.zds_uid]["state"] == "Up"
    assert daemon.metric("workload_manager_pending_proxy_count") == 0


def test_a_descriptor_that_is_no_namespace_stays_pending(world):
    node = world.node()
    world.write()
    daemon = node.start()
    with open("/dev/null") as f:
        assert node.zds.add("bad", "bad", "default", "bad", f.fileno()).startswith("failure to start proxy : ")
    eventually(lambda: ready(daemon)[0] == 500)
    assert node.zds.delete("bad") == ""
    eventually(lambda: ready(daemon)[0] == 200)


def test_same_uid_in_another_namespace_replaces_the_proxy(world):
    node = world.node()
    a, b = node.pod("a"), node.pod("b")
    world.start(enrol=False)
    assert node.zds.add("u", a.name, a.namespace, a.sa, a.netns.fd) == ""
    assert node.zds.add("u", a.name, a.namespace, a.sa, b.netns.fd) == ""
    assert node.daemon.metric("workload_manager_active_proxy_count") == 1
    b.connect("127.0.0.1", 15008).close()
    with pytest.raises(ConnectionRefusedError):
        a.connect("127.0.0.1", 15008)


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_ports_refuse_when_a_removal_is_acknowledged(world, reuse):
    """Then who asked can count on it: nobody connects any more, and the ports can be bound again, even without SO_REUSEPORT."""
    node = world.node()
    pod = node.pod("a")
    world.write()
    daemon = node.start(INPOD_PORT_REUSE=reuse, enrol=False)
    for _ in range(50):
        assert node.zds.add(pod.zds_uid, pod.name, pod.namespace, pod.sa, pod.netns.fd) == ""
        pod.connect("127.0.0.1", 15008).close()
        assert node.zds.delete(pod.zds_uid) == ""
        for port in (15001, 15006, 15008):
            with pytest.raises(ConnectionRefusedError):
                pod.connect("127.0.0.1", port)
    assert daemon.metric("workload_manager_proxies_started_total") == 50


def test_connections_are_in_the_dump(pair):
    """C29: both directions with the right protocol, gone after the close."""
    pair.start()
    pair.server.reflect(8080)
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        out = pair.client.node.daemon.dump()["workloadState"][pair.client.zds_uid]["connections"]["outbound"]
        assert out == [{"src": f"{pair.client.ip}:{s.getsockname()[1]}", "originalDst": f"{pair.server.ip}:8080",
                        "actualDst": f"{pair.server.ip}:15008", "protocol": "HBONE"}]
        inbound = pair.server.node.daemon.dump()["workloadState"][pair.server.zds_uid]["connections"]["inbound"]
        assert len(inbound) == 1 and inbound[0]["protocol"] == "HBONE" and inbound[0]["actualDst"] == f"{pair.server.ip}:8080"
    eventually(lambda: not pair.client.node.daemon.dump()["workloadState"][pair.client.zds_uid]["connections"]["outbound"])
