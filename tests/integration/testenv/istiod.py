"""A scripted control plane in the test's process: delta xDS and the certificate service over TLS (spec/controlplane §8, layer L1).

    istiod = world.control_plane()     # before world.start(); the daemons then get state and certificates from here
    istiod.put(ADDRESS, name, bytes)   # pushed at once to every stream
    stream = istiod.stream()           # the newest; its requests, its headers, and what the test wants to say on it

By itself it does what istiod does: answers first requests by the versions they name, pushes what changes, signs. A scenario sets what is
unfriendly about it. gRPC's threads run the handlers; everything here is guarded by one lock.
"""
import datetime
import hashlib
import os
import queue
import threading
from concurrent import futures

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .daemon import SLOW
from .protobuf import fields, message, text
from .resources import ADDRESS, AUTHORIZATION, aliases_of, key_of, policy, service, workload
from .wait import eventually

NAME = "istiod.istio-system.svc"
PORT = 15012
DELTA = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
SIGN = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
THREADS = 400  # a call that is never answered holds one


def pem(cert):
    return cert.public_bytes(serialization.Encoding.PEM).decode()


class Root:
    """A certificate authority."""

    def __init__(self, name="root"):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.cert = self.sign(self.key.public_key(), self.name, 3650 * 86400, [(x509.BasicConstraints(True, None), True)])
        self.pem = pem(self.cert)

    def sign(self, public_key, subject, seconds, extensions, start=-120):
        now = datetime.datetime.utcnow()
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(public_key)
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now + datetime.timedelta(seconds=start))
        builder = builder.not_valid_after(now + datetime.timedelta(seconds=seconds))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self.key, hashes.SHA256())

    def leaf(self, public_key, identity, seconds, start=-120):
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
        return self.sign(public_key, x509.Name([]), seconds, [(san, True)], start)


class Request:
    """A DeltaDiscoveryRequest."""

    def __init__(self, data):
        f = fields(data)
        self.bytes = len(data)
        self.node = f.get(1, [None])[0]
        self.type = text(f, 2)
        self.subscribe = [v.decode() for v in f.get(3, [])]
        self.unsubscribe = [v.decode() for v in f.get(4, [])]
        pairs = [fields(v) for v in f.get(5, [])]
        self.versions = {text(p, 1): text(p, 2) for p in pairs}
        self.nonce = text(f, 6)
        self.error = text(fields(f[7][0]), 2) if 7 in f else None


class Stream:
    """One ADS stream as the server sees it."""

    def __init__(self, istiod, context):
        self.istiod = istiod
        self.headers = dict(context.invocation_metadata())
        self.requests, self.nonces, self.acked, self.nacks = [], {}, {}, []
        self.wanted = None  # on demand: the keys asked for; None = everything
        self.queue = queue.Queue()
        self.context = context
        self.closed = not context.add_callback(self.on_closed)

    def on_closed(self):
        self.closed = True
        self.queue.put(None)

    def read(self, iterator):
        try:
            for data in iterator:
                with self.istiod.lock:
                    self.on_request(Request(data))
        except grpc.RpcError:
            pass  # the client went away

    def on_request(self, r):
        self.requests.append(r)
        if r.nonce:
            if r.nonce == self.nonces.get(r.type):
                self.acked[r.type] = r.nonce
            if r.error is not None:
                self.nacks.append(r.error)
            return
        if not self.istiod.silent:
            self.istiod.answer(self, r)

    def first(self, kind):
        return next((r for r in self.requests if r.type == kind and not r.nonce), None)

    def send(self, kind, resources=(), removed=(), nonce=None):
        """resources: (name, version, bytes or None, aliases)"""
        with self.istiod.lock:
            nonce = nonce or f"n{self.istiod.count()}"
            self.nonces[kind] = nonce
            body = [message(f1=version, f2=None if value is None else message(f1=kind, f2=value), f3=name, f4=list(aliases))
                    for name, version, value, aliases in resources]
            self.queue.put(message(f2=body, f4=kind, f5=nonce, f6=list(removed)))
        return nonce

    def send_bytes(self, data):
        self.queue.put(data)

    def end(self, code, words=""):
        self.queue.put((code, words))

    def synced(self):
        """As istiod's syncz says it: the last response of each type was acknowledged."""
        return set(self.nonces) == {ADDRESS, AUTHORIZATION} and self.acked == self.nonces


