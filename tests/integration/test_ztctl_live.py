"""ztctl about what goes on: connections, top, policies, certs, why-denied, trace, log, dump (spec/interfaces; the issue's text)."""
import json
import re

import pytest

from testenv import eventually
from testenv.hbone import Tunnel, issue


def ask(daemon, *args):
    return json.loads(daemon.ztctl("-o", "json", *args))


def test_connections_are_listed_filtered_and_sorted(pair):
    other = pair.client.node.pod("other")
    pair.start()
    pair.server.reflect(8080)
    daemon = pair.client.node.daemon
    with pair.client.connect(pair.server.ip, 8080) as a, other.connect(pair.server.ip, 8080) as b:
        for s, data in ((a, b"x" * 10), (b, b"x" * 5000)):
            s.sendall(data)
            got = b""
            while len(got) < len(data):
                got += s.recv(65536)
        both = ask(daemon, "connections", "--sort", "bytes")
        assert both["total"] == 2 and [c["name"] for c in both["connections"]] == ["other", "client"]
        one, = ask(daemon, "connections", "--pod", "default/client")["connections"]
        assert (one["bytesFromClient"], one["bytesToClient"], one["direction"]) == (10, 10, "outbound")
        assert one["peerIdentity"] == pair.server.identity and one["originalDst"] == f"{pair.server.ip}:8080"
        assert ask(daemon, "connections", "--peer", "sa/nobody")["total"] == 0
        assert len(ask(daemon, "connections", "--peer", pair.server.ip, "--limit", "1")["connections"]) == 1
        text = daemon.ztctl("connections")
        assert "default/client" in text and "default/other" in text and pair.server.identity in text
        assert "/s" in daemon.ztctl("top") and ask(daemon, "top", "--pod", "client")["connections"][0]["bytesPerSecond"] >= 0
    assert daemon.ztctl("connections", "--pod", "default/never") == "no connections\n"
    bad = daemon.ztctl("connections", "--sort", "name", check=False)
    assert bad.returncode == 1 and "bytes or age" in bad.stderr
    assert daemon.ztctl("connections", "--limit", "-1", check=False).returncode == 1


def test_policies_and_certs(pair):
    pair.policy("p1", action="Deny", rules=[[[{"principals": [{"Exact": "nobody"}]}]]])
    pair.start()
    pair.server.echo(8080)
    assert pair.client.request(pair.server.ip, 8080)
    daemon = pair.client.node.daemon
    assert re.search(r"default/p1\s+Deny\s+\w+\s+1\s+no", daemon.ztctl("policies"))
    assert ask(daemon, "policies")[0]["rules"][0][0][0] == {"principals": [{"Exact": "nobody"}]}
    assert pair.client.identity in daemon.ztctl("certs")
    assert re.search(r"Z\s+(\d+d)?(\d+h)(\d+m)?\s+Available", daemon.ztctl("certs"))


def test_why_denied_names_policy_rule_clause_and_field(pair):
    pair.policy("only-8081", rules=[[[{"principals": [{"Exact": "somebody"}]}]],
                                    [[{"namespaces": [{"Exact": "default"}]}], [{"destinationPorts": [8081]}]]])
    pair.start()
    pair.server.echo(8080)
    daemon = pair.server.node.daemon
    assert daemon.ztctl("why-denied") == "no denials since the daemon started\n"
    assert pair.client.refused(pair.server.ip, 8080)
    denial, = eventually(lambda: ask(daemon, "why-denied"))
    assert (denial["policy"], denial["policyAction"], denial["rule"], denial["clause"]) == ("default/only-8081", "Allow", 2, 2)
    assert denial["field"] == "destination_ports" and denial["pod"] == "default/server" and not denial["late"]
    assert denial["identity"] == pair.client.identity and denial["dst"] == f"{pair.server.ip}:8080"
    assert "allow policies exist, but none allowed" in denial["reason"]
    text = daemon.ztctl("why-denied", "-n", "1")
    assert "the closest policy is default/only-8081: rule 2, clause 2, field destination_ports" in text
    pair.policy("no", action="Deny", rules=[[]])
    pair.write()
    eventually(lambda: len(ask(daemon, "policies")) == 2)
    assert pair.client.refused(pair.server.ip, 8080)
    newest = eventually(lambda: next(d for d in ask(daemon, "why-denied") if d["policyAction"] == "Deny"))
    assert (newest["policy"], newest["rule"]) == ("default/no", 1) and "clause" not in newest
    assert "policy default/no denies, by rule 1" in daemon.ztctl("why-denied")


