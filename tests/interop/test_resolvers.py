"""Resolvers that people have, in a captured pod that is told of a nameserver where nobody is: dig, glibc, musl, curl; and dnsmasq upstream."""
import os
import subprocess

import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.dns import Upstream

CAPTURE = """
table inet ztunneld-dns {
  chain nat_out { type nat hook output priority -101; policy accept;
    oifname != "lo" meta mark and 0xfff != 0x539 udp dport 53 redirect to :15053
    ip daddr != 127.0.0.1 tcp dport 53 meta mark and 0xfff != 0x539 redirect to :15053
  }
}
"""
MANY = sorted(f"192.0.2.{i}" for i in range(1, 120))


@pytest.fixture(scope="module")
def musl(tmp_path_factory):
    out = tmp_path_factory.mktemp("musl") / "stub"
    source = os.path.join(os.path.dirname(__file__), "stub_resolver.c")
    subprocess.run(["musl-gcc", "-static", "-O1", "-o", str(out), source], check=True)
    return str(out)


@pytest.fixture
def mesh(world, tmp_path):
    node = world.node()
    world.client, world.server = node.pod("client", namespace="ns1"), node.pod("echo", namespace="ns2")
    world.service("echo", [world.server], ["10.96.0.1", "fd00:96::1"], namespace="ns2")
    conf, hosts = tmp_path / "pod-resolv.conf", tmp_path / "pod-hosts"
    conf.write_text("nameserver 10.96.0.10\nsearch ns1.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")
    hosts.write_text("127.0.0.1 localhost\n")
    mounts = {"/etc/resolv.conf": str(conf), "/etc/hosts": str(hosts)}

    def run(*cmd, code=0):
        p = world.client.netns.popen(*cmd, mounts=mounts, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        out, _ = p.communicate(timeout=60 * SLOW)
        assert code is None or p.returncode == code, out
        return out
    world.run = run

    def up(**env):
        world.start(**env)
        world.client.netns.run("nft", "-f", "-", input=CAPTURE)
        return node.daemon
    world.up = up
    return world


@pytest.fixture
def dnsmasq(mesh, tmp_path):
    """A real upstream on the node: records of its own, and nothing else."""
    node = mesh.nodes[0]
    records = [f"--host-record=many.example.com,{ip}" for ip in MANY]
    p = node.netns.popen("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces",
                         f"--listen-address={node.address}", "--pid-file=", "--user=root", "--local-ttl=60", "--auth-ttl=60",
                         "--host-record=www.example.com,192.0.2.1,2001:db8::1", "--cname=alias.example.com,www.example.com",
                         "--txt-record=txt.example.com,some text", "--srv-host=_http._tcp.example.com,www.example.com,80",
                         "--local=/example.com/", "--local=/cluster.local/", *records, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    node.resolv_conf(node.address)
    eventually(lambda: f"{node.address}:53" in node.netns.run("ss", "-Hlnu"), "dnsmasq")
    yield mesh
    p.terminate()
    p.wait()


def test_dig(dnsmasq):
    mesh = dnsmasq
    mesh.up()
    for options in ((), ("+tcp",), ("+noedns",), ("+dnssec",), ("+keepopen", "+tcp")):
        assert mesh.run("dig", "+short", *options, "echo.ns2.svc.cluster.local").split() == ["10.96.0.1"]
        assert mesh.run("dig", "+short", *options, "www.example.com", "AAAA").split() == ["2001:db8::1"]
    assert sorted(mesh.run("dig", "+short", "many.example.com").split()) == MANY  # cut, asked again by TCP
    assert "status: NXDOMAIN" in mesh.run("dig", "none.example.com")
    assert mesh.run("dig", "+short", "txt.example.com", "TXT") == '"some text"\n'
    assert mesh.run("dig", "+short", "_http._tcp.example.com", "SRV") == "0 0 80 www.example.com.\n"
    assert mesh.run("dig", "+short", "alias.example.com").split() == ["www.example.com.", "192.0.2.1"]
    assert "flags: qr aa rd ra" in mesh.run("dig", "echo.ns2.svc.cluster.local")
    warnings = [line for line in mesh.run("dig", "+search", "echo.ns2").splitlines() if "malformed" in line or "mismatch" in line]
    assert not warnings


def test_glibc(dnsmasq):
    mesh = dnsmasq
    mesh.up()
    addresses = {line.split()[0] for line in mesh.run("getent", "ahosts", "echo.ns2").splitlines()}
    assert addresses == {"10.96.0.1", "fd00:96::1"}  # by the search list, A and AAAA on one socket
    assert mesh.run("getent", "ahostsv4", "www.example.com").split()[0] == "192.0.2.1"
    assert len({line.split()[0] for line in mesh.run("getent", "ahostsv4", "many.example.com").splitlines()}) == len(MANY)
    mesh.run("getent", "hosts", "none.example.com", code=2)


def test_musl(dnsmasq, musl):
    mesh = dnsmasq
    mesh.up()
    assert set(mesh.run(musl, "echo.ns2").split()) == {"10.96.0.1", "fd00:96::1"}
    assert set(mesh.run(musl, "alias.example.com").split()) == {"192.0.2.1", "2001:db8::1"}
    mesh.run(musl, "none.example.com", code=1)


def test_curl_by_name_and_through_socks5(mesh):
    node = mesh.nodes[0]
    upstream = Upstream(node.netns, node.address, {("outside.example.com", "A"): [mesh.server.ip]})
    node.resolv_conf(node.address)
    mesh.server.serve(8080, lambda s, peer: s.recv(65536) and s.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"))
    daemon = mesh.up(UNSTABLE_ENABLE_SOCKS5="true")
    curl = ("curl", "-sS", "--max-time", str(20 * SLOW))
    assert mesh.run(*curl, "http://echo.ns2/") == "hello"
    assert mesh.run(*curl, "--socks5", "127.0.0.1:15080", "http://echo.ns2/") == "hello"  # curl resolves
    assert mesh.run(*curl, "--socks5-hostname", "127.0.0.1:15080", "http://echo.ns2/") == "hello"  # we do
    assert mesh.run(*curl, "--socks5-hostname", "127.0.0.1:15080", "http://outside.example.com:8080/") == "hello"
    assert mesh.run(*curl, "--socks5-hostname", "127.0.0.1:15080", "http://[fd00:96::1]/") == "hello"
    mesh.run(*curl, "--socks5-hostname", "127.0.0.1:15080", "http://none.example.com/", code=97)
    mesh.run(*curl, "--socks5", "127.0.0.1:15080", "--proxy-user", "a:b", "http://echo.ns2/")  # it offers to go without, too
    daemon.wait_line("connection complete", count=6, direction="outbound")
    upstream.close()
