"""The rules that ztcni makes, by each of its back ends, seen from the wire; and ztcni killed, changed, and told to keep away."""
import os
import pathlib
import subprocess
import threading

import pytest

from testenv import Namespace, eventually
from testenv.daemon import SLOW
from testenv.dns import Upstream
from testenv.netns import tell_peer
from testenv.walks import *  # noqa: F401,F403
from testenv.walks import FAMILIES, NAMES, DnsStub, ask_tcp, ask_udp, established, fmt, is_reset, not_proxied, proxied
from testenv.ztcni import BACKENDS, Ztcni

LONG = 60 * SLOW  # a daemon that found no agent waits up to 15 s before it looks again


def new_node(world):
    node = world.node()
    world.client, world.server, world.outside = node.pod("client"), node.pod("server"), node.pod("outside", protocol="TCP")
    world.service("self", [world.server], ["10.96.0.9", "fd00:96::9"], ports={81: 8081})
    world.write()
    return node


@pytest.fixture(params=BACKENDS)
def agent(world, request):
    """agent(options...) starts ztcni and the daemon; it is world.agent then. names: the daemon answers DNS, with these behind it."""
    started = []

    def start(*options, names=None):
        node = new_node(world)
        if names:
            node.resolv_conf(node.address)
            world.upstream = Upstream(node.netns, node.address, names)
            started.append(world.upstream)
        node.zds = world.agent = Ztcni(node, "--backend", request.param, *options)
        started.append(world.agent)
        world.daemon = node.start(enrol=False)
        world.server.echo(8080)
        return world
    yield start
    for a in started:
        a.close()


def enroller(world):
    def enrol(pod, *options):
        assert world.agent.add(pod, *options) == ""

    def unenrol(pod):
        assert world.agent.remove(pod) == ""
    world.enrol, world.unenrol = enrol, unenrol
    return world


@pytest.fixture
def capture(agent):
    return enroller(agent())


@pytest.fixture
def capture_dns(agent):
    world = enroller(agent("--dns-capture", "true"))
    world.enrol(world.server)
    return world


@pytest.fixture
def capture_names(agent):
    return enroller(agent(names=NAMES))


def test_corner_2_established_connections_survive_when_asked_for(agent):
    world = enroller(agent("--keep-established", "true"))
    with established(world) as made:
        world.enrol(world.server)
        assert [is_reset(s) for s in made] == [False] * 4
    for address in (world.server.ip, world.server.ip6):
        assert proxied(world, lambda a=address: world.outside.request(a, 8080), direction="inbound") == b"hello world" * 2


# ---- one pod otherwise than the rest (§4.3) ----

def test_pod_that_bypasses_inbound_capture(capture):
    """Plaintext goes to the application; 15008 and what it sends itself are served as ever."""
    world = capture
    world.enrol(world.client)
    world.enrol(world.server, "--bypass-inbound-capture", "true")
    world.server.serve(7000, tell_peer)
    world.client.echo(8080)
    for ip in FAMILIES:
        server, client = getattr(world.server, ip), getattr(world.client, ip)
        assert world.outside.request(server, 7000, b"").split()[0].decode() == getattr(world.outside, ip)
        assert proxied(world, lambda: world.client.request(server, 8080), direction="inbound") == b"hello world" * 2
        assert proxied(world, lambda: world.server.request(client, 8080), direction="outbound") == b"hello world" * 2
        assert not world.daemon.lines("connection complete", dst__addr=f"{fmt(server)}:7000")


@pytest.mark.parametrize("everyone", ["true", "false"])
def test_pod_with_dns_capture_of_its_own(agent, everyone):
    world = enroller(agent("--dns-capture", everyone))
    world.enrol(world.client)
    world.enrol(world.server, "--dns-capture", "F" if everyone == "true" else "T")
    for pod, captured in ((world.client, everyone == "true"), (world.server, everyone != "true")):
        stub = DnsStub(pod)
        for address in (world.outside.ip, world.outside.ip6):
            ask_udp(pod, address)
            ask_tcp(pod, address)
            assert (stub.asked_by_udp(), stub.asked_by_tcp()) == (captured, captured)
        stub.close()
    assert world.agent.check()[0] == 0