class Istiod:
    def __init__(self, directory, netns, address):
        self.directory, self.netns, self.address = str(directory), netns, address
        self.lock = threading.RLock()
        self.root = Root("root 1")  # of the server's own certificate and, unless a scenario says otherwise, of the workloads'
        self.server = None
        self.options = []
        self.resources = {ADDRESS: {}, AUTHORIZATION: {}}  # name -> (version, bytes, aliases)
        self.streams, self.refused, self.counter = [], 0, 0
        self.silent = False  # streams are accepted and nothing is said
        self.status = None  # (code, text): every stream is refused with it
        self.tokens = None  # the tokens let in; None = any
        self.signatures = []  # identities asked for, in order
        self.signing, self.most_at_once = 0, 0
        self.reply = self.sign  # what answers a certificate request: fn(identity, csr) -> chain, or raises grpc status by Refusal
        self.workload_roots = [self.root]  # the last is the one that signs
        self.ttl_s = 86400
        self.token = os.path.join(self.directory, "token")
        self.root_file = os.path.join(self.directory, "root-cert.pem")
        self.write_token("token-1")
        self.write_root(self.root.pem)
        self.start()

    def environment(self):
        """What a daemon needs to be fed and signed for by this one alone; None removes a key."""
        url = f"https://{self.address}:{PORT}"
        return {"XDS_ADDRESS": url, "CA_ADDRESS": url, "XDS_ROOT_CA": self.root_file, "CA_ROOT_CA": self.root_file, "AUTH_TOKEN": self.token,
                "ALT_XDS_HOSTNAME": NAME, "ALT_CA_HOSTNAME": NAME, "ISTIO_META_CLUSTER_ID": "Kubernetes", "POD_NAMESPACE": "istio-system",
                "LOCAL_XDS_PATH": None, "LOCAL_CA_PATH": None}

    def replace(self, path, content):
        with open(path + ".new", "w") as f:
            f.write(content)
        os.replace(path + ".new", path)

    def write_token(self, token):
        self.replace(self.token, token + "\n")

    def write_root(self, text):
        self.replace(self.root_file, text)

    # ---- the server ----

    def start(self):
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self.root.sign(key.public_key(), x509.Name([]), 86400, [(x509.SubjectAlternativeName([x509.DNSName(NAME)]), True)])
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=self.options)
        self.server.add_generic_rpc_handlers([self])
        with self.netns.inside():
            port = self.server.add_secure_port(f"{self.address}:{PORT}", grpc.ssl_server_credentials([(private, pem(cert).encode())]))
        assert port == PORT
        self.server.start()

    def stop(self):
        """Cuts every connection."""
        if self.server:
            self.server.stop(None).wait()
            self.server = None

    def restart(self):
        self.stop()
        self.start()

    def service(self, details):
        if details.method == DELTA:
            return grpc.stream_stream_rpc_method_handler(self.on_stream)
        if details.method == SIGN:
            return grpc.unary_unary_rpc_method_handler(self.on_sign)
        return None

    def authenticate(self, context):
        token = dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            with self.lock:
                self.refused += 1
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "authentication failure")

    # ---- xDS ----

    def count(self):
        self.counter += 1
        return self.counter

    def on_stream(self, iterator, context):
        self.authenticate(context)
        if self.status:
            with self.lock:
                self.refused += 1
            context.abort(*self.status)
        stream = Stream(self, context)
        with self.lock:
            self.streams.append(stream)
        threading.Thread(target=stream.read, args=(iterator,), daemon=True).start()
        while (item := stream.queue.get()) is not None:
            if isinstance(item, tuple):
                context.set_code(item[0])
                context.set_details(item[1])
                stream.closed = True
                return
            yield item

    def stream(self, number=None, timeout=20 * SLOW):
        """The newest stream, or the one with this number (from 1), with both of its first requests."""
        def there():
            with self.lock:
                streams = self.streams if number is None else self.streams[:number]
                if len(streams) >= (number or 1) and (number or not streams[-1].closed) and all(streams[-1].first(t) for t in self.resources):
                    return streams[-1]
                return None
        return eventually(there, f"stream {number or ''}", timeout)

    def answer(self, stream, r):
        held = self.resources[r.type]
        if r.subscribe == ["*"] and r.unsubscribe == ["*"]:
            stream.wanted = set()
        if stream.wanted is not None and r.type == ADDRESS:
            self.answer_on_demand(stream, r)
            return
        changed = [(n, v, b, a) for n, (v, b, a) in held.items() if not v or r.versions.get(n) != v]
        stream.send(r.type, changed, [n for n in r.versions if n not in held])

    def answer_on_demand(self, stream, r):
        keys = [k for k in [*r.subscribe, *r.versions] if k != "*" and k not in stream.wanted]
        stream.wanted.update(keys)
        found = {n: (n, v, b, a) for n, (v, b, a) in self.resources[ADDRESS].items() if any(k == n or k in a for k in keys)}
        unknown = [k for k in keys if not any(k == n or k in a for n, (v, b, a) in self.resources[ADDRESS].items())]
        if keys or not r.subscribe or "*" in r.subscribe:
            stream.send(ADDRESS, found.values(), unknown)

    def put(self, kind, *resources):
        """(name, bytes, aliases...): replaces them and pushes the difference, in one response."""
        with self.lock:
            changed = []
            for name, value, *aliases in resources:
                version = hashlib.sha1(value).hexdigest()[:16] if kind == ADDRESS and value is not None else ""
                if self.resources[kind].get(name) != (version, value, aliases):
                    changed.append((name, version, value, aliases))
                self.resources[kind][name] = (version, value, aliases)
            self.push(kind, changed, ())

    def remove(self, kind, *names):
        with self.lock:
            for name in names:
                del self.resources[kind][name]
            self.push(kind, (), names)

    def push(self, kind, changed, removed):
        for s in self.streams:
            if s.closed or not s.first(kind) or self.silent:
                continue
            if s.wanted is None or kind != ADDRESS:
                mine, gone = changed, removed
            else:
                mine = [c for c in changed if c[0] in s.wanted or s.wanted & set(c[3])]
                gone = [n for n in removed if n in s.wanted]
            if mine or gone:
                s.send(kind, mine, gone)

    def load(self, workloads, services, policies):
        """The whole state; the difference is pushed, addresses first."""
        want = {ADDRESS: {w["uid"]: (workload(w), *aliases_of(w)) for w in workloads}, AUTHORIZATION: {}}
        want[ADDRESS] |= {key_of(s): (service(s), *s["vips"]) for s in services}
        want[AUTHORIZATION] = {f"{p['namespace']}/{p['name']}": (policy(p),) for p in policies}
        with self.lock:
            for kind, named in want.items():
                gone = [n for n in self.resources[kind] if n not in named]
                if gone:
                    self.remove(kind, *gone)
                fresh = [(n, *v) for n, v in named.items() if self.resources[kind].get(n, (0, 0, 0))[1:] != (v[0], list(v[1:]))]
                if fresh:
                    self.put(kind, *fresh)

    # ---- certificates ----

    def on_sign(self, data, context):
        self.authenticate(context)
        f = fields(data)
        metadata = [fields(e) for e in fields(f[4][0]).get(1, [])] if 4 in f else []
        identity = next((text(fields(e[2][0]), 3) for e in metadata if text(e, 1) == "ImpersonatedIdentity"), None)
        with self.lock:
            self.signatures.append(identity)
            self.signing += 1
            self.most_at_once = max(self.most_at_once, self.signing)
        try:
            chain = self.reply(identity, x509.load_pem_x509_csr(f[1][0]), context)
        finally:
            with self.lock:
                self.signing -= 1
        return message(f1=list(chain))

    def sign(self, identity, csr, context):
        leaf = self.workload_roots[-1].leaf(csr.public_key(), identity, self.ttl_s)
        return [pem(leaf), "".join(r.pem for r in self.workload_roots)]

    def close(self):
        self.reply = self.sign
        self.stop()
