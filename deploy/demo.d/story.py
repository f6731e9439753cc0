"""The six steps. Each prints what was done, the evidence, and whether it passed."""
import time

from from_file import STRICT
from lab import DRAIN_S, HOST, Capture, wait_for

RESET_BY_PEER = 56  # curl: failure in receiving network data
URL = f"http://{HOST}/"


class Report:
    def __init__(self):
        self.n_passed = self.n_failed = 0
        self.started = time.monotonic()

    def step(self, number, title):
        print(f"\n== {number}. {title}", flush=True)

    def note(self, text):
        print(f"     {text}", flush=True)

    def evidence(self, text):
        for line in (text or "(nothing)").splitlines():
            print(f"       | {line[:400]}", flush=True)

    def check(self, what, passed, evidence=None):
        if passed:
            self.n_passed += 1
        else:
            self.n_failed += 1
        print(f"  {'PASS' if passed else 'FAIL'} {what}", flush=True)
        if evidence is not None:
            self.evidence(str(evidence))
        return passed

    def close(self):
        print(f"\n{self.n_passed} passed, {self.n_failed} failed, {time.monotonic() - self.started:.0f} s", flush=True)
        return self.n_failed == 0


def set_policies(lab, r, *names):
    """Returns where each node's log ended before."""
    offsets, said = lab.set_policies(*names)
    for line in said:
        r.note("istiod's API server: " + line)
    return offsets


def tell(lab):
    r = Report()
    nothing_captured(lab, r)
    enrolled(lab, r)
    denied(lab, r)
    allowed(lab, r)
    strict(lab, r)
    leaving(lab, r)
    draining(lab, r)
    if hasattr(lab.source, "unsynced"):
        synced(lab, r)
    return r.close()


def command_of(pod, url=URL):
    return f"{pod.title()}$ curl {url}"


def say(done):
    return done.stdout.strip() or f"curl exit {done.returncode}: {done.stderr.strip()}"


def short(line):
    """A log line without its time, fit for a page."""
    return "\t".join(line.split("\t")[1:]).replace("\t", "  ") if line else "(no such line)"


def both_answer(pod, n=20):
    """How many of n requests each endpoint answered."""
    answers = [pod.curl().stdout for _ in range(n)]
    return {name: sum(f"hello from {name}," in a for a in answers) for name in ("echo-v1", "echo-v2")}


def nothing_captured(lab, r):
    r.step(1, "Nothing is captured: plain TCP")
    with Capture(lab, "step1") as wire:
        done = lab.sleep.curl(URL + "secret-of-step-1")
    r.note(command_of(lab.sleep, URL + "secret-of-step-1"))
    r.check("the request is answered", done.returncode == 0, say(done))
    seen = [p for p in wire.packets("-A") if "secret-of-step-1" in p]
    r.check("tcpdump between the nodes shows its text", wire.holds("GET /secret-of-step-1"), seen[0] if seen else "")


def enrolled(lab, r):
    r.step(2, "Pods enrolled: no restart, no change to the applications")
    for line in lab.enrol_all():
        r.note("ztcni add: " + line)
    for node in lab.nodes:
        done = node.ztcni("check", check=False)
        r.check(f"ztcni check on {node.name}: the rules are as they should be", done.returncode == 0, done.stdout.strip() + done.stderr.strip())
    offsets = {n.name: n.log_size() for n in lab.nodes}
    with Capture(lab, "step2") as wire:
        done = lab.sleep.curl(URL + "secret-of-step-2")
        counts = both_answer(lab.sleep)
    r.note(command_of(lab.sleep, URL + "secret-of-step-2"))
    r.check("the same request is answered", done.returncode == 0 and "/secret-of-step-2" in done.stdout, say(done))
    r.check("the server sees the client's own address", f"you are {lab.sleep.ip}," in done.stdout)
    named = lab.sleep.curl_by_name("http://echo.ns2/by-name")
    r.note("sleep$ curl http://echo.ns2/by-name     (nameserver 10.96.0.10, where nobody is)")
    r.check("echo.ns2 is resolved by the proxy, from the state", named.returncode == 0 and "/by-name" in named.stdout, say(named))
    r.check("its text is nowhere on the wire, nor the answer's", not wire.holds("secret-of-step-2") and not wire.holds("hello from"))
    other = wire.packets("not port 15008 and not port 15012")  # 15012: node2 and istiod, which is no node, if there is one
    tls = wire.packets("tcp port 15008 and greater 100")
    r.check("only TLS on 15008 goes between the nodes", not other and tls, "\n".join((other or tls)[:3]))
    r.check("both endpoints answer over 20 requests", sum(counts.values()) == 20 and all(counts.values()), counts)
    for node, direction in ((lab.node1, "outbound"), (lab.node2, "inbound")):
        line = node.log_line(offsets[node.name], "connection complete", f'src.identity="{lab.sleep.identity()}"',
                             f'dst.identity="{lab.echo1.identity()}"', f'direction="{direction}"')
        r.check(f"the access log of {node.name} names both identities", line is not None, short(line))


