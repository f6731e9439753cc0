"""A fabric with nodes and pods: addresses, the local file, enrolment."""
import contextlib
import errno
import json
import os
import random
import socket
import string

from . import netns as ns
from .daemon import SLOW, Daemon
from .zds import ZdsServer

ISTIOD = "172.18.255.1"

# The rule set of spec/inpod §4.8, DNS capture off: written here a second time so that the daemon is not tested with its own agent's.
RULES = """
table inet ztunneld {
  chain mangle_pre { type filter hook prerouting priority -150; policy accept;
    meta mark and 0xfff == 0x539 ct mark set ct mark and 0xfffff000 or 0x111
  }
  chain mangle_out { type route hook output priority -150; policy accept;
    ct mark and 0xfff == 0x111 meta mark set ct mark
  }
  chain nat_pre { type nat hook prerouting priority -100; policy accept;
    meta l4proto tcp ip saddr 169.254.7.127 accept
    ip daddr != 127.0.0.1 tcp dport != 15008 meta mark and 0xfff != 0x539 redirect to :15006
    ip6 daddr != ::1 tcp dport != 15008 meta mark and 0xfff != 0x539 redirect to :15006
  }
  chain nat_out { type nat hook output priority -100; policy accept;
    meta l4proto tcp ip daddr 169.254.7.127 accept
    meta l4proto tcp meta mark and 0xfff == 0x111 accept
    oifname "lo" ip daddr != 127.0.0.1 accept
    oifname "lo" ip6 daddr != ::1 accept
    meta l4proto tcp ip daddr != 127.0.0.1 meta mark and 0xfff != 0x539 redirect to :15001
    meta l4proto tcp ip6 daddr != ::1 meta mark and 0xfff != 0x539 redirect to :15001
  }
}
"""


class Pod:
    """A namespace with one address of each family, and the workload that describes it."""

    def __init__(self, node, index, name, namespace, sa, protocol):
        self.node, self.name, self.namespace, self.sa = node, name, namespace, sa
        self.uid = f"cluster1//Pod/{namespace}/{name}"
        self.zds_uid = f"uid-{name}"
        self.ip = f"10.{node.index}.0.{index}"
        self.ip6 = f"fd00:10:{node.index}::{index}"
        self.identity = f"spiffe://cluster.local/ns/{namespace}/sa/{sa}"
        self.enrolled = False
        self.servers = []
        self.netns = ns.Namespace(f"{node.world.prefix}-{name}")
        veth = f"v{index}"
        node.netns.ip(f"link add {veth} type veth peer name eth0 netns {self.netns.name}",
                      f"addr add 10.{node.index}.0.254/32 dev {veth}", f"link set {veth} up", f"route add {self.ip} dev {veth}",
                      f"-6 addr add fe80::1/64 dev {veth} nodad", f"-6 route add {self.ip6} dev {veth}")
        self.netns.ip(f"addr add {self.ip}/32 dev eth0", "link set eth0 up", f"route add 10.{node.index}.0.254 dev eth0",
                      f"route add default via 10.{node.index}.0.254 dev eth0",
                      f"-6 addr add {self.ip6}/128 dev eth0 nodad", "-6 route add default via fe80::1 dev eth0")
        self.workload = {
            "uid": self.uid, "name": name, "namespace": namespace, "serviceAccount": sa, "trustDomain": "cluster.local",
            "workloadIps": [self.ip, self.ip6], "protocol": protocol, "node": node.name, "network": "", "clusterId": "Kubernetes",
            "canonicalName": name, "canonicalRevision": "v1", "workloadName": name, "workloadType": "deployment",
            "services": {}, "authorizationPolicies": [],
        }

    # ---- capture ----

    def enrol(self):
        """Listeners first, then rules (spec/inpod §4.10)."""
        assert self.node.zds.add(self.zds_uid, self.name, self.namespace, self.sa, self.netns.fd) == ""
        self.redirect()
        self.enrolled = True

    def redirect(self):
        self.netns.ip("route replace local 0.0.0.0/0 dev lo table 100", "rule add fwmark 0x111/0xfff pref 32764 lookup 100",
                      "-6 route replace local ::/0 dev lo table 100", "-6 rule add fwmark 0x111/0xfff pref 32764 lookup 100")
        self.netns.run("nft", "-f", "-", input=RULES)

    def unenrol(self):
        self.netns.run("nft", "delete", "table", "inet", "ztunneld")
        assert self.node.zds.delete(self.zds_uid) == ""
        self.enrolled = False

    # ---- applications ----

    def serve(self, port, fn, host=""):
        server = ns.Server(self.netns, port, fn, host)
        self.servers.append(server)
        return server

    def echo(self, port=8080):
        """Answers every chunk twice (the reference's test server)."""
        return self.serve(port, ns.echo)

    def reflect(self, port=8080):
        return self.serve(port, ns.reflect)

    def connect(self, host, port, timeout=10 * SLOW, source_port=0):
        s = self.netns.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        s.settimeout(timeout)
        if source_port:
            s.bind(("", source_port))
        try:
            with self.netns.inside():
                s.connect((host, port))
        except OSError:
            s.close()
            raise
        return s

    def request(self, host, port, data=b"hello world", timeout=10 * SLOW):
        """Sends data and FIN, and returns all that comes back; errors are raised."""
        with self.connect(host, port, timeout) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := s.recv(65536):
                got += chunk
            return got

    def refused(self, host, port):
        """True when the connection is reset before a byte of an answer."""
        try:
            return self.request(host, port) == "never"
        except (ConnectionResetError, BrokenPipeError):
            return True
        except OSError as e:
            if e.errno != errno.ENOTCONN:  # reset before our own end
                raise
            return True

    def close(self):
        for server in self.servers:
            server.close()
        self.netns.close()


