"""A mesh peer that turns on us: floods and oversized things cost bounded memory, end with the right code, and disturb nobody else
(issue text on bad input, spec/dataplane §4.3)."""
import socket
import time

import h2.errors
import h2.events
import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, GoAwayFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame

from testenv import eventually
from testenv.daemon import SLOW

MIB = 1 << 20


def block(authority):
    """:method CONNECT and :authority, without Huffman and without the dynamic table."""
    return b"\x02\x07CONNECT" + b"\x01" + bytes([len(authority)]) + authority.encode()


def pour(tunnel, pieces, seconds=20):
    """Sends raw frames without reading until the other end has had enough; True when it ended the connection."""
    tunnel.sock.settimeout(seconds * SLOW)
    try:
        for piece in pieces:
            tunnel.sock.sendall(piece)
        while tunnel.sock.recv(65536):
            pass
        return True
    except socket.timeout:
        return False
    except OSError:
        return True


def pings():
    return [PingFrame(0, opaque_data=b"12345678").serialize() * 500] * 400


def settings():
    return [SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535}).serialize() * 500] * 400


def rapid_resets(server):
    header = block(f"{server.ip}:8080")
    stream = 1
    for _ in range(400):
        piece = b""
        for _ in range(50):
            piece += HeadersFrame(stream, header, flags=["END_HEADERS"]).serialize() + RstStreamFrame(stream, error_code=8).serialize()
            stream += 2
        yield piece


def continuations():
    yield HeadersFrame(1, b"").serialize()
    for _ in range(400):
        yield ContinuationFrame(1, b"").serialize() * 500


def fat_continuations():
    yield HeadersFrame(1, b"").serialize()
    for i in range(2000):
        name = f"x-{i:08d}".encode()
        yield ContinuationFrame(1, b"\x00" + bytes([len(name)]) + name + b"\x7f\xe1\x7e" + b"A" * 16352).serialize()  # 16,352 bytes of value


def empty_data(server):
    yield HeadersFrame(1, block(f"{server.ip}:8080"), flags=["END_HEADERS"]).serialize()
    for _ in range(400):
        yield DataFrame(1, b"").serialize() * 500


def window_updates():
    return [WindowUpdateFrame(0, window_increment=1).serialize() * 500] * 4000


@pytest.mark.parametrize("flood", ["pings", "settings", "rapid_resets", "continuations", "fat_continuations", "empty_data"])
def test_a_flood_ends_its_own_tunnel_only(server, flood):
    make = globals()[flood]
    daemon = server.daemon
    with server.tunnel() as other:
        stream = other.connect(f"{server.server.ip}:8080")
        assert other.status(stream)[0] == 200
        before = daemon.status()["memoryLiveBytes"]
        attacker = server.tunnel()
        attacker.pump()  # the server's SETTINGS
        assert pour(attacker, make(server.server) if make.__code__.co_argcount else make()), "the flood was borne to its end"
        attacker.close()
        assert daemon.status()["memoryLiveBytes"] < before + 2 * MIB
        other.send(stream, b"still here", end=True)
        assert other.receive(stream) == b"still herestill here"
    eventually(lambda: daemon.activity() == (0, 0), "nothing of it is left")


def test_window_updates_without_end_do_no_harm(server):
    """Legal, if pointless: they may be borne, but at bounded cost."""
    daemon = server.daemon
    attacker = server.tunnel()
    before = daemon.status()["memoryLiveBytes"]
    started = time.monotonic()
    pour(attacker, window_updates(), seconds=1)
    assert time.monotonic() - started < 30 * SLOW
    attacker.close()
    assert daemon.status()["memoryLiveBytes"] < before + MIB
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080")[0] == 200


def test_oversized_headers_reset_the_stream_only(server):
    with server.tunnel() as t:
        kept = t.connect(f"{server.server.ip}:8080")
        assert t.status(kept)[0] == 200
        status, _ = t.request(f"{server.server.ip}:8080", extra=[(f"x-{i}", "v" * 12000) for i in range(8)])
        assert status == "reset"
        t.send(kept, b"a", end=True)
        assert t.receive(kept) == b"aa"