def denied(lab, r):
    r.step(3, "Deny all of ns2: an Allow policy with no rules, as Istio sends it")
    out = lab.file("transfer")
    transfer = lab.sleep.curl_in_background(URL + "slow?200", out)
    wait_for("the transfer to begin", lambda: "line 2" in open(out, encoding="ascii").read())
    offsets = set_policies(lab, r, "allow-nothing")
    begun = time.monotonic()
    done = lab.sleep.curl()
    r.note(command_of(lab.sleep))
    r.check(f"a new request fails with curl exit {RESET_BY_PEER}", done.returncode == RESET_BY_PEER, say(done))
    ended = wait_for(None, lambda: transfer.poll() is not None, 5)
    text = transfer.stderr.read() if ended else ""
    lines = open(out, encoding="ascii").read().splitlines()
    r.check("the transfer that was under way is cut", ended and transfer.returncode not in (0, 28),
            f"after {len(lines)} of 200 lines, {time.monotonic() - begun:.1f} s after the change: curl exit {transfer.returncode}: {text.strip()}")
    if not ended:
        transfer.kill()
    line = lab.node2.log_line(offsets["node2"], "access", "policy rejection: allow policies exist, but none allowed")
    r.check("the server's log says that allow policies exist and none matched", line is not None, short(line))
    line = lab.node2.log_line(offsets["node2"], "no allow policies matched")
    r.check("with AUTHZ_POLICY_INFO_LOGGING=true so does the decision's own line", line is not None, short(line))
    line = lab.node2.log_line(offsets["node2"], "access", "connection closed due to policy change")
    r.check("and the cut transfer is logged as a policy change", line is not None, short(line))


def allowed(lab, r):
    r.step(4, "A second policy allows cluster.local/ns/ns1/sa/sleep")
    offsets = set_policies(lab, r, "allow-nothing", "allow-sleep")
    done = lab.sleep.curl()
    r.note(command_of(lab.sleep))
    r.check("sleep gets its answer", done.returncode == 0 and "hello from" in done.stdout, say(done))
    done = lab.notsleep.curl()
    r.note(command_of(lab.notsleep))
    r.check("notsleep does not", done.returncode == RESET_BY_PEER, say(done))
    line = lab.node2.log_line(offsets["node2"], "allow policy match", "ns2/allow-sleep")
    r.check("the log says which policy let sleep in", line is not None, short(line))
    line = lab.node2.log_line(offsets["node2"], "access", lab.notsleep.identity(), "none allowed")
    r.check("and that none matched notsleep", line is not None, short(line))


