"""ztcni as a node's agent, in the place of testenv's ZdsServer."""
import os
import subprocess

from .daemon import BUILD, SLOW
from .wait import eventually

BACKENDS = ("nft", "iptables-nft", "iptables-legacy")


class Ztcni:
    def __init__(self, node, *options, **env):
        self.node, self.options = node, options
        self.pods = os.path.join(node.directory, "pods.yaml")
        self.ctl = os.path.join(node.directory, "ztcni.sock")
        self.log_path = os.path.join(node.directory, "ztcni.log")
        self.env = {k: v for k, v in os.environ.items() if k.endswith("SAN_OPTIONS")} | {"PATH": os.environ["PATH"]} | env
        self.start()

    def start(self):
        with open(self.log_path, "a") as log:
            self.process = self.node.netns.popen(os.path.join(BUILD, "ztcni"), "run", "--pods", self.pods, "--socket",
                                                 os.path.join(self.node.directory, "zds.sock"), "--ctl", self.ctl, *self.options,
                                                 env=self.env, stdout=log, stderr=log)
        eventually(lambda: self.ask("list").returncode == 0, "an answer of ztcni", 20 * SLOW)

    def ask(self, *words):
        return subprocess.run([os.path.join(BUILD, "ztcni"), *words, "--ctl", self.ctl], env=self.env, text=True, capture_output=True)

    def add(self, pod, *options):
        """What it complains of; "" is well."""
        done = self.ask("add", "--uid", pod.zds_uid, "--namespace", pod.namespace, "--name", pod.name, "--service-account", pod.sa,
                        "--netns", pod.netns.path, *options)
        assert (done.returncode == 0) == (done.stderr == ""), done
        pod.enrolled = done.returncode == 0
        return done.stderr

    def remove(self, pod):
        pod.enrolled = False
        return self.ask("remove", pod.zds_uid).stderr

    def check(self, *pod):
        """(exit status, what it says)"""
        done = self.ask("check", *(p.zds_uid for p in pod))
        return done.returncode, done.stdout + done.stderr

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(20 * SLOW) == 0, self.log()[-3000:]
        assert "Sanitizer" not in self.log(), self.log()[-6000:]
