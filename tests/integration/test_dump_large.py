"""A dump of 200,000 workloads: streamed, beside running workers, within 32 MB (the issue's text)."""
import http.client
import json
import os
import threading
import time

from testenv.daemon import BUILD

__test__ = "san" not in os.path.basename(os.path.normpath(BUILD))  # a figure of release builds
N = 200_000
MORE_KB_MAX = 32 * 1024


def rss_kb(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS:"))


def workload(i):
    return {"uid": f"Kubernetes//Pod/ns{i % 100}/workload-{i}", "name": f"workload-{i}", "namespace": f"ns{i % 100}", "serviceAccount": "sa",
            "trustDomain": "cluster.local", "workloadIps": [f"10.{100 + i // 65536}.{i // 256 % 256}.{i % 256}"], "protocol": "HBONE",
            "node": f"node-{i % 500}", "canonicalName": "name", "canonicalRevision": "v1", "workloadName": "name", "workloadType": "deployment",
            "clusterId": "Kubernetes", "services": {}}


class Client:
    """Takes the dump piece by piece; looks at the daemon's memory meanwhile."""

    def __init__(self, daemon):
        s = daemon.netns.socket()
        s.settimeout(60)
        with daemon.netns.inside():
            s.connect(("127.0.0.1", 15000))
        self.conn = http.client.HTTPConnection("127.0.0.1", 15000)
        self.conn.sock = s
        self.conn.request("GET", "/config_dump")
        self.reply = self.conn.getresponse()
        assert self.reply.status == 200

    def read(self, pid):
        pieces, most = [], 0
        while piece := self.reply.read(4 << 20):
            pieces.append(piece)
            most = max(most, rss_kb(pid))
        self.conn.close()
        return b"".join(pieces), most


def test_a_dump_of_200000_workloads_is_streamed(world):
    node = world.node()
    with open(world.file, "w") as f:
        f.write(json.dumps({"workloads": [workload(i) for i in range(N)]}))
    node.start(wait_ready=False)
    daemon = node.daemon
    daemon.wait_ready(60)
    before, slowest, stop = rss_kb(daemon.pid), [0.0], threading.Event()

    def probe():
        while not stop.is_set():
            begin = time.monotonic()
            assert daemon.http(15021, "/healthz/ready")[0] == 200
            slowest[0] = max(slowest[0], time.monotonic() - begin)
            time.sleep(0.01)
    prober = threading.Thread(target=probe)
    prober.start()
    try:
        body, most = Client(daemon).read(daemon.pid)
    finally:
        stop.set()
        prober.join()
    assert most - before <= MORE_KB_MAX, f"{(most - before) // 1024} MiB more"
    assert slowest[0] < 1, f"a worker answered after {slowest[0]:.3f} s"
    assert body.count(b'"uid": ') >= N
    assert len(json.loads(body)["workloads"]) == N
