"""What operators see of a running daemon: dump, ztctl, explain against the real connection, log level, drain without a control socket."""
import json
import os
import signal
import socket
import tempfile

import pytest

from testenv import eventually


def explain(pod, dst):
    return json.loads(pod.node.daemon.ztctl("-o", "json", "explain", f"{pod.namespace}/{pod.name}", dst))


def test_dump_has_sorted_keys_and_the_open_connection(pair):
    """C27, C29: the text is its own sorted, two-space form; workloadState shows a connection while it lives, on both nodes."""
    pair.service("echo", [pair.server], "10.96.0.9")
    pair.start()
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect("10.96.0.9", 80) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        status, text, headers = daemon.http(15000, "/config_dump")
        assert status == 200 and {k.lower(): v for k, v in headers.items()}["content-type"] == "application/json"
        dump = json.loads(text)
        assert json.dumps(dump, indent=2, sort_keys=True, ensure_ascii=False) == text.decode()
        (state,) = dump["workloadState"].values()
        assert state["state"] == "Up" and state["info"]["name"] == "client"
        (out,) = state["connections"]["outbound"]
        assert (out["originalDst"], out["actualDst"], out["protocol"]) == ("10.96.0.9:80", f"{pair.server.ip}:15008", "HBONE")
        (theirs,) = pair.server.node.daemon.dump()["workloadState"].values()
        (inbound,) = theirs["connections"]["inbound"]
        assert (inbound["actualDst"], inbound["protocol"]) == (f"{pair.server.ip}:8080", "HBONE")
        (certificate,) = dump["certificates"]
        assert certificate["state"] == "Available" and certificate["certChain"][0]["serialNumber"].isdigit()
        assert [w["name"] for w in dump["staticConfig"]["workloads"]] == ["client", "server"]
    eventually(lambda: not next(iter(daemon.dump()["workloadState"].values()))["connections"]["outbound"], "the entry's end")


def test_status_counts_connections_and_tunnels_and_names_the_limits(pair):
    pair.start(ZTUNNELD_POD_TUNNELS_MAX="77")
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        (pod,) = daemon.status()["pods"]
        assert (pod["state"], pod["connectionsOut"], pod["connectionsIn"], pod["tunnelsOut"]) == ("Up", 1, 0, 1)
        assert "default/client" in daemon.ztctl("status")
    limits = daemon.status()["limits"]
    assert limits["pod_tunnels"] == 77 and limits["peer_connections"] == 65536


@pytest.mark.parametrize("allow", ["default/sa/client", "default/sa/nobody"])
def test_explain_agrees_with_the_connection(pair, allow):
    pair.service("echo", [pair.server], "10.96.0.9")
    pair.policy("who", rules=[[[{"principals": [{"Exact": f"cluster.local/ns/{allow}"}]}]]])
    pair.start()
    pair.server.echo(8080)
    said = explain(pair.client, "echo.default.svc.cluster.local:80")
    assert said["destination"] == "10.96.0.9:80"
    assert said["route"]["nextHop"] == f"{pair.server.ip}:15008" and said["route"]["authority"] == f"{pair.server.ip}:8080"
    assert said["authorization"]["decidedBy"] == "the other node" and said["authorization"]["node"] == pair.server.node.name
    if allow.endswith("client"):
        assert said["authorization"]["verdict"] == "allow"
        assert pair.client.request("10.96.0.9", 80) == b"hello worldhello world"
    else:
        assert said["authorization"]["verdict"] == "deny"
        assert any("default/who" in step for step in said["authorization"]["steps"])
        assert pair.client.refused("10.96.0.9", 80)
        line = pair.client.node.daemon.wait_line("connection complete", direction="outbound")
        assert "401" in line.fields["error"]


def test_log_level_changes_at_once(pair):
    """C25."""
    pair.start()
    pair.server.echo(8080)
    daemon = pair.client.node.daemon
    assert daemon.http(15000, "/logging?level=debug", "POST")[0] == 200
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    daemon.wait_line("connection opened", direction="outbound")
    daemon.wait_line("connection complete", direction="outbound")  # before the level changes
    assert daemon.http(15000, "/logging?level=off", "POST")[0] == 200
    before = daemon.log()
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    assert daemon.log() == before


def test_drain_without_a_control_socket_waits_for_connections(pair):
    pair.start(ZTUNNELD_CTL_SOCKET="/nonexistent/ctl", CONNECTION_TERMINATION_DEADLINE="20s")
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    daemon.wait_line("ztctl will not reach this daemon: cannot make /nonexistent/ctl; set ZTUNNELD_CTL_SOCKET to a path in a "
                     "directory that exists: No such file or directory (os error 2)")
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("listener drained", component="stats")
        s.sendall(b"b")
        assert s.recv(1) == b"b"
        assert daemon.process.poll() is None
    assert daemon.wait(20) == 0
    daemon.check_clean()
    daemon.process = None


def test_second_daemon_takes_the_control_socket_and_the_first_stays_reachable(world, tmp_path):
    path = str(tmp_path / "shared.ctl")
    one, two = world.node(), world.node()
    world.start(ZTUNNELD_CTL_SOCKET=path)
    assert one.daemon.status()["node"] == two.name
    one.daemon.ctl = path + ".prev"
    assert one.daemon.status()["node"] == one.name
    two.daemon.stop()
    assert not os.path.exists(path)
    one.daemon.stop()
    assert not os.path.exists(path + ".prev")
    one.daemon = two.daemon = None


def ask_as_nobody(path):
    """Exit status of a child that asks as another user: 0 refused, 1 answered, 2 something else."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setuid(65534)
            s = socket.socket(socket.AF_UNIX)
            s.settimeout(10)
            s.connect(path)
            s.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
            os._exit(1 if s.recv(1) else 0)
        except (ConnectionResetError, BrokenPipeError):
            os._exit(0)
        except BaseException:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_control_socket_serves_root_and_its_owner_only(world):
    """The file's mode keeps others out, and so do the peer's credentials when the mode does not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        node = world.node()
        world.start(ZTUNNELD_CTL_SOCKET=os.path.join(directory, "ctl"))
        assert os.stat(node.daemon.ctl).st_mode & 0o777 == 0o600
        os.chmod(node.daemon.ctl, 0o666)
        assert ask_as_nobody(node.daemon.ctl) == 0
        assert node.daemon.status()["node"] == node.name
        node.daemon.stop()
        node.daemon = None
