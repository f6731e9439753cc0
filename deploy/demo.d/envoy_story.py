"""The stories with a real Envoy: as waypoint, and as gateway between networks and into the mesh."""
import json

import envoy
from lab import HOST, VIP, Capture, Trouble, wait_for
from story import RESET_BY_PEER, URL, Report, both_answer, command_of, say, short

FAR = "far"  # the network of node2, where a story has two


class Envoy:
    """An Envoy in a pod that the mesh lists as HBONE and that nobody enrols; its certificate comes from ztctl."""

    def __init__(self, lab, pod, make, port=envoy.HBONE):
        cert, path = lab.file(pod.name + "-cert"), lab.file(pod.name + ".json")
        done = pod.node.ztctl("ca", "issue", pod.identity(), cert)
        if done.returncode:
            raise Trouble(f"ztctl ca issue: {done.stderr.strip()}")
        with open(path, "w", encoding="ascii") as f:
            json.dump(make(cert), f, indent=1)
        self.log = lab.file(pod.name + ".log")
        self.process = pod.netns.spawn(*envoy.command(lab.envoy, path), log=self.log)
        wait_for(f"Envoy in {pod.title()} (see {self.log})", lambda: self.listens(pod, port), 30)

    def listens(self, pod, port):
        if self.process.poll() is not None:
            raise Trouble(f"Envoy ended with status {self.process.returncode}: {open(self.log, errors='replace').read()[-400:]}")
        return f":{port} " in pod.netns.run("ss", "-Hltn").stdout

    def kill(self):
        self.process.kill()
        self.process.wait()


def backends(lab, *weights):
    return {p.name: (p.ip, f"{p.ip}:8080", w) for p, w in zip((lab.echo1, lab.echo2), weights)}


def explained(lab):
    done = lab.node1.ztctl("explain", lab.sleep.title(), f"{VIP}:80")
    return done.stdout.strip()


# ---- deploy/demo --waypoint ----

def waypoint(lab):
    r = Report()
    lab.enrol_all()
    r.step(1, "Without a waypoint: the client's node leads each connection to an endpoint")
    counts = both_answer(lab.sleep)
    r.check("both endpoints answer over 20 requests", sum(counts.values()) == 20 and all(counts.values()), counts)
    through_waypoint(lab, r)
    get_and_post(lab, r)
    split(lab, r)
    admitted(lab, r)
    closed(lab, r)
    return r.close()


def through_waypoint(lab, r):
    r.step(2, "The service gets a waypoint, and its pod runs Envoy")
    lab.running = Envoy(lab, lab.proxy, lambda cert: envoy.waypoint(cert, backends(lab, 90, 10)))
    offsets = lab.describe_service(f'  waypoint: {{destination: "/{lab.proxy.ip}", hboneMtlsPort: 15008}}\n')
    r.note("mesh.yaml: waypoint " + lab.proxy.ip)
    with Capture(lab, "waypoint") as wire:
        done = lab.sleep.curl(URL + "secret-of-the-waypoint")
    r.note(command_of(lab.sleep, URL + "secret-of-the-waypoint"))
    r.check("the request is answered, and the server sees the waypoint", done.returncode == 0 and f"you are {lab.proxy.ip}," in done.stdout,
            say(done))
    line = lab.node1.log_line(offsets["node1"], "connection complete", 'dst.workload="proxy"', f"dst.hbone_addr={VIP}:80")
    r.check("the client's log names the waypoint, and the service's own address as what was asked of it", line is not None, short(line))
    line = lab.node2.log_line(offsets["node2"], "connection opened", f'src.identity="{lab.proxy.identity()}"')
    r.check("the server's log names the waypoint's identity", line is not None, short(line))
    r.check("no text is on the wire", not wire.holds("secret-of-the-waypoint") and not wire.packets("not port 15008"))
    r.check("ztctl explain says so too", "waypoint" in explained(lab), explained(lab))


def get_and_post(lab, r):
    r.step(3, "Envoy's own policy looks at the HTTP inside: GET is allowed, POST is not")
    got = lab.sleep.curl(URL, "-o", "/dev/null", "-w", "%{http_code}")
    r.check("GET is answered with 200", got.stdout == "200", say(got))
    posted = lab.sleep.curl(URL, "-d", "x", "-w", " %{http_code}")
    r.check("POST with 403", posted.stdout.endswith(" 403"), say(posted))


def split(lab, r):
    r.step(4, "Envoy splits the service's traffic 90 to 10")
    counts = both_answer(lab.sleep, 200)
    r.check("of 200 requests, about 20 went to echo-v2", sum(counts.values()) == 200 and 3 <= counts["echo-v2"] <= 50, counts)


def admitted(lab, r):
    r.step(5, "The endpoints take connections from the waypoint only")
    offsets, _ = lab.set_policies("only-the-waypoint")
    done = wait_for(None, lambda: (lambda d: d if "hello from" in d.stdout else None)(lab.sleep.curl()), 5)
    r.check("by the service's address, through the waypoint, an answer comes", bool(done), say(done) if done else "")
    direct = lab.sleep.curl(f"http://{lab.echo1.ip}:8080/")
    r.check("past it, by a pod's address, none does", direct.returncode == RESET_BY_PEER, say(direct))
    line = lab.node2.log_line(offsets["node2"], "access", lab.sleep.identity(), "none allowed")
    r.check("the server's log says why", line is not None, short(line))
    lab.set_policies()


