"""The dump's structure - every key, every type - against one that is kept (spec/interfaces §4.4, check C28).

`ZT_GOLDEN=write` writes the kept one anew; the difference is then for a person to read."""
import json
import os

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden/config_dump.json")
NAMED_BY_DATA = ("$.workloadState", "$.stagedServices", "$.stagedServices.*", ".endpoints", ".ports", ".port", ".proxyMetadata")


def structure(value, path="$", found=None):
    """{path: types seen there}; keys that are data are *, elements of lists are [], an element that has a lone key is kept apart."""
    found = {} if found is None else found
    found.setdefault(path, set()).add(type(value).__name__)
    if isinstance(value, dict):
        data = path.endswith(NAMED_BY_DATA) and "applicationTunnel" not in path
        for key, v in value.items():
            structure(v, f"{path}.{'*' if data else key}", found)
    elif isinstance(value, list):
        for v in value:
            structure(v, path + "[]", found)
    return found


def fill(world):
    """A mesh in which everything optional is there."""
    world.service("echo", [world.server], "10.96.0.1", ports={80: 8080})
    world.client.workload["applicationTunnel"] = {"port": None, "protocol": "NONE"}
    far = dict(world.server.workload, uid="far", name="far", workloadIps=["10.9.9.9"], node="elsewhere", network="net1")
    far.update(
        hostname="server.example.com", nativeTunnel=True, applicationTunnel={"port": 15088, "protocol": "PROXY"},
        locality={"region": "r1", "zone": "z1", "subzone": ""}, authorizationPolicies=["default/all-fields"],
        networkGateway={"destination": "net1/10.1.250.1", "hboneMtlsPort": 15008},
        waypoint={"destination": "/10.96.0.77", "hboneMtlsPort": 15008},
        services={"default/late.default.svc.cluster.local": {"81": 8081}})
    world.more_workloads.append(far)
    world.services[0].update(
        cidrVips=[{"network": "net1", "cidr": "240.240.0.0/16"}], ipFamilies="Dual", subjectAltNames=["spiffe://cluster.local/ns/a/sa/b"],
        loadBalancer={"mode": "Failover", "healthPolicy": "OnlyHealthy", "routingPreferences": ["Network", "Region"]})
    match = {}
    for field, values in {"destinationIps": ["10.1.0.0/16"], "destinationPorts": [8080], "sourceIps": ["10.2.0.0/24"],
                          "namespaces": [{"Prefix": "a"}], "principals": [{"Exact": "b"}, {"Suffix": "c"}, {"Presence": []}],
                          "serviceAccounts": [{"namespace": "n", "serviceAccount": "s"}]}.items():
        match[field] = match["not" + field[0].upper() + field[1:]] = values
    world.policy("all-fields", action="Deny", rules=[[[match]]], scope="WorkloadSelector")


def test_the_dump_has_the_golden_structure_C28(pair):
    fill(pair)
    pair.start(ISTIO_META_FOO="foo", XDS_HEADER_A="b", POD_NAMESPACE="istio-system", POD_NAME="ztunnel-x", SERVICE_ACCOUNT="ztunnel")
    pair.server.reflect(8080)
    with pair.client.connect(pair.server.ip, 8080) as c:
        c.sendall(b"a")
        assert c.recv(1) == b"a"
        dump = pair.client.node.daemon.dump()
    if os.environ.get("ZT_GOLDEN") == "write":
        with open(GOLDEN, "w") as f:
            f.write(json.dumps(dump, indent=2).replace(pair.directory, "/world") + "\n")
    with open(GOLDEN) as f:
        golden = structure(json.load(f))
    mine = structure(dump)
    for path in [p for p in mine if p.startswith("$.config.") and p not in golden]:
        del mine[path]  # a setting of our own that is new
    for found in (mine, golden):
        for path in [p for p in found if p.startswith("$.config.dnsResolverCfg.")]:
            del found[path]  # the machine's
    assert mine.keys() == golden.keys(), (sorted(mine.keys() - golden.keys()), sorted(golden.keys() - mine.keys()))
    assert mine == golden
