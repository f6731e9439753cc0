"""Command line, exit codes, start-up errors (spec/interfaces §1, §2.4, checks C1-C18, C41)."""
import os
import socket
import subprocess

import pytest

from testenv.daemon import BINARY, BUILD, Daemon
from testenv.wait import eventually


def run(*args, env=None, timeout=60):
    base = {"PATH": os.environ["PATH"], "XDS_ADDRESS": "", "LOCAL_CA_PATH": "/nonexistent/ca"}
    base.update({k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")})
    base.update(env or {})
    return subprocess.run([BINARY, *args], env=base, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout)


def test_version_prints_build_info():
    done = run("version")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert done.stdout.startswith('version.BuildInfo{Version:"')
    keys = ["Version", "GitRevision", "RustVersion", "BuildProfile", "BuildStatus", "IstioVersion", "CryptoProvider"]
    positions = [done.stdout.index(k + ":") for k in keys]
    assert positions == sorted(positions)
    assert 'IstioVersion:"unknown"' in done.stdout and 'CryptoProvider:"tls-openssl"' in done.stdout


def test_version_names_the_istio_version():
    assert 'IstioVersion:"9.9"' in run("version", env={"ISTIO_META_ISTIO_VERSION": "9.9"}).stdout


def test_help_lists_the_commands():
    done = run("help")
    assert done.returncode == 0 and "Istio Ztunnel (version.BuildInfo{" in done.stdout
    for command in ("proxy (default)", "version", "help"):
        assert command in done.stdout


@pytest.mark.parametrize("word", ["bogus", "--help", "-h", "--version"])
def test_unknown_command(word):
    done = run(word)
    assert done.returncode == 1 and f"unknown command: {word}" in done.stderr and "Commands:" in done.stdout


@pytest.mark.parametrize("env, text", [
    ({"PROXY_MODE": "Shared"}, "invalid env var PROXY_MODE=Shared (PROXY_MODE must be one of dedicated, shared)"),
    ({"PROXY_MODE": "dedicated"}, "requires PROXY_WORKLOAD_INFO to be set"),
    ({"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "a/b"}, "must match the format"),
    ({"ENABLE_PROXY": "yes"}, "invalid env var ENABLE_PROXY=yes (provided string was not `true` or `false`)"),
    ({"PACKET_MARK": "0x539"}, "invalid env var PACKET_MARK=0x539"),
    ({"PACKET_MARK": ""}, "invalid env var PACKET_MARK= (cannot parse integer from empty string)"),
    ({"KEEPALIVE_TIME": "1.5s"}, "invalid env var KEEPALIVE_TIME=1.5s"),
    ({"XDS_ON_DEMAND": "true"}, "DNS proxy does not currently support on-demand mode"),
    ({"ENABLE_PROXY": "false", "ISTIO_META_DNS_CAPTURE": "no"}, "ztunnel run without any servers enabled"),
    ({"LOCAL_XDS": "{}", "LOCAL_XDS_PATH": "/x"}, "only one of LOCAL_XDS_PATH or LOCAL_XDS may be set"),
    ({"LOCAL_XDS_PATH": "/nonexistent/mesh.yaml", "LOCAL_CA_PATH": "{fresh}/ca"}, "/nonexistent/mesh.yaml"),
    ({"COMPLIANCE_POLICY": "fips"}, "COMPLIANCE_POLICY"),
    ({"ZTUNNELD_PEER_TUNNELS_MAX": "0"}, "ZTUNNELD_PEER_TUNNELS_MAX"),
    ({"XDS_ADDRESS": "http://istiod:15010", "LOCAL_CA_PATH": "{fresh}/ca"}, "XDS_ADDRESS"),
    ({"XDS_ADDRESS": "istiod:15012", "XDS_ON_DEMAND": "true", "ISTIO_META_DNS_CAPTURE": "false"}, "XDS_ON_DEMAND"),
    ({"FAKE_CA": "true", "CA_ADDRESS": "istiod:15012", "LOCAL_CA_PATH": ""}, "CA_ADDRESS"),
    ({"RUST_LOG": "a=b=c"}, "RUST_LOG"),
    ({"HTTP2_FRAME_SIZE": "1"}, "HTTP2_FRAME_SIZE"),
])
def test_bad_configuration_is_one_clear_error(tmp_path, env, text):
    done = run(env={k: v.replace("{fresh}", str(tmp_path)) for k, v in env.items()})
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("Error: ") and text in done.stderr


def test_compliance_policy_pqc_is_never_weakened(world):
    """An OpenSSL that knows X25519MLKEM768 serves with it alone; another one is a clear refusal to start."""
    node = world.node()
    client, server = node.pod("client"), node.pod("server")
    world.write()
    knows = b"X25519MLKEM768" in subprocess.run(["openssl", "list", "-kem-algorithms"], stdout=subprocess.PIPE).stdout
    if knows:
        node.start(COMPLIANCE_POLICY="pqc")
        server.echo(8080)
        assert client.request(server.ip, 8080) == b"hello worldhello world"
        return
    done = run(env=node.environment() | {"COMPLIANCE_POLICY": "pqc"})
    assert done.returncode == 1 and "X25519MLKEM768, which this OpenSSL does not know" in done.stderr


def test_xds_defaulted_waits_for_istiod(world):
    """C19: without an xDS server the daemon runs and is not ready, the CNI is not contacted, and it ends in good order."""
    node = world.node()
    env = node.environment()
    for key in ("XDS_ADDRESS", "LOCAL_XDS_PATH", "LOCAL_CA_PATH"):
        del env[key]
    daemon = node.daemon = Daemon(node.netns, node.directory, env).start(wait_ready=False)
    eventually(lambda: "XDS client" in daemon.log(), "an attempt to connect")
    status, body = daemon.http(15021, "/healthz/ready")[:2]
    assert (status, body) == (500, b"not ready, pending: state manager, workload proxy manager\n")
    assert "inpod::workloadmanager" not in daemon.log()


@pytest.mark.parametrize("mode", ["shared", "dedicated"])
def test_own_ports_are_bound_before_the_gate_opens(world, mode):
    """Without an xDS server connections wait in the kernel: neither refused nor answered (spec/interfaces §1.2, steps 12 and 15)."""
    node = world.node()
    env = node.environment() | {"PROXY_MODE": mode, "PROXY_WORKLOAD_INFO": "default/a/a", "POD_NAME": "zt", "POD_NAMESPACE": "istio-system",
                                "SERVICE_ACCOUNT": "ztunnel"}
    for key in ("XDS_ADDRESS", "LOCAL_XDS_PATH", "LOCAL_CA_PATH"):
        del env[key]
    daemon = node.daemon = Daemon(node.netns, node.directory, env).start(wait_ready=False)
    eventually(lambda: "XDS client" in daemon.log(), "an attempt to connect")
    pending = b"state manager, workload proxy manager" if mode == "shared" else b"state manager"
    assert daemon.http(15021, "/healthz/ready")[1] == b"not ready, pending: " + pending + b"\n"
    for port in (15008,) if mode == "shared" else (15001, 15006, 15008):
        with node.netns.socket(socket.AF_INET) as s, node.netns.inside():
            s.settimeout(0.2)
            s.connect(("127.0.0.1", port))
            with pytest.raises(TimeoutError):
                s.recv(1)


def test_own_port_in_use(world):
    node = world.node()
    s = node.netns.socket(socket.AF_INET)
    s.bind(("0.0.0.0", 15006))
    s.listen(1)
    env = {k: v for k, v in node.environment().items() if k not in ("XDS_ADDRESS", "LOCAL_XDS_PATH", "LOCAL_CA_PATH")}
    env |= {"PROXY_MODE": "dedicated", "PROXY_WORKLOAD_INFO": "default/a/a"}
    daemon = node.daemon = Daemon(node.netns, node.directory, env).start(wait_ready=False)
    assert daemon.wait(30) == 1
    assert "Error: failed to bind to address [::]:15006: Address already in use (os error 98)" in daemon.log()
    daemon.check_clean(1)
    daemon.process = None
    s.close()


@pytest.mark.parametrize("port, context", [(15021, "readiness server starts"), (15000, "admin server starts"), (15020, "stats server starts")])
def test_port_in_use(world, port, context):
    """C18."""
    node = world.node()
    world.write()
    s = node.netns.socket(socket.AF_INET)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1" if port == 15000 else "0.0.0.0", port))
    s.listen(1)
    daemon = node.start(wait_ready=False)
    assert daemon.wait(30) == 1
    assert context in daemon.log() and "Address already in use" in daemon.log()
    daemon.check_clean(1)
    daemon.process = None
    s.close()


def test_missing_privilege_names_the_capability(world):
    node = world.node()
    world.write()
    env = node.environment()
    done = node.netns.popen("setpriv", "--bounding-set", "-sys_admin,-net_admin,-net_raw", "--inh-caps=-all", "--", BINARY, env={"PATH": os.environ["PATH"]} | env
                            | {k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 1, out + err
    assert "CAP_" in err


def test_install_places_the_reference_entry_point(tmp_path):
    if not os.path.exists(os.path.join(BUILD, "CMakeCache.txt")):
        pytest.skip("no build tree")
    subprocess.run(["cmake", "--install", BUILD, "--prefix", "/usr/local"], env=os.environ | {"DESTDIR": str(tmp_path)}, check=True,
                   capture_output=True)
    entry = tmp_path / "usr/local/bin/ztunnel"
    assert entry.exists() and os.access(entry, os.X_OK)
    for name in ("ztunneld", "ztcni", "ztctl"):
        assert (tmp_path / "usr/local/bin" / name).exists()
