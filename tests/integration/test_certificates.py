"""Certificates of the local CA: one root for many daemons, renewal, wrong files, privileges (issue text, spec/controlplane §6.4)."""
import os
import subprocess
import threading

from testenv import Daemon, eventually
from testenv.daemon import BINARY, SLOW
from testenv.hbone import issue


def serials(daemon, identity):
    """Of the identity's own certificate, newest state of the dump."""
    for c in daemon.dump()["certificates"]:
        if c["identity"] == identity and c["state"] == "Available":
            return c["certChain"][0]["serialNumber"]
    return None


def test_renewal_cuts_no_connection(pair):
    """Certificates of four seconds: connections and tunnels live through several renewals, new tunnels use the new certificate."""
    pair.start(SECRET_TTL=f"{4 * SLOW}s")
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        seen = {serials(daemon, pair.client.identity)}
        def renewed():
            s.sendall(b"b")
            assert s.recv(1) == b"b"
            seen.add(serials(daemon, pair.client.identity))
            return len(seen - {None}) >= 3
        eventually(renewed, "two renewals", 12 * SLOW, every=0.1)
        other = pair.client.connect(pair.server.ip, 8080)
        other.sendall(b"c")
        assert other.recv(1) == b"c"
        other.close()
    assert not [x for x in daemon.lines("connection complete") if x.level == "error"]


def test_two_daemons_starting_at_once_end_with_one_root(pair):
    """LOCAL_CA_PATH is absent; both make it, one wins, and they trust each other."""
    pair.write()
    threads = [threading.Thread(target=node.start) for node in pair.nodes]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    directory = os.path.join(pair.directory, "ca")
    assert os.stat(directory).st_mode & 0o777 == 0o700
    for name in os.listdir(directory):
        assert os.stat(os.path.join(directory, name)).st_mode & 0o777 in (0o600, 0o644), name


def refused_at_start(world, text):
    """One line on standard error that names what, where and what to do; exit status 1."""
    node = world.node()
    world.write()
    daemon = node.start(wait_ready=False)
    assert daemon.wait(30 * SLOW) == 1
    errors = [x for x in daemon.log().splitlines() if x.startswith("Error: ")]
    assert len(errors) == 1 and "local CA" in errors[0] and text in errors[0], daemon.log()
    daemon.check_clean(1)
    daemon.process = None


def test_a_root_file_that_is_no_key_is_refused(world):
    directory = os.path.join(world.directory, "ca")
    os.makedirs(directory, 0o700)
    path = os.path.join(directory, "root.pem")
    with open(path, "w") as f:
        f.write("not a key\n")
    os.chmod(path, 0o600)
    refused_at_start(world, path)


def test_a_directory_that_cannot_be_is_refused(world):
    with open(os.path.join(world.directory, "ca"), "w") as f:
        f.write("a file where the directory should be")
    refused_at_start(world, os.path.join(world.directory, "ca"))


def test_prefetch_forget_certs(pair):
    """Certificates are fetched ahead for workloads of the own node only, kept while one of the identity is left, then forgotten."""
    twin = pair.nodes[0].pod("twin", sa=pair.client.sa)
    pair.write()
    daemon = pair.nodes[0].start(enrol=False)
    def identities():
        return {c["identity"] for c in daemon.dump()["certificates"]}
    eventually(lambda: identities() == {pair.client.identity}, "the node's identity, and no other")
    pair.pods.pop("twin")
    pair.write()
    eventually(lambda: len(daemon.dump()["workloads"]) == 2)
    assert identities() == {pair.client.identity}
    client = pair.pods.pop("client")
    pair.write()
    eventually(lambda: identities() == set(), "forgotten with its last workload")
    assert twin.sa == client.sa


def test_issued_certificates_are_for_others_to_use(pair, tmp_path):
    """ztctl ca issue: key, chain and root, for their owner only; the chain verifies."""
    pair.start()
    directory = issue(pair.client.node.daemon, "spiffe://cluster.local/ns/x/sa/y", tmp_path / "cert")
    for name in ("cert-chain.pem", "key.pem", "root-cert.pem"):
        assert os.stat(os.path.join(directory, name)).st_mode & 0o777 == 0o600
    done = subprocess.run(["openssl", "verify", "-CAfile", "root-cert.pem", "cert-chain.pem"], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = subprocess.run(["openssl", "x509", "-in", "cert-chain.pem", "-noout", "-ext", "subjectAltName"], cwd=directory,
                          capture_output=True, text=True).stdout
    assert "URI:spiffe://cluster.local/ns/x/sa/y" in text


def test_no_dac_override_is_needed(pair):
    """Without CAP_DAC_OVERRIDE root is as any user to files; the daemon serves all the same."""
    pair.write()
    pair.server.node.start()
    node = pair.client.node
    from testenv.zds import ZdsServer
    node.zds = ZdsServer(os.path.join(node.directory, "zds.sock"))
    drop = "-dac_override,-dac_read_search"
    node.daemon = Daemon(node.netns, node.directory, node.environment(), binary="setpriv",
                         args=("--bounding-set", drop, "--inh-caps", drop, "--", BINARY, "proxy", "ztunnel"))
    node.daemon.start()
    with open(f"/proc/{node.daemon.pid}/status") as f:
        effective = next(int(x.split()[1], 16) for x in f if x.startswith("CapEff:"))
    assert not effective & 0b110
    pair.client.enrol()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
