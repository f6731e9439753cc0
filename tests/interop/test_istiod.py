"""Discovery by Istio's own code: what the API server is told reaches the daemons, and they stay in step with it."""
import peer as kube
from testenv import eventually


def test_istiod_empty_mesh(mesh):
    node = mesh.node()
    mesh.start()
    mesh.wait_synced()
    assert node.daemon.dump()["workloads"]


def test_istiod_traffic(mesh):
    client, server = mesh.node().pod("client"), mesh.node().pod("server")
    mesh.istiod.apply(kube.service("default", "web", ["10.96.0.1"], "server", {80: 8080}))
    mesh.start()
    server.echo()
    assert client.request("10.96.0.1", 80, b"hello") == b"hellohello"
    line = client.node.daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["src.identity"] == client.identity and line.fields["dst.identity"] == server.identity, line
