"""The records of a World as istiod sends them: Address (workloads, services) and Authorization (spec/controlplane §3.3, §3.4)."""
import ipaddress

from .protobuf import message

ADDRESS = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION = "type.googleapis.com/istio.security.Authorization"


def packed(ip):
    return ipaddress.ip_address(ip).packed


def network_address(s):
    """ "network/10.0.0.1" or "network/10.0.0.0/8"; the network may be empty. """
    network, ip, *length = s.split("/")
    return message(f1=network, f2=packed(ip), f3=int(length[0]) if length else None)


def gateway(g):
    """{"destination": "network/ip" or "namespace/host", "hboneMtlsPort": n}"""
    if g is None:
        return None
    where = g["destination"]
    try:
        return message(f2=network_address(where), f3=g.get("hboneMtlsPort", 15008))
    except ValueError:
        namespace, host = where.split("/")
        return message(f1=message(f1=namespace, f2=host), f3=g.get("hboneMtlsPort", 15008))


def ports(of):
    return [message(f1=int(k), f2=v) for k, v in of.items()]


def workload(w):
    services = [message(f1=key, f2=message(f1=ports(value))) for key, value in w.get("services", {}).items()]
    body = message(
        f1=w["name"], f2=w["namespace"], f3=[packed(ip) for ip in w["workloadIps"]], f4=w.get("network", ""),
        f5={"TCP": 0, "HBONE": 1}.get(w["protocol"], w["protocol"]), f6=w.get("trustDomain"), f7=w.get("serviceAccount"), f8=gateway(w.get("waypoint")),
        f9=w.get("node"), f10=w.get("canonicalName"), f11=w.get("canonicalRevision"), f13=w.get("workloadName"), f12=2,
        f16=w.get("authorizationPolicies", []), f17=int(w.get("status") == "Unhealthy"), f18=w.get("clusterId"), f20=w["uid"], f22=services)
    return message(f1=body)


def service(s):
    body = message(
        f1=s["name"], f2=s["namespace"], f3=s["hostname"], f4=[network_address(v) for v in s["vips"]], f5=ports(s["ports"]),
        f6=s.get("subjectAltNames", []), f7=gateway(s.get("waypoint")))
    return message(f2=body)


STRINGS = {"Exact": 1, "Prefix": 2, "Suffix": 3, "Presence": 4}
MATCHES = ["namespaces", "notNamespaces", "principals", "notPrincipals", "sourceIps", "notSourceIps", "destinationIps", "notDestinationIps",
           "destinationPorts", "notDestinationPorts"]


def match_value(kind, v):
    if kind.endswith("Ports"):
        return v
    if kind.endswith("Ips"):
        ip, length = v.split("/")
        return message(f1=packed(ip), f2=int(length))
    (key, value), = v.items()
    return message(**{f"f{STRINGS[key]}": value or b""})


def match(m):
    return message(**{f"f{MATCHES.index(kind) + 1}": [match_value(kind, v) for v in values] for kind, values in m.items()})


def policy(p):
    rules = [message(f1=[message(f2=[match(m) for m in clause]) for clause in rule]) for rule in p["rules"]]
    return message(f1=p["name"], f2=p["namespace"], f3=["Global", "Namespace", "WorkloadSelector"].index(p["scope"]),
                   f4=["Allow", "Deny"].index(p["action"]), f5=rules, f6=int(p.get("dryRun", False)))


def key_of(s):
    return f"{s['namespace']}/{s['hostname']}"


def aliases_of(w):
    return [f"{w.get('network', '')}/{ip}" for ip in w["workloadIps"]]
