"""An HBONE client of our own making: Python's ssl and h2, so that a scenario can say what no daemon would."""
import os
import socket
import ssl

import h2.config
import h2.connection
import h2.events
import h2.settings
from hyperframe.frame import Frame, PingFrame

from .daemon import SLOW


def issue(daemon, identity, directory):
    """A certificate of the mesh's CA for identity, in directory (which is returned)."""
    os.makedirs(directory, exist_ok=True)
    daemon.ztctl("ca", "issue", identity, str(directory))
    return str(directory)


def tls_context(cert_dir=None, alpn=("h2",)):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if cert_dir:
        context.load_cert_chain(os.path.join(cert_dir, "cert-chain.pem"), os.path.join(cert_dir, "key.pem"))
    return context


def server_context(cert_dir, alpn=("h2",)):
    """A server's end that asks every client for a certificate of the mesh."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(os.path.join(cert_dir, "root-cert.pem"))
    context.load_cert_chain(os.path.join(cert_dir, "cert-chain.pem"), os.path.join(cert_dir, "key.pem"))
    context.set_alpn_protocols(list(alpn))
    return context


class Tunnel:
    """One TLS connection with HTTP/2 on it."""

    def __init__(self, pod, host, cert_dir, port=15008, context=None):
        raw = pod.connect(host, port)
        raw.settimeout(10 * SLOW)
        self.sock = (context or tls_context(cert_dir)).wrap_socket(raw)
        # The library's checks know no CONNECT (they ask for a :path), and a scenario may say what is wrong.
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
                                           normalize_outbound_headers=False, validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.events = []
        self.flush()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.sock.sendall(data)

    def pump(self):
        """Takes in what comes next; False at the end of the connection."""
        data = self.sock.recv(65536)
        if not data:
            return False
        for event in self.h2.receive_data(data):
            self.events.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self.flush()
        return True

    def wait(self, kind, stream=None):
        """The first event of a kind (or one of several), for a stream; AssertionError when the connection ends before."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and (stream is None or getattr(event, "stream_id", None) == stream):
                    self.events.remove(event)
                    return event
            assert self.pump(), f"the connection ended; seen: {self.events}"

    def connect(self, authority, method="CONNECT", extra=(), end=False):
        """Sends a request; returns its stream id."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, [(":method", method), (":authority", authority), *extra], end_stream=end)
        self.flush()
        return stream

    def status(self, stream):
        """(status, headers) of the answer, or ("reset", code)."""
        event = self.wait((h2.events.ResponseReceived, h2.events.StreamReset), stream)
        if isinstance(event, h2.events.StreamReset):
            return "reset", event.error_code
        headers = dict(event.headers)
        return int(headers[":status"]), headers

    def request(self, authority, **kw):
        return self.status(self.connect(authority, **kw))

    def send(self, stream, data, end=False):
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def receive(self, stream):
        """All data of a stream up to its end."""
        got = b""
        kinds = (h2.events.DataReceived, h2.events.StreamEnded, h2.events.StreamReset)
        while True:
            event = self.wait(kinds, stream)
            if isinstance(event, h2.events.DataReceived):
                got += event.data
            elif isinstance(event, h2.events.StreamEnded):
                return got
            else:
                raise ConnectionResetError(f"stream reset with {event.error_code}")

    def frames(self):
        """Every frame that comes, past the library (which calls a connection closed at its first GOAWAY); PING is answered."""
        data = b""
        while True:
            while len(data) >= 9 and len(data) >= 9 + int.from_bytes(data[:3], "big"):
                frame, length = Frame.parse_frame_header(memoryview(data)[:9])
                frame.parse_body(memoryview(data)[9:9 + length])
                data = data[9 + length:]
                if isinstance(frame, PingFrame) and "ACK" not in frame.flags:
                    self.sock.sendall(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]).serialize())
                yield frame
            more = self.sock.recv(65536)
            if not more:
                return
            data += more

    def close(self):
        try:
            self.sock.close()
        except (OSError, socket.error):
            pass

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
