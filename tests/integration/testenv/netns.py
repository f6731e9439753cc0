"""Network namespaces: making them, running programs and opening sockets inside."""
import contextlib
import ctypes
import os
import socket
import subprocess
import threading

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
HOME = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def sh(*cmd, check=True, input=None):
    done = subprocess.run(cmd, input=input, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(cmd)}: {done.stdout.strip()}")
    return done.stdout


def allow_cubic():
    """A machine's default may be bbr, which halves every figure; all namespaces here use cubic. One that the machine restricts must be
    allowed first, for the machine as a whole: that only widens what programs may choose."""
    path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control"
    with open(path) as f:
        allowed = f.read().split()
    if "cubic" not in allowed:
        with open(path, "w") as f:
            f.write(" ".join(allowed + ["cubic"]))


class Namespace:
    """One named namespace with loopback up."""

    def __init__(self, name):
        self.name = name
        self.path = f"/var/run/netns/{name}"
        sh("ip", "netns", "add", name)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)  # link-local addresses work at once
        self.ip("link set lo up")
        allow_cubic()
        self.sysctl("net.ipv4.tcp_congestion_control", "cubic")

    def ip(self, *lines):
        """Several `ip` commands in one process; a line beginning with -6 is for IPv6."""
        for family in ("-4", "-6"):
            batch = [line.removeprefix("-6 ") for line in lines if line.startswith("-6 ") == (family == "-6")]
            if batch:
                sh("ip", family, "-n", self.name, "-batch", "-", input="\n".join(batch) + "\n")

    @contextlib.contextmanager
    def inside(self):
        """This thread, and only it, is inside for the block."""
        if LIBC.setns(self.fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns " + self.name)
        try:
            yield
        finally:
            if LIBC.setns(HOME, CLONE_NEWNET):
                os._exit(70)  # a thread in the wrong namespace must not go on

    def sysctl(self, key, value):
        with self.inside(), open("/proc/sys/" + key.replace(".", "/"), "w") as f:
            f.write(str(value))

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        with self.inside():
            return socket.socket(family, kind)

    def command(self, *cmd):
        return ["nsenter", "--net=" + self.path, "--", *cmd]

    def run(self, *cmd, check=True, input=None):
        return sh(*self.command(*cmd), check=check, input=input)

    def popen(self, *cmd, mounts=None, **kw):
        """mounts: {path: file that stands there instead}, for this process alone."""
        if mounts:
            binds = "".join(f"mount --bind {source} {path} && " for path, source in mounts.items())
            cmd = ("unshare", "--mount", "--", "sh", "-c", binds + 'exec "$@"', "sh", *cmd)
        return subprocess.Popen(self.command(*cmd), **kw)

    def close(self):
        os.close(self.fd)
        sh("ip", "netns", "del", self.name, check=False)


class Server:
    """A TCP server in a namespace: each accepted socket is handled by fn(socket, peer) on a thread."""

    def __init__(self, netns, port, fn, host="", backlog=512):
        family = socket.AF_INET6 if ":" in host or not host else socket.AF_INET
        self.sock = netns.socket(family)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and not host:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.sock.bind((host or "::", port))
        self.sock.listen(backlog)
        self.fn = fn
        self.open = set()
        self.accepted = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.loop, daemon=True).start()

    def loop(self):
        while True:
            try:
                s, peer = self.sock.accept()
            except OSError:
                return
            with self.lock:
                self.open.add(s)
                self.accepted += 1
            threading.Thread(target=self.one, args=(s, peer), daemon=True).start()

    def one(self, s, peer):
        try:
            self.fn(s, peer)
        except OSError:
            pass
        finally:
            with self.lock:
                self.open.discard(s)
            s.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
        with self.lock:
            for s in self.open:
                with contextlib.suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)


def echo(s, peer):
    """Sends back what comes, twice, as the reference's test server does; FIN answers FIN."""
    while data := s.recv(65536):
        s.sendall(data + data)
    s.shutdown(socket.SHUT_WR)


def reflect(s, peer):
    while data := s.recv(262144):
        s.sendall(data)
    s.shutdown(socket.SHUT_WR)


def tell_peer(s, peer):
    """Says at once who it sees, and ends."""
    s.sendall(f"{peer[0].removeprefix('::ffff:')} {peer[1]}\n".encode())
    s.shutdown(socket.SHUT_WR)
    s.recv(1)
