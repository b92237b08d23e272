"""The few short words without which no rule of the census can find anything in a file.

A file in which none of them occurs is done with after one reading; only the others are parsed. What is looked
for is stated here once, for the compiled search and for the slower one where nothing is compiled.
"""

import re
from dataclasses import dataclass
from functools import cache

from rseqlab.census.source import Source
from rseqlab.native import NativeUnavailable, core

BUFFER_BYTES = 128 * 1024
"""Small enough for the second cache of the CPU: a byte is looked at before it leaves it."""

OVERLAP_BYTES = 3
"""A word that lies across two buffers is found in the second."""

MAX_FOUND = 1 << 16
"""Kept places in one file; a file made to hold more is judged by the first ones, and says so."""


@dataclass(frozen=True)
class Word:
    """Four bytes as a little-endian number; ``mask`` covers what counts (always the second and the fourth)."""

    name: str
    value: int
    mask: int = 0xFFFFFFFF

    @property
    def pattern(self) -> bytes:
        parts = []
        for at in range(4):
            value, mask = self.value >> 8 * at & 0xFF, self.mask >> 8 * at & 0xFF
            if mask == 0xFF:
                parts.append(re.escape(bytes([value])))
            else:
                fits = bytes(byte for byte in range(256) if byte & mask == value)
                parts.append(b"[" + b"".join(b"\\x%02x" % byte for byte in fits) + b"]")
        return b"".join(parts)


def _text(name: str, text: bytes) -> Word:
    return Word(name, int.from_bytes(text, "little"))


RSEQ = _text("rseq", b"rseq")
GETCPU = _text("getcpu", b"etcp")

WORDS = {
    "x86_64": (RSEQ, GETCPU, Word("signature", 0x53053053)),
    "aarch64": (
        RSEQ,
        GETCPU,
        Word("signature", 0xD428BC00),
        # movz and movk of the signature's upper half, into any register of 32 or of 64 bits
        Word("upper half", 0x52BA8500, 0xFFFFFFE0),
        Word("upper half", 0x72BA8500, 0xFFFFFFE0),
        Word("upper half", 0xD2BA8500, 0xFFFFFFE0),
        Word("upper half", 0xF2BA8500, 0xFFFFFFE0),
    ),
}
"""By machine. A register's number is what the masks leave out."""


@dataclass(frozen=True)
class Places:
    """Where the words begin in a file, by name, ascending; ``complete`` unless there were too many."""

    offsets: dict[str, list[int]]
    complete: bool

    def __bool__(self) -> bool:
        return any(self.offsets.values())


@cache
def _buffer() -> memoryview:
    return memoryview(bytearray(BUFFER_BYTES))


@cache
def _compiled(machine: str):
    """The search that find.c does, or None where nothing is compiled."""
    try:
        ffi, lib = core()
    except NativeUnavailable:
        return None
    wanted = ffi.new("struct rl_word[]", [(one.value, one.mask) for one in WORDS[machine]])
    capacity = 4096
    found = ffi.new("struct rl_found[]", capacity)

    def search(data: memoryview) -> list[tuple[int, int]]:
        pointer = ffi.from_buffer("uint8_t[]", data)
        count = lib.rl_find(pointer, len(data), wanted, len(wanted), found, capacity)
        if not count:
            return []
        if count > capacity:  # rare, and only hostile files: the slower search has no such bound
            return _slow(machine, data)
        return [(found[i].offset_bytes, found[i].word) for i in range(count)]

    return search


def _slow(machine: str, data: memoryview) -> list[tuple[int, int]]:
    found = []
    for i, word in enumerate(WORDS[machine]):
        found += [(hit.start(), i) for hit in re.finditer(b"(?=" + word.pattern + b")", data, re.DOTALL)]
    return sorted(found)


def find(source: Source, machine: str, compiled: bool = True) -> Places:
    """Read all of it once. The answer is the same with the compiled search and without."""
    words = WORDS[machine]
    search = (_compiled(machine) if compiled else None) or (lambda data: _slow(machine, data))
    offsets: dict[str, list[int]] = {word.name: [] for word in words}
    buffer, at, kept, total = _buffer(), 0, 0, 0
    while at < source.size_bytes and total < MAX_FOUND:
        got = source.read_into(at, buffer[kept:])
        if not got:
            break
        filled = kept + got
        for place, which in search(buffer[:filled]):
            if place + 4 > kept:  # else the buffer before had all of it
                offsets[words[which].name].append(at - kept + place)
                total += 1
        at += got
        kept = min(OVERLAP_BYTES, filled)
        buffer[:kept] = buffer[filled - kept : filled]
    return Places({name: sorted(set(places)) for name, places in offsets.items()}, total < MAX_FOUND)
