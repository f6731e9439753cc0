"""The watched local file: changes apply at once, mistakes change nothing (spec/controlplane §5, issue text on reload)."""
import time

from testenv import eventually
from testenv.daemon import SLOW


def test_a_change_is_applied_within_100_ms(pair):
    pair.start()
    daemon = pair.client.node.daemon
    def services():
        return [s["hostname"] for s in daemon.dump()["services"]]
    assert services() == []
    pair.service("late", [pair.server], "10.96.0.9")
    pair.write()
    eventually(lambda: services() == ["late.default.svc.cluster.local"], "the new service", 0.1 * SLOW + 0.2, every=0.005)


def test_a_broken_file_is_refused_and_named(pair):
    pair.start()
    pair.server.echo(8080)
    daemon = pair.client.node.daemon
    with open(pair.file, "w") as f:
        f.write("workloads:\n- uid: x\n  workloadIps: [not-an-address]\n")
    line = daemon.wait_line("local config refused; what was loaded before stays", scope=None) if False else eventually(
        lambda: [x for x in daemon.lines() if x.level == "error" and "mesh.yaml:3:" in x.text], "an error with file and line")[0]
    assert "not-an-address" in line.text
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    pair.write()
    pair.service("again", [pair.server], "10.96.0.9")
    pair.write()
    eventually(lambda: pair.client.request("10.96.0.9", 80) == b"hello worldhello world", "the repaired file")


def test_half_written_files_never_take_effect(pair):
    """Written in pieces without a rename: only the whole takes effect."""
    pair.start()
    pair.server.echo(8080)
    with open(pair.file) as f:
        text = f.read()
    for cut in (len(text) // 3, len(text) // 2, len(text) - 2):
        with open(pair.file, "w") as f:
            f.write(text[:cut])
        assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
        assert len(pair.client.node.daemon.dump()["workloads"]) == 2
    pair.write()


def test_static_config_shows_the_last_good_load(pair):
    pair.start()
    daemon = pair.client.node.daemon
    with open(pair.file, "w") as f:
        f.write("nonsense: true\n")
    eventually(lambda: [x for x in daemon.lines() if x.level == "error"])
    static = daemon.dump()["staticConfig"]
    assert sorted(w["name"] for w in static["workloads"]) == ["client", "server"]
