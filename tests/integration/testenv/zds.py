"""The CNI's side of ZDS (spec/inpod §1): one SEQPACKET socket, one protobuf message a packet, an acknowledgement each."""
import array
import os
import socket
import threading


def field(number, data):
    """A length-delimited protobuf field; every one in ZDS is shorter than 128 * 128 bytes."""
    head = bytes([number << 3 | 2])
    n = len(data)
    return head + (bytes([n]) if n < 128 else bytes([n & 127 | 128, n >> 7])) + data


def add(uid, name, ns, sa):
    info = field(1, name.encode()) + field(2, ns.encode()) + field(3, sa.encode())
    return field(1, field(1, uid.encode()) + field(2, info))


def delete(uid):
    return field(2, field(2, uid.encode()))


def keep(uid):
    return field(5, field(1, uid.encode()))


SNAPSHOT_SENT = field(3, b"")
HELLO = b"\x08\x01"
ACK_OK = b"\x0a\x00"


def ack_error(packet):
    """The text of an acknowledgement; "" is ok."""
    assert packet[:1] == b"\x0a", packet
    body = packet[2:]
    if not body:
        return ""
    assert body[:1] == b"\x0a", packet
    i = 1
    while body[i] & 128:
        i += 1
    return body[i + 1:].decode()


class ZdsServer:
    """Serves one path. A connected daemon first gets a snapshot of self.pods; later changes go to the newest connection."""

    def __init__(self, path, pods=None):
        self.path = path
        self.pods = pods if pods is not None else {}  # uid -> (name, ns, sa, netns fd)
        self.connections = []
        self.changed = threading.Condition()
        self.hold_snapshot = False
        if os.path.exists(path):
            os.unlink(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.bind(path)
        self.sock.listen(8)
        threading.Thread(target=self.loop, daemon=True).start()

    def loop(self):
        while True:
            try:
                s, _ = self.sock.accept()
            except OSError:
                return
            s.settimeout(10)
            try:
                assert s.recv(1024) == HELLO
                if not self.hold_snapshot:
                    self.snapshot(s)
            except (OSError, AssertionError):
                s.close()
                continue
            with self.changed:
                self.connections.append(s)
                self.changed.notify_all()

    def snapshot(self, s):
        for uid, (name, ns, sa, fd) in list(self.pods.items()):
            self.exchange(add(uid, name, ns, sa), fd, s)
        assert self.exchange(SNAPSHOT_SENT, None, s) == ""

    def newest(self):
        with self.changed:
            assert self.changed.wait_for(lambda: self.connections, 20), "no daemon has connected"
            return self.connections[-1]

    def exchange(self, packet, fd=None, s=None):
        """Sends one message and returns the acknowledgement's error text."""
        s = s or self.newest()
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd is not None else []
        s.sendmsg([packet], control)
        return ack_error(s.recv(2048))

    def add(self, uid, name, ns, sa, fd):
        self.pods[uid] = (name, ns, sa, fd)
        return self.exchange(add(uid, name, ns, sa), fd)

    def delete(self, uid):
        self.pods.pop(uid, None)
        return self.exchange(delete(uid))

    def disconnect(self):
        with self.changed:
            for s in self.connections:
                s.close()
            self.connections.clear()

    def close(self):
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        self.disconnect()
