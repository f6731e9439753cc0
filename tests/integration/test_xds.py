"""The delta xDS client against a control plane that is not always friendly (spec/controlplane §1, §2, §9)."""
import json
import time

import grpc
import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.protobuf import fields, message, text
from testenv.resources import ADDRESS, AUTHORIZATION, packed

CODE = grpc.StatusCode


def named(daemon, section, name):
    return [x for x in daemon.dump()[section] if x["name"] == name]


def request(mesh):
    return mesh.client.request(mesh.server.ip, 8080) == b"hello worldhello world"


def test_state_and_certificates_come_from_istiod(mesh):
    """Headers, node and requests of both types; traffic; the dump, the metrics, and all responses acknowledged."""
    mesh.service("echo", [mesh.server], "10.96.0.7")
    mesh.policy("all", rules=[[]])
    mesh.start()
    mesh.server.echo(8080)
    assert mesh.client.request("10.96.0.7", 80) == b"hello worldhello world"
    stream = mesh.istiod.stream()
    eventually(stream.synced, "acknowledged")
    assert stream.headers["authorization"] == "Bearer token-1" and stream.headers["clusterid"] == "Kubernetes"
    for kind in (ADDRESS, AUTHORIZATION):
        first = stream.first(kind)
        assert text(fields(first.node), 1) == "ztunnel~1.1.1.1~.istio-system~istio-system.svc.cluster.local"
        assert not first.subscribe and not first.unsubscribe and not first.versions
    daemon = mesh.client.node.daemon
    dump = daemon.dump()
    assert {w["name"] for w in dump["workloads"]} == {"client", "server"} and dump["policies"][0]["name"] == "all"
    assert {c["identity"] for c in dump["certificates"] if c["state"] == "Available"} == {mesh.client.identity}
    assert daemon.metric("istio_xds_message_total", url=ADDRESS) == 1
    assert daemon.metric("istio_xds_message_total", url=AUTHORIZATION) == 1
    assert daemon.metric("istio_xds_message_bytes_total", url=ADDRESS) > 100
    daemon.wait_line("Stream established")


def test_the_gate_opens_with_both_types(mesh):
    """Not ready and no CNI before both types are acknowledged; a rejected first response keeps it shut (C22, A3)."""
    istiod = mesh.istiod
    istiod.silent = True
    for node in mesh.nodes[:1]:
        daemon = node.start(wait_ready=False, enrol=False)
    stream = istiod.stream()
    stream.send(ADDRESS, [("bad", "1", b"\xff\xff", ())])
    eventually(lambda: stream.nacks, "the rejection")
    stream.send(AUTHORIZATION)
    eventually(lambda: stream.acked.get(AUTHORIZATION), "the acknowledgement")
    status, body = daemon.http(15021, "/healthz/ready")[:2]
    assert status == 500 and b"state manager" in body
    assert "inpod::workloadmanager" not in daemon.log()
    stream.send(ADDRESS)
    daemon.wait_ready()
    assert "bad: decode: " in stream.nacks[0]


def test_what_is_held_is_named_to_the_next_stream(mesh):
    """istiod goes away and comes back: state and traffic stay, versions are named, what vanished meanwhile goes."""
    mesh.policy("all", rules=[[]])
    ghost = mesh.nodes[0].pod("ghost", protocol="TCP")
    mesh.start()
    mesh.server.echo(8080)
    assert request(mesh)
    daemon = mesh.client.node.daemon
    mesh.istiod.stop()
    eventually(lambda: daemon.lines_with("XDS client connection error"), "nobody there")
    assert request(mesh) and daemon.http(15021, "/healthz/ready")[0] == 200
    del mesh.pods["ghost"]
    with mesh.istiod.lock:
        del mesh.istiod.resources[ADDRESS][ghost.uid]
    before = len(mesh.istiod.streams)
    mesh.istiod.start()
    eventually(lambda: len(mesh.istiod.streams) == before + 2, "both nodes again", 30 * SLOW)
    stream = mesh.istiod.stream()
    versions = stream.first(ADDRESS).versions
    assert set(versions) == {mesh.client.uid, mesh.server.uid, ghost.uid} and all(versions.values())
    assert stream.first(AUTHORIZATION).versions == {"default/all": ""}
    eventually(lambda: not named(daemon, "workloads", "ghost"), "removed", 20 * SLOW)
    assert request(mesh) and named(daemon, "policies", "all")