def test_pod_whose_virtual_interface_is_egress(capture):
    """What comes in on it, as from a virtual machine, goes out like the pod's own."""
    world = capture
    pod, machine = world.server, Namespace(world.prefix + "-vm")
    try:
        machine.ip(f"link add eth0 type veth peer name vnet0 netns {pod.netns.name}", "addr add 192.168.7.2/24 dev eth0", "link set eth0 up",
                   "route add default via 192.168.7.1")
        pod.netns.ip("addr add 192.168.7.1/24 dev vnet0", "link set vnet0 up")
        world.enrol(pod, "--reroute-virtual-interfaces", "none, vnet0")
        world.outside.echo(7001)

        def call():
            with machine.socket() as s, machine.inside():
                s.settimeout(10 * SLOW)
                s.connect((world.outside.ip, 7001))
                s.sendall(b"hello")
                return s.recv(100)
        assert proxied(world, call, direction="outbound", dst__addr=f"{world.outside.ip}:7001") == b"hello" * 2
    finally:
        machine.close()


# ---- killed, changed, mistaken ----

STEPS_MS = (0, 5, 15, 30, 60, 100, 150, 250)


def test_ztcni_killed_at_any_point_is_repaired_by_its_next_start(capture):
    """Each pod is as the file wants it afterwards, and nothing is left where it wants none."""
    world = capture
    agent, pods = world.agent, (world.client, world.server)
    wanted = set()
    for n, ms in enumerate(STEPS_MS):
        pod = pods[n % 2]
        words = ("remove", pod.zds_uid) if pod in wanted else ("add", "--uid", pod.zds_uid, "--namespace", pod.namespace, "--name", pod.name,
                                                              "--service-account", pod.sa, "--netns", pod.netns.path)
        killer = threading.Timer(ms / 1000, agent.process.kill)
        killer.start()
        agent.ask(*words)
        killer.join()
        agent.process.wait()
        listed = pathlib.Path(agent.pods).read_text() if os.path.exists(agent.pods) else ""
        wanted = {p for p in pods if p.zds_uid in listed}  # it may not have come so far as to change the file
        agent.start()
        for p in pods:
            if p in wanted:
                eventually(lambda p=p: agent.check(p)[0] == 0, f"{p.name} being as wanted: {agent.check(p)}", LONG)
            else:
                eventually(lambda p=p: rules_left(p) == "", f"nothing left in {p.name}", LONG)
    for p in pods:
        p.enrolled = p in wanted


def rules_left(pod):
    """What speaks of ours in a namespace, in whatever back end."""
    said = pod.netns.run("nft", "list", "ruleset", check=False) + pod.netns.run("iptables-legacy-save") + pod.netns.run("ip6tables-legacy-save")
    said += pod.netns.run("ip", "rule") + pod.netns.run("ip", "-6", "rule")
    return "".join(line for line in said.splitlines() if "ZT_" in line or "ztunneld" in line or "32764" in line)


def test_ztcni_started_with_another_back_end_leaves_nothing_of_the_first(capture):
    world = capture
    agent = world.agent
    world.enrol(world.server)
    for backend in [b for b in BACKENDS if b not in agent.options] + [agent.options[1]]:
        agent.close()
        agent.options = ("--backend", backend)
        agent.start()
        eventually(lambda: agent.check()[0] == 0, "the rules of the other back end", LONG)
        kinds = {"nft": "table inet ztunneld" in world.server.netns.run("nft", "list", "tables"),
                 "iptables-nft": "ZT_" in world.server.netns.run("iptables-nft-save"),
                 "iptables-legacy": "ZT_" in world.server.netns.run("iptables-legacy-save")}
        assert kinds == {b: b == backend for b in BACKENDS}
    assert proxied(world, lambda: world.outside.request(world.server.ip, 8080), direction="inbound") == b"hello world" * 2


def test_ztcni_check_says_what_somebody_changed_and_a_restart_repairs_it(capture):
    world = capture
    agent = world.agent
    world.enrol(world.client)
    world.enrol(world.server)
    assert agent.check()[0] == 0
    damage = {"nft": ["nft delete chain inet ztunneld nat_out"], "iptables-nft": ["iptables-nft -t nat -D OUTPUT -j ZT_OUT"],
              "iptables-legacy": ["ip6tables-legacy -t nat -F ZT_OUT", "iptables-legacy -t nat -A OUTPUT -j ZT_OUT"]}[agent.options[1]]
    for command in damage:
        world.server.netns.run(*command.split())
    code, said = agent.check()
    assert code == 1 and "default/server" in said and ("ZT_OUT" in said or "nat_out" in said)
    assert [line for line in said.splitlines() if "default/client" in line][0].split()[1] == "ok"  # nothing else is disturbed
    world.client.netns.ip("rule del pref 32764")
    code, said = agent.check(world.client)
    assert code == 1 and "32764" in said
    agent.kill()
    agent.start()
    eventually(lambda: agent.check()[0] == 0, "both as they should be", LONG)


