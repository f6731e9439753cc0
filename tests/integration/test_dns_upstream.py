"""Forwarding (spec/dataplane §10.4): the cache, upstreams that fail, lie, delay, drop, truncate and answer twice, and limits."""
import json
import socket
import threading
import time

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from testenv import eventually
from testenv.dns import Resolver, Upstream, addresses
from testenv.daemon import SLOW

NAME = "www.example.com"
ZONE = {(NAME, "A"): ["192.0.2.1"], ("big.example.com", "A"): [f"192.0.2.{i}" for i in range(200)], ("alias.example.com", "CNAME"): [NAME]}


@pytest.fixture
def mesh(world):
    """Two pods of one identity and one of another, by default on one worker, and two upstreams."""
    node = world.node()
    node.netns.ip(f"addr add 172.18.0.101/32 dev lo")
    world.client, world.other = node.pod("client", namespace="ns1"), node.pod("other", namespace="ns1", sa="client")
    world.stranger = node.pod("stranger", namespace="ns3")
    world.first, world.second = Upstream(node.netns, node.address, dict(ZONE)), Upstream(node.netns, "172.18.0.101", dict(ZONE))

    def start(n=1, more="", workers=1, **env):
        node.resolv_conf(*[node.address, "172.18.0.101"][:n], more=more)
        world.start(ZTUNNEL_WORKER_THREADS=str(workers), **env)
        world.daemon = node.daemon
        return Resolver(world.client)
    world.up = start
    yield world
    world.first.close()
    world.second.close()


def dns_status(daemon):
    return json.loads(daemon.ztctl("-o", "json", "dns"))


def timed(fn):
    began = time.monotonic()
    return fn(), time.monotonic() - began


# ---- the cache ----


def test_an_answer_is_asked_for_once_and_ages(mesh):
    r = mesh.up()
    assert r.ask(NAME).answer[0].ttl == 60
    eventually(lambda: r.ask(NAME).answer[0].ttl < 60, "the TTL to go down")
    assert addresses(Resolver(mesh.other).ask(NAME)) == ["192.0.2.1"]  # for the identity, not for the pod
    assert mesh.first.count() == 1
    assert dns_status(mesh.daemon)["cache"]["entries"] == 1


def test_the_ttl_is_honoured(mesh):
    mesh.first.ttl = 1
    r = mesh.up()
    r.ask(NAME)
    eventually(lambda: r.ask(NAME) and mesh.first.count() == 2, "a second question")


def test_a_no_is_kept_as_long_as_its_soa_says(mesh):
    r = mesh.up()
    for _ in range(3):
        assert r.ask("no.example.com").rcode() == dns.rcode.NXDOMAIN
        assert r.ask(NAME, "AAAA").rcode() == dns.rcode.NOERROR
    assert mesh.first.count() == 2
    mesh.first.ttl = 1
    r.ask("never.example.com")
    eventually(lambda: r.ask("never.example.com") and mesh.first.count("never.example.com") == 2, "a second question")


def test_what_must_not_be_shared_is_not(mesh):
    r = mesh.up()
    r.ask(NAME)
    r.ask(NAME, want_dnssec=True)
    r.ask(NAME, "AAAA")
    query = dns.message.make_query(NAME, "A")
    query.flags |= dns.flags.CD
    assert r.exchange(query).flags & dns.flags.CD
    assert mesh.first.count() == 4
    query = dns.message.make_query(NAME.upper(), "A", use_edns=0)
    answer = r.exchange(query)  # case and EDNS make no difference
    assert mesh.first.count() == 4 and answer.question[0].name.to_text() == NAME.upper() + "." and answer.edns == 0


def test_what_one_identity_was_told_another_asks_itself(mesh):
    """A pod sees the questions asked in its namespace, and may forge their answers: for itself only."""
    forged, count = Resolver(mesh.client), mesh.first.count
    mesh.up()
    mesh.first.zone[(NAME, "A")] = ["203.0.113.66"]
    assert addresses(forged.ask(NAME)) == ["203.0.113.66"]
    mesh.first.zone[(NAME, "A")] = ["192.0.2.1"]
    assert addresses(Resolver(mesh.stranger).ask(NAME)) == ["192.0.2.1"]
    assert addresses(Resolver(mesh.other).ask(NAME)) == ["203.0.113.66"]
    assert count() == 2


