"""istioctl ztunnel-config on our dump, by the writer of its own Go module (spec/interfaces §4.3, check C28)."""
import json

import pytest


@pytest.fixture
def dump(pair):
    """A dump with something in every table, and the daemon that gave it."""
    pair.service("echo", [pair.server], "10.96.0.1", ports={80: 8080})
    pair.policy("no-9090", action="Deny", rules=[[[{"destinationPorts": [9090]}]]])
    pair.start()
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect("10.96.0.1", 80) as s:
        s.sendall(b"a")
        assert s.recv(1) == b"a"
        pair.bytes = daemon.http(15000, "/config_dump")[1]
    pair.dump = json.loads(pair.bytes)
    return pair


def test_istioctl_reads_the_dump_C28(dump, istiodump):
    """Every table shows the fixture, and no value has a type that istioctl does not take."""
    rows = {}
    for kind in ("all", "workload", "service", "policy", "certificate", "connections"):
        rows[kind] = [line.split() for line in istiodump(dump.bytes, kind).splitlines() if line.strip()]
        istiodump(dump.bytes, kind, "json")
    assert rows["workload"][1:] == [["default", p.name, f"{p.ip},{p.ip6}", p.node.name, "None", "HBONE"] for p in (dump.client, dump.server)]
    assert rows["service"][1:] == [["default", "echo", "10.96.0.1", "None", "1/1"]]
    assert rows["policy"][1:] == [["default", "no-9090", "Deny", "Namespace"]]
    certificates, = (entry for entry in dump.dump["certificates"] if entry["identity"] == dump.client.identity)
    shown = [(kind, entry) for kind, list_ in (("Leaf", "certChain"), ("Root", "rootCerts")) for entry in certificates[list_]]
    assert rows["certificate"][1:] == [[dump.client.identity, kind, "Available", "true", f"{int(entry['serialNumber']):x}",
                                        entry["expirationTime"], entry["validFrom"]] for kind, entry in shown]
    connection, = rows["connections"][1:]
    assert connection[:2] == ["client.default", "Outbound"] and connection[2].startswith("client.default:")
    assert connection[3:] == ["server.default:15008", "echo.default.svc.cluster.local:80", "HBONE"]
    headings = " ".join(" ".join(row) for row in rows["all"])
    for word in ("WORKLOAD INFO", "SERVICE INFO", "POLICY INFO", "SECRET INFO", "CONNECTIONS INFO", "no-9090", "client.default"):
        assert word in headings


def test_istioctl_reads_names_that_are_no_utf8_and_an_empty_mesh(world, istiodump):
    node = world.node()
    pod = node.pod("odd")
    pod.workload["canonicalName"] = "q\"uo\\te\n"
    world.start()
    text = istiodump(node.daemon.http(15000, "/config_dump")[1], "workload", "json")
    assert json.loads(text)[0]["canonicalName"] == "q\"uo\\te\n"
    pod.unenrol()
    world.pods.clear()
    world.write()
    node.daemon.wait_line("local config reloaded")
    assert "NAMESPACE" in istiodump(node.daemon.http(15000, "/config_dump")[1], "all")