def test_ztcni_goes_on_when_its_file_has_mistakes(capture):
    """The mistake is named with its line; what was read before stays in force."""
    world = capture
    world.enrol(world.server)
    with open(world.agent.pods) as f:
        good = f.read()
    for bad, words in ((good + "- uid: u2\n  namespace: default\n", "missing key `name`"), (good.replace("netns", "nets"), "unknown key"),
                       (good + good.split("pods:\n")[1], "is there already"), (good + "  dnsCapture: perhaps\n", "neither true nor false"),
                       ("", "the file is empty")):
        with open(world.agent.pods, "w") as f:
            f.write(bad)
        eventually(lambda w=words: w in world.agent.log(), words, LONG)
        assert world.agent.check()[0] == 0
    assert "pods.yaml:" in world.agent.log()
    with open(world.agent.pods, "w") as f:
        f.write(good)
    assert proxied(world, lambda: world.outside.request(world.server.ip, 8080), direction="inbound") == b"hello world" * 2


# ---- probes (§4.4) ----

PROBER = 64536
PROBE = "import socket, sys; s = socket.create_connection((sys.argv[1], 7000), 10); print(s.recv(100).decode().split()[0])"
PROBE_SOURCES = {"ip": "169.254.7.127", "ip6": "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"}


def probe(world, uid, address):
    """Who the application sees when that user of the node connects to it."""
    return world.nodes[0].netns.run("setpriv", f"--reuid={uid}", "--clear-groups", "/usr/bin/python3", "-c", PROBE, address).strip()


def node_rules(world):
    return world.nodes[0].netns.run("nft", "list", "table", "inet", "ztunneld-host", check=False)


def test_probes_reach_the_application_and_nobody_else_on_the_node_does(agent):
    world = enroller(agent("--probes", str(PROBER)))
    world.enrol(world.client)
    world.enrol(world.server)
    world.server.serve(7000, tell_peer)
    eventually(lambda: world.server.ip in node_rules(world) and world.server.ip6 in node_rules(world))
    for ip in FAMILIES:
        address = getattr(world.server, ip)
        assert not_proxied(world, lambda: probe(world, PROBER, address)) == PROBE_SOURCES[ip]
        assert proxied(world, lambda: probe(world, PROBER + 1, address), direction="inbound") != PROBE_SOURCES[ip]
    assert world.agent.check()[0] == 0
    world.unenrol(world.client)
    eventually(lambda: world.client.ip not in node_rules(world) and world.server.ip in node_rules(world))


def test_probes_rules_of_the_node_are_checked_and_repaired(agent):
    world = enroller(agent("--probes", str(PROBER)))
    world.enrol(world.server)
    eventually(lambda: world.agent.check()[0] == 0)
    world.nodes[0].netns.run("nft", "flush", "chain", "inet", "ztunneld-host", "postrouting")
    code, said = world.agent.check()
    assert code == 1 and "the node's rules for probes" in said and "skuid" in said
    world.agent.kill()
    world.agent.start()
    eventually(lambda: world.agent.check()[0] == 0, "the node's rules", LONG)
    world.agent.close()
    world.agent.options += ("--probes", "off")
    world.agent.start()
    eventually(lambda: "ztunneld-host" not in world.nodes[0].netns.run("nft", "list", "tables"))


def test_probes_follow_a_kubelet_that_is_there(agent):
    """Told by its name; where there is none, nobody on the node goes past the mesh. A pod's process may have that name and a lower number."""
    named = "import ctypes, os; ctypes.CDLL(None).prctl(15, b'{}'); os.setuid({}); print(flush=True); input()"

    def start(name, uid, *prefix):
        process = subprocess.Popen([*prefix, "/usr/bin/python3", "-c", named.format(name, uid), "kubelet"], cwd="/", stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        process.stdout.readline()
        return process
    impostor = start("k3s", PROBER + 1, "unshare", "--pid", "--fork", "--kill-child")
    kubelet = start("kubelet", PROBER)
    try:
        world = enroller(agent())
        world.enrol(world.server)
        eventually(lambda: f"skuid {PROBER} " in node_rules(world) and world.server.ip in node_rules(world))
    finally:
        kubelet.communicate(b"\n")
        impostor.communicate(b"\n")
