"""Pods coming and going over ZDS (spec/inpod §1, §2; checks C19, C20, C29, C46, C47)."""
import array
import os
import socket

import pytest

from testenv import eventually
from testenv.zds import SNAPSHOT_SENT, ZdsServer, ack_error, add, delete, field, keep

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


@pytest.mark.parametrize("packet", [field(1, field(1, b"u")), SNAPSHOT_SENT, keep("u")], ids=["add without info", "second snapshot", "late keep"])
def test_protocol_error_ends_the_process(world, packet):
    """Acknowledged with its text, then exit status 1: a restart gives a clean snapshot (spec/inpod §1.3 point 7)."""
    node = world.node()
    world.write()
    daemon = node.start()
    with open("/dev/null") as f:
        assert node.zds.exchange(packet, f.fileno() if packet[0] == 0x0a else None).startswith("failure to process message : ")
    assert daemon.wait() == 1
    assert "WorkloadProxyManager run error: failure to process message : " in daemon.log()
    daemon.check_clean(1)
    daemon.process = None


ADD = add("u", "p", "default", "sa")
UNREADABLE = {
    "garbage": (b"\xff\xff\xff\xff", 0), "no payload": (b"\x08\x01", 0), "unknown message": (field(9, b"x"), 0), "cut": (ADD[:-2], 1),
    "oversized": (field(2, field(2, b"u" * 1100)), 0), "add without descriptor": (ADD, 0), "add with two": (ADD, 2), "add with many": (ADD, 30),
    "del with one": (delete("u"), 1), "snapshot with one": (SNAPSHOT_SENT, 1), "only a descriptor": (b"", 1)}


def test_unreadable_packets_cost_the_connection_and_nothing_else(world):
    """An error acknowledgement, a new connection with its snapshot; pods run on, descriptors are closed."""
    node = world.node()
    pod = node.pod("a")
    world.start()
    daemon, fds = node.daemon, node.daemon.open_fds()
    with open("/dev/null") as f:
        for name, (packet, n) in UNREADABLE.items():
            s = node.zds.newest()
            s.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno()] * n))] if n else [])
            assert ack_error(s.recv(2048)).startswith("failure to read message : "), name
            assert s.recv(2048) == b"", name
            eventually(lambda last=s: node.zds.newest() is not last, "a new connection")
            pod.connect("127.0.0.1", 15008).close()
    assert daemon.metric("workload_manager_proxies_started_total") == 1
    eventually(lambda: daemon.open_fds() == fds, "all descriptors closed")
    assert ready(daemon)[0] == 200


def test_packets_that_come_faster_than_they_are_answered(world):
    """Each is answered, in order, with exactly one acknowledgement; unknown fields and fields in pieces are read as protobuf says."""
    node = world.node()
    pod = node.pod("a")
    world.write()
    daemon = node.start(enrol=False)
    s = node.zds.newest()
    # One Add whose information comes in two pieces, before the uid, with fields of another version.
    in_pieces = field(1, field(2, field(1, b"a") + field(9, b"later")) + field(2, field(2, b"default") + field(3, b"a")) + field(1, b"u")) + field(15, b"")
    for _ in range(30):
        for packet, fd in ((in_pieces, pod.netns.fd), (delete("nobody"), None), (add("u", "a", "default", "a"), pod.netns.fd), (delete("u"), None)):
            s.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd else [])
        with open("/dev/null") as f:
            s.sendmsg([add("bad", "b", "default", "b")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [f.fileno()]))])
        s.sendmsg([delete("bad")])
        errors = [ack_error(s.recv(2048)) for _ in range(6)]
        assert errors[:4] == [""] * 4 and errors[4].startswith("failure to start proxy : ") and errors[5] == ""
    assert daemon.metric("workload_manager_proxies_started_total") == 30
    assert daemon.dump()["workloadState"] == {}
    line = daemon.wait_line("listener established", component="inbound")
    assert "wl=default/a" in line.text