class Node:
    def __init__(self, world, index):
        self.world, self.index, self.name = world, index, f"n{index}"
        self.pods, self.mounts = {}, {}
        self.daemon = self.zds = None
        self.retired = []  # daemons that a newer one stands beside
        self.address = f"172.18.0.{index}"
        self.netns = ns.Namespace(f"{world.prefix}-{self.name}")
        self.netns.sysctl("net.ipv4.ip_forward", 1)
        self.netns.sysctl("net.ipv6.conf.all.forwarding", 1)
        world.fabric.ip(f"link add v{index} type veth peer name eth0 netns {self.netns.name}", f"link set v{index} master br0 up")
        self.netns.ip(f"addr add {self.address}/16 dev eth0", "link set eth0 up", f"-6 addr add fd00:18::{index}/64 dev eth0 nodad")
        self.directory = os.path.join(world.directory, self.name)
        os.makedirs(self.directory)

    def pod(self, name, namespace="default", sa=None, protocol="HBONE"):
        pod = Pod(self, len(self.pods) + 2, name, namespace, sa or name, protocol)
        self.pods[name] = pod
        self.world.pods[name] = pod
        return pod

    def environment(self):
        return self.world.environment(self) | {
            "NODE_NAME": self.name, "INPOD_UDS": os.path.join(self.directory, "zds.sock"),
            "ZTUNNELD_CTL_SOCKET": os.path.join(self.directory, "ctl.sock"), "ISTIO_META_DNS_CAPTURE": "false",
            "CONNECTION_TERMINATION_DEADLINE": "2s", "AUTHZ_POLICY_INFO_LOGGING": "true",
        }

    def resolv_conf(self, *servers, more=""):
        """What the daemon will find as its /etc/resolv.conf; with it, DNS is on."""
        path = os.path.join(self.directory, "resolv.conf")
        with open(path, "w") as f:
            f.write("".join(f"nameserver {server}\n" for server in servers) + more)
        self.mounts["/etc/resolv.conf"] = path
        return self

    def start(self, enrol=True, wait_ready=True, **env):
        """Serves ZDS, starts the daemon, enrols the pods that belong in the mesh."""
        if self.mounts:
            env = {"ISTIO_META_DNS_CAPTURE": "true", "RUST_LOG": "info,dns=debug"} | env
        if not self.zds:
            self.zds = ZdsServer(os.path.join(self.directory, "zds.sock"))
        self.daemon = Daemon(self.netns, self.directory, self.environment() | env, mounts=self.mounts).start(wait_ready)
        for pod in self.pods.values() if enrol else ():
            if pod.workload["protocol"] == "HBONE" and not pod.enrolled:
                pod.enrol()
        return self.daemon

    def overlap(self, **env):
        """A rolling update: a second daemon, in a namespace of its own as any pod, serves the same pods. Returns the first."""
        home = ns.Namespace(f"{self.netns.name}-{len(self.retired) + 1}")
        old = self.daemon
        self.retired.append(old)
        self.daemon = Daemon(home, self.directory, old.env | env, name=f"ztunneld-{len(self.retired)}").start()
        return old

    def close(self):
        try:
            for daemon in [*self.retired, self.daemon]:
                if daemon:
                    daemon.stop()
        finally:
            for daemon in [*self.retired[1:], self.daemon] if self.retired else ():
                daemon.netns.close()
            if self.zds:
                self.zds.close()
            for pod in self.pods.values():
                pod.close()
            self.netns.close()


