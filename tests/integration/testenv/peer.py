"""An HBONE server of our own making: what a scenario's peer says, and when, is up to the scenario.

    class Late(PeerConnection):
        def on_request(self, stream, headers): ...      # default: 200
        def on_data(self, stream, data): self.send(stream, data)
    peer = Peer(pod, cert_dir, Late)
    peer.newest().post(lambda c: c.goaway())            # from the test's thread

Everything of one connection happens on that connection's thread."""
import queue
import select
import socket
import ssl
import threading

import h2.config
import h2.connection
import h2.events
from hyperframe.frame import GoAwayFrame

from .hbone import server_context
from .netns import Server
from .wait import eventually


class PeerConnection:
    settings = {}  # h2.settings.SettingCodes -> value, sent at the start

    def __init__(self, peer, raw):
        self.peer = peer
        self.requests = []  # (stream, headers), as they came
        self.data = {}      # stream -> all bytes of it
        self.ended = set()  # streams that the client ended
        self.alive = True
        self.pongs = 0      # answers to PINGs
        self.todo = queue.SimpleQueue()
        self.wake_read, self.wake_write = socket.socketpair()
        self.sock = peer.context.wrap_socket(raw, server_side=True)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(
            client_side=False, header_encoding="utf-8", validate_inbound_headers=False, validate_outbound_headers=False))

    # ---- what a scenario overrides ----

    def on_request(self, stream, headers):
        self.answer(stream)

    def on_data(self, stream, data):
        pass

    def on_end(self, stream):
        pass

    # ---- what it may call, on this thread ----

    def answer(self, stream, status=200, extra=(), end=False):
        self.h2.send_headers(stream, [(":status", str(status)), *extra], end_stream=end)

    def send(self, stream, data, end=False):
        self.h2.send_data(stream, data, end_stream=end)

    def reset(self, stream, code):
        self.h2.reset_stream(stream, code)

    def goaway(self, last_stream):
        """The library does not know of it, or it would speak no more."""
        self.raw(GoAwayFrame(0, last_stream_id=last_stream).serialize())

    def raw(self, data):
        """Bytes that no HTTP/2 library would say."""
        self.flush()
        self.sock.sendall(data)

    def flush(self):
        if data := self.h2.data_to_send():
            self.sock.sendall(data)

    # ---- from any thread ----

    def post(self, fn):
        self.todo.put(fn)
        self.wake_write.send(b"x")

    # ---- its loop ----

    def event(self, event):
        if isinstance(event, h2.events.RequestReceived):
            self.requests.append((event.stream_id, dict(event.headers)))
            self.data[event.stream_id] = b""
            self.on_request(event.stream_id, dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self.data[event.stream_id] += event.data
            self.on_data(event.stream_id, event.data)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended.add(event.stream_id)
            self.on_end(event.stream_id)
        elif isinstance(event, h2.events.PingAckReceived):
            self.pongs += 1

    def take(self):
        """What has come; False at the end."""
        while True:
            data = self.sock.recv(65536)
            if not data:
                return False
            for event in self.h2.receive_data(data):
                self.event(event)
            self.flush()
            if not self.sock.pending():
                return True

    def run(self):
        self.h2.initiate_connection()
        if self.settings:
            self.h2.update_settings(self.settings)
        self.flush()
        try:
            while True:
                ready = select.select([self.sock, self.wake_read], [], [])[0]
                if self.wake_read in ready:
                    self.wake_read.recv(1)
                    self.todo.get()(self)
                    self.flush()
                if self.sock in ready and not self.take():
                    return
        except (OSError, ValueError):  # closed by the other end, or by a scenario
            pass
        finally:
            self.alive = False
            self.sock.close()
            self.wake_read.close()


class Peer:
    """Serves a port of a pod; each connection is a `kind`."""

    def __init__(self, pod, cert_dir, kind=PeerConnection, port=15008, context=None):
        self.context = context or server_context(cert_dir)
        self.kind = kind
        self.connections, self.refused = [], []
        self.server = Server(pod.netns, port, self.one)
        pod.servers.append(self.server)

    def one(self, raw, _):
        try:
            c = self.kind(self, raw)
        except (ssl.SSLError, OSError) as e:
            self.refused.append(e)
            return
        self.connections.append(c)
        c.run()

    def newest(self, count=1):
        """The newest connection, once there are `count`."""
        return eventually(lambda: len(self.connections) >= count and self.connections[-1], f"{count} connections to the peer")

    def streams(self):
        """Requests over all connections: (connection, stream, headers)."""
        return [(c, stream, headers) for c in list(self.connections) for stream, headers in list(c.requests)]
