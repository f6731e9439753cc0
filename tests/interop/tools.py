"""Programs of others, run inside pods: their output line by line, and their pipes as sockets."""
import array
import fcntl
import hashlib
import os
import select
import socket
import subprocess
import termios
import threading

from testenv import eventually
from testenv.daemon import SLOW


class Process:
    """A program in a namespace whose output is collected while it runs."""

    def __init__(self, netns, *cmd, **kw):
        self.output = ""
        self.process = netns.popen(*cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   errors="replace", **kw)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.output += line

    def lines(self, start):
        return [line for line in self.output.splitlines() if line.startswith(start)]

    def wait_for(self, text, count=1, timeout=20):
        eventually(lambda: self.output.count(text) >= count, f"{text!r} in the output of {self.process.args[3]}", timeout * SLOW)

    def say(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def finish(self, timeout=60):
        """The whole output; the program must end by itself, and well."""
        code = self.process.wait(timeout * SLOW)
        self.reader.join(5)
        assert code == 0, f"{self.process.args[3:]} ended with {code}:\n{self.output[-3000:]}"
        return self.output

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(5)
        self.process.stdin.close()
        self.process.stdout.close()


class Pipe:
    """The two pipes of an openssl program (s_client, s_server) as a socket: its plain side is ours, its TLS side is the pod's.

    A letter at the start of what openssl reads is a command (K: KeyUpdate); no HTTP/2 frame of less than 64 KiB starts with one."""

    def __init__(self, netns, *cmd):
        self.process = netns.popen(*cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.head = b""

    def skip_to(self, marker):
        """Drops what openssl itself says before the first bytes of the other end; returns it."""
        while marker not in self.head:
            piece = self.recv(65536)
            assert piece, self.head
            self.head += piece
        said, self.head = self.head[:self.head.index(marker)], self.head[self.head.index(marker):]
        return said

    def recv(self, n):
        if self.head.startswith(b"PRI"):
            piece, self.head = self.head, b""
            return piece
        while True:
            if not select.select([self.process.stdout], [], [], 10 * SLOW)[0]:
                raise socket.timeout("nothing from openssl")
            data = os.read(self.process.stdout.fileno(), n)
            piece = data.replace(b"SSL_do_handshake -> 1\n", b"").replace(b"Read BLOCK\n", b"")  # what s_server says about a KeyUpdate
            if piece or not data:
                return piece

    def sendall(self, data):
        for i in range(0, len(data), 8192):
            self.process.stdin.write(data[i:i + 8192])

    def command(self, letter):
        """One of openssl's letters, alone in its read: what is before it and behind it would be taken for a part of it."""
        eventually(self.is_drained)
        self.process.stdin.write(letter + b"\n")
        eventually(self.is_drained)

    def is_drained(self):
        left = array.array("i", [0])
        fcntl.ioctl(self.process.stdin.fileno(), termios.FIONREAD, left)
        return left[0] == 0

    def pending(self):
        return 0

    def fileno(self):
        return self.process.stdout.fileno()

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def digest(data):
    return hashlib.sha256(data).hexdigest()