def test_identical_questions_are_one_question_upstream(mesh):
    go = threading.Event()

    def slow(query, answer, tcp):
        go.wait(10)
        return [answer]
    mesh.first.behave = slow
    mesh.up(more="options timeout:20 attempts:1\n")
    answers, threads = [], []
    for _ in range(20):
        t = threading.Thread(target=lambda: answers.append(addresses(Resolver(mesh.client).ask(NAME))))
        t.start()
        threads.append(t)
    eventually(lambda: dns_status(mesh.daemon)["coalesced"] == 19, "all to wait for one")
    go.set()
    for t in threads:
        t.join()
    assert answers == [["192.0.2.1"]] * 20 and mesh.first.count() == 1


def test_identical_questions_on_two_workers_are_one_question_upstream(mesh):
    """Also when nobody may keep the answer. A pod waits only so long for another's question: on a busy machine that may take some tries."""
    mesh.first.ttl = 0
    go = threading.Event()

    def slow(query, answer, tcp):
        go.wait(10)
        return [answer]
    mesh.first.behave = slow
    mesh.up(more="options timeout:20 attempts:1\n", workers=2)
    for name in (f"n{i}.example.com" for i in range(10)):
        mesh.first.zone[(name, "A")] = ["192.0.2.7"]
        coalesced, answers = dns_status(mesh.daemon)["coalesced"], []
        go.clear()
        threads = [threading.Thread(target=lambda p=p: answers.append(addresses(Resolver(p).ask(name)))) for p in (mesh.client, mesh.other)]
        for t in threads:
            t.start()
        eventually(lambda: mesh.first.count(name) == 2 or mesh.first.count(name) and dns_status(mesh.daemon)["coalesced"] > coalesced,
                   "both questions")
        go.set()
        for t in threads:
            t.join()
        assert answers == [["192.0.2.7"]] * 2
        if mesh.first.count(name) == 1:
            return
    assert False, "each worker asked each time"


def test_who_waited_for_a_pod_that_goes_asks_himself(mesh):
    mesh.first.behave = lambda query, answer, tcp: []
    mesh.up(more="options timeout:20 attempts:1\n", workers=2)
    with mesh.other.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 15053))
        s.send(dns.message.make_query(NAME, "A").to_wire())
        eventually(lambda: mesh.first.count() == 1, "its question")
        got = []
        t = threading.Thread(target=lambda: got.append(addresses(Resolver(mesh.client).ask(NAME))))
        t.start()
        eventually(lambda: dns_status(mesh.daemon)["coalesced"] == 1, "the other's to wait for it")
        mesh.first.behave = lambda query, answer, tcp: [answer]
        assert mesh.nodes[0].zds.delete(mesh.other.zds_uid) == ""
        t.join()
    assert got == [["192.0.2.1"]] and mesh.first.clients == [mesh.other.ip, mesh.client.ip]


def test_serve_stale_while_the_upstream_is_silent(mesh):
    mesh.first.ttl = 1
    r = mesh.up()
    r.ask(NAME)
    mesh.first.behave = lambda query, answer, tcp: []
    eventually(lambda: r.ask(NAME).answer[0].ttl == 30 and dns_status(mesh.daemon)["cache"]["staleServed"], "a stale answer", 20)
    answer, seconds = timed(lambda: r.ask(NAME))
    assert addresses(answer) == ["192.0.2.1"] and seconds < 4 * SLOW


def test_serve_stale_while_the_upstream_fails(mesh):
    mesh.first.ttl = 1
    r = mesh.up()
    r.ask(NAME)

    def fails(query, answer, tcp):
        answer = dns.message.make_response(query)
        answer.set_rcode(dns.rcode.SERVFAIL)
        return [answer]
    mesh.first.behave = fails
    eventually(lambda: r.ask(NAME).answer[0].ttl == 30, "a stale answer")
    count = mesh.first.count()
    for _ in range(5):  # not asked again for a while
        assert addresses(r.ask(NAME)) == ["192.0.2.1"]
    assert mesh.first.count() == count


# ---- upstreams as they should not be ----


def test_a_cut_answer_is_fetched_by_tcp(mesh):
    r = mesh.up()
    assert len(addresses(r.ask("big.example.com", tcp=True))) == 200
    assert [p for _, _, p in mesh.first.asked] == ["udp", "tcp"]
    udp = r.send(dns.message.make_query("big.example.com", "A").to_wire())
    assert len(udp) <= 512 and dns.message.from_wire(udp).flags & dns.flags.TC
    assert mesh.first.count() == 2  # the whole answer is in the cache


def test_a_lost_question_is_asked_again(mesh):
    def first_time(query, answer, tcp):
        return [answer] if mesh.first.count() > 1 else []
    mesh.first.behave = first_time
    answer, seconds = timed(lambda: mesh.up().ask(NAME))
    assert addresses(answer) == ["192.0.2.1"]


