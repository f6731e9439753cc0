"""One ztunneld process in a namespace: start, readiness, logs, metrics, dump, end."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess

from .wait import eventually

BUILD = os.environ.get("ZT_BUILD", os.path.join(os.path.dirname(__file__), "../../../build/release"))
BINARY = os.environ.get("ZT_DAEMON", os.path.join(BUILD, "ztunneld"))
FIELD = re.compile(r'([\w.]+)=("(?:[^"\\]|\\.)*"|\S+)')
SLOW = 5 if "san" in os.path.basename(os.path.normpath(BUILD)) else 1  # sanitizers cost time; limits scale with it


class Line:
    """One plain log line: time, level, scope, message, fields (strings)."""

    def __init__(self, text):
        self.text = text
        parts = text.rstrip("\n").split("\t")
        self.level, self.scope, self.message = (parts + [""] * 4)[1:4]
        self.fields = {k: json.loads(v) if v.startswith('"') else v for k, v in FIELD.findall("\t".join(parts[4:]))}

    def __repr__(self):
        return self.text.strip()


class Daemon:
    def __init__(self, netns, directory, env, name="ztunneld", binary=BINARY, args=("proxy", "ztunnel"), mounts=None):
        self.netns = netns
        self.directory = str(directory)
        self.log_path = os.path.join(self.directory, name + ".log")
        self.ctl = env.get("ZTUNNELD_CTL_SOCKET")
        self.env = {"PATH": os.environ["PATH"], "RUST_LOG": "info", "IPV6_ENABLED": "true"}
        self.env.update({k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")})
        self.env.update(env)
        self.binary, self.args, self.mounts = binary, args, mounts
        self.process = None

    def start(self, wait_ready=True):
        with open(self.log_path, "a") as log:
            self.process = self.netns.popen(self.binary, *self.args, env=self.env, stdout=log, stderr=log, cwd="/", mounts=self.mounts)
        if wait_ready:
            self.wait_ready()
        return self

    def wait_ready(self, timeout=30):
        def ready():
            code = self.process.poll()
            if code is not None:  # no use in waiting
                raise RuntimeError(f"the daemon ended with {code}:\n{self.log()[-4000:]}")
            return self.http(15021, "/healthz/ready")[0] == 200
        eventually(ready, "readiness", timeout)

    # ---- what it says ----

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def lines(self, message=None, **fields):
        """Parsed lines with this message and these fields; `direction="inbound"`, `src__addr=...` for src.addr."""
        want = {k.replace("__", "."): str(v) for k, v in fields.items()}
        found = []
        for text in self.log().splitlines():
            if message is not None and message not in text:
                continue
            line = Line(text)
            if (message is None or line.message == message) and all(line.fields.get(k) == v for k, v in want.items()):
                found.append(line)
        return found

    def lines_with(self, word):
        return [text for text in self.log().splitlines() if word in text]

    def wait_line(self, message, timeout=10, count=1, **fields):
        def enough():
            lines = self.lines(message, **fields)
            return lines if len(lines) >= count else None
        return eventually(enough, f"log line {message!r} with {fields} in:\n{self.log()[-3000:]}\n", timeout)[-1]

    # ---- what it serves ----

    def http(self, port, path, method="GET", headers=None, host="127.0.0.1"):
        """(status, body, headers) of one request to a port in the daemon's namespace."""
        s = self.netns.socket()
        s.settimeout(10)
        with self.netns.inside():
            s.connect((host, port))
        conn = http.client.HTTPConnection(host, port)
        conn.sock = s
        try:
            conn.request(method, path, headers=headers or {})
            r = conn.getresponse()
            return r.status, r.read(), dict(r.getheaders())
        finally:
            conn.close()

    def metrics(self):
        """{(name, frozenset of labels): value}"""
        samples = {}
        for line in self.http(15020, "/metrics")[1].decode().splitlines():
            if line.startswith("#"):
                continue
            m = re.fullmatch(r'(\w+)(?:\{(.*)\})? (\S+)', line)
            labels = frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', m[2] or ""))
            samples[m[1], labels] = float(m[3])
        return samples

    def metric(self, name, **labels):
        """The sum over all series of a family that carry these labels."""
        want = set(labels.items())
        return sum(v for (n, have), v in self.metrics().items() if n == name and want <= have)

    def dump(self):
        return json.loads(self.http(15000, "/config_dump")[1])

    def ztctl(self, *args, check=True):
        cmd = [os.path.join(BUILD, "ztctl"), "--socket", self.ctl, *args]
        done = subprocess.run(cmd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert not check or done.returncode == 0, f"{cmd}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout if check else done

    def status(self):
        return json.loads(self.ztctl("-o", "json", "status"))

    def activity(self):
        """(connections, tunnels) open now over all pods."""
        pods = self.status()["pods"]
        return (sum(p["connectionsIn"] + p["connectionsOut"] for p in pods), sum(p["tunnelsIn"] + p["tunnelsOut"] for p in pods))

    @property
    def pid(self):
        return self.process.pid  # nsenter has become the daemon by exec

    def open_fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    # ---- its end ----

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout=20):
        return self.process.wait(timeout)

    def stop(self, timeout=30):
        """Graceful; the exit status must be 0 and no sanitizer may have spoken."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the daemon did not end on SIGTERM:\n{self.log()[-4000:]}") from None
        self.check_clean()
        self.process = None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def check_clean(self, code=0):
        log = self.log()
        for word in ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:", "WARNING: ThreadSanitizer", "bug at"):
            assert word not in log, log[log.index(word) - 200:][:6000]
        assert self.process.returncode == code, f"exit status {self.process.returncode}:\n{log[-3000:]}"
