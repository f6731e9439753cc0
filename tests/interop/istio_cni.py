"""istio-cni's node agent (the program of tests/interop/cni) in a node's namespace: it takes the place of testenv's ZdsServer."""
import concurrent.futures
import itertools
import json
import os
import subprocess
import threading

from testenv.daemon import SLOW

BACKENDS = {"iptables-nft": ["-iptables", "nft"], "iptables-legacy": ["-iptables", "legacy"], "nftables": ["-nftables"]}


def describe(pod, **more):
    return {"uid": pod.zds_uid, "name": pod.name, "namespace": pod.namespace, "sa": pod.sa, "netns": pod.netns.path,
            "ips": [pod.ip, pod.ip6]} | more


KUBELET_UID = 64535  # whoever has it is the kubelet: the nftables back end tells it by its user


class Kubelet:
    """A process that istio-cni takes for the kubelet: the right name, and a user of its own."""

    NAMED = "import ctypes; ctypes.CDLL(None).prctl(15, b'kubelet'); print(flush=True); input()"

    def __init__(self):
        self.process = subprocess.Popen(["/usr/bin/python3", "-c", self.NAMED, "kubelet"], user=KUBELET_UID, cwd="/",
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process.stdout.readline()

    def close(self):
        self.process.communicate(b"\n")


class IstioCni:
    def __init__(self, program, node, backend="iptables-nft", dns=False, reconcile=True):
        self.node, self.patches = node, []
        self.socket = os.path.join(node.directory, "zds.sock")
        self.log = open(os.path.join(node.directory, "cni.log"), "a")
        self.ids, self.waiting = itertools.count(), {}
        self.process = node.netns.popen(program, "-socket", self.socket, f"-dns={dns}".lower(), f"-reconcile={reconcile}".lower(),
                                        *BACKENDS[backend], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True)
        hello = concurrent.futures.Future()
        self.waiting[next(self.ids)] = hello
        threading.Thread(target=self.read, daemon=True).start()
        hello.result(30 * SLOW)

    def read(self):
        for line in self.process.stdout:
            reply = json.loads(line)
            self.patches += reply["patches"] or []
            self.waiting.pop(reply["id"]).set_result(reply)
        for future in list(self.waiting.values()):
            future.set_exception(EOFError("the agent ended; see cni.log"))

    def ask(self, do, **fields):
        """The answer is a future: its error is "" when all went well."""
        number = next(self.ids)
        future = self.waiting[number] = concurrent.futures.Future()
        self.process.stdin.write(json.dumps({"id": number, "do": do, **fields}) + "\n")
        self.process.stdin.flush()
        return future

    def call(self, do, **fields):
        return self.ask(do, **fields).result(60 * SLOW)["error"]

    def start(self, *pods, without_netns=()):
        """Daemons are accepted from now on; pods are those that an agent before this one had enrolled."""
        known = [describe(p) for p in pods] + [describe(p, netns="") for p in without_netns]
        assert self.call("start", pods=known) == ""
        return self

    def connections(self):
        return self.ask("status").result(60 * SLOW)["connections"]

    def add(self, pod, **annotations):
        error = self.call("add", **describe(pod, annotations=annotations))
        pod.enrolled = not error
        return error

    def remove(self, pod, deleted=False):
        pod.enrolled = False
        return self.call("remove", **describe(pod, deleted=deleted))

    def status_of(self, pod):
        """The annotation ambient.istio.io/redirection, as it was last written: enabled, pending, or None."""
        patches = [json.loads(p.split(" ", 1)[1]) for p in self.patches if p.split(" ", 1)[0] == pod.name]
        return patches[-1]["metadata"]["annotations"]["ambient.istio.io/redirection"] if patches else None

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()
