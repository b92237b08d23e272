"""What the census needs of an ELF file: headers, symbols and relocated values, read from hostile bytes.

pyelftools is the well-kept reader, and the tests hold this one to it. It is not used here for two reasons that
were measured: it takes longer for one file than the census may take for a hundred, and it believes the counts
and offsets that a file states. Here every count is bounded by the size of the file before anything is read.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rseqlab.census.source import Damaged, Source

MACHINES = {62: "x86_64", 183: "aarch64"}
OTHER_MACHINES = {
    2: "sparc", 3: "i386", 4: "m68k", 8: "mips", 15: "parisc", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm",
    42: "sh", 43: "sparcv9", 50: "ia64", 190: "cuda", 224: "amdgpu", 243: "riscv", 247: "bpf", 258: "loongarch",
}  # fmt: skip
ET_REL, ET_EXEC, ET_DYN, ET_CORE = 1, 2, 3, 4
PT_LOAD, PT_DYNAMIC, PT_TLS = 1, 2, 7
PF_X = 1
SHT_SYMTAB, SHT_RELA, SHT_NOBITS, SHT_DYNSYM, SHT_RELR = 2, 4, 8, 11, 19
SHF_EXECINSTR = 4
DT_HASH, DT_STRTAB, DT_SYMTAB, DT_RELA, DT_RELASZ, DT_STRSZ, DT_JMPREL, DT_PLTRELSZ = 4, 5, 6, 7, 8, 10, 23, 2
DT_RELRSZ, DT_RELR, DT_GNU_HASH = 35, 36, 0x6FFFFEF5
RELATIVE = {"x86_64": 8, "aarch64": 1027}
ABSOLUTE = {"x86_64": 1, "aarch64": 257}
GOT_SLOTS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}

SYMBOL = np.dtype(
    [("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")]
)
RELA = np.dtype([("offset", "<u8"), ("info", "<u8"), ("addend", "<u8")])

MAX_SYMBOLS = 4096
MAX_PROGRAM_HEADERS = 4096
MAX_SECTION_HEADERS = 65536 * 4
MAX_TABLE_BYTES = 256 * 1024 * 1024
"""A symbol or relocation table that is larger is refused; the largest seen in the wild has 60 MB."""


@dataclass(frozen=True)
class Segment:
    kind: int
    flags: int
    offset_bytes: int
    address: int
    file_bytes: int

    @property
    def executable(self) -> bool:
        return bool(self.flags & PF_X)


@dataclass(frozen=True)
class Section:
    name: str
    kind: int
    flags: int
    address: int
    offset_bytes: int
    size_bytes: int
    link: int
    info: int


@dataclass(frozen=True)
class Symbol:
    name: str
    value: int
    defined: bool
    kind: int
    place_bytes: int
    """Where its entry lies in the file."""


@dataclass(frozen=True)
class Header:
    """The first 64 bytes, checked against the size of the file."""

    kind: int
    machine: str
    entry: int
    program_offset: int
    section_offset: int
    flags: int
    program_size: int
    program_count: int
    section_size: int
    section_count: int
    names_index: int


def machine_of(head: bytes) -> str:
    """``x86_64``, ``aarch64``, or another one's name; 32-bit and big-endian files are always others."""
    if len(head) < 20:
        raise Damaged(f"it ends within the ELF header (after {len(head)} bytes)")
    wide, order = head[4], head[5]
    if wide not in (1, 2) or order not in (1, 2):
        raise Damaged(f"its ELF header states class {wide} and byte order {order}; both are 1 or 2")
    (number,) = struct.unpack_from("<H" if order == 1 else ">H", head, 18)
    name = MACHINES.get(number)
    if name and wide == 2 and order == 1:
        return name
    name = name or OTHER_MACHINES.get(number, f"machine {number}")
    return f"{name}, {'64' if wide == 2 else '32'}-bit, {'little' if order == 1 else 'big'}-endian"


