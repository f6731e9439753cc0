"""Two nodes on a bridge, each a network namespace; pods are namespaces with a veth to their node.

    fabric   bridge br0, one port per node. The wire on which tcpdump listens.
    node1    10.201.0.11; ztunneld, ztcni; pods sleep, notsleep, plain
    node2    10.201.0.12; ztunneld, ztcni; pods echo-v1, echo-v2

The nodes route between their pods and turn the service's address into one of its endpoints, as kube-proxy does. Nothing is made in
the host's network namespace, so any number of copies run side by side: names end in a random suffix.
"""
import glob
import json
import os
import secrets
import shutil
import subprocess
import sys
import time

PREFIX = "/tmp/ztunneld-demo-"
VIP = "10.96.0.10"
HOST = "echo.ns2.svc.cluster.local"
DRAIN_S = 15
MARK = "ZTUNNELD_DEMO"  # in the environment of every process of ours: the suffix
COMMAND_S = 60  # no single command takes that long


class Trouble(Exception):
    """The lab cannot be laid out: one line that says what and why."""


def run(*argv, check=True, **kw):
    try:
        done = subprocess.run(argv, text=True, capture_output=True, timeout=COMMAND_S, **kw)
    except subprocess.TimeoutExpired as e:
        raise Trouble(f"{' '.join(argv)}: not done after {COMMAND_S} s") from e
    if check and done.returncode != 0:
        raise Trouble(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
    return done


def wait_for(what, condition, seconds=10.0):
    """Polls condition until it is true; returns its value. what may be None: then False instead of Trouble."""
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            if what is None:
                return False
            raise Trouble(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.05)


class Namespace:
    def __init__(self, name):
        self.name = name
        self.path = "/run/netns/" + name

    def create(self):
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")
        # what the host uses is inherited; the figures of a demo should not depend on it
        self.run("sysctl", "-qw", "net.ipv4.tcp_congestion_control=cubic", check=False)

    def argv(self, *argv):
        return ("nsenter", "--net=" + self.path, "--", *argv)

    def run(self, *argv, check=True, **kw):
        return run(*self.argv(*argv), check=check, **kw)

    def spawn(self, *argv, log=None, env=None, **kw):
        """A process in its own session: our Ctrl-C is not its."""
        out = open(log, "ab") if log else subprocess.DEVNULL
        try:
            return subprocess.Popen(self.argv(*argv), stdin=subprocess.DEVNULL, stdout=kw.get("stdout", out), stderr=out,
                                    env={**os.environ, **(env or {})}, start_new_session=True)
        finally:
            if log:
                out.close()

    def popen(self, argv, **kw):
        """As subprocess.Popen, in here and in its own session."""
        return subprocess.Popen(self.argv(*argv), start_new_session=True, **kw)

    def link(self, device, address, to, to_device):
        """A veth pair: device here with an address, to_device in the namespace `to`."""
        run("ip", "-n", self.name, "link", "add", device, "type", "veth", "peer", "name", to_device, "netns", to.name)
        self.run("ip", "addr", "add", address, "dev", device)
        self.run("ip", "link", "set", device, "up")
        to.run("ip", "link", "set", to_device, "up")


class Pod:
    def __init__(self, lab, ns, name, node, ip, account, server=False):
        self.ns, self.name, self.node, self.ip, self.account, self.server = ns, name, node, ip, account, server
        self.lab, self.uid = lab, f"uid-{name}"
        self.network = ""
        self.record_more = ""  # lines of its workload record
        self.netns = Namespace(lab.namespace(name))
        self.enrolled = False

    def title(self):
        return f"{self.ns}/{self.name}"

    def identity(self):
        return f"spiffe://cluster.local/ns/{self.ns}/sa/{self.account}"

    def create(self, lab):
        self.netns.create()
        node = self.node.netns
        self.netns.link("eth0", self.ip + "/32", node, self.name)
        # as many CNI plugins do: a host route per pod, and one gateway address for all of them
        node.run("ip", "addr", "add", "169.254.1.1/32", "dev", self.name)
        node.run("ip", "route", "add", self.ip + "/32", "dev", self.name)
        self.netns.run("ip", "route", "add", "default", "via", "169.254.1.1", "dev", "eth0", "onlink")
        if self.server:
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "echo.py")
            self.netns.spawn(sys.executable, script, self.name, "8080", log=lab.file(self.name + ".log"))

    def curl_argv(self, url, *options):
        return ("curl", "-sS", "--max-time", "20", "--resolve", f"{HOST}:80:{VIP}", *options, url)

    def curl(self, url=f"http://{HOST}/", *options):
        return self.netns.run(*self.curl_argv(url, *options), check=False)

    def curl_by_name(self, url):
        """With a resolver as kubelet sets it up; nobody is at its address, and curl is told nothing."""
        conf = self.lab.file("resolv.conf")
        with open(conf, "w", encoding="ascii") as f:
            f.write(f"nameserver 10.96.0.10\nsearch {self.ns}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n")
        script = f'mount --bind {conf} /etc/resolv.conf && exec curl -sS --max-time 20 "$1"'
        return self.netns.run("unshare", "--mount", "--", "sh", "-c", script, "sh", url, check=False)

    def curl_in_background(self, url, out):
        """A transfer under way; its answer goes to the file out."""
        with open(out, "wb") as f:
            return subprocess.Popen(self.netns.argv(*self.curl_argv(url, "--no-buffer", "--max-time", "60")), stdin=subprocess.DEVNULL,
                                    stdout=f, stderr=subprocess.PIPE, text=True, start_new_session=True)