def strict(lab, r):
    r.step(5, "Strict mode for the pods of ns2, as istiod sends it (" + STRICT + ")")
    offsets = set_policies(lab, r, "strict")
    done = lab.plain.curl()
    r.note(command_of(lab.plain))
    r.check("plain, outside the mesh, is refused", done.returncode == RESET_BY_PEER, say(done))
    line = lab.node2.log_line(offsets["node2"], "access", "explicitly denied by: " + STRICT)
    r.check("the log names the policy", line is not None, short(line))
    for pod in (lab.sleep, lab.notsleep):
        done = pod.curl()
        r.note(command_of(pod))
        r.check(f"{pod.name}, of the mesh, is not", done.returncode == 0, say(done))
    set_policies(lab, r)
    done = lab.plain.curl()
    r.note("permissive again; " + command_of(lab.plain))
    r.check("plain gets its answer", done.returncode == 0 and "hello from" in done.stdout, say(done))


class Requests:
    """Requests one after the other while something happens."""

    def __init__(self, pod, url):
        self.pod, self.url, self.failures, self.n = pod, url, [], 0

    def once(self):
        done = self.pod.curl(self.url)
        self.n += 1
        if done.returncode != 0:
            self.failures.append(say(done))

    def __enter__(self):
        import threading
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.work, daemon=True)
        self.thread.start()
        return self

    def work(self):
        while not self.end.is_set():
            self.once()

    def __exit__(self, *_):
        self.end.set()
        self.thread.join(30)


def leaving(lab, r):
    r.step(6, "A pod leaves while the others keep working; a daemon drains and comes back")
    # to the pod that stays: what is open to one that leaves ends with it
    with Requests(lab.sleep, f"http://{lab.echo1.ip}:8080/") as requests:
        time.sleep(0.5)
        said = lab.un_enrol(lab.echo2)
        time.sleep(0.5)
    r.note("ztcni remove: " + said)
    r.check("not one request to echo-v1 failed meanwhile", requests.n > 5 and not requests.failures,
            f"{requests.n} requests, {len(requests.failures)} failed {' '.join(requests.failures[:3])}")
    left = lab.echo2.netns.run("nft", "list", "ruleset").stdout.strip() + lab.echo2.netns.run("ip", "rule", "show", "pref", "32764").stdout
    r.check("echo-v2's namespace is as it was before", left == "", left or "no rules, no policy route")
    counts = both_answer(lab.sleep)
    r.check("both endpoints still answer", sum(counts.values()) == 20 and all(counts.values()), counts)


def draining(lab, r):
    node, out = lab.node2, lab.file("drained")
    # to the pod's own address: the endpoint that is still in the mesh
    transfer = lab.sleep.curl_in_background(f"http://{lab.echo1.ip}:8080/slow?25", out)
    wait_for("the transfer to begin", lambda: "line 2" in open(out, encoding="ascii").read())
    offset = node.log_size()
    status, seconds = node.stop_daemon(DRAIN_S + 10)
    ended = wait_for(None, lambda: transfer.poll() is not None, 5)
    lines = open(out, encoding="ascii").read().splitlines()
    r.note("node2: SIGTERM to ztunneld with a transfer of 5 s open")
    r.check("the transfer ends whole", ended and transfer.returncode == 0 and lines[-1:] == ["end"], f"{len(lines)} lines, curl exit {transfer.returncode}")
    if not ended:
        transfer.kill()
    transfer.stderr.close()
    r.check("then the daemon ends by itself, within its deadline, with status 0", status == 0 and 1.0 < seconds < DRAIN_S,
            f"status {status} after {seconds:.1f} s; deadline {DRAIN_S} s\n" +
            "\n".join(short(line) for line in node.log_since(offset).splitlines() if "access" not in line)[:1500])
    node.start_daemon()
    done = lab.sleep.curl(f"http://{lab.echo1.ip}:8080/")
    # an Add waits for the agent to hear the new daemon; it is ready when it has the whole list
    r.check("restarted, it has its pods again, and traffic goes on", done.returncode == 0, say(done))
    counts = both_answer(lab.sleep)
    r.check("by the service's address too", sum(counts.values()) == 20 and all(counts.values()), counts)


def synced(lab, r):
    r.step(7, "What istiod shows of its clients, as istioctl proxy-status reads it")
    why = wait_for(None, lambda: lab.source.unsynced() == "", 15)
    r.check("WDS and WADS of both daemons are synced", why, lab.source.states() if why else lab.source.unsynced())
