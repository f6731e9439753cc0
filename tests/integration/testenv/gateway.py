"""A network gateway of our own making: ends outer tunnels, and leads each stream to an endpoint of the far network, in turn.

    gateway = Gateway(pod, cert_dir, [pod_a, pod_b])
    gateway.peer.streams()     # the outer CONNECTs
"""
import itertools
import socket
import threading

from .peer import Peer, PeerConnection


class GatewayConnection(PeerConnection):
    """Bytes of a stream go to port 15008 of an endpoint, as they are: what is inside is for the endpoint's eyes."""

    def on_request(self, stream, headers):
        gateway = self.peer.gateway
        status = gateway.refuse_with
        if status:
            self.answer(stream, status, end=True)
            return
        pod = next(gateway.turns)
        gateway.led_to.append(pod)
        self.lower = getattr(self, "lower", {})
        self.lower[stream] = gateway.pod.connect(pod.ip, 15008)
        self.answer(stream)
        threading.Thread(target=self.bring_back, args=(stream, self.lower[stream]), daemon=True).start()

    def bring_back(self, stream, lower):
        try:
            while data := lower.recv(16384):
                self.post(lambda c, d=data: c.pass_on(stream, d))
            self.post(lambda c: c.pass_on(stream, b"", True))
        except OSError:  # either end is gone
            pass

    def pass_on(self, stream, data, end=False):
        try:
            self.send(stream, data, end)
        except Exception:  # the client has reset it
            self.lower[stream].close()

    def on_data(self, stream, data):
        try:
            self.lower[stream].sendall(data)
        except OSError:
            self.pass_on(stream, b"", True)

    def on_end(self, stream):
        try:
            self.lower[stream].shutdown(socket.SHUT_WR)
        except OSError:
            pass


class Gateway:
    def __init__(self, pod, cert_dir, endpoints, port=15008):
        self.pod, self.turns, self.led_to = pod, itertools.cycle(endpoints), []
        self.refuse_with = 0  # a status for every CONNECT
        self.peer = Peer(pod, cert_dir, GatewayConnection, port)
        self.peer.gateway = self