class World:
    def __init__(self, directory):
        self.directory = str(directory)
        self.prefix = "zt" + "".join(random.choices(string.ascii_lowercase + string.digits, k=6))
        self.file = os.path.join(self.directory, "mesh.yaml")
        self.nodes, self.pods, self.istiod = [], {}, None
        self.services, self.policies, self.more_workloads = [], [], []
        self.fabric = ns.Namespace(self.prefix + "-f")
        self.fabric.ip("link add br0 type bridge", "link set br0 up")

    def environment(self, node):
        """Where a node's daemon learns of the mesh and gets its certificates."""
        if self.istiod:
            return {k: v for k, v in self.istiod.environment().items() if v is not None}
        return {"XDS_ADDRESS": "", "LOCAL_XDS_PATH": self.file, "LOCAL_CA_PATH": os.path.join(self.directory, "ca")}

    def node(self):
        node = Node(self, len(self.nodes) + 1)
        for other in self.nodes:
            for a, b in ((node, other), (other, node)):
                a.netns.ip(f"route add 10.{b.index}.0.0/24 via {b.address}",
                           f"-6 route add fd00:10:{b.index}::/64 via fd00:18::{b.index}")
        self.nodes.append(node)
        return node

    def service(self, name, pods, vip, namespace="default", ports=None, **more):
        ports = ports or {80: 8080}
        host = f"{name}.{namespace}.svc.cluster.local"
        for pod in pods:
            pod.workload["services"][f"{namespace}/{host}"] = {str(k): v for k, v in ports.items()}
        service = {"name": name, "namespace": namespace, "hostname": host, "vips": [f"/{v}" for v in ([vip] if isinstance(vip, str) else vip)],
                   "ports": {str(k): v for k, v in ports.items()}, **more}
        self.services.append(service)
        return service

    def policy(self, name, namespace="default", scope="Namespace", action="Allow", rules=(), dry_run=False):
        """rules is a list (or) of lists (and) of lists (or) of matches."""
        policy = {"name": name, "namespace": namespace, "scope": scope, "action": action, "rules": list(rules), "dryRun": dry_run}
        self.policies.append(policy)
        return policy

    def control_plane(self):
        """State and certificates come from a scripted istiod at an address of the fabric, not from files. The nodes are there."""
        from .istiod import Istiod  # takes gRPC, which only these scenarios need
        self.fabric.ip(f"addr add {ISTIOD}/16 dev br0", *(f"route add 10.{n.index}.0.0/24 via {n.address}" for n in self.nodes))
        self.istiod = Istiod(self.directory, self.fabric, ISTIOD)
        return self.istiod

    def write(self):
        """Publishes the state: replaces the local file in one step (JSON is YAML), or pushes it."""
        mesh = {"workloads": [p.workload for p in self.pods.values()] + self.more_workloads, "policies": self.policies,
                "services": self.services}
        if self.istiod:
            self.istiod.load(**mesh)
            return
        with open(self.file + ".new", "w") as f:
            json.dump(mesh, f, indent=1)
        os.replace(self.file + ".new", self.file)

    def start(self, **env):
        self.write()
        for node in self.nodes:
            node.start(**env)
        return self

    def close(self):
        with contextlib.ExitStack() as stack:  # everything is torn down, then the first failure is raised
            stack.callback(self.fabric.close)
            if self.istiod:
                stack.callback(self.istiod.close)
            for node in self.nodes:
                stack.callback(node.close)