def bad_workload(**fields):
    good = {"f1": "bad", "f2": "default", "f20": "uid-bad", "f3": [packed("10.9.9.9")]}
    return message(f1=message(**good | fields))


BAD = {
    "undecodable": (b"\x0a\x05abc", "decode: "),
    "neither": (b"", "unknown address type"),
    "five-bytes": (bad_workload(f3=[b"\1\2\3\4\5"]), "5 bytes"),
    "tunnel-protocol": (bad_workload(f5=9), "unknown"),
    "network-mode": (bad_workload(f25=7), "unknown"),
    "port-too-large": (bad_workload(f22=[message(f1="default/x", f2=message(f1=[message(f1=70000, f2=80)]))]), "70000"),
    "nul-in-name": (bad_workload(f1="a\0b"), "decode: "),
    "no-utf8": (bad_workload(f1=b"\xc3\x28"), "decode: "),
    "no-payload": (None, "XDS payload without resource"),
    "prefix-too-long": (message(f2=message(f1="s", f2="default", f3="s.test", f4=[message(f2=packed("10.0.0.0"), f3=77)])), "77"),
}


def test_nack_names_each_culprit(mesh):
    """What is bad is named with its reason in NACK and log; what is good is in force, what was there stays; nothing is repeated."""
    mesh.start()
    mesh.server.echo(8080)
    daemon, stream = mesh.client.node.daemon, mesh.istiod.stream(1)
    good = message(f1=message(f1="good", f2="default", f20="good-uid", f3=[packed("10.9.9.1")]))
    worse = message(f1=message(f1="worse", f2="default", f20=mesh.server.uid, f3=[b"\1"]))
    stream.send(ADDRESS, [(n, "1", value, ()) for n, (value, _) in BAD.items()] + [("good-uid", "1", good, ()), (mesh.server.uid, "2", worse, ())],
                nonce="bad")
    nack = eventually(lambda: stream.nacks, "the rejection")[0]
    for name, (_, reason) in BAD.items():
        entry = next(x for x in nack.split("; ") if x.startswith(name + ": "))
        assert reason in entry, entry
    assert f"{mesh.server.uid}: " in nack and "good-uid" not in nack
    node = eventually(lambda: [n.daemon for n in mesh.nodes if n.daemon.lines("sending response", nonce="bad")], "the log line")
    line, = node[0].lines("sending response", nonce="bad")
    assert line.level == "error" and line.fields["type"] == "Nack" and line.fields["error"] == nack
    assert named(node[0], "workloads", "good") and named(node[0], "workloads", "server") and not named(node[0], "workloads", "bad")
    assert request(mesh)
    before = len(stream.requests)
    assert not stream.closed and before == 5  # two first requests, three answers
    stream.send(ADDRESS, [("good-uid", "2", good, ())])
    eventually(lambda: len(stream.requests) == before + 1, "goes on")
    assert len(stream.nacks) == 1


@pytest.mark.parametrize("culprit, value, reason", [
    ("empty-match", message(f1="p", f2="default", f3=1, f5=[message(f1=[message(f2=[message(f3=[b""])])])]), ""),
    ("bad-address", message(f1="p", f2="default", f3=1, f5=[message(f1=[message(f2=[message(f5=[message(f1=b"\1\2", f2=8)])])])]), "2 bytes"),
    ("bad-prefix", message(f1="p", f2="default", f3=1, f5=[message(f1=[message(f2=[message(f5=[message(f1=packed("10.0.0.0"), f2=40)])])])]), "40"),
    ("bad-port", message(f1="p", f2="default", f3=1, f5=[message(f1=[message(f2=[message(f9=[65536])])])]), "65536"),
    ("unknown-scope", message(f1="p", f2="default", f3=9), "unknown"),
    ("unknown-action", message(f1="p", f2="default", f3=1, f4=5), "unknown"),
])
def test_a_policy_that_cannot_be_evaluated_leaves_the_old_one(mesh, culprit, value, reason):
    """Fail closed: the policy that refuses stays in force, the update is rejected by name, also after a reconnect."""
    mesh.policy("p", rules=[])
    mesh.start()
    mesh.server.echo(8080)
    assert mesh.client.refused(mesh.server.ip, 8080)
    stream, daemon = mesh.istiod.stream(2), mesh.nodes[-1].daemon
    for s in mesh.istiod.streams:
        s.send(AUTHORIZATION, [("default/p", "", value, ())])
    nack = eventually(lambda: stream.nacks, "the rejection")[0]
    assert nack.startswith("default/p: ") and reason in nack and "; " not in nack
    assert mesh.client.refused(mesh.server.ip, 8080)
    assert named(daemon, "policies", "p")[0]["rules"] == []