def test_a_trace_is_the_timeline_from_accept_to_close_and_outlives_the_pod(pair):
    pair.start()
    pair.server.echo(8080)
    out, into = pair.client.node.daemon, pair.server.node.daemon
    first = out.ztctl("trace", "default/client", check=False)
    assert first.returncode == 0 and "recording from now on" in first.stderr and "nothing recorded yet" in first.stdout
    into.ztctl("trace", "default/server")
    assert pair.client.request(pair.server.ip, 8080)

    def events(daemon, pod):
        found = [e["event"] for e in ask(daemon, "trace", pod)["events"]]
        return found if found and found[-1].startswith("closed") else None
    client = eventually(lambda: events(out, "default/client"))
    server = eventually(lambda: events(into, "default/server"))
    for found, words in ((client, ["accepted outbound", "route: a tunnel", "asks the pool", "answered 200", "relaying", "closed after"]),
                         (server, ["CONNECT " + pair.server.ip, "policy: allowed", "dials the application", "answered 200", "closed"])):
        at = [next(i for i, e in enumerate(found) if w in e) for w in words]
        assert at == sorted(at), found
    times = [e["timeUs"] for e in ask(out, "trace", "default/client")["events"]]
    assert times == sorted(times)
    assert "#" in out.ztctl("trace", "default/client")
    pair.client.unenrol()
    eventually(lambda: not out.status()["pods"])
    assert events(out, "default/client") == client
    out.ztctl("trace", "default/client", "--off")
    assert "nothing recorded yet" in out.ztctl("trace", "default/client")
    assert ask(out, "trace", "default/client")["events"] == []


def test_a_trace_shows_a_refusal_and_its_reason(pair):
    pair.policy("no", action="Deny", rules=[[]])
    pair.start()
    daemon = pair.server.node.daemon
    daemon.ztctl("trace", "default/server")
    assert pair.client.refused(pair.server.ip, 8080)
    found = eventually(lambda: [e["event"] for e in ask(daemon, "trace", "default/server")["events"]])
    assert any("explicitly denied by: default/no" in e for e in found) and "answered 401" in found


def test_traces_are_limited_and_bad_names_refused(pair):
    pair.start()
    daemon = pair.client.node.daemon
    before = daemon.status()["memoryLiveBytes"]
    for i in range(8):
        daemon.ztctl("trace", f"default/p{i}")
    ninth = daemon.ztctl("trace", "default/p8", check=False)
    assert ninth.returncode == 1 and "8 pods are traced already" in ninth.stderr
    assert daemon.ztctl("trace", "nobody", check=False).returncode == 1
    for i in range(8):
        daemon.ztctl("trace", f"default/p{i}", "--off")
    assert daemon.status()["memoryLiveBytes"] < before + 300_000


def test_log_levels_by_ztctl(pair):
    pair.start()
    daemon = pair.client.node.daemon
    assert "info" in daemon.ztctl("log")
    assert "access=debug" in daemon.ztctl("log", "access=debug")
    bad = daemon.ztctl("log", "bogus", check=False)
    assert bad.returncode == 1 and bad.stderr == "ztctl: Invalid level provided: bogus\n"
    assert "access" not in daemon.ztctl("log", "--reset")


def test_dump_is_the_admin_servers(pair):
    pair.start()
    daemon = pair.client.node.daemon
    mine, theirs = json.loads(daemon.ztctl("dump")), daemon.dump()
    assert mine.keys() == theirs.keys() and mine["workloads"] == theirs["workloads"]


@pytest.mark.parametrize("name", ["we\x1b[31mird", "a\u202eb"])
def test_names_from_peers_stay_text_on_a_terminal(world, tmp_path, name):
    """An authority and a forwarded host come from a peer; they are shown without control characters."""
    client, server = world.node().pod("outsider", protocol="TCP"), world.node().pod("server")
    world.policy("no", action="Deny", rules=[[]])
    world.more_workloads.append(dict(client.workload, uid="x", name=name, workloadIps=["10.9.9.9"]))
    world.start()
    daemon = server.node.daemon
    with Tunnel(client, server.ip, issue(daemon, client.identity, tmp_path / "cert")) as t:
        assert t.request(f"{server.ip}:8080", extra=[("forwarded", 'for="1.2.3.4:5";host=a\\b')])[0] == 401
    text = eventually(lambda: daemon.ztctl("why-denied", "-n", "5"))
    assert "\x1b" not in text and "\u202e" not in text
