"""The key log: Wireshark reads the tunnels of the pods that are named, and of no others (the issue's text)."""
import os
import subprocess

import pytest

from testenv import eventually
from testenv.daemon import SLOW


def start(pair, path, **env):
    """The client's pod is named, its neighbour on the node is not."""
    pair.other = pair.client.node.pod("other")
    pair.write()
    pair.server.node.start()
    daemon = pair.client.node.start(SSLKEYLOGFILE=path, ZTUNNELD_KEYLOG_PODS="default/nobody,default/client", **env)
    pair.server.echo(8080)
    return daemon


def read(tshark, capture, keys):
    """What CONNECT requests Wireshark's own dissectors find in a capture."""
    done = subprocess.run([tshark, "-n", "-r", capture, "-o", f"tls.keylog_file:{keys}", "-d", "tcp.port==15008,tls", "-Y",
                           'http2.headers.method == "CONNECT"', "-T", "fields", "-e", "ip.src", "-e", "http2.headers.authority"],
                          text=True, capture_output=True, timeout=60 * SLOW)
    assert done.returncode == 0, done.stderr
    return sorted(tuple(line.split("\t")) for line in done.stdout.splitlines())


def test_wireshark_reads_the_tunnel_of_a_named_pod(pair, need, tmp_path):
    tshark, tcpdump = need("tshark"), need("tcpdump")
    keys, capture = str(tmp_path / "keys"), str(tmp_path / "tunnel.pcap")
    daemon = start(pair, keys)
    with open(tmp_path / "tcpdump.log", "w+") as log:
        taker = pair.server.node.netns.popen(tcpdump, "-i", "eth0", "-U", "-Z", "root", "-w", capture, "tcp port 15008", stdout=log, stderr=log)
        try:
            eventually(lambda: "listening on" in open(log.name).read())
            assert pair.client.request(pair.server.ip, 8080) and pair.other.request(pair.server.ip, 8080)
            eventually(lambda: (pair.client.ip, f"{pair.server.ip}:8080") in read(tshark, capture, keys))
        finally:
            taker.terminate()
            taker.wait()
    assert read(tshark, capture, keys) == [(pair.client.ip, f"{pair.server.ip}:8080")]
    assert read(tshark, capture, os.devnull) == []
    assert os.stat(keys).st_mode & 0o777 == 0o600
    with open(keys) as f:
        randoms = {line.split()[1] for line in f if line.startswith("CLIENT_TRAFFIC_SECRET_0")}
    assert len(randoms) == 1
    assert daemon.lines_with("KEY LOG IS ON") and daemon.lines_with("TLS secrets of default/client are written")
    assert not daemon.lines_with("TLS secrets of default/other")
    assert daemon.dump()["config"]["keylogPods"] == "default/nobody,default/client"


def test_without_named_pods_nothing_is_written(pair, tmp_path):
    keys = tmp_path / "keys"
    pair.start(SSLKEYLOGFILE=str(keys))
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080)
    assert not keys.exists() and pair.client.node.daemon.lines_with("SSLKEYLOGFILE has no effect")


@pytest.mark.parametrize("make, env, words", [
    (lambda p: None, {"SSLKEYLOGFILE": ""}, "SSLKEYLOGFILE is not set"),
    (lambda p: None, {"ZTUNNELD_KEYLOG_PODS": "client"}, "namespace/pod,namespace/pod"),
    (lambda p: p.symlink_to("elsewhere"), {}, "cannot open"),
    (lambda p: p.touch(0o644), {}, "nobody else may read"),
    (lambda p: p.mkdir(), {}, "cannot open"),
])
def test_a_key_log_that_is_not_safe_is_refused(world, tmp_path, make, env, words):
    path = tmp_path / "keys"
    make(path)
    world.write()
    node = world.node()
    node.start(wait_ready=False, enrol=False, **({"SSLKEYLOGFILE": str(path), "ZTUNNELD_KEYLOG_PODS": "a/b"} | env))
    assert node.daemon.wait() == 1 and words in node.daemon.log()
    node.daemon = None