def test_removal(mesh):
    """Of a workload, a service and a policy; names that are unknown harm nothing."""
    mesh.service("echo", [mesh.server], "10.96.0.7")
    mesh.policy("nobody", rules=[])
    mesh.start()
    mesh.server.echo(8080)
    assert mesh.client.refused("10.96.0.7", 80)
    stream, daemon = mesh.istiod.stream(), mesh.client.node.daemon
    for s in mesh.istiod.streams:
        s.send(ADDRESS, (), ["nobody/knows.this", "nor-this", "cluster1//Pod/default/nor-that"])
    mesh.policies.clear()
    mesh.write()
    eventually(lambda: request(mesh), "allowed")
    mesh.services.clear()
    mesh.write()
    eventually(lambda: not daemon.dump()["services"], "the service is gone")
    assert request(mesh) and eventually(stream.synced) and not stream.nacks
    del mesh.pods["server"]
    mesh.write()
    eventually(lambda: not named(daemon, "workloads", "server"), "the workload is gone")


def test_a_policy_from_istiod_judges_open_connections(mesh):
    """A push that refuses a connection resets it at once; others go on."""
    friend = mesh.nodes[0].pod("friend")
    mesh.start()
    mesh.server.reflect(8080)
    with mesh.client.connect(mesh.server.ip, 8080) as mine, friend.connect(mesh.server.ip, 8080) as other:
        for s in (mine, other):
            s.sendall(b"x")
            assert s.recv(1) == b"x"
        mesh.policy("no-client", action="Deny", rules=[[[{"principals": [{"Exact": "cluster.local/ns/default/sa/client"}]}]]])
        mesh.write()
        with pytest.raises(ConnectionResetError):
            mine.recv(1)
        other.sendall(b"y")
        assert other.recv(1) == b"y"


