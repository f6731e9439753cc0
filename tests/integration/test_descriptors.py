"""Out of descriptors: the data path stops and says so once a second; everything an operator needs still answers (spec/dataplane §16)."""
import os
import resource
import time

from testenv import Daemon, eventually
from testenv.daemon import BINARY, SLOW
from testenv.zds import ZdsServer

LIMIT = 400


def start_limited(node, limit, **env):
    """The daemon with a small table of descriptors."""
    node.zds = ZdsServer(os.path.join(node.directory, "zds.sock"))
    node.daemon = Daemon(node.netns, node.directory, node.environment() | env, binary="prlimit",
                         args=(f"--nofile={limit}:{limit}", BINARY, "proxy", "ztunnel"))
    node.daemon.start()
    for pod in node.pods.values():
        pod.enrol()
    return node.daemon


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def exhaust(client, server, daemon):
    """Opens connections until the daemon takes no more; they stay open."""
    sockets = []
    while len(sockets) < LIMIT + 300:
        s = client.connect(server.ip, 8080, timeout=2)
        sockets.append(s)
        if len(sockets) % 50 == 0 and daemon.lines_with("out of file descriptors"):
            break
    eventually(lambda: daemon.lines_with("out of file descriptors"), "the daemon says that it is out of descriptors")
    return sockets


def test_out_of_descriptors(pair):
    """Passthrough of plain connections, as each takes two descriptors and nothing else."""
    node = pair.client.node
    outside = pair.nodes[1].pod("outside", protocol="TCP")
    pair.write()
    pair.server.node.start(enrol=False)
    daemon = start_limited(node, LIMIT)
    outside.echo(8080)
    assert pair.client.request(outside.ip, 8080) == b"hello worldhello world"
    quiet = daemon.open_fds()
    sockets = exhaust(pair.client, outside, daemon)

    # It holds a reserve, and everything but the data path works.
    assert daemon.open_fds() <= LIMIT
    assert daemon.http(15021, "/healthz/ready")[0] == 200
    assert daemon.http(15020, "/metrics")[0] == 200
    assert daemon.dump()["workloads"]
    assert daemon.status()["ready"]
    late = node.pod("late")
    pair.write()
    assert node.zds.add(late.zds_uid, late.name, late.namespace, late.sa, late.netns.fd) == ""

    # Neither processor nor log: one line a second at most.
    lines, cpu, started = len(daemon.lines_with("out of file descriptors")), cpu_seconds(daemon.pid), time.monotonic()
    time.sleep(3)
    elapsed = time.monotonic() - started
    assert len(daemon.lines_with("out of file descriptors")) - lines <= elapsed + 1
    assert cpu_seconds(daemon.pid) - cpu < 0.1 * elapsed * SLOW

    # And it recovers by itself.
    for s in sockets:
        s.close()
    eventually(lambda: pair.client.request(outside.ip, 8080, timeout=2) == b"hello worldhello world", "service again", 20 * SLOW)
    eventually(lambda: daemon.open_fds() < quiet + 20, "the descriptors are back", 20 * SLOW)
    assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)[0] == LIMIT
