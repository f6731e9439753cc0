"""DNS for the tests: an upstream that does as it is told, and clients that ask from a pod."""
import socket
import struct
import threading

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from .daemon import SLOW


class Upstream:
    """Serves {(name, type): [texts]} by UDP and TCP on host:53. What it does with a question can be replaced:
    behave(query, answer, tcp) returns the messages to send, as bytes or dns.message."""

    def __init__(self, netns, host, zone=None, ttl=60, behave=None):
        self.zone, self.ttl = zone or {}, ttl
        self.behave = behave or (lambda query, answer, tcp: [answer])
        self.asked = []  # (name, type, protocol)
        self.clients = []
        self.queries = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.udp = netns.socket(family, socket.SOCK_DGRAM)
        self.tcp = netns.socket(family)
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.udp.bind((host, 53))
        self.tcp.bind((host, 53))
        self.tcp.listen(64)
        for loop in (self.serve_udp, self.serve_tcp):
            threading.Thread(target=loop, daemon=True).start()

    def count(self, name=None):
        return len([a for a in self.asked if name is None or a[0] == name])

    def answer(self, query):
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        answer = dns.message.make_response(query, recursion_available=True)
        answer.flags &= ~dns.flags.AA
        kind = dns.rdatatype.to_text(question.rdtype)
        if not any(n == name for n, _ in self.zone):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        for texts in [self.zone.get((name, kind))] if (name, kind) in self.zone else []:
            answer.answer.append(dns.rrset.from_text_list(question.name, self.ttl, "IN", kind, texts))
        if not answer.answer:
            answer.authority.append(dns.rrset.from_text("example.", self.ttl, "IN", "SOA", f"a. b. 1 2 3 4 {self.ttl}"))
        for alias in self.zone.get((name, "CNAME"), []):
            answer.authority.clear()
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", "CNAME", alias + "."))
            if texts := self.zone.get((alias, kind)):
                answer.answer.append(dns.rrset.from_text_list(alias + ".", self.ttl, "IN", kind, texts))
        return answer

    def handle(self, wire, tcp, client):
        query = dns.message.from_wire(wire)
        question = query.question[0]
        self.asked.append((question.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(question.rdtype),
                           "tcp" if tcp else "udp"))
        self.clients.append(client[0])
        self.queries.append(query)
        limit = 65535 if tcp else max(query.payload, 512)
        for message in self.behave(query, self.answer(query), tcp):
            if isinstance(message, bytes):
                yield message
                continue
            try:
                yield message.to_wire(max_size=limit)
            except dns.exception.TooBig:
                cut = dns.message.make_response(query)
                cut.flags |= dns.flags.TC
                yield cut.to_wire()

    def serve_udp(self):
        while True:
            try:
                wire, client = self.udp.recvfrom(65535)
            except OSError:
                return
            if not wire:  # close has begun
                return
            threading.Thread(target=self.one_udp, args=(wire, client), daemon=True).start()

    def one_udp(self, wire, client):
        for message in self.handle(wire, False, client):
            try:
                self.udp.sendto(message, client)
            except OSError:
                return

    def serve_tcp(self):
        while True:
            try:
                s, client = self.tcp.accept()
            except OSError:
                return
            threading.Thread(target=self.one_tcp, args=(s, client), daemon=True).start()

    def one_tcp(self, s, client):
        try:
            with s:
                while len(head := s.recv(2, socket.MSG_WAITALL)) == 2:
                    wire = s.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL)
                    for message in self.handle(wire, True, client):
                        s.sendall(struct.pack("!H", len(message)) + message)
        except OSError:
            pass

    def close(self):
        for s in (self.udp, self.tcp):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()


class Resolver:
    """Questions of a pod to its proxy."""

    def __init__(self, pod, host="127.0.0.1", port=15053):
        self.pod, self.host, self.port = pod, host, port

    def send(self, wire, timeout=12 * SLOW, port=None):
        """One datagram, and the answer as bytes; None: there was none in time."""
        with self.pod.netns.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(timeout)
            s.connect((self.host, port or self.port))
            s.send(wire)
            try:
                return s.recv(65535)
            except TimeoutError:
                return None

    def stream(self, timeout=12 * SLOW):
        return self.pod.connect(self.host, self.port, timeout)

    def ask(self, name, kind="A", tcp=False, **kw):
        """One question; the answer as dns.message."""
        query = dns.message.make_query(name, kind, **kw)
        return self.exchange(query, tcp)

    def exchange(self, query, tcp=False):
        wire = query.to_wire()
        if tcp:
            with self.stream() as s:
                s.sendall(struct.pack("!H", len(wire)) + wire)
                got = read_message(s)
        else:
            got = self.send(wire)
        assert got is not None, f"no answer to {query.question[0]}"
        answer = dns.message.from_wire(got)
        assert answer.id == query.id and answer.flags & dns.flags.QR
        return answer


def read_exactly(s, n):
    """n bytes, or what came before the end."""
    got = b""
    while len(got) < n and (chunk := s.recv(n - len(got))):
        got += chunk
    return got


def read_message(s):
    head = read_exactly(s, 2)
    return read_exactly(s, struct.unpack("!H", head)[0]) if len(head) == 2 else None


def addresses(answer):
    """The address records of an answer, sorted."""
    return sorted(item.address for rrset in answer.answer for item in rrset if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA))


def owners(answer):
    """[(owner, type)] of the answer section."""
    return [(rrset.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(rrset.rdtype)) for rrset in answer.answer]
