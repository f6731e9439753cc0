"""Certificates from Istio's own authority and node authorizer: who gets one, renewal, rotation of the root, an authority that fails."""
import peer as kube
import pytest
from testenv import eventually

BACKDATED_S = 120  # Istio's notBefore is this long before the issue, and half of the whole life passes before a renewal


def certificate(daemon, identity):
    """The dump's record of an identity, {} while it is not managed."""
    return next((c for c in daemon.dump()["certificates"] if c["identity"] == identity), {})


def state(daemon, identity):
    return certificate(daemon, identity).get("state", "")


def serial(daemon, identity):
    found = certificate(daemon, identity)
    return found["certChain"][0]["serialNumber"] if found.get("state") == "Available" else None


def roots(daemon, identity):
    return [r["serialNumber"] for r in certificate(daemon, identity)["rootCerts"]]


@pytest.fixture
def pods(mesh):
    """A client and a server on two nodes; go(SECRET_TTL=...) starts the daemons."""
    mesh.client, mesh.server = mesh.node().pod("client"), mesh.node().pod("server")

    def go(**env):
        mesh.start(**env)
        mesh.server.echo()
        mesh.near = mesh.client.node.daemon
        mesh.works = lambda: mesh.client.request(mesh.server.ip, 8080, b"hello") == b"hellohello"
        mesh.serial = lambda: serial(mesh.near, mesh.client.identity)
        return mesh
    mesh.go = go
    return mesh


def test_istiod_certificate_for_a_pod_of_another_node(pods):
    """With the token of another node's daemon, istiod takes us for that node and refuses what has no pod there. Others go on."""
    pods.go()
    late, node = pods.client.node.pod("late"), pods.client.node
    pods.give_token(node, text=pods.plane.token(kube.SYSTEM, "ztunnel-n2"))
    pods.publish(late)
    late.enrol()
    eventually(lambda: state(pods.near, late.identity).startswith("Unavailable"), "the refusal")
    assert "impersonation" in state(pods.near, late.identity), state(pods.near, late.identity)
    assert late.refused(pods.server.ip, 8080) and pods.works()
    pods.give_token(node)
    eventually(lambda: serial(pods.near, late.identity), "the certificate", 30)
    assert late.request(pods.server.ip, 8080, b"hello") == b"hellohello"


def test_istiod_certificate_for_a_pod_that_is_unknown(pods):
    late = pods.client.node.pod("late")
    late.workload["protocol"] = "TCP"  # enrolled below, before the API server knows of it
    pods.unpublished.add("late")
    pods.go(ZTUNNELD_LOCAL_WORKLOAD_WAIT="500ms")
    late.enrol()
    assert late.refused(pods.server.ip, 8080)
    assert not certificate(pods.near, late.identity)
    pods.publish(late, in_mesh=True)
    eventually(lambda: serial(pods.near, late.identity), "the certificate", 30)
    assert late.request(pods.server.ip, 8080, b"hello") == b"hellohello"


def test_istiod_renewal_at_half_life(pods):
    """Renewed two seconds after issue; the connection that was open keeps its session, a new one shows the new certificate."""
    pods.go(SECRET_TTL=f"{BACKDATED_S + 4}s", POOL_UNUSED_RELEASE_TIMEOUT="100ms")
    first = eventually(pods.serial, "a certificate")
    with pods.client.connect(pods.server.ip, 8080) as s:
        s.sendall(b"before")
        eventually(lambda: pods.serial() not in (None, first), "a renewal", 30)
        assert s.recv(12, 0x100) == b"beforebefore"
        s.sendall(b"after")
        assert s.recv(10, 0x100) == b"afterafter"
    assert pods.works()


def test_istiod_root_rotation_without_a_restart(pods):
    """Old and new root, then the new one alone: no connection fails, the daemons stay connected, istiod's own certificate included."""
    pods.go(SECRET_TTL=f"{BACKDATED_S + 4}s", POOL_UNUSED_RELEASE_TIMEOUT="100ms")
    assert pods.works()
    daemons = [(n.daemon, p.identity) for n, p in zip(pods.nodes, (pods.client, pods.server))]

    def settled(count):
        assert pods.works()
        return all(len(roots(d, i)) == count for d, i in daemons)
    old = roots(*daemons[0])
    pods.plane.command("rotate")
    eventually(lambda: settled(2), "both roots everywhere", 30)
    pods.plane.command("retire")
    eventually(lambda: settled(1), "the new root alone", 30)
    assert roots(*daemons[0]) != old and roots(*daemons[1]) == roots(*daemons[0])
    pods.plane.command("stop")
    pods.plane.command("serve")
    for daemon, _ in daemons:  # with a server certificate that only the new root vouches for
        daemon.wait_line("Stream established", timeout=30, count=2)
    assert pods.works()


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_istiod_authority_down_during_renewal(pods, how):
    """The old certificate serves until it ends, then there is none, then there is one again."""
    pods.go(SECRET_TTL="8s", POOL_UNUSED_RELEASE_TIMEOUT="100ms")
    eventually(pods.serial, "a certificate")
    pods.plane.command("ca", how)
    assert pods.works() and pods.serial()
    eventually(lambda: state(pods.near, pods.client.identity).startswith("Unavailable"), "the end of the certificate", 60)
    assert pods.client.refused(pods.server.ip, 8080)
    pods.plane.command("ca", "works")
    eventually(pods.serial, "a certificate again", 60)
    eventually(lambda: serial(pods.server.node.daemon, pods.server.identity), "the server's too", 60)
    eventually(pods.works, "traffic")


def test_istiod_token_replaced_before_the_next_certificate(pods):
    """A bad token stops certificates, the file's next content brings them: no restart."""
    pods.go()
    node = pods.client.node
    pods.give_token(node, text="forged.token")
    late = node.pod("late")
    pods.publish(late)
    eventually(lambda: state(pods.near, late.identity).startswith("Unavailable"), "the refusal")
    pods.give_token(node)
    eventually(lambda: serial(pods.near, late.identity), "the certificate", 30)
    assert pods.works()


def test_istiod_last_pod_of_an_identity_takes_its_certificate_away(pods):
    twin = pods.client.node.pod("twin", sa="client")
    pods.go()
    eventually(pods.serial, "a certificate")
    twin.unenrol()
    pods.plane.delete("Pod", "default", "twin")
    eventually(lambda: all(w["name"] != "twin" for w in pods.near.dump()["workloads"]), "the twin to be forgotten")
    assert pods.works() and pods.serial()
    pods.plane.delete("Pod", "default", "client")
    eventually(lambda: certificate(pods.near, pods.client.identity) == {}, "the certificate to be dropped")
