"""Names of the state (spec/dataplane §10.2, §10.3): each case over UDP and TCP, asked by a pod of ns1 in network nw1."""
import signal
import socket
import struct

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import pytest

from testenv import eventually
from testenv.dns import Resolver, Upstream, addresses, owners, read_message

ZONE = {
    ("www.google.com", "A"): ["1.1.1.1"], ("www.google.com", "NS"): ["ns.google.com."], ("_sip._tcp.example.com", "SRV"): ["1 2 5060 sip.example.com."],
    ("4.3.2.1.in-addr.arpa", "PTR"): ["four.example.com."], ("https.example.com", "HTTPS"): ['1 . alpn="h2"'],
    ("odd.example.com", "TYPE65280"): [r"\# 3 010203"], ("lying.example.com", "A"): ["192.0.2.9"],
}


def service(hostname, vips=(), ns="ns1", **more):
    return {"name": hostname.split(".")[0], "namespace": ns, "hostname": hostname, "vips": list(vips), "ports": {"80": 80}, **more}


def svc(name, ns, vips=(), **more):
    return service(f"{name}.{ns}.svc.cluster.local", vips, ns, **more)


def endpoint(name, service_key, ips):
    return {"uid": f"cluster1//v1/Pod/ns1/{name}", "name": name, "namespace": "ns1", "serviceAccount": "default", "workloadIps": ips,
            "protocol": "TCP", "node": "elsewhere", "network": "nw1", "services": {service_key: {"80": 80}}}


SERVICES = [
    service("www.example.com", ["nw1/9.9.9.9"]), svc("echo", "ns2", ["nw1/10.96.0.1"]), svc("near", "ns1", ["nw1/10.96.0.2"]),
    svc("v4", "ns1", ["nw1/10.96.0.3"], ipFamilies="IPv4"), svc("v6", "ns1", ["nw1/2001:db8::3"], ipFamilies="IPv6"),
    svc("dual", "ns1", ["nw1/10.96.0.4", "nw1/2001:db8::4"], ipFamilies="Dual"),
    service("echo.ns2.svc.clusterset.local", [f"nw1/10.96.1.{i}" for i in range(1, 5)], "ns2"),
    service("*.wild.com", ["nw1/10.97.0.1"]), service("*.more.wild.com", ["nw1/10.97.0.2"]),
    service("*.svc.mesh.company.net", ["nw1/10.97.0.3"]), svc("*", "ns1", []),
    svc("elsewhere", "ns1", ["nw2/10.98.0.1"]), svc("both", "ns1", ["nw1/10.98.0.2", "nw2/10.98.0.3"]),
    svc("headless", "ns1"), svc("headless6", "ns1", ipFamilies="IPv6"), service("headless.example.org"), service("bare.example.org"),
    service("pick.io", ["nw1/10.99.0.1"], "ns8"), service("pick.io", ["nw1/10.99.0.2"], "preferred"),
    service("own.io", ["nw1/10.99.1.1"], "preferred"), service("own.io", ["nw1/10.99.1.2"], "ns1"),
    service("canon.io", ["nw1/10.99.2.1"], "preferred"), service("canon.io", ["nw1/10.99.2.2"], "ns9", canonical=True),
    service("first.io", ["nw1/10.99.3.1"], "ns8"), service("large.com", [f"nw1/10.200.{i // 256}.{i % 256}" for i in range(256)]),
]
ENDPOINTS = [
    endpoint("headless-0", "ns1/headless.ns1.svc.cluster.local", ["10.1.0.1", "2001:db8:1::1"]),
    endpoint("headless-1", "ns1/headless.ns1.svc.cluster.local", ["10.1.0.2"]),
    endpoint("headless6-0", "ns1/headless6.ns1.svc.cluster.local", ["2001:db8:1::2"]),
    endpoint("external-0", "ns1/headless.example.org", ["10.1.0.3"]),
]
SUFFIX = ".ns1.svc.cluster.local"


