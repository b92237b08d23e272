"""What a file's symbols and strings say about rseq: libc's area, libc's sched_getcpu(), or a mention."""

import re

from rseqlab.census.elf import Elf
from rseqlab.census.evidence import Findings
from rseqlab.census.words import Places

AREA = ("__rseq_offset", "__rseq_size", "__rseq_flags", "__rseq_abi")
LOOKED_UP_AREA = ("__rseq_offset", "__rseq_size")
GETCPU = ("sched_getcpu", "getcpu")
LOOKUPS = ("dlsym", "dlvsym")
MENTION = re.compile(rb"(?:^|[^A-Za-z0-9])(rseq)(?![A-Za-z0-9])")
SHOWN_BYTES = 40
NOT_STRINGS = (".dynstr", ".strtab", ".shstrtab")
"""Where a symbol's name is not the text that a program would hand to dlsym()."""


def examine(elf: Elf, places: Places, found: Findings) -> None:
    symbols = elf.dynamic_symbols((*AREA, *GETCPU, *LOOKUPS))
    for one in symbols:
        if one.name in AREA:
            rule = "area-symbol-defined" if one.defined else "area-symbol-imported"
            found.add(rule, one.place_bytes, one.name)
        elif one.name in GETCPU and not one.defined:
            found.add("getcpu-imported", one.place_bytes, one.name)
    dynamic = {one.name for one in symbols}
    for one in elf.static_symbols((*AREA, *GETCPU)):
        if one.name in dynamic or not one.defined:
            continue
        if one.name in AREA:
            found.add("area-symbol-linked-in", one.place_bytes, one.name)
        elif one.name in GETCPU:
            found.add("getcpu-linked-in", one.place_bytes, one.name)
    names = _names(elf)
    if any(one.name in LOOKUPS and not one.defined for one in symbols):
        _looked_up(elf, places.offsets["rseq"], LOOKED_UP_AREA, "area-symbol-looked-up", names, found)
        _looked_up(elf, places.offsets["getcpu"], GETCPU, "getcpu-looked-up", names, found)
    for offset in places.offsets["rseq"]:
        _mention(elf, offset, found)


def _names(elf: Elf) -> list[tuple[int, int]]:
    """Where in the file the tables of names lie."""
    spans = [
        (one.offset_bytes, one.offset_bytes + one.size_bytes)
        for one in elf.sections
        if one.name in NOT_STRINGS
    ]
    if span := elf.dynamic_names_span:
        spans.append(span)
    return spans


def _looked_up(elf: Elf, offsets, wanted, rule: str, names, found: Findings) -> None:
    for offset in offsets:
        if any(low <= offset < high for low, high in names) or elf.code_at_offset(offset):
            continue
        if elf.address_of(offset) is None:
            continue
        low = max(0, offset - 24)
        around = elf.source.read(low, 64)
        begin = around.rfind(b"\0", 0, offset - low) + 1
        text = around[begin : around.find(b"\0", offset - low)]
        if text.decode("latin-1") in wanted:
            found.add(rule, low + begin, text.decode("latin-1"))


def _mention(elf: Elf, offset: int, found: Findings) -> None:
    if elf.code_at_offset(offset):
        return
    low = max(0, offset - 1)
    around = elf.source.read(low, 6)
    if not MENTION.search(around):
        return
    low = max(0, offset - SHOWN_BYTES)
    text = elf.source.read(low, 2 * SHOWN_BYTES)
    at = offset - low
    begin = max(text.rfind(b"\0", 0, at), text.rfind(b"\n", 0, at)) + 1
    end = min((end for end in (text.find(b"\0", at), text.find(b"\n", at)) if end >= 0), default=len(text))
    words = text[begin:end].decode("utf-8", "backslashreplace")
    section = elf.section_at(offset)
    where = f" in {section}" if section else ""
    found.add("word", offset, f"{''.join(c if c.isprintable() else '.' for c in words)!r}{where}")
