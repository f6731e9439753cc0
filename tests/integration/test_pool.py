"""Outgoing tunnels: shared, limited, forgotten (spec/dataplane §3.5)."""
import pytest

from testenv import eventually

pytestmark = pytest.mark.threads


def held(client, server, n):
    """n connections that have each carried a byte."""
    sockets = [client.connect(server.ip, 8080) for _ in range(n)]
    for s in sockets:
        s.sendall(b"a")
    for s in sockets:
        assert s.recv(1) == b"a"
    return sockets


def tunnels(pod):
    return next(p["tunnelsOut"] for p in pod.node.daemon.status()["pods"] if p["name"] == pod.name)


def test_many_connections_share_one_tunnel(pair):
    """stress_test_single_source, with both daemons: one tunnel at either end, before and after."""
    pair.start()
    pair.server.reflect(8080)
    sockets = held(pair.client, pair.server, 60)
    assert pair.client.node.daemon.activity() == (60, 1)
    assert pair.server.node.daemon.activity() == (60, 1)
    for s in sockets:
        s.close()
    eventually(lambda: pair.client.node.daemon.activity() == (0, 1), "the tunnel waits for the next connection")
    for s in held(pair.client, pair.server, 5):
        s.close()
    assert tunnels(pair.client) == 1


def test_a_full_tunnel_leaves_the_pool_for_good(pair):
    """connection_limits: at most two streams a tunnel; what was full closes with its last stream."""
    pair.start(POOL_MAX_STREAMS_PER_CONNECTION="2")
    pair.server.reflect(8080)
    sockets = held(pair.client, pair.server, 4)
    assert tunnels(pair.client) == 2
    for s in sockets:
        s.close()
    eventually(lambda: tunnels(pair.client) == 0, "full tunnels have closed")
    sockets = held(pair.client, pair.server, 5)
    assert tunnels(pair.client) == 3
    for s in sockets:
        s.close()


def test_an_unused_tunnel_is_forgotten(pair):
    """idle_eviction: with GOAWAY, so that the other end forgets it too."""
    pair.start(POOL_UNUSED_RELEASE_TIMEOUT="300ms")
    pair.server.reflect(8080)
    for s in held(pair.client, pair.server, 1):
        s.close()
    for pod in (pair.client, pair.server):
        eventually(lambda d=pod.node.daemon: d.activity() == (0, 0), "no tunnel is left")


def test_a_stream_held_open_keeps_its_forgotten_tunnel(pair):
    """idle_eviction_with_persistent."""
    pair.start(POOL_UNUSED_RELEASE_TIMEOUT="300ms")
    pair.server.reflect(8080)
    kept, = held(pair.client, pair.server, 1)
    def second_tunnel():
        for s in held(pair.client, pair.server, 1):
            s.close()
        return tunnels(pair.client) == 2
    eventually(second_tunnel, "the first tunnel has left the pool", every=0.35)
    kept.sendall(b"b")
    assert kept.recv(1) == b"b"
    eventually(lambda: tunnels(pair.client) == 1)
    kept.close()
    eventually(lambda: tunnels(pair.client) == 0)


def test_pods_never_share_tunnels(world):
    """unique_keys_have_unique_connections: same service account, another address, another tunnel."""
    n1 = world.node()
    a, b = n1.pod("a", sa="same"), n1.pod("b", sa="same")
    server = world.node().pod("server")
    world.start()
    server.reflect(8080)
    for pod in (a, b):
        for s in held(pod, server, 3):
            s.close()
        assert tunnels(pod) == 1
    assert server.node.daemon.activity()[1] == 2