def test_too_many_headers_reset_the_stream_only(server):
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080", extra=[(f"x-{i}", "v") for i in range(100)])[0] == "reset"
        assert t.request(f"{server.server.ip}:8080")[0] == 200


def test_more_streams_than_allowed_are_refused_alone(server):
    """The server has said how many streams it takes; one beyond is reset with REFUSED_STREAM (RFC 9113 §5.1.2), and the tunnel and its
    other streams go on."""
    with server.tunnel() as t:
        event = t.wait(h2.events.RemoteSettingsChanged)
        limit = next(s.new_value for s in event.changed_settings.values() if s.setting == 3)
        assert limit == 200
        streams = [t.connect(f"{server.server.ip}:8080") for _ in range(limit)]
        assert all(t.status(s)[0] == 200 for s in streams)
        t.h2.remote_settings[3] = limit + 20
        t.h2.remote_settings.acknowledge()
        for _ in range(10):
            assert t.request(f"{server.server.ip}:8080") == ("reset", h2.errors.ErrorCodes.REFUSED_STREAM)
        for s in streams:
            t.send(s, b"a", end=True)
            assert t.receive(s) == b"aa"
        assert t.request(f"{server.server.ip}:8080")[0] == 200, "there is room again"
    eventually(lambda: server.daemon.activity() == (0, 0), "all gone with the tunnel", 20 * SLOW)


def test_zero_window_costs_one_window(server):
    """A client that never opens its window: the application's bytes wait in bounded space."""
    def endless(s, peer):
        while True:
            s.sendall(b"z" * 65536)
    server.server.serve(9100, endless)
    daemon = server.daemon
    with server.tunnel() as t:
        t.h2.update_settings({4: 0})
        t.flush()
        before = daemon.status()["memoryLiveBytes"]
        for _ in range(8):
            assert t.request(f"{server.server.ip}:9100")[0] == 200
        time.sleep(0.5)  # time in which it could grow
        assert daemon.status()["memoryLiveBytes"] < before + 8 * MIB
        assert t.request(f"{server.server.ip}:8080")[0] == 200
    eventually(lambda: daemon.activity() == (0, 0))


def unknown_frames():
    return [b"\x00\x00\x00\xfa\x00\x00\x00\x00\x00" * 500] * 400


def priority_frames():
    return [b"\x00\x00\x05\x02\x00\x00\x00\x00\x03\x00\x00\x00\x00\x10" * 500] * 400


@pytest.mark.parametrize("flood", ["unknown_frames", "priority_frames"])
def test_frames_without_meaning_are_limited_too(server, flood):
    attacker = server.tunnel()
    attacker.pump()
    assert pour(attacker, globals()[flood]()), "the flood was borne to its end"
    attacker.close()
    with server.tunnel() as t:
        assert t.request(f"{server.server.ip}:8080")[0] == 200


def test_tiny_data_frames_slow_nobody(server):
    """One byte a frame, over many streams, as fast as it goes: legal. They arrive, in bounded memory, and others are answered meanwhile."""
    server.server.reflect(8090)
    with server.tunnel() as t, server.tunnel() as other:
        streams = [t.connect(f"{server.server.ip}:8090") for _ in range(20)]
        assert all(t.status(s)[0] == 200 for s in streams)
        before = server.daemon.status()["memoryLiveBytes"]
        piece = b"".join(DataFrame(s, b"t").serialize() for s in streams)
        slowest = 0
        for _ in range(20):
            t.sock.sendall(piece * 100)
            started = time.monotonic()
            assert other.request(f"{server.server.ip}:8080")[0] == 200
            slowest = max(slowest, time.monotonic() - started)
        assert slowest < 2 * SLOW
        assert server.daemon.status()["memoryLiveBytes"] < before + 8 * MIB
        for s in streams:
            t.sock.sendall(DataFrame(s, b"", flags=["END_STREAM"]).serialize())
        assert all(t.receive(s) == b"t" * 2000 for s in streams)


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