class Node:
    def __init__(self, lab, number):
        self.lab, self.number = lab, number
        self.name = f"node{number}"
        self.ip = f"10.201.0.1{number}"
        self.netns = Namespace(lab.namespace(self.name))
        self.daemon = self.agent = None
        self.env = {
            "INPOD_UDS": self.file("zds.sock"),
            "ZTUNNELD_CTL_SOCKET": self.file("ztunneld.sock"),
            "ZTCNI_PODS": self.file("pods.yaml"),
            "ZTCNI_CTL": self.file("ztcni.sock"),
            "NODE_NAME": self.name,
            "CLUSTER_ID": "Kubernetes",
            "AUTHZ_POLICY_INFO_LOGGING": "true",
            "CONNECTION_TERMINATION_DEADLINE": f"{DRAIN_S}s",
        }

    def file(self, name):
        return self.lab.file(os.path.join(self.name, name))

    def create(self):
        os.mkdir(self.file(""), 0o755)
        self.netns.create()
        self.netns.link("eth0", self.ip + "/24", self.lab.fabric, self.name)
        self.lab.fabric.run("ip", "link", "set", self.name, "master", "br0")
        self.netns.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def route(self, other):
        self.netns.run("ip", "route", "add", f"10.201.{other.number}.0/24", "via", other.ip)

    def kube_proxy(self, endpoints):
        """The service's address becomes one of its endpoints at random: what kube-proxy does on every node."""
        rules = "".join(f"ip daddr {VIP} tcp dport 80 numgen random mod {len(endpoints) - i} == 0 dnat to {ip}:8080;\n"
                        for i, ip in enumerate(endpoints))
        self.netns.run("nft", "-f", "-", input="table ip demo { chain services { type nat hook prerouting priority dstnat;\n" +
                       rules + "}\n}\n")

    def program(self, name):
        return os.path.join(self.lab.bin_dir, name)

    def start_agent(self):
        self.agent = self.netns.spawn(self.program("ztcni"), "run", log=self.file("ztcni.log"), env=self.env)
        wait_for(f"{self.name}: ztcni (see {self.file('ztcni.log')})", lambda: os.path.exists(self.file("zds.sock")))

    def start_daemon(self):
        self.daemon = self.netns.spawn(self.program("ztunneld"), "proxy", "ztunnel", log=self.log_path(), env=self.env)
        wait_for(f"{self.name}: ztunneld to be ready (see {self.log_path()})", self.is_ready, 20)

    def is_ready(self):
        if self.daemon.poll() is not None:
            raise Trouble(f"{self.name}: ztunneld ended with status {self.daemon.returncode}: {self.log_since(0)[-400:]}")
        return self.netns.run("curl", "-s", "-f", "http://127.0.0.1:15021/healthz/ready", check=False).returncode == 0

    def stop_daemon(self, seconds):
        """SIGTERM, and how it ended: status, seconds taken."""
        started = time.monotonic()
        self.daemon.terminate()
        status = self.daemon.wait(seconds)
        return status, time.monotonic() - started

    def log_path(self):
        return self.file("ztunneld.log")

    def log_size(self):
        return os.path.getsize(self.log_path())

    def log_since(self, offset):
        with open(self.log_path(), "rb") as f:
            f.seek(offset)
            return f.read().decode(errors="replace")

    def log_line(self, offset, *words, seconds=3.0):
        """The first line after offset that holds all words, as soon as it is written; None if it does not come."""
        def look():
            for line in self.log_since(offset).splitlines():
                if all(w in line for w in words):
                    return line
            return None
        return wait_for(None, look, seconds) or None

    def ztctl(self, *args):
        return self.netns.run(self.program("ztctl"), "--socket", self.file("ztunneld.sock"), *args, check=False)

    def ztcni(self, *args, check=True):
        return self.netns.run(self.program("ztcni"), *args, check=check, env={**os.environ, **self.env})