@pytest.fixture
def mesh(world):
    """A pod of ns1 and one that asks from ns3; the services above; an upstream on the node."""
    node = world.node()
    world.client, world.stranger = node.pod("client", namespace="ns1"), node.pod("stranger", namespace="ns3")
    for pod in (world.client, world.stranger):
        pod.workload["network"] = "nw1"
    world.services += [s for s in SERVICES if s["hostname"] != "*.ns1.svc.cluster.local"]
    world.more_workloads += ENDPOINTS
    world.upstream = Upstream(node.netns, node.address, ZONE)
    node.resolv_conf(node.address)
    world.env = {"NETWORK": "nw1", "PREFERED_SERVICE_NAMESPACE": "preferred"}
    world.daemon = lambda **env: world.start(**(world.env | env)).nodes[0].daemon
    yield world
    world.upstream.close()


def both(world, name, kind="A", pod=None, **kw):
    """The answers by UDP and TCP, which must agree."""
    udp, tcp = (Resolver(pod or world.client).ask(name, kind, tcp=t, **kw) for t in (False, True))
    assert udp.rcode() == tcp.rcode() and addresses(udp) == addresses(tcp) and owners(udp) == owners(tcp)
    assert udp.flags == tcp.flags
    return udp


def check_local(answer, ips, owner=None, alias=None):
    """Authoritative, with these addresses; alias: behind a CNAME of that owner."""
    assert answer.rcode() == dns.rcode.NOERROR and addresses(answer) == sorted(ips)
    assert answer.flags & dns.flags.AA and answer.flags & dns.flags.RA and not answer.flags & dns.flags.AD
    if alias:
        assert owners(answer) == [(alias, "CNAME"), (owner, "A")]
        assert answer.answer[0][0].target.to_text(omit_final_dot=True) == owner
    elif ips and owner:
        assert {o for o, _ in owners(answer)} == {owner}
    assert all(rrset.ttl == 30 for rrset in answer.answer) and not answer.authority and not answer.additional


def check_forwarded(world, name, kind="A", rcode=dns.rcode.NXDOMAIN, pod=None):
    before = world.upstream.count(name)
    answer = both(world, name, kind, pod)
    assert answer.rcode() == rcode and not answer.flags & dns.flags.AA
    assert world.upstream.count(name) > before
    return answer


def test_lookup_unsupported_type_ns(mesh):
    mesh.daemon()
    assert owners(check_forwarded(mesh, "www.google.com", "NS", dns.rcode.NOERROR)) == [("www.google.com", "NS")]


def test_lookup_external_host_known(mesh):
    mesh.daemon()
    check_local(both(mesh, "www.example.com"), ["9.9.9.9"], "www.example.com")


def test_lookup_external_host_search_suffix(mesh):
    mesh.daemon()
    check_local(both(mesh, "www.example.com" + SUFFIX), ["9.9.9.9"], "www.example.com", "www.example.com" + SUFFIX)


def test_lookup_external_unknown(mesh):
    mesh.daemon()
    mesh.upstream.behave = lambda q, a, tcp: [a.additional.append(dns.rrset.from_text("extra.", 60, "IN", "A", "1.2.3.4")) or a]
    answer = check_forwarded(mesh, "www.google.com", rcode=dns.rcode.NOERROR)
    assert addresses(answer) == ["1.1.1.1"] and [r.name.to_text() for r in answer.additional] == ["extra."]


def test_found(mesh):
    """The forwarder's answer is not authoritative."""
    mesh.daemon()
    answer = check_forwarded(mesh, "www.google.com", rcode=dns.rcode.NOERROR)
    assert answer.flags & dns.flags.RA and answer.flags & dns.flags.RD


def test_not_found(mesh):
    mesh.daemon()
    check_forwarded(mesh, "nothing.example.com")


def test_lookup_k8s_fqdn_name_ns_short_name(mesh):
    mesh.daemon()
    for name in ("near.ns1.svc.cluster.local", "near.ns1", "near", "near.ns1.svc"):
        check_local(both(mesh, name), ["10.96.0.2"], name)


