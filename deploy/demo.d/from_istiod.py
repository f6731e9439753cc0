"""What the daemons know of the mesh, from Istio's own control plane (tests/interop/istiod), as on a cluster: pods, a service, and policies
as AuthorizationPolicy and PeerAuthentication go to its Kubernetes API; certificates come from its authority."""
import json
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tests/interop/istiod"))
import peer as kube  # noqa: E402

ADDRESS = "10.201.0.10"
VERSION = "1.31.4"
POLICIES = {
    "allow-nothing": kube.authorization_policy("ns2", "allow-nothing"),
    "allow-sleep": kube.authorization_policy("ns2", "allow-sleep", rules=[
        {"from": [{"source": {"principals": ["cluster.local/ns/ns1/sa/sleep"]}}]}]),
    "strict": kube.peer_authentication("ns2", "default", "STRICT"),
}


def key_of(resource):
    return resource["kind"], resource["metadata"].get("namespace", ""), resource["metadata"]["name"]


def describe(resource):
    return f"{resource['kind']} {resource['metadata']['namespace']}/{resource['metadata']['name']} {json.dumps(resource['spec'])}"


class FromIstiod:
    def __init__(self, lab):
        self.lab = lab
        self.netns = lab.make_namespace("istiod")
        self.istiod = kube.Istiod(os.path.join(lab.bin_dir, "istiod"), lab.file("istiod"), ADDRESS, self.netns.popen)

    def environment(self, node):
        address = f"https://{ADDRESS}:{kube.PORT}"
        return {
            "XDS_ADDRESS": address, "CA_ADDRESS": address, "XDS_ROOT_CA": self.istiod.root, "CA_ROOT_CA": self.istiod.root,
            "ALT_XDS_HOSTNAME": kube.NAME, "ALT_CA_HOSTNAME": kube.NAME, "AUTH_TOKEN": node.file("token"),
            "POD_NAME": "ztunnel-" + node.name, "POD_NAMESPACE": kube.SYSTEM, "SERVICE_ACCOUNT": "ztunnel",
            "INSTANCE_IP": node.ip, "ISTIO_META_CLUSTER_ID": node.env["CLUSTER_ID"], "ISTIO_META_ISTIO_VERSION": VERSION,
        }

    def start(self):
        lab = self.lab
        self.netns.create()
        self.netns.link("eth0", ADDRESS + "/24", lab.fabric, "istiod")
        lab.fabric.run("ip", "link", "set", "istiod", "master", "br0")
        self.istiod.apply(*(kube.namespace(name) for name in (kube.SYSTEM, "ns1", "ns2", "ns3")),
                          kube.service("ns2", "echo", [lab.vip], "echo", {80: 8080}))
        for node in lab.nodes:
            self.istiod.apply(kube.node(node.name), kube.ztunnel(node.name, node.ip))
        self.publish(())
        self.istiod.start()
        for node in lab.nodes:
            with open(node.file("token"), "w", encoding="ascii") as f:
                f.write(self.istiod.token(kube.SYSTEM, "ztunnel-" + node.name))

    def publish(self, policies):
        """Tells the API server what is different, waits until both daemons have it in force; returns what the story may show."""
        lab, said = self.lab, []
        pods = [kube.pod(p.ns, p.name, p.node.name, [p.ip], p.account, in_mesh=p.enrolled, labels={"app": p.account}) for p in lab.pods]
        for resource in pods + [POLICIES[name] for name in policies]:
            if self.istiod.objects.get(key_of(resource)) != resource:
                self.istiod.apply(resource)
                if resource["kind"] != "Pod":
                    said.append("apply " + describe(resource))
        for name, resource in POLICIES.items():
            if name not in policies and key_of(resource) in self.istiod.objects:
                self.istiod.delete(*key_of(resource))
                said.append(f"delete {resource['kind']} {resource['metadata']['namespace']}/{resource['metadata']['name']}")
        for node in lab.nodes:
            if node.daemon:
                lab.wait_for(f"{node.name} to have what istiod says", lambda n=node: self.in_force(n, policies))
        return said

    def in_force(self, node, policies):
        dump = json.loads(node.netns.run("curl", "-s", "http://127.0.0.1:15000/config_dump").stdout)
        wanted = {"istio_converted_static_strict" if name == "strict" else name for name in policies}
        protocols = {(w["namespace"], w["name"]): w["protocol"] for w in dump["workloads"]}
        return {p["name"] for p in dump["policies"]} == wanted and all(
            protocols.get((p.ns, p.name)) == ("HBONE" if p.enrolled else "TCP") for p in self.lab.pods)

    def unsynced(self):
        """Why istiod does not show both daemons as synced; "" if it does."""
        return "; ".join(filter(None, (self.istiod.unsynced(f"ztunnel-{n.name}.{kube.SYSTEM}", VERSION) for n in self.lab.nodes)))

    def states(self):
        """The line of each daemon in istiod's syncz."""
        return "\n".join(f"{s['proxy']}  {s['proxy_type']}  cluster {s.get('cluster_id')}  version {s.get('istio_version')}  " + "  ".join(
            f"{kind.rsplit('.', 1)[1]}: {'SYNCED' if r['sent'] == r['acked'] else 'STALE'}" for kind, r in sorted(s["resources"].items()))
            for s in self.istiod.debug("syncz"))
