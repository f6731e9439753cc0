"""Drives the istiod of this folder, and writes the Kubernetes objects that it looks at.

    istiod = Istiod(binary, directory, "172.18.0.250", spawn).start()
    istiod.apply(pod("default", "client", node="n1", ips=["10.1.0.2"]))

A restart is one of the process: what was applied is what it finds.
"""
import json
import os
import subprocess
import uuid

ADDRESS_TYPE = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE = "type.googleapis.com/istio.security.Authorization"
PORT = 15012
NAME = "istiod.istio-system.svc"
SYSTEM = "istio-system"
ENVIRONMENT = {
    "PILOT_ENABLE_AMBIENT": "true",
    "CA_TRUSTED_NODE_ACCOUNTS": SYSTEM + "/ztunnel",
    "UNSAFE_PILOT_ENABLE_RUNTIME_ASSERTIONS": "true",
    "UNSAFE_ENABLE_ADMIN_ENDPOINTS": "true",
}


class Istiod:
    def __init__(self, binary, directory, address, spawn, max_age=None):
        """spawn(argv, **kw) is subprocess.Popen in the right network namespace."""
        self.listed = os.path.join(directory, "objects")
        self.argv = [binary, "-dir", directory, "-listen", f"{address}:{PORT}", "-objects", self.listed]
        if max_age:
            self.argv += ["-max-age", max_age]
        self.directory, self.address, self.spawn = directory, address, spawn
        self.objects = {}
        self.process = None

    @property
    def root(self):
        return os.path.join(self.directory, "root-cert.pem")

    @property
    def log(self):
        return os.path.join(self.directory, "istiod.log")

    def start(self, serve=True):
        os.makedirs(self.directory, exist_ok=True)
        with open(self.listed, "w", encoding="utf-8") as f:
            f.writelines(json.dumps(o) + "\n" for o in self.objects.values())
        with open(self.log, "ab") as log:
            self.process = self.spawn(self.argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                                      env={**os.environ, **ENVIRONMENT})
        self.answer("start")
        if serve:
            self.command("serve")
        return self

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def answer(self, what):
        line = self.process.stdout.readline()
        if line.startswith("ok"):
            return line[3:].rstrip("\n")
        raise RuntimeError(f"istiod: {what[:200]}: {line.strip() or 'it has ended, see ' + self.log}")

    def command(self, *words):
        text = " ".join(words)
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.answer(text)

    # ---- the Kubernetes API ----

    def apply(self, *objects):
        for o in objects:
            self.objects[o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"]] = o
            if self.process:
                self.command("apply", json.dumps(o))

    def delete(self, kind, namespace, name):
        del self.objects[kind, namespace, name]
        if self.process:
            self.command("delete", kind, f"{namespace}/{name}")

    def token(self, namespace, pod, *more):
        """more: an audience, then a lifetime in seconds."""
        return self.command("token", f"{namespace}/{pod}", *more)

    # ---- what it thinks of its clients ----

    def debug(self, page):
        return json.loads(self.command("debug", "/debug/" + page))

    def unsynced(self, proxy, version, cluster="Kubernetes"):
        """Why syncz does not show WDS and WADS of this proxy as synced; "" if it does."""
        found = [s for s in self.debug("syncz") if s["proxy"] == proxy]
        if len(found) != 1:
            return f"{len(found)} connections of {proxy}"
        got = found[0]
        if (got["proxy_type"], got.get("cluster_id"), got.get("istio_version")) != ("ztunnel", cluster, version):
            return f"not a ztunnel {version} of {cluster}: {got}"
        for kind in (ADDRESS_TYPE, AUTHORIZATION_TYPE):
            seen = got.get("resources", {}).get(kind, {})
            if not seen.get("sent") or seen["sent"] != seen.get("acked") or seen.get("lastError"):
                return f"{kind}: {seen}"
        return ""


# ---- objects, as an API server would have completed them ----


def metadata(name, namespace=None, labels=None, **more):
    found = {"name": name, "labels": labels or {}, **more}
    return {**found, "namespace": namespace} if namespace else found


def namespace(name, **labels):
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata(name, labels=labels)}


def node(name, **labels):
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata(name, labels=labels)}


def pod(ns, name, node, ips, account=None, in_mesh=True, ready=True, labels=None):
    annotations = {"ambient.istio.io/redirection": "enabled"} if in_mesh else {}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata(name, ns, {"app": name, **(labels or {})}, annotations=annotations,
                             uid=str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.{ns}"))),
        "spec": {"nodeName": node, "serviceAccountName": account or name, "containers": [{"name": "app", "image": "app"}]},
        "status": {"phase": "Running", "podIP": ips[0], "podIPs": [{"ip": ip} for ip in ips],
                   "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def ztunnel(node, ip):
    """The pod of a daemon, to which its token is bound."""
    return pod(SYSTEM, "ztunnel-" + node, node, [ip], "ztunnel", in_mesh=False)


def service(ns, name, vips, app, ports, labels=None, **spec):
    """ports maps the service's to the pods'."""
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": metadata(name, ns, labels),
        "spec": {"clusterIP": vips[0], "clusterIPs": vips, "selector": {"app": app}, "type": "ClusterIP",
                 "ports": [{"name": f"tcp-{p}", "port": p, "targetPort": t, "protocol": "TCP"} for p, t in ports.items()], **spec},
    }


def authorization_policy(ns, name, **spec):
    return {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata(name, ns), "spec": spec}


def peer_authentication(ns, name, mode, **spec):
    return {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": metadata(name, ns),
            "spec": {"mtls": {"mode": mode}, **spec}}


def service_entry(ns, name, host, vip, endpoints, ports, resolution="STATIC", **spec):
    return {
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata(name, ns),
        "spec": {"hosts": [host], "addresses": [vip], "resolution": resolution, "location": "MESH_INTERNAL",
                 "endpoints": [{"address": ip} for ip in endpoints],
                 "ports": [{"name": f"tcp-{p}", "number": p, "targetPort": t, "protocol": "TCP"} for p, t in ports.items()], **spec},
    }


def waypoint(ns, name, ip, traffic="service"):
    """A Gateway that its controller has made ready at this address."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": metadata(name, ns, {"istio.io/waypoint-for": traffic}),
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
        "status": {"addresses": [{"type": "IPAddress", "value": ip}]},
    }
