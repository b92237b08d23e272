"""The struct byte by byte: as each kernel release has it, and as each option would have laid it out.

An option's layout is computed from the fields that were in fact added later, by the alignment rules of C.
A test holds it to the compiler's own offsets, and the release's to what the running kernel says.
"""

import html
import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rseqlab import abi
from rseqlab.errors import UsageError

CACHE_LINE_BYTES = 64
"""Of every x86_64 and most aarch64 CPUs."""

TEXT_COLUMNS = 75
"""What a mailing list reads without wrapping."""

RELEASES = ("4.18", "6.3", "7.0")
"""The mainline releases that changed the struct."""

RESERVED = abi.Field("reserved", 32, 1, "7.0", "3b68df978133", "nothing: it makes the feature size 33")

OPTIONS = (
    "private",
    "grow-symbol",
    "version-symbol",
    "pointer",
    "handshake",
    "padding",
    "offset-size",
)

SIZES_BYTES = (28, 33, 64, 128, 256)
"""Ends of the last field that are worth looking at: Linux 6.3's, 7.0's, and three futures."""

LARGEST_BYTES = 4096
"""The largest feature size that is looked at: no area is larger than a page."""

KINDS = ("original", "added", "control", "later", "spare")
"""Fields of 4.18, fields added since, what the option itself needs, fields nobody knows yet, no field."""

_TYPES = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}


@dataclass(frozen=True)
class Member:
    """One field of a struct, or a gap (``kind`` spare)."""

    name: str
    offset_bytes: int
    size_bytes: int
    kind: str
    about: str = ""
    since: str = ""
    c_type: str = ""
    align_bytes: int = 0
    """What it asks for; 0 is what C gives its type."""

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.size_bytes

    @property
    def natural_bytes(self) -> int:
        """The alignment at which C places it."""
        return max(self.align_bytes, 1 if self.c_type.startswith("char") else self.size_bytes)

    @property
    def c_declaration(self) -> str:
        """As a member of a C struct."""
        name, _, dimension = self.c_type.partition("[")
        aligned = f" __attribute__((aligned({self.align_bytes})))" if self.align_bytes else ""
        return f"{name} {self.name}{'[' + dimension if dimension else ''}{aligned};"