PROTOCOL_ERROR, FLOW_CONTROL, FRAME_SIZE, COMPRESSION = 1, 3, 6, 9
MALFORMED = {  # what is sent, with stream 1 open or not: the code of the GOAWAY
    "DATA on stream 0": (frame(0, 0, 0, b"x"), PROTOCOL_ERROR),
    "DATA on an idle stream": (frame(0, 0, 99, b"x"), PROTOCOL_ERROR),
    "HEADERS on stream 0": (frame(1, 4, 0, b"\x82"), PROTOCOL_ERROR),
    "HEADERS on an even stream": (frame(1, 4, 2, b"\x82"), PROTOCOL_ERROR),
    "broken HPACK": (frame(1, 4, 101, b"\xff\xff\xff\xff\xff"), COMPRESSION),
    "RST_STREAM of an idle stream": (frame(3, 0, 99, b"\x00\x00\x00\x08"), PROTOCOL_ERROR),
    "RST_STREAM of three bytes": (frame(3, 0, 99, b"\x00\x00\x08"), FRAME_SIZE),
    "SETTINGS of five bytes": (frame(4, 0, 0, b"\x00\x03\x00\x00\x00"), FRAME_SIZE),
    "SETTINGS on a stream": (frame(4, 0, 1, b""), PROTOCOL_ERROR),
    "SETTINGS with a window too large": (frame(4, 0, 0, b"\x00\x04\xff\xff\xff\xff"), FLOW_CONTROL),
    "an acknowledgement with a payload": (frame(4, 1, 0, b"\x00\x03\x00\x00\x00\x01"), FRAME_SIZE),
    "PUSH_PROMISE": (frame(5, 4, 1, b"\x00\x00\x00\x02\x82"), PROTOCOL_ERROR),
    "PING of seven bytes": (frame(6, 0, 0, b"1234567"), FRAME_SIZE),
    "PING on a stream": (frame(6, 0, 1, b"12345678"), PROTOCOL_ERROR),
    "GOAWAY of four bytes": (frame(7, 0, 0, b"\x00\x00\x00\x00"), FRAME_SIZE),
    "WINDOW_UPDATE by nothing": (frame(8, 0, 0, b"\x00\x00\x00\x00"), PROTOCOL_ERROR),
    "WINDOW_UPDATE beyond 2^31": (frame(8, 0, 0, b"\x7f\xff\xff\xff") * 2, FLOW_CONTROL),
    "CONTINUATION of nothing": (frame(9, 4, 1, b"\x82"), PROTOCOL_ERROR),
    "a frame beyond our MAX_FRAME_SIZE": (b"\xff\xff\xff\x00\x00\x00\x00\x00\x01" + b"x" * 1000, FRAME_SIZE),
}


@pytest.mark.parametrize("state", ["fresh", "with a stream", "in a header block"])
def test_malformed_frames_end_their_tunnel_with_the_right_code(server, state):
    with server.tunnel() as other:
        kept = other.connect(f"{server.server.ip}:8080")
        assert other.status(kept)[0] == 200
        for name, (data, code) in MALFORMED.items():
            with server.tunnel() as t:
                t.pump()
                if state == "with a stream":
                    assert t.request(f"{server.server.ip}:8080")[0] == 200
                elif state == "in a header block":
                    data, code = frame(1, 0, 1, b"\x82") + data, {FRAME_SIZE: (FRAME_SIZE, PROTOCOL_ERROR)}.get(code, PROTOCOL_ERROR)
                    if name == "CONTINUATION of nothing":
                        continue  # that is what may follow
                t.sock.sendall(data)
                goaway = next((f for f in t.frames() if isinstance(f, GoAwayFrame)), None)
                assert goaway and goaway.error_code in (code if isinstance(code, tuple) else (code,)), f"{name}: {goaway}"
        other.send(kept, b"still", end=True)
        assert other.receive(kept) == b"stillstill"
    eventually(lambda: server.daemon.activity() == (0, 0), "nothing of it is left")


def test_trailers_without_end_of_stream_reset_the_stream_only(server):
    with server.tunnel() as t:
        kept = t.connect(f"{server.server.ip}:8080")
        stream = t.connect(f"{server.server.ip}:8080")
        assert t.status(kept)[0] == t.status(stream)[0] == 200
        t.sock.sendall(frame(1, 4, stream, b"\x00\x01x\x01y"))
        assert t.wait(h2.events.StreamReset, stream).error_code == PROTOCOL_ERROR
        t.send(kept, b"a", end=True)
        assert t.receive(kept) == b"aa"