def test_lookup_name_ns_search_suffix(mesh):
    mesh.daemon()
    check_local(both(mesh, "echo.ns2" + SUFFIX), ["10.96.0.1"], "echo.ns2", "echo.ns2" + SUFFIX)


def test_lookup_aaaa_on_ipv4_service_with_suffix(mesh):
    mesh.daemon()
    check_local(both(mesh, "v4.ns1" + SUFFIX, "AAAA"), [])


def test_lookup_other_namespace_name_ns_fqdn_name_ns_svc(mesh):
    mesh.daemon()
    for name in ("echo.ns2", "echo.ns2.svc.cluster.local", "echo.ns2.svc"):
        check_local(both(mesh, name), ["10.96.0.1"], name)


def test_lookup_other_namespace_short_name(mesh):
    mesh.daemon()
    check_forwarded(mesh, "echo")


def test_lookup_remote_cluster_domain_fqdn_name_ns(mesh):
    mesh.daemon()
    check_local(both(mesh, "echo.ns2.svc.clusterset.local"), [f"10.96.1.{i}" for i in range(1, 5)], "echo.ns2.svc.clusterset.local")
    check_forwarded(mesh, "echo.ns2.svc.clusterset")


def test_lookup_dual_stack_a_aaaa(mesh):
    mesh.daemon()
    check_local(both(mesh, "dual"), ["10.96.0.4"], "dual")
    check_local(both(mesh, "dual", "AAAA"), ["2001:db8::4"], "dual")


def test_lookup_v6_only_asked_a_v4_only_asked_aaaa(mesh):
    mesh.daemon()
    check_local(both(mesh, "v6"), [])
    check_local(both(mesh, "v4", "AAAA"), [])
    check_local(both(mesh, "v6", "AAAA"), ["2001:db8::3"], "v6")


def test_lookup_wildcards(mesh):
    mesh.daemon()
    check_local(both(mesh, "a.wild.com"), ["10.97.0.1"], "a.wild.com")
    check_local(both(mesh, "a.b.wild.com"), ["10.97.0.1"], "a.b.wild.com")
    check_local(both(mesh, "a.more.wild.com"), ["10.97.0.2"], "a.more.wild.com")  # the most specific wins
    for name in ("foo.svc.mesh.company.net", "foo.foons.svc.mesh.company.net"):  # with a domain, with a namespace
        check_local(both(mesh, name), ["10.97.0.3"], name)
    for name, ip in (("a.wild.com", "10.97.0.1"), ("foo.svc.mesh.company.net", "10.97.0.3")):
        check_local(both(mesh, name + SUFFIX), [ip], name + SUFFIX)  # stripped, and yet no CNAME
    check_forwarded(mesh, "wild.com")


def test_lookup_vip_only_in_other_network_in_both(mesh):
    mesh.daemon()
    check_local(both(mesh, "elsewhere"), [])
    check_local(both(mesh, "both"), ["10.98.0.2"], "both")


def test_lookup_headless_a_aaaa(mesh):
    mesh.daemon()
    check_local(both(mesh, "headless"), ["10.1.0.1", "10.1.0.2"], "headless")
    check_local(both(mesh, "headless", "AAAA"), ["2001:db8:1::1"], "headless")


def test_lookup_headless_ipv6_only(mesh):
    mesh.daemon()
    check_local(both(mesh, "headless6", "AAAA"), ["2001:db8:1::2"], "headless6")
    check_local(both(mesh, "headless6"), [])


def test_lookup_pod_names_of_headless_service(mesh):
    mesh.daemon()
    check_forwarded(mesh, "headless-0.headless.ns1.svc.cluster.local")


def test_lookup_headless_external_with_or_without_endpoints(mesh):
    mesh.daemon()
    check_forwarded(mesh, "headless.example.org")
    check_forwarded(mesh, "bare.example.org")


def test_lookup_preferred_namespace_local_namespace_canonical(mesh):
    mesh.daemon()
    check_local(both(mesh, "pick.io"), ["10.99.0.2"])  # preferred over first
    check_local(both(mesh, "own.io"), ["10.99.1.2"])   # its own over preferred
    check_local(both(mesh, "canon.io"), ["10.99.2.2"])  # canonical over preferred
    check_local(both(mesh, "first.io"), ["10.99.3.1"])


