"""Critical sections in a file: descriptors that hold after relocation."""

import struct

import numpy as np

from rseqlab.census.elf import ET_REL, Elf
from rseqlab.census.evidence import Findings
from rseqlab.census.words import Places

SIGNATURES = {"x86_64": 0x53053053, "aarch64": 0xD428BC00}
SECTION = "__rseq_cs"
POINTERS = "__rseq_cs_ptr_array"
SIZE_BYTES = 32
MAX_DESCRIPTORS = 1 << 16
MAX_DATA_BYTES = 256 * 1024 * 1024


def verified(elf: Elf, head: int, start: int, length: int, abort: int) -> bool:
    """Whether the four words make a descriptor; ``head`` has version and flags."""
    version, flags = head & 0xFFFFFFFF, head >> 32
    if version or flags >= 8 or not length:
        return False
    segment, landing = elf.load_at(start), elf.load_at(abort)
    if segment is None or landing is None or not segment.executable or not landing.executable:
        return False
    if start + length > segment.address + segment.file_bytes or start <= abort < start + length:
        return False
    return elf.bytes_at(abort - 4, 4) == struct.pack("<I", SIGNATURES[elf.machine])


def _words(elf: Elf, address: int) -> tuple[int, int, int, int] | None:
    values = elf.values(address, SIZE_BYTES)
    words = tuple(values.get(address + at) for at in range(0, SIZE_BYTES, 8))
    return None if None in words else words


def _describe(words: tuple[int, int, int, int]) -> str:
    _, start, length, abort = words
    return f"start {start:#x}, length {length}, abort {abort:#x}"


def examine(elf: Elf, places: Places, found: Findings) -> None:
    sections = [(one, name) for name in (SECTION, POINTERS) for one in elf.named(name) if one.size_bytes]
    if sections:
        _in_sections(elf, sections, found)
    elif elf.header.kind != ET_REL:
        _by_shape(elf, places, found)


def _in_sections(elf: Elf, sections, found: Findings) -> None:
    before = sum(found.counts.values())
    for section, name in sections:
        if elf.header.kind == ET_REL:
            continue
        size = min(section.size_bytes, MAX_DESCRIPTORS * SIZE_BYTES)
        values = elf.values(section.address, size)
        if name == SECTION:
            for at in range(section.address, section.address + size - SIZE_BYTES + 1, SIZE_BYTES):
                words = tuple(values.get(at + step, 0) for step in range(0, SIZE_BYTES, 8))
                if verified(elf, *words):
                    offset = section.offset_bytes + at - section.address
                    found.add("descriptor-in-section", offset, _describe(words))
        else:
            table, many = None, size // 8 > 64
            for at in range(section.address, section.address + size - 7, 8):
                target = values.get(at, 0)
                if many and table is None:  # not one pass over the relocations for each pointer
                    table = _near(elf, values)
                words = (
                    _words(elf, target)
                    if table is None
                    else tuple(table.get(target + k, 0) for k in (0, 8, 16, 24))
                )
                if words and verified(elf, *words):
                    offset = section.offset_bytes + at - section.address
                    found.add(
                        "descriptor-by-pointer", offset, f"descriptor at {target:#x}: {_describe(words)}"
                    )
    if sum(found.counts.values()) == before:
        for section, name in sections:
            found.add("section-unverified", section.offset_bytes, f"{name}, {section.size_bytes} bytes")


def _near(elf: Elf, pointers: dict[int, int]) -> dict[int, int]:
    """The values of all that the pointers span, where they lie as close together as a linker puts them."""
    targets = [one for one in pointers.values() if elf.load_at(one)]
    if not targets:
        return {}
    low, high = min(targets), max(targets) + SIZE_BYTES
    return elf.values(low, high - low) if high - low <= MAX_DESCRIPTORS * SIZE_BYTES * 2 else {}


def _by_shape(elf: Elf, places: Places, found: Findings) -> None:
    aborts = set()
    for offset in places.offsets["signature"][:MAX_DESCRIPTORS]:
        if elf.code_at_offset(offset) and (address := elf.address_of(offset)) is not None:
            aborts.add(address + 4)
    if not aborts:
        return
    slots = {slot for slot, _ in elf.relative_to(aborts)}
    wanted = np.fromiter(aborts, np.uint64)
    for one in elf.loads:
        if one.executable or one.file_bytes > MAX_DATA_BYTES:
            continue
        skip = -one.address % 8
        data = elf.source.read(one.offset_bytes + skip, (one.file_bytes - skip) // 8 * 8)
        words = np.frombuffer(data[: len(data) // 8 * 8], "<u8")
        slots |= {one.address + skip + 8 * int(index) for index in np.flatnonzero(np.isin(words, wanted))}
    for slot in sorted(slots)[:MAX_DESCRIPTORS]:
        words = _words(elf, slot - 24) if slot >= 24 else None
        if words and verified(elf, *words):
            found.add("descriptor-by-shape", elf.offset_of(slot - 24) or 0, _describe(words))