@dataclass(frozen=True)
class Struct:
    """One piece of memory: of a thread, or of the process."""

    name: str
    members: tuple[Member, ...]
    align_bytes: int
    size_bytes: int

    @property
    def lines(self) -> int:
        """Cache lines that it touches where its alignment holds and it starts a line."""
        return -(-self.size_bytes // CACHE_LINE_BYTES)

    @property
    def fields(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.kind != "spare")

    def c_source(self, name: str) -> str:
        """The declaration from which a compiler makes these offsets; gaps are the compiler's."""
        body = "".join(f"\t{member.c_declaration}\n" for member in self.fields)
        return f"struct {name} {{\n{body}}} __attribute__((aligned({self.align_bytes})));\n"

    def rows(self) -> list[dict]:
        """One per member: bytes, size, cache line, kind, name, release, meaning."""
        return [
            {
                "offset_bytes": member.offset_bytes,
                "size_bytes": member.size_bytes,
                "line": member.offset_bytes // CACHE_LINE_BYTES,
                "kind": member.kind,
                "field": member.name,
                "since": member.since,
                "about": member.about,
            }
            for member in self.members
        ]

    @property
    def heading(self) -> str:
        lines = f"{self.lines} cache line{'s' if self.lines > 1 else ''}"
        return f"{self.name}: {self.size_bytes} bytes, aligned to {self.align_bytes}, {lines}"


@dataclass(frozen=True)
class Layout:
    """What a release or an option puts into memory. Shows itself as a table of bytes."""

    title: str
    feature_bytes: int
    structs: tuple[Struct, ...]
    note: str
    option: str | None = None
    release: str | None = None

    @property
    def thread_bytes(self) -> int:
        """What each thread pays, an allocator's own bytes not counted."""
        return sum(struct.size_bytes for struct in self.structs if not struct.name.startswith("process"))

    def __repr__(self) -> str:
        lines = [self.title, *textwrap.wrap(self.note, TEXT_COLUMNS)]
        for struct in self.structs:
            lines += [
                "",
                struct.heading,
                f"  {'bytes':9} {'size':>4} {'line':>4}  {'field':13} {'since':6} what",
            ]
            for row in struct.rows():
                end = row["offset_bytes"] + row["size_bytes"] - 1
                bytes_ = f"{row['offset_bytes']:3} .. {end:3}"
                start = (
                    f"  {bytes_:9} {row['size_bytes']:4} {row['line']:4}  {row['field']:13} {row['since']:6} "
                )
                about = textwrap.wrap(row["about"], TEXT_COLUMNS - len(start)) or [""]
                lines += [(start + about[0]).rstrip(), *(" " * len(start) + line for line in about[1:])]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        columns = ("offset_bytes", "size_bytes", "line", "field", "since", "about")
        heads = "".join(f"<th>{name}</th>" for name in columns)
        tables = "".join(
            f"<table class='rl-table'><caption>{html.escape(struct.heading)}</caption>"
            f"<thead><tr>{heads}</tr></thead><tbody>"
            + "".join(
                "<tr>" + "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in columns) + "</tr>"
                for row in struct.rows()
            )
            + "</tbody></table>"
            for struct in self.structs
        )
        return f"<p><strong>{html.escape(self.title)}</strong>. {html.escape(self.note)}</p>{tables}"


def alignment_bytes(feature_bytes: int) -> int:
    """What AT_RSEQ_ALIGN asks for a feature size: the next power of two, 32 at least (317c8194e6ae)."""
    return max(abi.ORIGINAL_SIZE_BYTES, 1 << (feature_bytes - 1).bit_length())


def _original() -> list[Member]:
    return [_member(field) for field in abi.FIELDS if field.since == "4.18"]


def _member(field: abi.Field) -> Member:
    kind = "original" if field.since == "4.18" else "added"
    return Member(field.name, 0, field.size_bytes, kind, field.about, field.since, _TYPES[field.size_bytes])


def _additions(feature_bytes: int) -> list[Member]:
    """The fields beyond the original 20 bytes, up to a feature size: those that came, then unknown ones."""
    known = [field for field in (*abi.FIELDS, RESERVED) if field.since != "4.18"]
    found = [_member(field) for field in known if field.end_bytes <= feature_bytes]
    end = max((field.end_bytes for field in known if field.end_bytes <= feature_bytes), default=20)
    if feature_bytes > end:
        rest = feature_bytes - end
        found.append(Member("later", 0, rest, "later", "fields that nobody knows yet", "", f"char[{rest}]"))
    return found


def _struct(name: str, members: Sequence[Member], align_bytes: int = 1) -> Struct:
    """Members one after the other as C places them, the gaps as members of kind spare."""
    placed: list[Member] = []
    end = 0

    def gap(to: int) -> None:
        if to > end:
            placed.append(Member("(spare)", end, to - end, "spare"))

    for member in members:
        natural = member.natural_bytes
        align_bytes = max(align_bytes, natural)
        offset = -(-end // natural) * natural
        gap(offset)
        placed.append(replace(member, offset_bytes=offset))
        end = placed[-1].end_bytes
    size = -(-end // align_bytes) * align_bytes
    gap(size)
    return Struct(name, tuple(placed), align_bytes, size)


@dataclass(frozen=True)
class Extension:
    """What comes after the original 20 bytes, and the feature size that announces it."""

    members: tuple[Member, ...]
    feature_bytes: int


def _grown(name: str, more: Extension) -> Struct:
    return _struct(name, [*_original(), *more.members], alignment_bytes(more.feature_bytes))


def _unchanged(name: str) -> Struct:
    return _struct(name, _original(), abi.ORIGINAL_SIZE_BYTES)


def release_of_kernel(release: str) -> str:
    """The newest of RELEASES that a kernel's release (``uname -r``) contains."""
    found = [name for name in RELEASES if _numbers(name) <= _numbers(release)]
    if not found:
        raise UsageError(f"Linux {release} has no rseq; the struct begins with {RELEASES[0]}.")
    return found[-1]


def _numbers(release: str) -> tuple[int, int]:
    major, _, rest = release.partition(".")
    return int(major), int("".join(itertools.takewhile(str.isdigit, rest)) or 0)


def of_release(release: str) -> Layout:
    """The struct of a kernel release, such as ``6.3`` or a running kernel's ``6.18.44``.

    Its alignment is what AT_RSEQ_ALIGN asks, not the type's in the kernel's header, which may be larger.
    """
    base = release_of_kernel(release)
    fields = [field for field in (*abi.FIELDS, RESERVED) if _numbers(field.since) <= _numbers(base)]
    feature_bytes = fields[-1].end_bytes
    struct = _struct("thread, area", [_member(field) for field in fields], alignment_bytes(feature_bytes))
    note = f"The struct of Linux {base}. Its fields end at byte {feature_bytes}."
    return Layout(f"Linux {base}", feature_bytes, (struct,), note, release=base)


def of_option(option: str, feature_bytes: int = RESERVED.end_bytes) -> Layout:
    """How an option holds the fields that the original 20 bytes and a feature size make.

    ``feature_bytes`` counts as the kernel does, without what the option itself needs. Raises UsageError
    where the option has no room for them.
    """
    if option not in OPTIONS:
        raise UsageError(f"No option is called {option!r}. The options are: {', '.join(OPTIONS)}.")
    if not abi.ORIGINAL_FEATURE_BYTES <= feature_bytes <= LARGEST_BYTES:
        raise UsageError(
            f"The feature size is {feature_bytes}; allowed are {abi.ORIGINAL_FEATURE_BYTES} (no field "
            f"beyond Linux 4.18's) to {LARGEST_BYTES}."
        )
    structs, note = _BY_OPTION[option](Extension(tuple(_additions(feature_bytes)), feature_bytes))
    return Layout(f"{option}, feature size {feature_bytes}", feature_bytes, structs, note, option=option)


def of_fields(option: str, base: str, added: tuple[Member, ...], feature_bytes: int = 0) -> Layout:
    """How an option holds a release's fields and ``added`` ones after them.

    ``feature_bytes`` is the end of the last field where it is 0; what it announces beyond is bytes that nobody
    knows. An added field takes the place of Linux 7.0's reserved byte, as the kernel's own next field will.
    Raises UsageError where the option, or the feature size, has no room for them.
    """
    if option not in OPTIONS:
        raise UsageError(f"No option is called {option!r}. The options are: {', '.join(OPTIONS)}.")
    if base not in RELEASES:
        raise UsageError(f"No release is called {base!r}. Releases that changed it: {', '.join(RELEASES)}.")
    known = of_release(base).structs[0].fields
    members = [replace(one, offset_bytes=0) for one in known if one.since != "4.18"]
    if added and members and members[-1].name == RESERVED.name:
        members.pop()
    members += added
    end = _struct("", [*_original(), *members]).fields[-1].end_bytes
    feature_bytes = feature_bytes or end
    if not end <= feature_bytes <= LARGEST_BYTES:
        raise UsageError(
            f"The feature size is {feature_bytes}; the fields end at byte {end}, so {end} to {LARGEST_BYTES} are "
            "allowed. Announce more, or take a field away."
        )
    if rest := feature_bytes - end:
        members.append(
            Member("announced", 0, rest, "later", "bytes that no field has yet", "", f"char[{rest}]")
        )
    structs, note = _BY_OPTION[option](Extension(tuple(members), feature_bytes))
    return Layout(f"{option}, feature size {feature_bytes}", feature_bytes, structs, note, option=option)


def _private(more: Extension):
    note = "Each library has an area of its own; a kernel takes one of them per thread."
    return (
        _grown("thread, area of library A", more),
        _grown("thread, area of library B", more),
    ), note


def _grow_symbol(more: Extension):
    return (_grown("thread, __rseq_abi", more),), "The exported symbol itself grows, in size and alignment."


def _version_symbol(more: Extension):
    note = "The old object stays for programs linked before; a kernel takes one of the two per thread."
    old, new = "thread, __rseq_abi, old version", "thread, __rseq_abi, new version"
    return (_unchanged(old), _grown(new, more)), note


def _pointer(more: Extension):
    pointer = Member("extended", 0, 8, "control", "where the rest lies", "", "void *")
    area = _struct("thread, __rseq_abi", [*_original(), pointer], abi.ORIGINAL_SIZE_BYTES)
    rest = more.feature_bytes - abi.ORIGINAL_FEATURE_BYTES
    align = 1 << max(2, (rest - 1).bit_length()) if rest else 4
    extended = _struct("thread, extended struct", more.members, align)
    note = "The area keeps its size; the fields beyond the original ones lie behind a pointer."
    return ((area, extended) if extended.fields else (area,)), note


def _handshake(more: Extension):
    sizes = [
        Member("user_size", 0, 2, "control", "what the program knows", "", "uint16_t"),
        Member("kernel_size", 0, 2, "control", "what the kernel knows", "", "uint16_t"),
    ]
    members = [*_original(), *sizes, *more.members]
    area = _struct("thread, __rseq_abi", members, alignment_bytes(more.feature_bytes + 4))
    return (area,), "The sizes that both sides know are in the struct; the added fields come after them."


def _padding(more: Extension):
    if more.feature_bytes > abi.ORIGINAL_SIZE_BYTES:
        room = abi.ORIGINAL_SIZE_BYTES - abi.ORIGINAL_FEATURE_BYTES
        raise UsageError(
            f"padding has room for {room} bytes of new fields, up to a feature size of "
            f"{abi.ORIGINAL_SIZE_BYTES}; {more.feature_bytes} was asked for."
        )
    return (_grown("thread, area", more),), "New fields take the spare bytes; then there is no room left."


def _offset_size(more: Extension):
    exported = _struct(
        "process, exported by libc",
        [
            Member("__rseq_offset", 0, 8, "control", "from the thread pointer", "", "int64_t"),
            Member("__rseq_size", 0, 4, "control", "end of the last field", "", "uint32_t"),
            Member("__rseq_flags", 0, 4, "control", "of the registration", "", "uint32_t"),
        ],
    )
    note = "libc allocates what the kernel asks for; no program links to the area itself."
    return (_grown("thread, area", more), exported), note


_BY_OPTION = {
    "private": _private,
    "grow-symbol": _grow_symbol,
    "version-symbol": _version_symbol,
    "pointer": _pointer,
    "handshake": _handshake,
    "padding": _padding,
    "offset-size": _offset_size,
}


def layout(option: str | None = None, feature_bytes: int | None = None, release: str | None = None) -> Layout:
    """:func:`of_option` or :func:`of_release`, whichever is asked for."""
    if release is not None and option is None:
        return of_release(release)
    if option is not None and release is None:
        return of_option(option, feature_bytes or RESERVED.end_bytes)
    raise UsageError("Name an option or a kernel release, one of the two.")


def every() -> list[Layout]:
    """Each release's and each option's at every size that it has room for."""
    found = [of_release(release) for release in RELEASES]
    for option, size in itertools.product(OPTIONS, SIZES_BYTES):
        try:
            found.append(of_option(option, size))
        except UsageError:
            continue  # padding beyond 32 bytes
    return found
