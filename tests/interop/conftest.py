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
DEMO = os.path.join(HERE, "../../deploy/demo.d")
sys.path.append(DEMO)  # its Envoy
spec = importlib.util.spec_from_file_location("integration_conftest", os.path.join(INTEGRATION, "conftest.py"))
base = importlib.util.module_from_spec(spec)
spec.loader.exec_module(base)

pytest_configure = base.pytest_configure
pytest_runtest_makereport = base.pytest_runtest_makereport
world, pair, server = base.world, base.pair, base.server

from testenv.daemon import BUILD, SLOW  # noqa: E402
from testenv.hbone import issue, server_context  # noqa: E402
from testenv.peer import Peer  # noqa: E402
from istio_cni import IstioCni, Kubelet  # noqa: E402
from istiod_world import IstiodWorld  # noqa: E402
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


def go_program(name):
    """A program in Go, built once however many workers there are."""
    place = os.path.join(os.path.abspath(BUILD), "interop")
    os.makedirs(place, exist_ok=True)
    binary = os.path.join(place, name)
    with open(binary + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([os.path.join(HERE, "go-build"), name, binary], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return binary


@pytest.fixture(scope="session")
def envoy_binary():
    place = os.path.join(os.path.abspath(BUILD), "interop", "envoy")
    os.makedirs(os.path.dirname(place), exist_ok=True)
    return subprocess.run([os.path.join(DEMO, "find-envoy"), place], check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


@pytest.fixture(scope="session")
def gopeer():
    return go_program("gopeer")


@pytest.fixture(scope="session")
def istiodump():
    """What istioctl prints for a dump: table(dump, kind), or table(dump, kind, "json"), by its own writer."""
    binary = go_program("istiodump")

    def table(dump, *arguments):
        done = subprocess.run([binary, *arguments], input=dump, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()
    return table


@pytest.fixture(scope="session")
def cni():
    """istio-cni's node agent."""
    return go_program("cni")


@pytest.fixture
def mesh(tmp_path, request):
    """A world whose daemons are fed by Istio's own control plane; after the scenario that shows each of them as synced."""
    base.need_root()
    m = IstiodWorld(tmp_path, go_program("istiod"))
    try:
        yield m
        if not getattr(request.node, "failed_body", True):
            m.wait_synced()
    finally:
        try:
            m.close()
        finally:
            if getattr(request.node, "failed_body", True):
                m.show_logs()


@pytest.fixture
def istio(cni, world):
    """istio(node, ...) starts the node's agent, which is node.zds then."""
    agents = [Kubelet()]

    def start(node, *pods, without_netns=(), **options):
        node.zds = IstioCni(cni, node, **options)
        agents.append(node.zds)
        return node.zds.start(*pods, without_netns=without_netns)
    yield start
    for agent in reversed(agents):
        agent.close()


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
