"""Certificates by CSR from a certificate service that is not always friendly (spec/controlplane §6, §9.6, §9.9)."""
import time

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from testenv import eventually
from testenv.daemon import SLOW
from testenv.istiod import Root, pem

from test_xds import request

CODE = grpc.StatusCode


def certificate(daemon, identity):
    return next((c for c in daemon.dump()["certificates"] if c["identity"] == identity), {"state": "absent"})


def available(daemon, identity):
    return certificate(daemon, identity)["state"] == "Available"


def test_a_ca_that_never_answers_stops_nobody(mesh):
    """One identity's call hangs: others get theirs, connections of others work, its own call ends in time and is named (A9, P5)."""
    stuck = mesh.nodes[0].pod("stuck")

    def reply(identity, csr, context):
        if identity == stuck.identity and len([x for x in mesh.istiod.signatures if x == identity]) == 1:
            while context.is_active():
                time.sleep(0.05)
        return mesh.istiod.sign(identity, csr, context)
    mesh.istiod.reply = reply
    mesh.start()
    mesh.server.echo(8080)
    daemon = mesh.client.node.daemon
    assert request(mesh)
    assert certificate(daemon, stuck.identity)["state"].startswith("Initializing")
    eventually(lambda: certificate(daemon, stuck.identity)["state"].startswith("Unavailable: "), "the limit of the call", 40)
    line = eventually(lambda: [x for x in daemon.lines_with("certificate fetch failed") if stuck.identity in x])[0]
    assert "\twarn\t" in line
    eventually(lambda: available(daemon, stuck.identity), "the next try", 20 * SLOW)
    assert stuck.request(mesh.server.ip, 8080) == b"hello worldhello world"


def foreign_key(istiod, identity, csr):
    return [pem(istiod.root.leaf(ec.generate_private_key(ec.SECP256R1()).public_key(), identity, 3600)), istiod.root.pem]


def of(identity, **kw):
    return lambda istiod, _, csr: [pem(istiod.root.leaf(csr.public_key(), identity, kw.get("seconds", 3600), kw.get("start", -120))), istiod.root.pem]


def foreign_root(istiod, identity, csr):
    return [pem(istiod.root.leaf(csr.public_key(), identity, 3600)), Root("another").pem]


