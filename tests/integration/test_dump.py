"""The admin dump of a node with traffic (spec/interfaces §4.4, check C27)."""
from testenv import eventually


def keys_sorted(value, path="$"):
    """Paths of objects whose keys are not in order."""
    if isinstance(value, list):
        return [p for i, x in enumerate(value) for p in keys_sorted(x, f"{path}[{i}]")]
    if not isinstance(value, dict):
        return []
    wrong = [] if list(value) == sorted(value) else [path]
    return wrong + [p for k, x in value.items() for p in keys_sorted(x, f"{path}.{k}")]


def test_config_dump_of_a_local_file_C27(pair):
    pair.service("echo", [pair.server], "10.96.0.1")
    pair.policy("all", rules=[[]])
    pair.start()
    dump = pair.client.node.daemon.dump()
    assert set(dump) >= {"certificates", "config", "policies", "services", "staticConfig", "version", "workloads", "workloadState"}
    assert keys_sorted(dump) == []
    assert [w["uid"] for w in dump["workloads"]] == sorted(w["uid"] for w in dump["workloads"])
    assert [w["name"] for w in dump["workloads"]] == ["client", "server"]
    static = dump["staticConfig"]
    assert (len(static["workloads"]), len(static["services"]), len(static["policies"])) == (2, 1, 1)
    client = dump["workloads"][0]
    for absent in ("waypoint", "networkGateway", "hostname", "network"):
        assert absent not in client or client[absent] is not None
    assert dump["workloadState"][pair.client.zds_uid]["state"] == "Up"


def test_dump_certs_shows_each_identity_once(pair):
    """Sorted by identity; chain, roots, serial numbers and dates of the available ones."""
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080)
    certificates = eventually(lambda: pair.client.node.daemon.dump()["certificates"])
    assert [c["identity"] for c in certificates] == [pair.client.identity]
    c, = certificates
    assert c["state"] == "Available" and c["certChain"] and c["rootCerts"]
    for entry in c["certChain"] + c["rootCerts"]:
        assert entry["serialNumber"].isdigit() and entry["validFrom"].endswith("Z") and entry["expirationTime"].endswith("Z")
