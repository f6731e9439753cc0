"""Fixtures of the scenarios with foreign peers: those of tests/integration, and what starts the peers."""
import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
INTEGRATION = os.path.join(HERE, "../integration")
sys.path.insert(0, HERE)
sys.path.insert(0, INTEGRATION)
spec = importlib.util.spec_from_file_location("integration_conftest", os.path.join(INTEGRATION, "conftest.py"))
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)

pytest_configure = base.pytest_configure
pytest_runtest_makereport = base.pytest_runtest_makereport
world, pair, server = base.world, base.pair, base.server

from testenv.daemon import BUILD, SLOW  # noqa: E402
from testenv.hbone import issue, server_context  # noqa: E402
from testenv.peer import Peer  # noqa: E402
from tools import Process  # noqa: E402


def tool(name):
    """The path of a program; a test that needs one that is not there is skipped (under CI=true: fails)."""
    path = shutil.which(name)
    if not path:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture
def need():
    return tool


@pytest.fixture(scope="session")
def gopeer():
    """The Go peer, built once however many workers there are; modules and objects are kept in the build directory."""
    go = tool("go")
    place = os.path.join(os.path.abspath(BUILD), "interop")
    os.makedirs(place, exist_ok=True)
    env = dict(os.environ, GOPATH=os.path.join(place, "gopath"), GOCACHE=os.path.join(place, "gocache"), GOTOOLCHAIN="local",
               GOFLAGS="-mod=readonly -modcacherw", CGO_ENABLED="0")
    binary = os.path.join(place, "gopeer")
    with open(binary + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([go, "build", "-o", binary, "."], cwd=os.path.join(HERE, "gopeer"), env=env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return binary


@pytest.fixture
def outbound(world, tmp_path):
    """A captured client, and a pod whose port 15008 is served by whatever the test puts there."""
    world.client, world.pod = world.node().pod("client"), world.node().pod("peer")
    world.pod.enrolled = True  # that is: leave it alone

    def start(identity=None, **env):
        """Starts the client's daemon; returns the directory of the peer's certificate."""
        world.write()
        world.daemon = world.nodes[0].start(**{"ZTUNNELD_CONNECT_TIMEOUT": f"{2 * SLOW}s"} | env)
        return issue(world.daemon, identity or world.pod.identity, tmp_path / "cert")

    def serve(kind, identity=None, context=None, env=(), **change):
        """A Python peer; context(cert_dir) makes another TLS end, change sets attributes of the usual one."""
        cert = start(identity, **dict(env))
        made = context(cert) if context else server_context(cert)
        for name, value in change.items():
            setattr(made, name, value)
        return Peer(world.pod, cert, kind, context=made)
    world.begin, world.serve = start, serve
    world.error = lambda: world.daemon.wait_line("connection complete", direction="outbound").fields["error"]
    world.failed = lambda flag: world.daemon.metric("istio_tcp_connections_failed_total", reporter="source", response_flags=flag)
    return world


@pytest.fixture
def launch():
    """launch(pod, program, arguments...) runs a program inside a pod until the test ends."""
    running = []

    def start(pod, *cmd, **kw):
        running.append(Process(pod.netns, *cmd, **kw))
        return running[-1]
    yield start
    for process in running:
        process.end()
