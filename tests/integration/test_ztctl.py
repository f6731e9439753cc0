"""What an operator types on the node (interfaces of ztctl; the issue's text)."""
import json
import os
import socket
import subprocess

import pytest

from testenv.daemon import BUILD
from testenv import eventually


def ztctl(*args, env=None, **kw):
    base = {k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")} | {"PATH": os.environ["PATH"]}
    return subprocess.run([os.path.join(BUILD, "ztctl"), *args], env=base | (env or {}), text=True, capture_output=True, timeout=60, **kw)


@pytest.mark.parametrize("command", [["status"], ["explain", "a/b", "1.2.3.4:80"], ["ca", "issue", "spiffe://a/ns/b/sa/c", "/tmp/never"]])
def test_without_a_daemon_the_words_are_clear(tmp_path, command):
    path = str(tmp_path / "ctl.sock")
    done = ztctl("--socket", path, *command)
    assert done.returncode == 3 and done.stdout == ""
    assert path in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("ztctl: ")


def test_a_path_that_is_too_long_is_told_apart():
    done = ztctl("--socket", "/tmp/" + "x" * 200, "status")
    assert done.returncode == 3 and "at most 107 bytes" in done.stderr and done.stderr.count("\n") == 1


def test_a_socket_that_nobody_serves_is_told_apart(tmp_path):
    path = str(tmp_path / "ctl.sock")
    s = socket.socket(socket.AF_UNIX)
    s.bind(path)
    s.close()
    done = ztctl("--socket", path, "status")
    assert done.returncode == 3 and path in done.stderr


@pytest.mark.parametrize("args", [[], ["bogus"], ["status", "extra"], ["explain", "a/b"], ["ca"], ["ca", "bogus"], ["--bogus"], ["-o", "xml", "status"]])
def test_wrong_usage_is_exit_2(args):
    done = ztctl(*args)
    assert done.returncode == 2 and "ztctl help" in done.stderr


def test_help_and_version():
    assert "usage:" in ztctl("help").stdout and ztctl("help").returncode == 0
    assert ztctl("version").stdout.startswith("ztctl ")


ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../..")
COMMANDS = ["status", "pods", "connections", "top", "policies", "certs", "explain", "dns", "why-denied", "trace", "log", "dump", "ca"]


def test_help_man_page_and_completion_name_every_command():
    with open(os.path.join(ROOT, "docs/man/ztctl.8")) as f:
        manual = f.read().replace("\\fB", "").replace("\\fR", "").replace("\\-", "-")
    usage = ztctl("help").stdout
    for command in COMMANDS:
        assert f"ztctl [options] {command}" in usage and ("\n" + command in manual or "\n.B " + command in manual), command
    for option in ("--socket", "-o", "--pod", "--peer", "--sort", "--limit", "-n", "--off", "--follow", "--once", "--reset"):
        assert option in usage and option in manual, option


def complete(*words):
    """What bash offers for the last word."""
    script = f"""source {ROOT}/deploy/completion/ztctl.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _ztctl; echo "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script, "bash", os.path.join(BUILD, "ztctl"), *words], text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


def test_shell_completion(pair):
    pair.start()
    socket_path = pair.client.node.daemon.ctl
    assert set(COMMANDS) <= set(complete("")) and complete("why") == ["why-denied"]
    assert complete("connections", "--sort", "") == ["bytes", "age"] and complete("status", "-o", "j") == ["json"]
    assert complete("--socket", socket_path, "trace", "default/c") == ["default/client"]
    assert complete("--socket", socket_path, "connections", "--pod", "") == ["default/client"]


def test_status_shows_readiness_pods_tunnels_and_connections(pair):
    pair.start()
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        status = daemon.status()
        pod, = status["pods"]
        assert (pod["name"], pod["state"], pod["connectionsOut"], pod["tunnelsOut"]) == ("client", "Up", 1, 1)
        assert status["ready"] is True and status["draining"] is False and status["node"] == "n1"
        assert status["state"] == {"policies": 0, "services": 0, "workloads": 2}
        text = daemon.ztctl("status")
        assert "ready: yes" in text and "default/client" in text and pair.client.identity in text


def test_other_users_are_refused(pair):
    """The socket is for root and the daemon's own user."""
    pair.start()
    daemon = pair.client.node.daemon
    assert os.stat(daemon.ctl).st_mode & 0o777 == 0o600
    os.chmod(daemon.ctl, 0o666)
    def reach(path):  # every directory above must let the other user through
        while path != "/":
            path = os.path.dirname(path)
            if os.stat(path).st_mode & 0o001 == 0:
                return False
        return True
    if not reach(daemon.ctl):
        import tempfile
        short = tempfile.mkdtemp(prefix="zt-ctl-")
        os.chmod(short, 0o755)
        link = os.path.join(short, "ctl.sock")
        os.link(daemon.ctl, link)
    else:
        short, link = None, daemon.ctl
    try:
        script = "import os,socket,sys; os.setgid(65534); os.setuid(65534); s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);" \
                 " s.sendall(b'GET /v1/status HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'); print(len(s.recv(1000)))"
        done = subprocess.run(["/usr/bin/python3", "-c", script, link], text=True, capture_output=True, timeout=20)
    finally:
        if short:
            os.unlink(link)
            os.rmdir(short)
    assert done.stdout.strip() in ("", "0"), done.stdout + done.stderr
    assert daemon.status()["ready"]


def test_the_socket_lives_until_exit(pair):
    pair.start()
    daemon = pair.client.node.daemon
    path = daemon.ctl
    assert os.path.exists(path)
    daemon.stop()
    eventually(lambda: not os.path.exists(path))
    pair.client.node.daemon = None


def test_json_is_for_programs(pair):
    pair.start()
    done = ztctl("-o", "json", "status", env={"ZTUNNELD_CTL_SOCKET": pair.client.node.daemon.ctl})
    assert json.loads(done.stdout)["ready"] is True