def test_aaaa_is_empty_without_ipv6(mesh):
    mesh.daemon(IPV6_ENABLED="false")
    check_local(both(mesh, "dual", "AAAA"), [])
    check_local(both(mesh, "dual"), ["10.96.0.4"], "dual")
    with pytest.raises(OSError):
        Resolver(mesh.client, "::1").stream()


def test_large_response(mesh):
    mesh.daemon()
    tcp = Resolver(mesh.client).ask("large.com", tcp=True)
    assert len(addresses(tcp)) == 256 and not tcp.flags & dns.flags.TC
    udp = Resolver(mesh.client).ask("large.com", use_edns=0, payload=1232)
    assert len(addresses(udp)) == 74 and udp.flags & dns.flags.TC and udp.payload == 1232


def test_9_dns_without_edns_has_512_bytes(mesh):
    mesh.daemon()
    r = Resolver(mesh.client)
    wire = r.send(dns.message.make_query("large.com", "A").to_wire())
    assert len(wire) <= 512 and dns.message.from_wire(wire).flags & dns.flags.TC
    claimed = r.send(dns.message.make_query("large.com", "A", use_edns=0, payload=65535).to_wire())
    assert len(claimed) <= 4096  # whatever the client claims


def test_other_types_pass_unchanged(mesh):
    """PTR, SRV, HTTPS and a type nobody knows."""
    mesh.daemon()
    for (name, kind), (text, *_) in ZONE.items():
        answer = both(mesh, name, kind)
        assert answer.answer[0][0].to_text() == text, kind
    assert Resolver(mesh.client).ask("near", "SRV").rcode() == dns.rcode.NXDOMAIN  # the state knows addresses only


def test_names_that_no_upstream_is_asked_for(mesh):
    mesh.daemon()
    check_local(both(mesh, "localhost"), ["127.0.0.1"])
    check_local(both(mesh, "a.localhost", "AAAA"), ["::1"])
    assert both(mesh, "some.invalid").rcode() == dns.rcode.NXDOMAIN
    assert mesh.upstream.asked == []


def test_ipv4_in_6_should_unwrap(mesh):
    """A client whose socket is IPv6 and whose address is IPv4."""
    mesh.daemon()
    query = dns.message.make_query("near", "A")
    with mesh.client.netns.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.sendto(query.to_wire(), ("::ffff:127.0.0.1", 15053))
        check_local(dns.message.from_wire(s.recv(4096)), ["10.96.0.2"])


def test_forward_to_server(mesh):
    mesh.daemon()
    for name, rcode in (("www.google.com", dns.rcode.NOERROR), ("no.google.com", dns.rcode.NXDOMAIN)):
        for tcp in (False, True):
            assert Resolver(mesh.client).ask(name, tcp=tcp).rcode() == rcode


def test_case_is_mirrored_and_does_not_matter(mesh):
    mesh.daemon()
    answer = Resolver(mesh.client).ask("NeAr.Ns1")
    assert addresses(answer) == ["10.96.0.2"] and answer.question[0].name.to_text() == "NeAr.Ns1."


def test_state_changes_are_seen_at_once(mesh):
    mesh.daemon()
    assert both(mesh, "later.ns1").rcode() == dns.rcode.NXDOMAIN
    mesh.services.append(svc("later", "ns1", ["nw1/10.96.0.99"]))
    mesh.write()
    eventually(lambda: addresses(Resolver(mesh.client).ask("later.ns1")) == ["10.96.0.99"], "the new name")
    mesh.services.pop()
    mesh.write()
    eventually(lambda: Resolver(mesh.client).ask("later.ns1").rcode() == dns.rcode.NXDOMAIN, "its end")


