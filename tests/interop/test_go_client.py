"""Go's crypto/tls and golang.org/x/net/http2 as a client of our server side (gopeer ask)."""
import re
import signal

import pytest

from testenv import eventually
from testenv.daemon import SLOW
from testenv.hbone import issue


@pytest.fixture
def go(world, gopeer, launch, tmp_path):
    """A captured pod with applications, and gopeer in an uncaptured pod with a mesh certificate."""
    world.outsider = world.node().pod("outsider", protocol="TCP")
    world.server = world.node().pod("server")
    world.start(CONNECTION_TERMINATION_DEADLINE=f"{10 * SLOW}s")
    world.server.reflect(8080)
    world.daemon = world.server.node.daemon
    cert = issue(world.nodes[0].daemon, world.outsider.identity, tmp_path / "cert")

    def ask(scenario, authority=None):
        return launch(world.outsider, gopeer, "ask", "-to", f"{world.server.ip}:15008", "-cert", cert, "-identity",
                      world.server.identity, "-authority", authority or f"{world.server.ip}:8080", scenario)
    world.ask = ask
    return world


@pytest.mark.parametrize("scenario", ["echo", "many", "cancel"])
def test_streams(go, scenario):
    out = go.ask(scenario).finish()
    assert out.startswith("tls 304 TLS_") and " h2" in out
    assert go.daemon.wait_line("connection complete", direction="inbound").fields["src.identity"] == go.outsider.identity
    eventually(lambda: go.daemon.activity() == (0, 0))


def test_more_streams_than_our_limit_wait(go):
    assert "limit 200" in go.ask("queue").finish()
    assert not [x for x in go.daemon.lines("connection complete") if x.level == "error"]


def test_pings_are_answered_under_load(go):
    out = go.ask("pings").finish()
    assert int(re.search(r"pings (\d+)", out)[1]) > 3
    assert int(re.search(r"slowest (\d+) ms", out)[1]) < 1500 * SLOW


def test_the_server_ends_first(go):
    """Half-close from the application; what the client sends after it still arrives."""
    got = []

    def done_first(s, _):
        s.sendall(b"server is done")
        s.shutdown(1)
        while data := s.recv(65536):
            got.append(len(data))
    go.server.serve(8081, done_first)
    go.ask("server-first", f"{go.server.ip}:8081").finish()
    eventually(lambda: sum(got) == 1 << 20, f"all bytes, not {sum(got)}")


def test_goaway_lets_open_streams_finish(go):
    client = go.ask("goaway")
    client.wait_for("open")
    go.daemon.signal(signal.SIGTERM)
    client.say("\n")
    client.finish()
    go.daemon.wait(20 * SLOW)
    assert not [x for x in go.daemon.lines("connection complete") if x.level == "error"]


@pytest.mark.parametrize("target, status", [("{ip}:8089", 503), ("10.99.0.1:8080", 400), ("nobody.example:80", 503), ("{ip}:15008", 503)])
def test_refusals_arrive_as_a_status(go, target, status):
    assert f"status {status}\n" in go.ask("status", target.format(ip=go.server.ip)).finish()