def cpu_s(daemon):
    with open(f"/proc/{daemon.pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_silent_server_is_waited_for(mesh):
    """A stream that is accepted and never answered: not ready, everything else answers, no processor time; then it works."""
    mesh.istiod.silent = True
    daemon = mesh.client.node.start(wait_ready=False, enrol=False)
    stream = mesh.istiod.stream()
    before, began = cpu_s(daemon), time.monotonic()
    while time.monotonic() - began < 3:
        assert daemon.http(15021, "/healthz/ready")[0] == 500
        assert "workloads" in daemon.dump()
        time.sleep(0.5)
    assert cpu_s(daemon) - before < 1
    assert not stream.closed and len(mesh.istiod.streams) == 1
    for kind in (ADDRESS, AUTHORIZATION):
        stream.send(kind)
    daemon.wait_ready()


@pytest.mark.parametrize("code", [CODE.UNAUTHENTICATED, CODE.PERMISSION_DENIED, CODE.RESOURCE_EXHAUSTED, CODE.UNKNOWN, CODE.INVALID_ARGUMENT,
                                  CODE.UNIMPLEMENTED])
def test_a_refused_stream_is_tried_again_with_back_off(mesh, code):
    """Any status, before the first answer: one warning each with the words, growing pauses, then it works."""
    mesh.istiod.status = (code, "try me later")
    daemon = mesh.client.node.start(wait_ready=False, enrol=False)
    line = eventually(lambda: [x for x in daemon.lines_with("XDS client connection error") if "retrying in 160ms" in x], "the fourth", 20 * SLOW)[0]
    assert "try me later" in line and code.name in line and "warn" in line
    tries = mesh.istiod.refused
    assert 4 <= tries <= 6
    assert daemon.metric("istio_xds_connection_terminations_total", reason="ConnectionError") >= 4
    mesh.istiod.status = None
    daemon.wait_ready()


@pytest.mark.parametrize("code, reason, level", [
    (CODE.UNAVAILABLE, "Reconnect", "debug"), (CODE.CANCELLED, "Reconnect", "debug"), (CODE.INTERNAL, "Error", "warn"),
    (CODE.PERMISSION_DENIED, "Error", "warn"), (CODE.OK, "Complete", "warn")])
def test_an_established_stream_that_ends(mesh, code, reason, level):
    """Each kind of end has its words and its metric, and is followed by a stream that names what is held."""
    mesh.write()
    daemon = mesh.client.node.start(RUST_LOG="info,ztunnel::xds=debug", enrol=False)
    mesh.istiod.stream(1).end(code, "that is all")
    again = mesh.istiod.stream(2)
    assert set(again.first(ADDRESS).versions) == {mesh.client.uid, mesh.server.uid}
    words = {"Reconnect": "XDS client terminated", "Error": "XDS client error", "Complete": "XDS client complete"}[reason]
    line, = eventually(lambda: daemon.lines_with(words))
    assert f"\t{level}\t" in line and (code == CODE.OK or "that is all" in line)
    assert daemon.metric("istio_xds_connection_terminations_total", reason=reason) == 1
    eventually(again.synced)


def test_goaway_each_second_is_nothing_to_warn_of(mesh):
    """istiod limits the age of connections: streams come and go, connections of pods do not notice, no warning is logged."""
    mesh.istiod.stop()
    mesh.istiod.options = [("grpc.max_connection_age_ms", 1000), ("grpc.max_connection_age_grace_ms", 500)]
    mesh.istiod.start()
    mesh.start()
    mesh.server.reflect(8080)
    with mesh.client.connect(mesh.server.ip, 8080) as s:
        def alive():
            s.sendall(b"x")
            return s.recv(1) == b"x"
        eventually(lambda: alive() and len(mesh.istiod.streams) >= 8, "four generations of two streams", 60 * SLOW, every=0.1)
        assert alive()
    last = mesh.istiod.stream()
    assert set(last.first(ADDRESS).versions) == {mesh.client.uid, mesh.server.uid}
    for node in mesh.nodes:
        assert not [x for x in node.daemon.lines() if x.scope.startswith("xds") and x.level in ("warn", "error")]
        assert node.daemon.http(15021, "/healthz/ready")[0] == 200


def test_a_half_open_connection_is_noticed_and_replaced(mesh):
    """Packets to istiod vanish without a word: keepalive ends the stream within a minute, and the next one names what is held."""
    mesh.start()
    mesh.server.echo(8080)
    drop = "table inet half { chain out { type filter hook output priority 0; tcp dport 15012 drop; }; }"
    for node in mesh.nodes:
        node.netns.run("nft", "-f", "-", input=drop)
    daemon = mesh.client.node.daemon
    eventually(lambda: daemon.metric("istio_xds_connection_terminations_total") > 0, "the end of the stream", 60 * SLOW, every=0.5)
    assert request(mesh)
    before = len(mesh.istiod.streams)
    for node in mesh.nodes:
        node.netns.run("nft", "delete", "table", "inet", "half")
    again = eventually(lambda: mesh.istiod.stream(before + 1), "a new stream", 30 * SLOW)
    assert set(again.first(ADDRESS).versions) == {mesh.client.uid, mesh.server.uid}
    mesh.policy("nobody", rules=[])
    mesh.write()
    eventually(lambda: mesh.client.refused(mesh.server.ip, 8080), "the push arrives")


def test_more_names_than_istiod_takes_are_swept(mesh):
    """Names of 3.5 MiB and more are left out of the next first request; what istiod no longer has is removed all the same (§2.5)."""
    mesh.istiod.stop()
    mesh.istiod.options = [("grpc.max_receive_message_length", 4 << 20)]
    mesh.istiod.start()
    many = []
    for i in range(40000):
        uid = f"cluster1//Pod/default/a-workload-with-quite-a-long-name-so-that-the-limit-comes-early-{i:06}"
        many.append((uid, message(f1=message(f1=f"w{i}", f2="default", f20=uid, f3=[packed(f"11.{i >> 16}.{i >> 8 & 255}.{i & 255}")]))))
    mesh.istiod.put(ADDRESS, *many)
    mesh.istiod.put(AUTHORIZATION, ("default/old", message(f1="old", f2="default", f3=1)))
    daemon = mesh.client.node.start(enrol=False)
    assert len(daemon.dump()["workloads"]) == 40000
    stream = mesh.istiod.stream(1)
    with mesh.istiod.lock:
        for uid, _ in many[100:]:
            del mesh.istiod.resources[ADDRESS][uid]
        stream.end(CODE.UNAVAILABLE)
    again = mesh.istiod.stream(2)
    assert not again.first(ADDRESS).versions and again.first(ADDRESS).bytes < 10000
    assert again.first(AUTHORIZATION).versions == {"default/old": ""}
    eventually(lambda: len(daemon.dump()["workloads"]) == 100, "the rest is swept", 30 * SLOW)
    assert not daemon.lines_with("XDS client error")


def test_an_expired_token_is_replaced_by_the_next_read(mesh):
    """The file is read for each stream and each certificate; what istiod refuses is in the log with a hint."""
    mesh.istiod.tokens = {"token-2"}
    mesh.write()
    daemon = mesh.client.node.start(wait_ready=False, enrol=False)
    line = eventually(lambda: daemon.lines_with("authentication failure"), "the refusal", 20 * SLOW)[0]
    assert "UNAUTHENTICATED" in line and "(hint: check the control plane logs for more information)" in line
    mesh.istiod.write_token("token-2")
    daemon.wait_ready()
    assert mesh.istiod.stream().headers["authorization"] == "Bearer token-2"
    eventually(lambda: [c for c in daemon.dump()["certificates"] if c["state"] == "Available"], "the certificate", 30 * SLOW)
    assert "token-2" not in daemon.log() and "token-1" not in daemon.log()


def test_a_root_that_changes_is_followed(mesh):
    """istiod's own certificate comes from a new root: refused until the file says so, then all goes on (A4)."""
    from testenv.istiod import Root
    mesh.start()
    mesh.server.echo(8080)
    mesh.istiod.root = Root("root 2")
    mesh.istiod.restart()
    daemon = mesh.client.node.daemon
    eventually(lambda: [x for x in daemon.lines_with("XDS client connection error") if "retrying in 80ms" in x], "refused", 30 * SLOW)
    assert request(mesh) and daemon.http(15021, "/healthz/ready")[0] == 200
    mesh.istiod.write_root(mesh.istiod.root.pem)
    eventually(lambda: mesh.istiod.stream(), "connected", 40 * SLOW)
    mesh.policy("nobody", rules=[])
    mesh.write()
    eventually(lambda: mesh.client.refused(mesh.server.ip, 8080), "the push arrives", 20 * SLOW)


def test_a_missing_root_is_waited_for(mesh):
    """XDS_ROOT_CA names a file that is not there yet: named in the log, retried with back-off, not read as text (P1)."""
    path = mesh.istiod.root_file + ".later"
    daemon = mesh.client.node.start(wait_ready=False, enrol=False, XDS_ROOT_CA=path)
    eventually(lambda: [x for x in daemon.lines_with("XDS client error") if path in x], "named")
    mesh.istiod.replace(path, mesh.istiod.root.pem)
    daemon.wait_ready()


def test_a_response_that_is_none_ends_the_stream_and_spares_the_state(mesh):
    mesh.start()
    mesh.server.echo(8080)
    streams = list(mesh.istiod.streams)
    for s in streams:
        s.send_bytes(b"\xff\xff\xff")
    eventually(lambda: len(mesh.istiod.streams) == 4, "opened again", 20 * SLOW)
    daemon = mesh.client.node.daemon
    assert eventually(lambda: daemon.lines_with("failed to decode DeltaDiscoveryResponse"))
    assert daemon.metric("istio_xds_connection_terminations_total", reason="Error") == 1
    assert request(mesh)
    assert set(mesh.istiod.stream(4).first(ADDRESS).versions) == {mesh.client.uid, mesh.server.uid}


def test_file_and_istiod_together(mesh):
    """LOCAL_XDS beside xDS: both are in the dump; what istiod removes leaves the file's record alone, the gate waits for istiod."""
    extra = {"workloads": [{"uid": "file-uid", "name": "from-file", "namespace": "default", "serviceAccount": "f", "workloadIps": ["10.8.8.8"],
                            "protocol": "TCP", "node": "elsewhere", "services": {}}]}
    mesh.istiod.silent = True
    mesh.write()
    daemon = mesh.client.node.start(wait_ready=False, enrol=False, LOCAL_XDS=json.dumps(extra))
    eventually(lambda: named(daemon, "workloads", "from-file"))
    assert daemon.http(15021, "/healthz/ready")[0] == 500
    mesh.istiod.silent = False
    mesh.istiod.stream().end(CODE.UNAVAILABLE)
    daemon.wait_ready()
    assert named(daemon, "workloads", "client")
    stream = mesh.istiod.stream()
    assert "file-uid" not in stream.first(ADDRESS).versions
    stream.send(ADDRESS, (), ["file-uid"])
    eventually(stream.synced)
    assert named(daemon, "workloads", "from-file")


def test_peer_authentication_arrives_as_a_policy(mesh):
    """What istiod makes of STRICT: a policy of the root namespace that workloads name; plaintext is refused, the mesh goes on."""
    outsider = mesh.nodes[0].pod("outsider", protocol="TCP")
    mesh.start()
    mesh.server.echo(8080)
    assert outsider.request(mesh.server.ip, 8080) == b"hello worldhello world"
    mesh.policy("istio_converted_static_strict", namespace="istio-system", scope="WorkloadSelector", action="Deny",
                rules=[[[{"notPrincipals": [{"Presence": []}]}]]])
    mesh.server.workload["authorizationPolicies"] = ["istio-system/istio_converted_static_strict"]
    mesh.write()
    eventually(lambda: outsider.refused(mesh.server.ip, 8080), "plaintext is refused")
    assert request(mesh)


def test_a_waypoint_that_does_not_exist_is_left_out_by_istiod(mesh):
    """A reference to nothing keeps plain L4 working: istiod sends none, and a real one that leaves is taken back (TestBogusUseWaypoint)."""
    mesh.start()
    mesh.server.echo(8080)
    mesh.server.workload["waypoint"] = {"destination": "/10.96.0.250"}
    mesh.write()
    eventually(lambda: mesh.client.refused(mesh.server.ip, 8080), "nobody there")
    del mesh.server.workload["waypoint"]
    mesh.write()
    eventually(lambda: request(mesh), "plain L4 again")


def test_resync_of_20000_workloads_while_serving(mesh):
    """Everything is sent again, four times, while new connections are made: none fails."""
    many = []
    for i in range(20000):
        uid = f"cluster1//Pod/far/w{i}"
        many.append((uid, message(f1=message(f1=f"w{i}", f2="far", f20=uid, f3=[packed(f"11.0.{i >> 8}.{i & 255}")], f9="far",
                                             f22=[message(f1="far/svc.test", f2=message(f1=[message(f1=80, f2=8080)]))]))))
    mesh.start()
    mesh.server.echo(8080)
    mesh.istiod.put(ADDRESS, *many)
    daemon = mesh.client.node.daemon
    eventually(lambda: daemon.metric("istio_xds_message_total", url=ADDRESS) >= 2, "the first time", 60 * SLOW)
    for version in range(4):
        for s in mesh.istiod.streams:
            nonce = s.send(ADDRESS, [(n, f"again-{version}", value, ()) for n, value in many])
        served = 0
        while s.acked.get(ADDRESS) != nonce:
            assert request(mesh)
            served += 1
        assert served > 0
    assert not [x for x in daemon.lines("connection complete") if x.level == "error"]