def test_an_unknown_pod_gets_servfail_after_the_wait(mesh):
    del mesh.pods["client"].workload["services"]
    mesh.pods.pop("client")  # the state does not know it
    daemon = mesh.daemon(ZTUNNELD_LOCAL_WORKLOAD_WAIT="300ms")
    assert Resolver(mesh.client).ask("near").rcode() == dns.rcode.SERVFAIL
    assert daemon.metric("istio_dns_requests_total", source_canonical_service="unknown") == 1


def test_a_question_waits_for_the_pod_s_record(mesh):
    mesh.pods.pop("client")
    mesh.daemon()
    with mesh.client.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.connect(("127.0.0.1", 15053))
        s.send(dns.message.make_query("near", "A").to_wire())
        mesh.pods["client"] = mesh.client
        mesh.write()
        check_local(dns.message.from_wire(s.recv(4096)), ["10.96.0.2"])


def test_dns_metrics(mesh):
    """C45: a known service, then an unknown name."""
    daemon = mesh.daemon()
    r = Resolver(mesh.client)
    r.ask("near.ns1.svc.cluster.local")
    r.ask("www.unknown.com")
    labels = {"request_query_type": "a", "request_protocol": "udp", "source_canonical_service": "client", "source_canonical_revision": "v1"}
    assert daemon.metric("istio_dns_requests_total", **labels) == 2
    assert daemon.metric("istio_dns_upstream_requests_total", **labels) == 1
    assert daemon.metric("istio_dns_upstream_failures_total", **labels) == 1  # NXDOMAIN counts
    assert daemon.metric("istio_dns_upstream_request_duration_seconds_count", **labels) == 1
    r.ask("www.google.com")
    for domain, result in (("near.ns1.svc.cluster.local.", "success"), ("www.unknown.com.", "forwarding failed (NXDOMAIN)"),
                           ("www.google.com.", "forwarded")):
        line = f'debug\tdns\tsrc.workload="client" src.namespace="ns1" query="A" domain="{domain}" result="{result}" endpoints='
        eventually(lambda: daemon.lines_with(line), f"the line of {domain}")
    r.ask("odd.example.com", "TYPE65280", tcp=True)
    assert daemon.metric("istio_dns_requests_total", request_query_type="unknown", request_protocol="tcp") == 1


# ---- bad input ----


def test_what_is_no_question_gets_no_answer(mesh):
    daemon = mesh.daemon()
    r = Resolver(mesh.client)
    query = dns.message.make_query("near", "A")
    answer = dns.message.make_response(query).to_wire()
    for wire in (b"", b"\0", query.to_wire()[:11], answer):
        assert r.send(wire, timeout=0.2) is None
    assert addresses(r.ask("near")) == ["10.96.0.2"]
    assert daemon.process.poll() is None


