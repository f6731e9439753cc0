"""Nodes and pods as in tests/integration, known to a Kubernetes API that Istio's own code watches, in a namespace of its own."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "istiod"))

import peer as kube  # noqa: E402
from testenv import Namespace, World, eventually  # noqa: E402
from testenv.daemon import SLOW  # noqa: E402

ADDRESS = "172.18.0.250"
VERSION = "1.31.4"


class IstiodWorld(World):
    def __init__(self, directory, binary):
        super().__init__(directory)
        self.unpublished = set()  # names of pods that the API server does not know at first
        self.netns = Namespace(self.prefix + "-istiod")
        self.fabric.ip(f"link add istiod type veth peer name eth0 netns {self.netns.name}", "link set istiod master br0 up")
        self.netns.ip(f"addr add {ADDRESS}/16 dev eth0", "link set eth0 up")
        self.plane = kube.Istiod(binary, os.path.join(self.directory, "istiod"), ADDRESS,
                                  lambda argv, **kw: self.netns.popen(*argv, **kw))
        self.plane.apply(kube.namespace("default"), kube.namespace(kube.SYSTEM))

    def node(self):
        node = super().node()
        self.plane.apply(kube.node(node.name), kube.ztunnel(node.name, node.address))
        return node

    def publish(self, pod, **change):
        """What the API server says of a pod; change is of kube.pod's arguments."""
        usual = {"node": pod.node.name, "ips": [pod.ip, pod.ip6], "account": pod.sa, "in_mesh": pod.workload["protocol"] == "HBONE"}
        self.plane.apply(kube.pod(pod.namespace, pod.name, **usual | change))

    def write(self):
        for pod in self.pods.values():
            if pod.name not in self.unpublished and ("Pod", pod.namespace, pod.name) not in self.plane.objects:
                self.publish(pod)

    def environment(self, node):
        address = f"https://{ADDRESS}:{kube.PORT}"
        return {
            "XDS_ADDRESS": address, "CA_ADDRESS": address, "XDS_ROOT_CA": self.plane.root, "CA_ROOT_CA": self.plane.root,
            "ALT_XDS_HOSTNAME": kube.NAME, "ALT_CA_HOSTNAME": kube.NAME, "AUTH_TOKEN": self.give_token(node),
            "POD_NAME": "ztunnel-" + node.name, "POD_NAMESPACE": kube.SYSTEM, "SERVICE_ACCOUNT": "ztunnel",
            "INSTANCE_IP": node.address, "ISTIO_META_CLUSTER_ID": "Kubernetes", "ISTIO_META_ISTIO_VERSION": VERSION,
            "RUST_LOG": "info,ztunnel::xds=debug,ztunnel::identity=debug",
        }

    def give_token(self, node, *more, text=None):
        """Writes the node's token file as the kubelet does, in one step: a fresh token (more: see Istiod.token), or this text."""
        path = os.path.join(node.directory, "token")
        with open(path + ".new", "w", encoding="ascii") as f:
            f.write(text or self.plane.token(kube.SYSTEM, "ztunnel-" + node.name, *more))
        os.replace(path + ".new", path)
        return path

    def start(self, **env):
        if not self.plane.process:
            self.write()
            self.plane.start()
        return super().start(**env)

    def wait_synced(self, timeout=30):
        """istiod shows WDS and WADS of every daemon as synced, for the right cluster and version."""
        if not self.plane.process:
            self.plane.start()
        for node in self.nodes:
            if node.daemon and node.daemon.process:
                proxy = f"ztunnel-{node.name}.{kube.SYSTEM}"
                eventually(lambda p=proxy: (self.plane.unsynced(p, VERSION) or "synced") == "synced", f"{proxy} synced", timeout * SLOW)

    def show_logs(self):
        for path in [os.path.join(n.directory, "ztunneld.log") for n in self.nodes] + [self.plane.log]:
            if os.path.exists(path):
                with open(path, errors="replace") as f:
                    print(f"---- {path} ----\n" + f.read()[-8000:])

    def close(self):
        try:
            super().close()
        finally:
            self.plane.kill()
            self.netns.close()
