"""Protobuf's wire form, as little as the scripted control plane needs; a scenario can also say what no compiler would let it."""
import struct


def varint(n):
    out = bytearray()
    n &= (1 << 64) - 1
    while n >= 0x80:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def message(**fields):
    """message(f3="text", f5=[b"a", b"b"], f17=1): by field number; None and empty lists are left out, a list is repeated."""
    out = bytearray()
    for key, value in fields.items():
        number = int(key[1:])
        for v in value if isinstance(value, list) else [value]:
            if v is None:
                continue
            if isinstance(v, int):
                out += varint(number << 3) + varint(v)
            else:
                v = v.encode() if isinstance(v, str) else v
                out += varint(number << 3 | 2) + varint(len(v)) + v
    return bytes(out)


def fields(data):
    """{number: [values]}, bytes as they are."""
    found, at = {}, 0

    def take():
        nonlocal at
        n = shift = 0
        while True:
            b = data[at]
            at += 1
            n |= (b & 0x7F) << shift
            shift += 7
            if b < 0x80:
                return n

    while at < len(data):
        key = take()
        if key & 7 == 0:
            value = take()
        elif key & 7 == 2:
            n = take()
            value, at = data[at:at + n], at + n
        else:
            n = 8 if key & 7 == 1 else 4
            value, at = struct.unpack("<d" if n == 8 else "<f", data[at:at + n])[0], at + n
        found.setdefault(key >> 3, []).append(value)
    return found


def text(found, number):
    return found.get(number, [b""])[-1].decode()