def test_the_other_upstream_answers_when_one_is_silent(mesh):
    mesh.first.behave = lambda query, answer, tcp: []
    r = mesh.up(2)
    answer, seconds = timed(lambda: r.ask(NAME))
    assert addresses(answer) == ["192.0.2.1"] and seconds < 2 * SLOW
    for i in range(5):
        r.ask(f"no{i}.example.com")
    before = mesh.first.count()
    answer, seconds = timed(lambda: r.ask("last.example.com"))
    assert seconds < 0.2 * SLOW  # it is asked last now
    assert mesh.first.count() <= before + 1


def test_hedging_after_the_usual_latency(mesh):
    r = mesh.up(2)
    for i in range(20):
        r.ask(f"warm{i}.example.com")
    assert mesh.second.count() == 0

    def slow(query, answer, tcp):
        time.sleep(3)
        return [answer]
    mesh.first.behave = slow
    answer, seconds = timed(lambda: r.ask(NAME))
    assert addresses(answer) == ["192.0.2.1"] and seconds < 1 * SLOW and mesh.second.count() == 1


def test_nobody_listens(mesh):
    mesh.first.close()
    r = mesh.up(2)
    answer, seconds = timed(lambda: r.ask(NAME))
    assert addresses(answer) == ["192.0.2.1"] and seconds < 1 * SLOW


def test_all_silent_is_servfail_in_time(mesh):
    mesh.first.behave = lambda query, answer, tcp: []
    r = mesh.up(more="options timeout:1 attempts:2\n")
    answer, seconds = timed(lambda: r.ask(NAME))
    assert answer.rcode() == dns.rcode.SERVFAIL and 1 < seconds < 5 * SLOW
    assert mesh.daemon.metric("istio_dns_upstream_failures_total") == 1


def test_a_refusal_is_passed_on_when_nobody_knows_better(mesh):
    def refuses(query, answer, tcp):
        answer = dns.message.make_response(query)
        answer.set_rcode(dns.rcode.REFUSED)
        return [answer]
    mesh.first.behave = mesh.second.behave = refuses
    r = mesh.up(2)
    assert r.ask(NAME).rcode() == dns.rcode.REFUSED
    mesh.second.behave = lambda query, answer, tcp: [answer]
    assert addresses(r.ask("alias.example.com")) == ["192.0.2.1"]


def test_an_upstream_without_edns_is_asked_without(mesh):
    def old(query, answer, tcp):
        if query.edns < 0:
            return [answer]
        failure = dns.message.make_response(dns.message.make_query(NAME, "A"))
        failure.id = query.id
        failure.set_rcode(dns.rcode.FORMERR)
        return [failure]
    mesh.first.behave = old
    r = mesh.up()
    assert addresses(r.ask(NAME, use_edns=0)) == ["192.0.2.1"]
    r.ask("next.example.com")
    assert [q.edns for q in mesh.first.queries] == [0, -1, -1]


def test_lies_are_ignored(mesh):
    """Wrong ids, answers to other questions, garbage, then the truth; and the truth twice."""
    def liar(query, answer, tcp):
        evil = dns.message.make_response(query)
        evil.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "6.6.6.6"))
        wrong_id = bytearray(evil.to_wire())
        wrong_id[0] ^= 0xff
        other = dns.message.make_response(dns.message.make_query("other.example.com", "A"))
        other.id = query.id
        question = query.to_wire()
        loop = evil.to_wire()[:-16] + b"\xc0\x28" + evil.to_wire()[-14:]
        return [bytes(wrong_id), other, b"", b"\0", b"\xff" * 600, question, loop, answer, answer]
    mesh.first.behave = liar
    r = mesh.up()
    for name in (NAME, "alias.example.com"):
        assert addresses(r.ask(name)) == ["192.0.2.1"]
    assert dns_status(mesh.daemon)["ignoredAnswers"] >= 10


def test_spoofed_sources_are_not_heard(mesh):
    """Whoever is not the upstream can send what he wants, from port 53 too."""
    node = mesh.nodes[0]
    released = threading.Event()

    def waits(query, answer, tcp):
        released.wait(10)
        return [answer]
    mesh.first.behave = waits
    r = mesh.up(more="options timeout:20 attempts:1\n")
    got = []
    t = threading.Thread(target=lambda: got.append(r.ask(NAME)))
    t.start()
    eventually(lambda: mesh.first.queries, "the question")
    query = mesh.first.queries[0]
    evil = dns.message.make_response(query)
    evil.answer.append(dns.rrset.from_text(query.question[0].name, 60, "IN", "A", "6.6.6.6"))
    ports = [int(line.split()[4].rsplit(":", 1)[1]) for line in mesh.client.netns.run("ss", "-Hnua").splitlines()
             if f"{node.address}:53" in line]
    assert ports
    mesh.second.udp.sendto(evil.to_wire(), (mesh.client.ip, ports[0]))  # the right id, question and port
    released.set()
    t.join()
    assert addresses(got[0]) == ["192.0.2.1"]