def header(head: bytes, size_bytes: int) -> Header:
    """Raises Damaged where the tables that it names do not fit into the file."""
    if len(head) < 64:
        raise Damaged(f"it ends within the ELF header (after {len(head)} bytes)")
    kind, number, _, entry, phoff, shoff, flags, _, phsize, phnum, shsize, shnum, names = struct.unpack_from(
        "<HHIQQQIHHHHHH", head, 16
    )
    one = Header(kind, MACHINES[number], entry, phoff, shoff, flags, phsize, phnum, shsize, shnum, names)
    if phnum:
        if phsize != 56:
            raise Damaged(f"its program headers are said to have {phsize} bytes each; they have 56")
        if phnum > MAX_PROGRAM_HEADERS:
            raise Damaged(f"it states {phnum} program headers; more than {MAX_PROGRAM_HEADERS} are not read")
        if phoff + phnum * 56 > size_bytes:
            raise Damaged(f"its program headers end at {phoff + phnum * 56}, the file at {size_bytes}")
    if shoff:
        if shsize != 64:
            raise Damaged(f"its section headers are said to have {shsize} bytes each; they have 64")
        if shoff + max(shnum, 1) * 64 > size_bytes:
            raise Damaged(
                f"its section headers end at {shoff + max(shnum, 1) * 64}, the file at {size_bytes}: it was cut"
            )
    return one


