"""Runs a command under a real seccomp filter: sandbox.py CALL ERRNO COMMAND...

CALL is ``rseq``, ``ptrace`` or ``membarrier``; the filter answers it with the errno.
"""

import ctypes
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"rseq": 334, "ptrace": 101, "membarrier": 324},
    "aarch64": {"rseq": 293, "ptrace": 117, "membarrier": 283},
}[platform.machine()]
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def deny(call: str, error: int) -> None:
    instructions = [
        (LOAD, 0, 0, 0),
        (JUMP_IF_EQUAL, 0, 1, NUMBERS[call]),
        (RETURN, 0, 0, ERRNO | error),
        (RETURN, 0, 0, ALLOW),
    ]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program = Program(len(instructions), code)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(program)):  # NO_NEW_PRIVS, SECCOMP filter
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    deny(sys.argv[1], int(sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