def test_ids_and_ports_are_not_guessable(mesh):
    r = mesh.up()
    for i in range(20):
        r.ask(f"n{i}.example.com")
    ids = [q.id for q in mesh.first.queries]
    assert len(set(ids)) > 15 and sorted(ids) != ids


@pytest.mark.parametrize("workers", [1, 2])
def test_another_pod_s_barred_way_out_does_not_hold_us_up(mesh, workers):
    r = mesh.up(workers=workers)
    mesh.other.netns.run("nft", "add table inet barred")
    mesh.other.netns.run("nft", "add chain inet barred out { type filter hook output priority 0 ; }")
    mesh.other.netns.run("nft", "add rule inet barred out udp dport 53 drop")
    with mesh.other.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 15053))
        s.send(dns.message.make_query(NAME, "A").to_wire())
        eventually(lambda: dns_status(mesh.daemon)["upstreams"][0]["queries"], "its question")
        answer, seconds = timed(lambda: r.ask(NAME))
    assert addresses(answer) == ["192.0.2.1"] and seconds < 2 * SLOW


def test_questions_under_way_are_limited_per_pod(mesh):
    mesh.first.behave = lambda query, answer, tcp: []
    r = mesh.up(more="options timeout:30 attempts:1\n")
    with mesh.client.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 15053))
        s.settimeout(10)
        for i in range(300):
            s.send(dns.message.make_query(f"q{i}.example.com", "A").to_wire())
            if i % 50 == 49 and i < 256:  # no more at once than a socket holds
                eventually(lambda: dns_status(mesh.daemon)["upstreams"][0]["queries"] > i, "the questions to arrive")
        answers = [dns.message.from_wire(s.recv(4096)) for _ in range(44)]
    assert {a.rcode() for a in answers} == {dns.rcode.SERVFAIL}
    assert mesh.daemon.metric("istio_dns_limited_requests_total", source_canonical_service="client") == 44
    mesh.first.behave = lambda query, answer, tcp: [answer]
    assert addresses(Resolver(mesh.other).ask(NAME)) == ["192.0.2.1"]


def test_questions_that_refresh_what_was_served_stale_count_for_their_pod(mesh):
    """Nobody waits for them any more, and they hold a socket each."""
    mesh.first.ttl = 1
    mesh.up(more="options timeout:60 attempts:1\n")
    names = [f"q{i}.example.com" for i in range(256)]

    def ask_all(s):
        for i in range(0, 256, 32):  # no more at once than a socket holds
            for name in names[i:i + 32]:
                s.send(dns.message.make_query(name, "A").to_wire())
            eventually(lambda: len(mesh.first.asked) >= asked + i + 32, "the questions to arrive")
        return {dns.message.from_wire(s.recv(4096)).rcode() for _ in names}
    with mesh.client.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.connect(("127.0.0.1", 15053))
        s.settimeout(20)
        asked = 0
        assert ask_all(s) == {dns.rcode.NXDOMAIN}
        mesh.first.behave = lambda query, answer, tcp: []
        time.sleep(1.1)  # the TTL
        asked = len(mesh.first.asked)
        assert ask_all(s) == {dns.rcode.NXDOMAIN}
    assert dns_status(mesh.daemon)["cache"]["staleServed"] == 256 and dns_status(mesh.daemon)["limited"] == 0
    assert Resolver(mesh.client).ask("one.more.example.com").rcode() == dns.rcode.SERVFAIL
    assert dns_status(mesh.daemon)["limited"] == 1


def test_the_cache_is_bounded(mesh):
    mesh.first.zone = {}
    mesh.first.ttl = 3600
    mesh.up()
    with mesh.client.netns.socket(kind=socket.SOCK_DGRAM) as s:
        s.settimeout(10)
        s.connect(("127.0.0.1", 15053))
        for i in range(0, 600, 50):
            for k in range(50):
                s.send(dns.message.make_query(f"{i + k}.example.com", "A").to_wire())
            for k in range(50):
                s.recv(4096)
    cache = dns_status(mesh.daemon)["cache"]
    assert cache["entries"] == 600 and cache["entries"] <= cache["entriesMax"] and 0 < cache["bytes"] <= cache["bytesMax"]
