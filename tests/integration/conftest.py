"""Fixtures of the scenarios."""
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from testenv import World  # noqa: E402
from testenv.hbone import Tunnel, issue  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "threads: also run under ThreadSanitizer")


def need_root():
    if os.geteuid() != 0:
        pytest.skip("network namespaces take root")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Remembers whether the test's body failed, so that the world shows its logs."""
    outcome = yield
    if call.when == "call":
        item.failed_body = outcome.get_result().failed


@pytest.fixture
def world(tmp_path, request):
    need_root()
    w = World(tmp_path)
    yield w
    try:
        w.close()
    finally:
        if getattr(request.node, "failed_body", True):
            for node in w.nodes:
                path = os.path.join(node.directory, "ztunneld.log")
                if os.path.exists(path):
                    with open(path, errors="replace") as f:
                        print(f"---- {node.name} ----\n" + f.read()[-8000:])


@pytest.fixture
def pair(world):
    """A client pod and a server pod on two nodes, not started."""
    world.client = world.node().pod("client")
    world.server = world.node().pod("server")
    return world


@pytest.fixture
def mesh(pair):
    """The same, with a scripted control plane: mesh.istiod."""
    pair.control_plane()
    return pair


@pytest.fixture
def server(world, tmp_path):
    """A captured server and an uncaptured pod with a mesh certificate: the client whose frames we write."""
    world.outsider = world.node().pod("outsider", protocol="TCP")
    world.server = world.node().pod("server")
    world.service("named", [world.server], "10.96.0.7", ports={80: 8080})
    world.start(ZTUNNELD_CONNECT_TIMEOUT="2s")
    world.server.echo(8080)
    world.daemon = world.server.node.daemon
    world.cert = issue(world.daemon, world.outsider.identity, tmp_path / "cert")
    world.tunnel = lambda **kw: Tunnel(world.outsider, world.server.ip, world.cert, **kw)
    return world
