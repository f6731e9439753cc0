"""Calls to our own ports from inside and outside never loop and never reach admin (namespaced malicious_calls_inpod)."""
import pytest

from testenv import eventually

PORTS = [15001, 15006, 15008, 15080, 15000, 15020, 15021]


@pytest.mark.parametrize("captured", [True, False])
def test_malicious_calls_inpod(pair, captured):
    attacker = pair.client if captured else pair.nodes[0].pod("attacker", protocol="TCP")
    pair.start()
    pair.server.echo(8080)
    daemon_of = pair.server.node
    targets = [pair.server.ip, "127.0.0.1", attacker.ip, daemon_of.address]
    answers = {}
    for host in targets:
        for port in PORTS:
            try:
                answers[host, port] = attacker.request(host, port, b"GET /config_dump HTTP/1.1\r\nhost: x\r\n\r\n", timeout=5)
            except OSError:
                answers[host, port] = b""
    for (host, port), body in answers.items():
        assert b"certificates" not in body, (host, port)
        if port not in (15020, 15021) or host != daemon_of.address:
            assert not body.startswith(b"HTTP/"), (host, port, body)
    # Nothing loops: the daemons are quiet and still serve.
    assert pair.client.request(pair.server.ip, 8080) == b"hello worldhello world"
    for node in pair.nodes:
        eventually(lambda n=node: n.daemon.activity()[0] == 0, "all connections ended")