class Capture:
    """tcpdump on the wire between the nodes, from enter to exit."""

    def __init__(self, lab, name):
        self.lab, self.path = lab, lab.file(name + ".pcap")

    def __enter__(self):
        # the port of node2: everything that goes between the nodes passes here once
        self.process = subprocess.Popen(self.lab.fabric.argv("tcpdump", "-i", "node2", "--immediate-mode", "-U", "-w", self.path, "tcp"),
                                        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
        for line in self.process.stderr:
            if "listening on" in line:
                return self
        raise Trouble("tcpdump did not start")

    def __exit__(self, *_):
        time.sleep(0.2)  # the last packets are on their way from the kernel's ring to the file
        self.process.terminate()
        self.process.wait(5)
        self.process.stderr.close()

    def holds(self, text):
        with open(self.path, "rb") as f:
            return text.encode() in f.read()

    def packets(self, *expression):
        return run("tcpdump", "-nn", "-r", self.path, *expression).stdout.splitlines()


class Lab:
    host, vip = HOST, VIP
    wait_for = staticmethod(wait_for)

    def __init__(self, bin_dir, leave_running, source):
        """source(lab) makes what tells the daemons of the mesh: FromFile or FromIstiod."""
        self.bin_dir = bin_dir
        self.suffix = secrets.token_hex(3)
        self.dir = PREFIX + self.suffix
        self.leave_running = leave_running
        self.fabric = Namespace(self.namespace("fabric"))
        self.node1, self.node2 = Node(self, 1), Node(self, 2)
        self.nodes = [self.node1, self.node2]
        self.sleep = Pod(self, "ns1", "sleep", self.node1, "10.201.1.11", "sleep")
        self.notsleep = Pod(self, "ns1", "notsleep", self.node1, "10.201.1.12", "notsleep")
        self.plain = Pod(self, "ns3", "plain", self.node1, "10.201.1.13", "plain")
        self.echo1 = Pod(self, "ns2", "echo-v1", self.node2, "10.201.2.11", "echo", server=True)
        self.echo2 = Pod(self, "ns2", "echo-v2", self.node2, "10.201.2.12", "echo", server=True)
        self.pods = [self.sleep, self.notsleep, self.plain, self.echo1, self.echo2]
        self.in_mesh = [self.sleep, self.notsleep, self.echo1, self.echo2]
        self.policies = ()
        self.service_more = ""  # lines of the service's record
        self.source = source(self)

    def add_envoy_pod(self, name, ip):
        """A pod of node2 that speaks HBONE itself."""
        pod = Pod(self, "ns2", name, self.node2, ip, name)
        pod.enrolled = True  # as the mesh sees it
        self.pods.append(pod)
        return pod

    def namespace(self, name):
        return f"ztdemo-{self.suffix}-{name}"

    def make_namespace(self, name):
        return Namespace(self.namespace(name))

    def file(self, name):
        return os.path.join(self.dir, name)

    # ---- up and down ----

    def start(self):
        os.mkdir(self.dir, 0o755)
        os.environ[MARK] = self.suffix
        with open(self.file("state.json"), "w", encoding="ascii") as f:
            json.dump({"suffix": self.suffix, "leave_running": self.leave_running, "pid": os.getpid(),
                       "started": process_start(os.getpid())}, f)
        self.fabric.create()
        self.fabric.run("ip", "link", "add", "br0", "type", "bridge")
        self.fabric.run("ip", "link", "set", "br0", "up")
        for node in self.nodes:
            node.create()
        self.node1.route(self.node2)
        self.node2.route(self.node1)
        for pod in self.pods:
            pod.create(self)
        for node in self.nodes:
            node.kube_proxy([self.echo1.ip, self.echo2.ip])
        for pod in (self.echo1, self.echo2):
            wait_for(f"{pod.title()} to listen", lambda p=pod: p.netns.run("curl", "-s", "http://127.0.0.1:8080/", check=False).returncode == 0)
        self.source.start()
        for node in self.nodes:
            node.env |= self.source.environment(node)
            node.start_agent()
            node.start_daemon()

    def stop(self):
        take_down(self.suffix)

    def show_logs(self):
        for path in sorted(glob.glob(self.file("node*/*.log"))):
            with open(path, encoding="utf-8", errors="replace") as f:
                tail = f.read().splitlines()[-15:]
            print(f"---- the end of {path}\n" + "\n".join(tail), file=sys.stderr)

    # ---- what the control plane says ----

    def set_policies(self, *names):
        """These policies and no others. Returns where each node's log ended before, and what was said to the API server, if there is one."""
        offsets = {n.name: n.log_size() for n in self.nodes}
        self.policies = names
        return offsets, self.source.publish(names)

    def describe_service(self, lines):
        """Adds lines to the service's record; returns where each node's log ended before."""
        self.service_more = lines
        return self.set_policies(*self.policies)[0]

    # ---- what the CNI plugin would say ----

    def enrol(self, pod):
        done = pod.node.ztcni("add", "--uid", pod.uid, "--namespace", pod.ns, "--name", pod.name, "--service-account", pod.account,
                              "--netns", pod.netns.path)
        pod.enrolled = True
        return done.stdout.strip()

    def enrol_all(self):
        said = [self.enrol(p) for p in self.in_mesh]
        self.source.publish(self.policies)
        return said

    def un_enrol(self, pod):
        pod.enrolled = False
        self.source.publish(self.policies)  # the others learn first: they dial it in plain from now on, and it takes that still
        return pod.node.ztcni("remove", pod.uid).stdout.strip()

    def what_to_type_next(self):
        enter = f"nsenter --net=/run/netns/ztdemo-{self.suffix}-"
        url = f"--resolve {HOST}:80:{VIP} http://{HOST}/"
        return f"""
It runs. Pods ns1/sleep and ns1/notsleep on node1, ns2/echo-v1 and ns2/echo-v2 on node2; ns3/plain (node1) is outside the mesh.
Everything is in {self.dir}: mesh.yaml (edit it: it is watched), node1/, node2/ (logs, pods.yaml), ca/.

  a request from a pod     {enter}sleep curl {url}
  a shell in a pod         {enter}sleep bash
  the wire between nodes   {enter}fabric tcpdump -i node2 -nn -A tcp
  the pods of a node       ZTCNI_CTL={self.dir}/node1/ztcni.sock {self.bin_dir}/ztcni list
  are the rules right      ZTCNI_CTL={self.dir}/node1/ztcni.sock {self.bin_dir}/ztcni check
  what a daemon knows      {enter}node1 curl http://localhost:15000/config_dump
  status                   {self.bin_dir}/ztctl --socket {self.dir}/node1/ztunneld.sock status
  explain a connection     {self.bin_dir}/ztctl --socket {self.dir}/node1/ztunneld.sock explain ns1/sleep {VIP}:80
  metrics                  {enter}node1 curl http://localhost:15020/metrics
  access log               tail -f {self.dir}/node1/ztunneld.log {self.dir}/node2/ztunneld.log
  end it                   deploy/demo down
"""


# ---- taking down: by the suffix alone, so that it also works for a copy that was killed ----


def process_start(pid):
    """When the kernel started it, in clock ticks; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[19]
    except OSError:
        return None


def pids_of(suffix, namespaces):
    """Whatever is in our namespaces, and what we started, should somebody have unmounted those meanwhile."""
    pids = set()
    for name in namespaces:
        pids |= {int(p) for p in run("ip", "netns", "pids", name, check=False).stdout.split()}
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as f:
                if f"{MARK}={suffix}".encode() in f.read().split(b"\0"):
                    pids.add(int(path.split("/")[2]))
        except OSError:
            pass  # it has ended, or is none of ours
    return pids - {os.getpid()}


def signal_all(pids, number):
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass


def take_down(suffix):
    namespaces = [os.path.basename(p) for p in glob.glob(f"/run/netns/ztdemo-{suffix}-*")]
    # stop at once: the story is told, and a drain would wait for transfers that nobody reads any more
    for _ in range(50):
        pids = pids_of(suffix, namespaces)
        if not pids:
            break
        signal_all(pids, 9)
        time.sleep(0.05)
    for name in namespaces:
        run("ip", "netns", "del", name, check=False)
    shutil.rmtree(PREFIX + suffix, ignore_errors=True)


def take_down_all():
    """What `up` left, and what a killed story left; not the stories that are being told."""
    n = 0
    for path in glob.glob(PREFIX + "*/state.json"):
        with open(path, encoding="ascii") as f:
            state = json.load(f)
        alive = process_start(state["pid"]) == state["started"]
        if alive:
            continue
        take_down(state["suffix"])
        print(f"ended {state['suffix']}")
        n += 1
    if not n:
        print("nothing is running")
