"""CRL_PATH: revoked peers get no new tunnel, open tunnels to and from them are cut, and a broken file changes nothing (spec/dataplane §12)."""
import datetime
import os

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from testenv import eventually
from testenv.daemon import SLOW

REJECTED = "istio_crl_policy_rejections_total"
REVOKED = "connection closed: peer certificate revoked by CRL"


class Revocation:
    """The mesh's revocation list, as a node mounts it: a directory with one file."""

    def __init__(self, world):
        self.world = world
        self.directory = os.path.join(world.directory, "crl")
        self.path = os.path.join(self.directory, "crl.pem")
        os.makedirs(self.directory)

    def root(self):
        with open(os.path.join(self.world.directory, "ca", "root.pem"), "rb") as f:
            pem = f.read()
        return x509.load_pem_x509_certificate(pem), serialization.load_pem_private_key(pem, None)

    def put(self, content):
        with open(self.path + ".new", "wb") as f:
            f.write(content)
        os.replace(self.path + ".new", self.path)

    def revoke(self, *serials):
        cert, key = self.root()
        now = datetime.datetime.utcnow()
        builder = x509.CertificateRevocationListBuilder().issuer_name(cert.subject).last_update(now)
        builder = builder.next_update(now + datetime.timedelta(days=1)).add_extension(x509.CRLNumber(1), False)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        self.put(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def serial_of(daemon, identity):
    """The serial number of the certificate that a daemon uses for an identity."""
    def look():
        for c in daemon.dump()["certificates"]:
            if c["identity"] == identity and c["certChain"]:
                return int(c["certChain"][0]["serialNumber"])
    return eventually(look, f"a certificate of {identity}")


@pytest.fixture
def crl(pair):
    """An echo behind two nodes; crl.begin(side) starts them, that side with CRL_PATH, and makes one connection."""
    pair.crl = Revocation(pair)

    def begin(side, content=b""):
        if content is not None:
            pair.crl.put(content)
        pair.write()
        for node in pair.nodes:
            node.start(**({"CRL_PATH": pair.crl.path} if node is side.node else {}))
        pair.server.echo(8080)
        assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    pair.begin = begin
    return pair


def in_force(daemon, n, count=1):
    eventually(lambda: len(daemon.lines_with(f"{n} certificate revocation lists in force")) >= count, f"{n} lists in force", 10 * SLOW)


def revoke_peer_of(crl, side):
    """Puts the other side's certificate on the list and waits until it is in force."""
    other = crl.client if side is crl.server else crl.server
    crl.crl.revoke(serial_of(other.node.daemon, other.identity))
    in_force(side.node.daemon, 1)


def test_crl_inbound_rejects_revoked_cert(crl):
    crl.begin(crl.server)
    revoke_peer_of(crl, crl.server)
    before = crl.server.node.daemon.metric(REJECTED, reporter="destination")
    assert crl.client.refused(crl.server.ip, 8080)
    daemon = crl.server.node.daemon
    line = daemon.wait_line("connection failed", direction="inbound")
    assert line.level == "warn" and line.fields["error"] == "tls handshake error: invalid peer certificate: revoked"
    assert daemon.metric(REJECTED, reporter="destination") > before
    assert daemon.metric(REJECTED, reporter="source") == 0


def test_crl_outbound_rejects_revoked_cert(crl):
    crl.begin(crl.client)
    revoke_peer_of(crl, crl.client)
    daemon = crl.client.node.daemon
    before = daemon.metric(REJECTED, reporter="source")
    assert crl.client.refused(crl.server.ip, 8080)
    eventually(lambda: [x for x in daemon.lines("connection complete", direction="outbound") if x.fields.get("error") == REVOKED])
    assert daemon.metric(REJECTED, reporter="source") > before
    assert daemon.metric("istio_tcp_connections_failed_total", response_flags="CERT_REVOKED", reporter="source") == 1


@pytest.mark.parametrize("end", ["inbound", "outbound"])
def test_crl_terminates_existing_connection_on_revocation(crl, end):
    """crl_inbound_ and crl_outbound_terminates_existing_connection_on_revocation."""
    side = crl.server if end == "inbound" else crl.client
    crl.begin(side)
    daemon = side.node.daemon
    with crl.client.connect(crl.server.ip, 8080) as s:
        s.sendall(b"x")
        assert s.recv(2) == b"xx"
        revoke_peer_of(crl, side)
        with pytest.raises(ConnectionResetError):
            while s.recv(100):
                pass
            raise AssertionError("FIN instead of a reset")
    line = daemon.wait_line("connection complete", direction=end, error=REVOKED)
    assert line.level == "error"
    reporter = "destination" if end == "inbound" else "source"
    assert daemon.metric(REJECTED, reporter=reporter) == 1
    assert daemon.metric("istio_tcp_connections_failed_total", response_flags="CERT_REVOKED", reporter=reporter) == 1
    eventually(lambda: daemon.activity() == (0, 0))


def test_a_list_of_others_cuts_nobody(crl):
    crl.begin(crl.server)
    with crl.client.connect(crl.server.ip, 8080) as s:
        s.sendall(b"x")
        assert s.recv(2) == b"xx"
        crl.crl.revoke(4711)
        in_force(crl.server.node.daemon, 1)
        s.sendall(b"y")
        assert s.recv(2) == b"yy"
    assert crl.client.request(crl.server.ip, 8080) == b"hello worldhello world"
    assert crl.server.node.daemon.metric(REJECTED) == 0


def test_an_unparsable_list_keeps_enforcement_on(crl):
    """Nonsense at start is a loud line and an empty set, not the end of enforcement; nonsense later leaves what was in force."""
    crl.begin(crl.server, b"nonsense")
    daemon = crl.server.node.daemon
    line, = daemon.lines_with("certificate revocation lists refused")
    assert "\terror\t" in line and "neither PEM nor one list in DER" in line
    revoke_peer_of(crl, crl.server)
    assert crl.client.refused(crl.server.ip, 8080)
    crl.crl.put(b"more nonsense")
    eventually(lambda: len(daemon.lines_with("certificate revocation lists refused")) == 2, timeout=10 * SLOW)
    assert crl.client.refused(crl.server.ip, 8080)
    assert daemon.metric(REJECTED, reporter="destination") >= 2


def test_a_missing_list_is_taken_when_it_comes(crl):
    crl.begin(crl.server, None)
    assert crl.server.node.daemon.lines_with("no certificate revocation lists")
    revoke_peer_of(crl, crl.server)
    assert crl.client.refused(crl.server.ip, 8080)


def test_a_swapped_link_is_followed(crl):
    """As a ConfigMap does it: the file is a link through a link that is replaced."""
    inside = os.path.join(crl.crl.directory, "..1")
    os.makedirs(inside)
    with open(os.path.join(inside, "crl.pem"), "wb"):
        pass
    os.symlink("..1", os.path.join(crl.crl.directory, "..data"))
    os.symlink("..data/crl.pem", crl.crl.path)
    crl.begin(crl.server, None)
    other = Revocation.__new__(Revocation)
    other.world, other.directory = crl, os.path.join(crl.crl.directory, "..2")
    other.path = os.path.join(other.directory, "crl.pem")
    os.makedirs(other.directory)
    other.revoke(serial_of(crl.client.node.daemon, crl.client.identity))
    os.symlink("..2", os.path.join(crl.crl.directory, "..new"))
    os.replace(os.path.join(crl.crl.directory, "..new"), os.path.join(crl.crl.directory, "..data"))
    in_force(crl.server.node.daemon, 1)
    assert crl.client.refused(crl.server.ip, 8080)
