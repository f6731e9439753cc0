"""The command line of ztcni; what it does to pods is in tests/unit/agent and in the demo."""
import os
import signal
import socket
import subprocess

import pytest

from testenv.daemon import BUILD
from testenv import eventually


def environment(**more):
    return {k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")} | {"PATH": os.environ["PATH"]} | more


def ztcni(*args, **env):
    return subprocess.run([os.path.join(BUILD, "ztcni"), *args], env=environment(**env), text=True, capture_output=True, timeout=60)


WRONG = [["bogus"], ["--bogus"], ["-x"], ["list", "-x"], ["--pods"], ["add"], ["add", "--uid", "u"], ["add", "--uid"], ["remove"], ["list", "extra"],
         ["check", "a", "b"], ["run", "extra"], ["run", "--backend", "bogus"], ["run", "--dns-capture", "perhaps"], ["run", "--probes", "root"],
         ["run", "--keep-established", "2"]]


@pytest.mark.parametrize("args", WRONG)
def test_wrong_usage_is_exit_2_and_one_line(args):
    done = ztcni(*args)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ztcni: ") and done.stderr.count("\n") == 1 and "ztcni help" in done.stderr


@pytest.mark.parametrize("args", [["help"], ["--help"], ["-h"], ["list", "--help"]])
def test_help_is_exit_0(args):
    done = ztcni(*args)
    assert done.returncode == 0 and "usage: ztcni" in done.stdout and done.stderr == ""


def test_version():
    assert ztcni("version").stdout.startswith("ztcni ") and ztcni("version").returncode == 0


@pytest.mark.parametrize("command", [["list"], ["check"], ["remove", "u"],
                                     ["add", "--uid", "u", "--namespace", "n", "--name", "n", "--service-account", "s", "--netns", "/n"]])
def test_without_an_agent_the_words_are_clear(tmp_path, command):
    path = str(tmp_path / "ctl.sock")
    done = ztcni(*command, "--ctl", path)
    assert done.returncode == 1 and path in done.stderr and "ztcni run" in done.stderr and done.stderr.count("\n") == 1


def run(tmp_path, **paths):
    files = {"pods": "pods.yaml", "socket": "zds.sock", "ctl": "ctl.sock"} | paths
    return ["run"] + [word for key, name in files.items() for word in (f"--{key}", str(tmp_path / name))]


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad.yaml").write_text("pods: [")
    for wrong, words in (({"socket": "file"}, "is not a socket"), ({"ctl": "file"}, "is not a socket"), ({"pods": "bad.yaml"}, "bad.yaml:"),
                         ({"pods": "a/b/pods.yaml"}, "make its parent"), ({"socket": "x" * 120}, "at most 107 bytes")):
        done = ztcni(*run(tmp_path, **wrong))
        assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_the_socket_of_an_agent_that_lives_is_not_taken(tmp_path):
    other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    other.bind(str(tmp_path / "zds.sock"))
    other.listen()
    done = ztcni(*run(tmp_path))
    assert done.returncode == 1 and "is served by another process" in done.stderr
    other.close()
    agent = subprocess.Popen([os.path.join(BUILD, "ztcni"), *run(tmp_path)], env=environment(), stdout=subprocess.DEVNULL)
    eventually(lambda: ztcni("list", "--ctl", str(tmp_path / "ctl.sock")).returncode == 0)
    agent.send_signal(signal.SIGTERM)
    assert agent.wait(10) == 0 and not (tmp_path / "zds.sock").exists() and not (tmp_path / "ctl.sock").exists()
