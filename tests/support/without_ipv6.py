#!/usr/bin/python3
"""without_ipv6.py COMMAND...: runs it on what looks like a kernel without IPv6: socket(AF_INET6) fails with EAFNOSUPPORT."""
import ctypes
import os
import platform
import socket
import struct
import sys

SYS_SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
EAFNOSUPPORT = 97
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7fff0000, 0x00050000
NR, ARG0 = 0, 16  # offsets in struct seccomp_data
PROGRAM = b"".join(struct.pack("HBBI", *i) for i in [
    (LOAD, 0, 0, NR), (JUMP_IF_EQUAL, 0, 3, SYS_SOCKET),
    (LOAD, 0, 0, ARG0), (JUMP_IF_EQUAL, 0, 1, socket.AF_INET6),
    (RETURN, 0, 0, ERRNO | EAFNOSUPPORT), (RETURN, 0, 0, ALLOW)])


class Filter(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Filter(len(PROGRAM) // 8, PROGRAM)), 0, 0):
    sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")
os.execvp(sys.argv[1], sys.argv[1:])