CLIENT = "spiffe://cluster.local/ns/default/sa/client"
BAD = {
    "empty chain": (lambda istiod, identity, csr: [], "chain returned from CA is empty for: " + CLIENT),
    "no root": (lambda istiod, identity, csr: istiod.sign(identity, csr, None)[:1], "no root certificate present"),
    "wrong san": (of("spiffe://cluster.local/ns/default/sa/somebody"), "did not find expected SAN: " + CLIENT),
    "wrong trust domain": (of(CLIENT.replace("cluster.local", "elsewhere")), "did not find expected SAN: " + CLIENT),
    "wrong key": (foreign_key, "failed to create CSR: "),
    "no certificate": (lambda istiod, identity, csr: ["nonsense", istiod.root.pem], "failed to create CSR: "),
    "wrong chain": (foreign_root, "failed to create CSR: "),
    "ended": (of(CLIENT, seconds=-60, start=-3600), "failed to create CSR: "),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_certificate_that_is_no_good_is_refused_by_name(mesh, bad):
    """Identity and reason are in the log, in the dump and in the connection's line; the other identity works; tries are few."""
    make, reason = BAD[bad]
    other = mesh.nodes[0].pod("other")

    def reply(identity, csr, context):
        return make(mesh.istiod, identity, csr) if identity == CLIENT else mesh.istiod.sign(identity, csr, context)
    mesh.istiod.reply = reply
    mesh.start()
    mesh.server.echo(8080)
    daemon = mesh.client.node.daemon
    assert mesh.client.refused(mesh.server.ip, 8080)
    line = daemon.wait_line("connection complete", direction="outbound")
    assert line.fields["error"].startswith("identity error: ") and reason in line.fields["error"]
    state = certificate(daemon, CLIENT)["state"]
    assert state.startswith("Unavailable: ") and reason in state
    failed = [x for x in daemon.lines_with("certificate fetch failed") if CLIENT in x]
    assert failed and "\twarn\t" in failed[0] and reason in failed[0]
    assert other.request(mesh.server.ip, 8080) == b"hello worldhello world"
    assert len([x for x in mesh.istiod.signatures if x == CLIENT]) <= 5
    mesh.istiod.reply = mesh.istiod.sign
    eventually(lambda: available(daemon, CLIENT), "it recovers by itself", 60 * SLOW)
    assert request(mesh)


def test_a_refusal_of_the_ca_in_words_C30(mesh):
    """The status and its text are in the log, the flag, the dump (spec/interfaces C30)."""
    def reply(identity, csr, context):
        if identity == CLIENT:
            context.abort(CODE.UNAUTHENTICATED, "request impersonation authentication failure")
        return mesh.istiod.sign(identity, csr, context)
    mesh.istiod.reply = reply
    mesh.start()
    daemon = mesh.client.node.daemon
    assert mesh.client.refused(mesh.server.ip, 8080)
    line = daemon.wait_line("connection complete", direction="outbound")
    words = "signing gRPC error (The request does not have valid authentication credentials): request impersonation authentication failure"
    assert line.level == "error" and line.fields["error"] == "identity error: " + words
    assert certificate(daemon, CLIENT)["state"] == "Unavailable: " + words
    assert daemon.metric("istio_tcp_connections_failed_total", response_flags="IDENTITY_ERROR", reporter="source") == 1


def test_root_rotation_cuts_nothing(mesh):
    """A new root signs, both are trusted during the change, then the old one goes: one connection lives through it all, new ones work."""
    istiod = mesh.istiod
    istiod.ttl_s = 6 * SLOW
    old, new = istiod.root, Root("new")
    mesh.start()
    mesh.server.reflect(8080)
    daemons = [n.daemon for n in mesh.nodes]

    def roots(daemon, identity):
        return {c["serialNumber"] for c in certificate(daemon, identity)["rootCerts"]} if available(daemon, identity) else set()

    def everywhere(want):
        serials = {str(r.cert.serial_number) for r in want}
        return all(roots(d, i.identity) == serials for d, i in zip(daemons, (mesh.client, mesh.server)))
    with mesh.client.connect(mesh.server.ip, 8080) as s:
        def works():
            s.sendall(b"x")
            assert s.recv(1) == b"x"
            with mesh.client.connect(mesh.server.ip, 8080) as fresh:
                fresh.sendall(b"y")
                return fresh.recv(1) == b"y"
        for trusted in ([new, old], [old, new], [new]):  # the last one signs
            istiod.workload_roots = trusted
            eventually(lambda: works() and everywhere(trusted), "the change", 60 * SLOW, every=0.3)
        assert works()
    for daemon in daemons:
        assert not [x for x in daemon.lines("connection complete") if x.level == "error"]


def test_an_intermediate_that_changes_is_followed(mesh):
    """Leaves come from an intermediate, and later from another one (Istio's TestIntermediateCertificateRefresh)."""
    from cryptography import x509
    istiod = mesh.istiod
    istiod.ttl_s = 6 * SLOW

    def intermediate(name):
        ca = Root(name)
        ca.cert = istiod.root.sign(ca.key.public_key(), ca.name, 86400, [(x509.BasicConstraints(True, None), True)])
        return ca
    now = [intermediate("first")]
    istiod.reply = lambda identity, csr, context: [pem(now[0].leaf(csr.public_key(), identity, istiod.ttl_s)), pem(now[0].cert), istiod.root.pem]
    mesh.start()
    mesh.server.echo(8080)
    assert request(mesh)
    now[0] = intermediate("second")
    serial = str(now[0].cert.serial_number)
    daemons = [n.daemon for n in mesh.nodes]
    pods = (mesh.client, mesh.server)

    def followed():
        return all(available(d, p.identity) and certificate(d, p.identity)["certChain"][1]["serialNumber"] == serial for d, p in zip(daemons, pods))
    eventually(lambda: request(mesh) and followed(), "renewed", 60 * SLOW, every=0.3)
    assert request(mesh)


def test_a_thousand_identities_each_once_and_a_connection_first(mesh):
    """Bounded concurrency, none twice, and an identity that a connection waits for overtakes the queue."""
    istiod = mesh.istiod
    late = mesh.nodes[0].pod("late")
    mesh.pods.pop("late")  # istiod tells of it later
    gate = [True]

    def reply(identity, csr, context):
        while gate[0] and identity != late.identity and "sa/many-" in identity and len(istiod.signatures) > 200:
            time.sleep(0.02)
        return istiod.sign(identity, csr, context)
    istiod.reply = reply
    del mesh.nodes[0].pods["late"]  # enrolled later, too
    mesh.start()
    mesh.nodes[0].pods["late"] = late
    mesh.server.echo(8080)
    daemon = mesh.client.node.daemon
    mesh.more_workloads = [dict(mesh.client.workload, uid=f"uid-{i}", name=f"m{i}", serviceAccount=f"many-{i}", workloadIps=[]) for i in range(1000)]
    mesh.write()
    eventually(lambda: len(istiod.signatures) > 200, "the queue stands", 30 * SLOW)
    mesh.pods["late"] = late
    mesh.write()
    late.enrol()
    with late.connect(mesh.server.ip, 8080) as s:
        gate[0] = False
        s.sendall(b"x")
        assert s.recv(2) == b"xx"
        assert istiod.signatures.index(late.identity) < 300
    eventually(lambda: len(istiod.signatures) >= 1003, "all", 120 * SLOW)
    eventually(lambda: all(c["state"] == "Available" for c in daemon.dump()["certificates"]), "installed", 30 * SLOW)
    assert len(istiod.signatures) == len(set(istiod.signatures)) == 1003
    assert istiod.most_at_once <= 16  # eight for each of the two nodes


def test_the_ca_comes_back(mesh):
    """Certificates run out while the CA refuses: what was there is used to its end, the reason is in log and dump, then all recovers."""
    istiod = mesh.istiod
    istiod.ttl_s = 5 * SLOW
    mesh.start()
    mesh.server.reflect(8080)
    daemon = mesh.client.node.daemon
    with mesh.client.connect(mesh.server.ip, 8080) as s:
        s.sendall(b"x")
        assert s.recv(1) == b"x"
        istiod.reply = lambda identity, csr, context: context.abort(CODE.INTERNAL, "out of ink")
        line = daemon_line = eventually(lambda: daemon.lines_with("retaining existing valid certificate until"), "renewal fails", 20 * SLOW)[0]
        assert "out of ink" in line and CLIENT in daemon_line
        eventually(lambda: "out of ink" in certificate(daemon, CLIENT)["state"], "ended", 20 * SLOW)
        s.sendall(b"y")
        assert s.recv(1) == b"y"  # a connection outlives the certificate
        istiod.reply = istiod.sign
        istiod.ttl_s = 3600
        eventually(lambda: all(available(n.daemon, p.identity) for n, p in zip(mesh.nodes, (mesh.client, mesh.server))), "back", 60 * SLOW)
        assert mesh.client.connect(mesh.server.ip, 8080).close() is None