@pytest.mark.parametrize("wire, rcode", [
    (b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1", dns.rcode.FORMERR),                      # a pointer to itself
    (b"\0\1\1\0\0\1\0\0\0\0\0\0" + b"\x3f" + b"a" * 63, dns.rcode.FORMERR),                # half a name
    (b"\0\1\1\0\0\1\0\0\0\0\0\0" + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1", dns.rcode.FORMERR),  # an oversized name
    (b"\0\1\1\0\0\2\0\0\0\0\0\0" + b"\1a\0\0\1\0\1" * 2, dns.rcode.SERVFAIL),              # two questions
    (b"\0\1\1\0\xff\xff\0\0\0\0\0\0" + b"\1a\0\0\1\0\1", dns.rcode.SERVFAIL),              # 65535 of them
    (b"\0\1\x29\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1", dns.rcode.NOTIMP),                        # UPDATE
    (b"\0\1\1\0\0\1\xff\xff\xff\xff\xff\xff\1a\0\0\1\0\1", dns.rcode.FORMERR),             # records that are not there
    (b"\0\1\1\0\0\1\0\0\0\0\0\1" + b"\1a\0\0\1\0\1" + b"x" * 5000, dns.rcode.FORMERR),     # longer than any question
], ids=["loop", "cut", "oversized", "two", "many", "opcode", "records", "long"])
def test_bad_questions_are_answered_as_the_rfcs_say(mesh, wire, rcode):
    daemon = mesh.daemon()
    got = Resolver(mesh.client).send(wire)
    assert got[:2] == b"\0\1" and got[3] & 0xf == rcode and len(got) <= max(len(wire), 12)  # never larger than what came
    assert addresses(Resolver(mesh.client).ask("near")) == ["10.96.0.2"] and daemon.process.poll() is None


def test_pipelined_questions_are_all_answered(mesh):
    mesh.daemon()
    queries = [dns.message.make_query(name, "A") for name in ("near", "www.google.com", "v4", "none.google.com", "dual") * 4]
    wires = b"".join(struct.pack("!H", len(q.to_wire())) + q.to_wire() for q in queries)
    with Resolver(mesh.client).stream() as s:
        s.sendall(wires)
        answers = [dns.message.from_wire(read_message(s)) for _ in queries]
    assert [a.id for a in answers] == [q.id for q in queries]
    assert [addresses(a) for a in answers[:3]] == [["10.96.0.2"], ["1.1.1.1"], ["10.96.0.3"]]


def test_a_tcp_question_byte_by_byte(mesh):
    mesh.daemon()
    wire = dns.message.make_query("near", "A").to_wire()
    with Resolver(mesh.client).stream() as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in struct.pack("!H", len(wire)) + wire:
            s.sendall(bytes([byte]))
        check_local(dns.message.from_wire(read_message(s)), ["10.96.0.2"])


def test_half_written_tcp_messages_are_given_up_after_5_s(mesh):
    daemon = mesh.daemon()
    before = daemon.open_fds()
    streams = [Resolver(mesh.client).stream() for _ in range(3)]
    for s, part in zip(streams, (b"", b"\0", b"\0\x20abc")):
        s.sendall(part)
    assert addresses(Resolver(mesh.client).ask("near", tcp=True)) == ["10.96.0.2"]  # nobody else waits
    for s in streams:
        assert s.recv(1) == b""
        s.close()
    eventually(lambda: daemon.open_fds() <= before, "descriptors to be closed")


def test_a_tcp_message_no_question_is_that_long_ends_the_connection(mesh):
    mesh.daemon()
    with Resolver(mesh.client).stream() as s:
        s.sendall(b"\xff\xff" + b"x" * 100)
        try:
            assert s.recv(1) == b""
        except ConnectionResetError:
            pass


def test_tcp_connections_of_a_pod_are_limited(mesh):
    daemon = mesh.daemon()
    streams = [Resolver(mesh.client).stream() for _ in range(70)]
    eventually(lambda: daemon.metric("istio_dns_limited_requests_total") == 6, "six too many")
    assert addresses(Resolver(mesh.stranger).ask("echo.ns2", tcp=True)) == ["10.96.0.1"]
    for s in streams:
        s.close()


def test_an_answer_that_is_partly_written_survives_a_drain(mesh):
    """The client takes its time to read; the daemon waits until all of the answer is out."""
    mesh.upstream.zone = {("huge.example.com", "A"): [f"192.0.{i // 250}.{i % 250}" for i in range(3000)]}
    daemon = mesh.daemon(CONNECTION_TERMINATION_DEADLINE="30s")
    for buffers in ("tcp_rmem", "tcp_wmem"):
        mesh.client.netns.sysctl(f"net.ipv4.{buffers}", "4096 4096 4096")
    query = dns.message.make_query("huge.example.com", "A").to_wire()
    with Resolver(mesh.client).stream() as s:
        s.sendall(struct.pack("!H", len(query)) + query)
        eventually(lambda: daemon.lines_with('result="forwarded"'), "the answer to begin")
        daemon.signal(signal.SIGTERM)
        daemon.wait_line("shutting down the DNS server")
        assert len(addresses(dns.message.from_wire(read_message(s)))) == 3000
        assert s.recv(1) == b""
    assert any(line.scope == "dns::server:dns_proxy{wl=ns1/client}" for line in daemon.lines("dns server drained"))
    assert daemon.wait(20) == 0
    daemon.check_clean(0)
    daemon.process = None