class Elf:
    """One little-endian 64-bit file of a machine that the census knows."""

    def __init__(self, source: Source):
        self.source = source
        self.header = header(source.read(0, 64), source.size_bytes)
        self.machine = self.header.machine
        self.segments = self._segments()
        if not self.header.section_offset:
            for one in self.segments:
                if one.kind == PT_LOAD and one.offset_bytes + one.file_bytes > source.size_bytes:
                    raise Damaged(
                        f"a segment ends at {one.offset_bytes + one.file_bytes}, the file at {source.size_bytes}: "
                        "it was cut"
                    )
        self.loads = sorted(
            (one for one in self.segments if one.kind == PT_LOAD and one.file_bytes),
            key=lambda one: one.address,
        )
        self._starts = [one.address for one in self.loads]

    # ---- tables ----

    def _table(self, offset: int, length: int, what: str) -> bytes:
        if length > MAX_TABLE_BYTES:
            raise Damaged(f"{what} is said to have {length} bytes; more than {MAX_TABLE_BYTES} are not read")
        data = self.source.read(offset, length)
        if len(data) != length:
            raise Damaged(f"{what} ends at {offset + length}, the file at {self.source.size_bytes}")
        return data

    def _segments(self) -> list[Segment]:
        head, found = self.header, []
        if not head.program_count:
            return found
        data = self._table(head.program_offset, head.program_count * 56, "the table of program headers")
        for kind, flags, offset, address, _, in_file, _, _ in struct.iter_unpack("<IIQQQQQQ", data):
            # A detached debug file keeps the headers of bytes that it has not.
            in_file = max(0, min(in_file, self.source.size_bytes - offset))
            found.append(Segment(kind, flags, offset, address, in_file))
        return found

    @cached_property
    def sections(self) -> list[Section]:
        """Empty where the file has no section headers."""
        head = self.header
        if not head.section_offset:
            return []
        count = head.section_count
        first = struct.unpack("<IIQQQQIIQQ", self._table(head.section_offset, 64, "the first section header"))
        if not count:  # 65280 and more are counted there
            count = first[5]
        names_index = first[6] if head.names_index == 0xFFFF else head.names_index
        if count > MAX_SECTION_HEADERS:
            raise Damaged(f"it states {count} sections; more than {MAX_SECTION_HEADERS} are not read")
        data = self._table(head.section_offset, count * 64, "the table of section headers")
        raw = list(struct.iter_unpack("<IIQQQQIIQQ", data))
        names = b""
        if names_index < len(raw) and raw[names_index][1] != SHT_NOBITS:
            names = self._table(raw[names_index][4], raw[names_index][5], "the table of section names")
        return [
            Section(_string(names, row[0]), row[1], row[2], row[3], row[4], row[5], row[6], row[7])
            for row in raw
        ]

    def named(self, name: str) -> list[Section]:
        return [one for one in self.sections if one.name == name and one.kind != SHT_NOBITS]

    # ---- addresses ----

    def load_at(self, address: int) -> Segment | None:
        """The segment whose bytes in the file hold this address."""
        at = bisect_right(self._starts, address) - 1
        while at >= 0:
            one = self.loads[at]
            if one.address <= address < one.address + one.file_bytes:
                return one
            at -= 1  # only hostile files have segments that overlap
            if at >= 0 and len(self.loads) > 64:
                break
        return None

    def offset_of(self, address: int) -> int | None:
        one = self.load_at(address)
        return None if one is None else address - one.address + one.offset_bytes

    def address_of(self, offset: int) -> int | None:
        for one in self.loads:
            if one.offset_bytes <= offset < one.offset_bytes + one.file_bytes:
                return offset - one.offset_bytes + one.address
        return None

    def code_at_offset(self, offset: int) -> bool:
        """By the sections, where there are any: a segment of code may hold read-only data as well."""
        return any(low <= offset < high for low, high in self._code_spans)

    @cached_property
    def _code_spans(self) -> list[tuple[int, int]]:
        if any(one.flags & SHF_EXECINSTR for one in self.sections):
            return [
                (one.offset_bytes, one.offset_bytes + one.size_bytes)
                for one in self.sections
                if one.flags & SHF_EXECINSTR and one.kind != SHT_NOBITS
            ]
        return [(one.offset_bytes, one.offset_bytes + one.file_bytes) for one in self.loads if one.executable]

    def bytes_at(self, address: int, length: int) -> bytes:
        """The bytes in the file for an address; fewer, or none, where its segment ends."""
        one = self.load_at(address)
        if one is None:
            return b""
        into = address - one.address
        return self.source.read(one.offset_bytes + into, min(length, one.file_bytes - into))

    def section_at(self, offset: int) -> str | None:
        for one in self.sections:
            if one.kind != SHT_NOBITS and one.offset_bytes <= offset < one.offset_bytes + one.size_bytes:
                return one.name
        return None

    # ---- the dynamic segment ----

    @cached_property
    def dynamic(self) -> dict[int, int]:
        for one in self.segments:
            if one.kind == PT_DYNAMIC:
                data = self._table(
                    one.offset_bytes, min(one.file_bytes, 1 << 20) // 16 * 16, "the dynamic segment"
                )
                found: dict[int, int] = {}
                for tag, value in struct.iter_unpack("<QQ", data):
                    if not tag:
                        break
                    found.setdefault(tag, value)
                return found
        return {}

    def _dynamic_table(self, address_tag: int, size_tag: int, what: str) -> tuple[bytes, int]:
        address, size = self.dynamic.get(address_tag), self.dynamic.get(size_tag, 0)
        if not address or not size:
            return b"", 0
        offset = self.offset_of(address)
        if offset is None:
            return b"", 0
        return self._table(offset, size, what), offset

    def _dynamic_symbol_count(self) -> int:
        """By the hash tables, where the section headers are gone."""
        if (address := self.dynamic.get(DT_HASH)) and len(head := self.bytes_at(address, 8)) == 8:
            return struct.unpack("<II", head)[1]
        address = self.dynamic.get(DT_GNU_HASH)
        if not address or len(head := self.bytes_at(address, 16)) < 16:
            return 0
        buckets, first, bloom, _ = struct.unpack("<IIII", head)
        if buckets > 1 << 24 or bloom > 1 << 24:
            raise Damaged(f"its hash table states {buckets} buckets and {bloom} words of its filter")
        table = address + 16 + bloom * 8
        data = self.bytes_at(table, buckets * 4)
        if len(data) != buckets * 4:
            raise Damaged("its hash table does not fit into its segment")
        last = max((one for (one,) in struct.iter_unpack("<I", data)), default=0)
        if last < first:
            return first
        chains = table + buckets * 4
        while True:
            data = self.bytes_at(chains + (last - first) * 4, 4096)
            data = data[: len(data) // 4 * 4]
            if not data:
                raise Damaged("a chain of its hash table does not end within its segment")
            for (one,) in struct.iter_unpack("<I", data):
                last += 1
                if one & 1:
                    return last

    @cached_property
    def _dynamic_names(self) -> bytes:
        return self._dynamic_table(DT_STRTAB, DT_STRSZ, "the dynamic string table")[0]

    @property
    def dynamic_names_span(self) -> tuple[int, int] | None:
        """Where in the file the dynamic string table lies."""
        text, offset = self._dynamic_table(DT_STRTAB, DT_STRSZ, "the dynamic string table")
        return (offset, offset + len(text)) if text else None

    @cached_property
    def _dynamic_symbols(self) -> tuple[np.ndarray, int]:
        address = self.dynamic.get(DT_SYMTAB)
        offset = self.offset_of(address) if address else None
        if offset is None:
            return np.empty(0, SYMBOL), 0
        count = next((one.size_bytes // 24 for one in self.sections if one.kind == SHT_DYNSYM), None)
        if count is None:
            count = self._dynamic_symbol_count()
        return np.frombuffer(self._table(offset, count * 24, "the dynamic symbol table"), SYMBOL), offset

    def dynamic_symbols(self, names: Iterable[str]) -> list[Symbol]:
        """Those of these names, imported or defined, in the order of the table."""
        table, offset = self._dynamic_symbols
        return _pick(table, offset, self._dynamic_names, names)

    def static_symbols(self, names: Iterable[str]) -> list[Symbol]:
        """The same of ``.symtab``, which strip takes away."""
        for one in self.sections:
            if one.kind == SHT_SYMTAB and one.link < len(self.sections):
                strings = self.sections[one.link]
                text = self._table(strings.offset_bytes, strings.size_bytes, "the string table")
                size = one.size_bytes // 24 * 24
                table = np.frombuffer(self._table(one.offset_bytes, size, "the symbol table"), SYMBOL)
                return _pick(table, one.offset_bytes, text, names)
        return []

    # ---- relocated values ----

    @cached_property
    def relocations(self) -> np.ndarray:
        """All RELA entries: those that the dynamic segment names, else those of the sections."""
        tables, seen = [], set()
        for address, size, what in (
            (DT_RELA, DT_RELASZ, "the table of relocations"),
            (DT_JMPREL, DT_PLTRELSZ, "the table of the PLT's relocations"),
        ):
            data, offset = self._dynamic_table(address, size, what)
            if data and offset not in seen:
                seen.add(offset)
                tables.append(data)
        if not tables and self.header.kind != ET_REL:
            for one in self.sections:
                if one.kind == SHT_RELA and one.offset_bytes not in seen:
                    seen.add(one.offset_bytes)
                    tables.append(self._table(one.offset_bytes, one.size_bytes, "a section of relocations"))
                    if sum(map(len, tables)) > MAX_TABLE_BYTES:
                        raise Damaged(f"its relocations have more than {MAX_TABLE_BYTES} bytes")
        return np.frombuffer(b"".join(one[: len(one) // 24 * 24] for one in tables), RELA)

    def slots_of(self, name: str) -> set[int]:
        """The addresses of the GOT's slots into which the loader writes this import."""
        table, _ = self._dynamic_symbols
        wanted = np.flatnonzero(_named(table, self._dynamic_names, [name]))
        kinds = self.relocations["info"] & 0xFFFFFFFF
        hits = np.isin(kinds, GOT_SLOTS[self.machine]) & np.isin(self.relocations["info"] >> 32, wanted)
        return {int(one) for one in self.relocations["offset"][hits]}

    def values(self, start: int, size: int) -> dict[int, int]:
        """The 64-bit values at the addresses of a range, as the loader leaves them relative to the load address.

        What no RELA entry covers stands in place: so it is in a program of fixed address, and in a slot of RELR.
        """
        data = self.bytes_at(start, size // 8 * 8)
        found = {
            start + at: value
            for at, (value,) in zip(
                range(0, size, 8), struct.iter_unpack("<Q", data[: len(data) // 8 * 8]), strict=False
            )
        }
        table = self.relocations
        inside = table[(table["offset"] >= start) & (table["offset"] < start + size)]
        symbols, _ = self._dynamic_symbols
        for address, info, addend in inside.tolist():
            kind, index = info & 0xFFFFFFFF, info >> 32
            if kind == RELATIVE[self.machine]:
                found[address] = addend
            elif kind == ABSOLUTE[self.machine] and index < len(symbols) and symbols["section"][index]:
                found[address] = (int(symbols["value"][index]) + addend) & (1 << 64) - 1
        return found

    def relative_to(self, addresses: Iterable[int]) -> list[tuple[int, int]]:
        """(slot, address) of every relative RELA entry that leads to one of these addresses."""
        table = self.relocations
        hits = (table["info"] == RELATIVE[self.machine]) & np.isin(
            table["addend"], np.fromiter(addresses, np.uint64)
        )
        return list(zip(table["offset"][hits].tolist(), table["addend"][hits].tolist(), strict=True))


def _named(table: np.ndarray, text: bytes, names: Iterable[str]) -> np.ndarray:
    """Which symbols have one of these names; a linker may let a name begin within a longer one."""
    starts = []
    for name in names:
        wanted, at = name.encode() + b"\0", -1
        while (at := text.find(wanted, at + 1)) >= 0:
            starts.append(at)
    return np.isin(table["name"], np.array(starts, np.uint32))


def _pick(table: np.ndarray, offset: int, text: bytes, names: Iterable[str]) -> list[Symbol]:
    return [
        Symbol(
            _string(text, int(table["name"][index])),
            int(table["value"][index]),
            bool(table["section"][index]),
            int(table["info"][index]) & 15,
            offset + int(index) * 24,
        )
        for index in np.flatnonzero(_named(table, text, names))[:MAX_SYMBOLS]
    ]


def _string(table: bytes, at: int) -> str:
    if at >= len(table):
        return ""
    end = table.find(b"\0", at, at + 4096)
    return table[at : end if end >= 0 else at + 4096].decode("utf-8", "backslashreplace")