def closed(lab, r):
    r.step(6, "The waypoint dies: nothing goes past it")
    lab.running.kill()
    offset = lab.node1.log_size()
    done = lab.sleep.curl()
    r.check(f"a request fails with curl exit {RESET_BY_PEER}", done.returncode == RESET_BY_PEER, say(done))
    line = lab.node1.log_line(offset, "connection complete", 'dst.workload="proxy"', "error=")
    r.check("the log says what could not be reached", line is not None, short(line))
    lab.running = Envoy(lab, lab.proxy, lambda cert: envoy.waypoint(cert, backends(lab, 90, 10)))
    counts = both_answer(lab.sleep)
    r.check("it comes back, and not one of 20 requests is lost", sum(counts.values()) == 20, counts)


# ---- deploy/demo --gateway ----

def gateway(lab):
    r = Report()
    lab.enrol_all()
    r.step(1, f'node2 is another network ("{FAR}"), and no way leads there')
    offset = lab.node1.log_size()
    done = lab.sleep.curl()
    r.note(command_of(lab.sleep))
    r.check(f"a request fails with curl exit {RESET_BY_PEER}", done.returncode == RESET_BY_PEER, say(done))
    line = lab.node1.log_line(offset, "connection failed", "no valid routing destination")
    r.check("the log says why", line is not None, short(line))
    between_networks(lab, r)
    into_the_mesh(lab, r)
    return r.close()


def between_networks(lab, r):
    r.step(2, "Envoy as the network's gateway: a tunnel in a tunnel")
    Envoy(lab, lab.proxy, lambda cert: envoy.network_gateway(cert, [lab.echo1.ip, lab.echo2.ip]))
    for pod in (lab.echo1, lab.echo2):
        pod.record_more = f'  networkGateway: {{destination: "{FAR}/{lab.proxy.ip}", hboneMtlsPort: 15008}}\n'
    offsets = lab.describe_service(f'  subjectAltNames: ["{lab.echo1.identity()}"]\n')
    r.note(f"mesh.yaml: networkGateway {FAR}/{lab.proxy.ip}; the service names its endpoints' identity")
    with Capture(lab, "gateway") as wire:
        counts = both_answer(lab.sleep, 100)
    r.check("over 100 requests both endpoints answer", sum(counts.values()) == 100 and min(counts.values()) >= 25, counts)
    elsewhere = wire.packets(f"not (port 15008 and host {lab.proxy.ip})")
    r.check("between the nodes there is TLS to the gateway and nothing else", not elsewhere and not wire.holds("hello from"),
            "\n".join(elsewhere[:3]))
    line = lab.node1.log_line(offsets["node1"], "connection complete", f"dst.addr={lab.proxy.ip}:15008", f"dst.hbone_addr={HOST}:80",
                              f'dst.identity="{lab.echo1.identity()}"')
    r.check("the client's log names the endpoint behind the gateway, by the inner certificate", line is not None, short(line))
    line = lab.node2.log_line(offsets["node2"], "connection complete", 'direction="inbound"', f'src.identity="{lab.sleep.identity()}"')
    r.check("the server's log names the client behind it, not the gateway", line is not None, short(line))
    tunnels = sum(pod["tunnelsOut"] for pod in json.loads(lab.node1.ztctl("-o", "json", "status").stdout)["pods"])
    r.check("100 connections took one outer tunnel and at most eight inner ones", 2 <= tunnels <= 9, f"{tunnels} tunnels out of node1")


def into_the_mesh(lab, r):
    r.step(3, "Envoy as ingress gateway: plain HTTP in, tunnels with the gateway's identity out")
    Envoy(lab, lab.ingress, lambda cert: envoy.ingress_gateway(cert, 8000, backends(lab, 1, 1)), 8000)
    offsets, _ = lab.set_policies("only-the-ingress")
    url = f"http://{lab.ingress.ip}:8000/"
    done = lab.plain.curl(url)
    r.note(command_of(lab.plain, url))
    r.check("plain, outside the mesh, is answered through the gateway", "hello from" in done.stdout, say(done))
    line = lab.node2.log_line(offsets["node2"], "connection opened", f'src.identity="{lab.ingress.identity()}"')
    r.check("the server's log names the gateway's identity", line is not None, short(line))
    line = lab.node2.log_line(offsets["node2"], "allow policy match", "ns2/only-the-ingress")
    r.check("and the policy that let it in", line is not None, short(line))
    done = lab.sleep.curl()
    r.check("sleep, whom the policy does not name, gets no answer", done.returncode == RESET_BY_PEER, say(done))


def prepare(lab, verb, binary):
    """What a story's lab has more than the plain one."""
    lab.envoy = binary
    lab.tell = {"--waypoint": waypoint, "--gateway": gateway}[verb]
    lab.proxy = lab.add_envoy_pod("proxy", "10.201.2.13")
    if verb == "--gateway":
        lab.ingress = lab.add_envoy_pod("ingress", "10.201.2.14")
        lab.node2.env["NETWORK"] = FAR
        for pod in lab.pods:
            if pod.node is lab.node2:
                pod.network = FAR
    for node in lab.nodes:
        node.env["RUST_LOG"] = "info,access=debug"


def tell(lab):
    return lab.tell(lab)
