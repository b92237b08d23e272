"""A `struct rseq` of the reader's own: laid out, what it costs a thread, which old consumers survive it.

What follows from the layout is computed, and says so. :meth:`Design.play` executes the matching scenes, in a child
process with a deadline, and puts what happened beside what was computed. No widget is needed for either.
"""

import contextlib
import html
import keyword
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import pandas as pd

from rseqlab import abi, layout
from rseqlab.errors import UsageError
from rseqlab.lab import compile, probe
from rseqlab.lab.child import Child
from rseqlab.options import parties, scenes
from rseqlab.options.criteria import outcome
from rseqlab.options.parties import Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import FUTURE_256, LAYOUT, ORIGINAL, SCHEME, SLICE, SPARE_USED, Layout
from rseqlab.study import figures
from rseqlab.study.tables import Sentences, Table

TIMEOUT_S = 120
LARGEST_FIELD_BYTES, LARGEST_ALIGN_BYTES = 1024, 256
THREADS = (1, 1_000, 100_000)

OLD = (ORIGINAL, SPARE_USED, SLICE)
"""What consumers were built for when only a released struct was there."""

RELEASE = {one.name: release for one, release in zip(OLD, layout.RELEASES, strict=True)}

REFERS, DEFINES = "refers to it", "defines it"
ROLES = {
    REFERS: "a library that finds the area by the option's own rule",
    DEFINES: "a program that defines the object itself, as early adopters did, and such a library",
}
DESIGNED = "designed"
Heard = Callable[[int, int], bool]
_TYPES = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t"}


@dataclass(frozen=True)
class Added:
    """A field that no release has. ``align_bytes`` 0 is what C gives a type of this size; bytes otherwise."""

    name: str
    size_bytes: int
    align_bytes: int = 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or not self.name.isascii() or keyword.iskeyword(self.name):
            raise UsageError(f"{self.name!r} cannot be a field's name; take letters, digits and _ as in C.")
        if not 1 <= self.size_bytes <= LARGEST_FIELD_BYTES:
            raise UsageError(
                f"{self.name} has a size of {self.size_bytes}; 1 to {LARGEST_FIELD_BYTES} bytes are allowed."
            )
        if self.align_bytes and (
            self.align_bytes & (self.align_bytes - 1) or not 1 <= self.align_bytes <= LARGEST_ALIGN_BYTES
        ):
            raise UsageError(
                f"{self.name} has an alignment of {self.align_bytes}; allowed are powers of two to "
                f"{LARGEST_ALIGN_BYTES}, and 0 for that of its type."
            )

    @property
    def member(self) -> layout.Member:
        """As the layouts know it. A type cannot ask for less than its own alignment, so that is an array."""
        natural = self.size_bytes if self.size_bytes in _TYPES else 1
        small = self.align_bytes and self.align_bytes < natural
        c_type = f"char[{self.size_bytes}]" if small or natural == 1 < self.size_bytes else _TYPES[natural]
        align_bytes = self.align_bytes if self.align_bytes != natural or small else 0
        return layout.Member(
            self.name, 0, self.size_bytes, "later", "added by this design", "", c_type, align_bytes
        )


@dataclass(frozen=True)
class Computed:
    """What the layout alone says of one old consumer: whether it works, and why."""

    works: bool
    why: str


@dataclass(frozen=True)
class Design:
    """A released struct, fields after it, and the feature size that announces them (0: the last field's end)."""

    base: str = layout.RELEASES[-1]
    fields: tuple[Added, ...] = ()
    feature_bytes: int = 0

    def __post_init__(self) -> None:
        names = [member.name for member in self.struct.members if member.kind != "spare"]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(f"{', '.join(twice)} is there already; give the field another name.")

    def add(self, name: str, size_bytes: int, align_bytes: int = 0) -> "Design":
        """The same with one more field at its end."""
        return replace(self, fields=(*self.fields, Added(name, size_bytes, align_bytes)))

    def announce(self, feature_bytes: int) -> "Design":
        """The same with another feature size; 0 is the end of the last field."""
        return replace(self, feature_bytes=feature_bytes)

    def under(self, option: str = "offset-size") -> layout.Layout:
        """How an option holds it. Raises UsageError where the option has no room."""
        members = tuple(one.member for one in self.fields)
        return layout.of_fields(option, self.base, members, self.feature_bytes)

    @property
    def struct(self) -> layout.Struct:
        """The area as a kernel would have it and libc would allocate it."""
        return self.under().structs[0]

    @property
    def announced_bytes(self) -> int:
        """AT_RSEQ_FEATURE_SIZE."""
        return self.under().feature_bytes

    @property
    def align_bytes(self) -> int:
        """AT_RSEQ_ALIGN: the next power of two of the feature size, 32 at least."""
        return layout.alignment_bytes(self.announced_bytes)

    @property
    def thread_bytes(self) -> int:
        """What libc allocates per thread: the feature size, 32 at least, rounded up to AT_RSEQ_ALIGN."""
        least = max(self.announced_bytes, abi.ORIGINAL_SIZE_BYTES)
        return -(-least // self.align_bytes) * self.align_bytes

    @property
    def played(self) -> Layout:
        """As the scenes know it: a size, an alignment, and where its last field ends."""
        about = "the reader's design"
        return Layout(DESIGNED, self.announced_bytes, self.thread_bytes, self.struct.align_bytes, about)

    def memory(self) -> Table:
        """What it takes, computed: by option, per thread and for many threads."""
        rows = []
        for option in layout.OPTIONS:
            try:
                found = self.under(option)
            except UsageError as refused:
                rows.append({"option": option, "structs": str(refused)})
                continue
            own = [one for one in found.structs if not one.name.startswith("process")]
            rows.append(
                {
                    "option": option,
                    "structs": "; ".join(f"{one.name}: {one.size_bytes}/{one.align_bytes}" for one in own),
                    "cache_lines": sum(one.lines for one in own),
                    "padding_bytes": sum(
                        member.size_bytes for one in own for member in one.members if member.kind == "spare"
                    ),
                }
                | {f"bytes_of_{threads}_threads": found.thread_bytes * threads for threads in THREADS}
            )
        columns = ["cache_lines", "padding_bytes", *(f"bytes_of_{threads}_threads" for threads in THREADS)]
        frame = pd.DataFrame(rows).astype(dict.fromkeys(columns, "Int64"))
        return Table(
            frame, "Computed: bytes/alignment of what each thread has; an allocator's own not counted"
        )

    def notes(self) -> Sentences:
        """What its layout says of itself, computed, and the traps that it walks into."""
        struct, line = self.struct, layout.CACHE_LINE_BYTES
        spare = [member for member in struct.members if member.kind == "spare"]
        lines = [
            f"AT_RSEQ_FEATURE_SIZE is {self.announced_bytes}, AT_RSEQ_ALIGN {self.align_bytes}: libc allocates "
            f"{self.thread_bytes} bytes per thread, in {struct.lines} cache "
            f"line{'s' if struct.lines > 1 else ''}; {sum(one.size_bytes for one in spare)} of them are padding"
            + (
                " (" + ", ".join(f"{one.offset_bytes} to {one.end_bytes - 1}" for one in spare) + ")."
                if spare
                else "."
            )
        ]
        lines += [
            f"{member.name} lies on {1 + (member.end_bytes - 1) // line - member.offset_bytes // line} cache lines "
            f"(bytes {member.offset_bytes} to {member.end_bytes - 1})."
            for member in struct.fields
            if member.offset_bytes // line != (member.end_bytes - 1) // line
        ]
        if self.announced_bytes == abi.ORIGINAL_SIZE_BYTES:
            lines.append(
                f"A feature size of {abi.ORIGINAL_SIZE_BYTES} is what glibc 2.35 to 2.39 report for an area with 20 "
                "live bytes (bug 31965): a consumer cannot tell the two apart. Announce one byte more, as Linux 7.0 "
                "does."
            )
        written = [
            field
            for field in abi.FIELDS
            if field.since != "4.18"
            and field.end_bytes <= abi.ORIGINAL_SIZE_BYTES
            and field.name not in {member.name for member in struct.fields}
        ]
        for field in written:
            if name := _at(struct, field.offset_bytes):
                lines.append(
                    f"Bytes {field.offset_bytes} to {field.end_bytes - 1} hold {name} here and {field.name} in Linux "
                    f"{field.since}: a kernel and a program of the two designs take one for the other."
                )
        return Sentences(tuple(lines))

    def survives(self, option: str, consumer: Layout, role: str = REFERS) -> Computed:
        """What the layouts say of a consumer of old, by the option's rules. Computed, not executed."""
        try:
            now = self.under(option)
        except UsageError as refused:
            return Computed(False, f"no room: {refused}")
        scheme = SCHEME[option]
        if moved := _moved(option, now, consumer):
            return Computed(False, moved)
        if role == REFERS:
            if option == "private":
                return Computed(True, "it registers an area of its own, the only one of its thread")
            return Computed(True, "its fields lie where they lay")
        if option == "private":
            return Computed(False, "a thread has one registration: of two areas one is refused")
        if not scheme.symbol:
            return Computed(False, "its own area is refused, as libc's is registered; libc's stays whole")
        if option == "pointer":
            return Computed(True, "the object keeps its size; what is new lies elsewhere")
        if option == "handshake":
            return Computed(True, "the kernel fills what the definition says it has")
        missing = now.structs[-1].size_bytes - consumer.bytes
        if missing > 0:
            return Computed(
                False, f"the object is {missing} bytes smaller than everybody else takes it for: overwritten"
            )
        return Computed(True, "the object is large enough")

    def old(self) -> tuple[Layout, ...]:
        """What consumers were built for before this design: its base, and the releases before that."""
        return OLD[: layout.RELEASES.index(self.base) + 1]

    def survivors(self, option: str | None = None) -> Table:
        """Every old consumer in both roles, under one option or under all: what the layouts say."""
        rows = [
            {
                "option": one,
                "built for": consumer.name,
                "consumer": role,
                "computed": "works" if found.works else "breaks",
                "because": found.why,
            }
            for one in ([option] if option else layout.OPTIONS)
            for consumer in self.old()
            for role in ROLES
            for found in [self.survives(one, consumer, role)]
        ]
        return Table(
            pd.DataFrame(rows), "Computed from the layouts by the options' rules; nothing was executed"
        )

    def unplayable(self) -> str | None:
        """Why the scenes of this design cannot be executed here; None where they can."""
        if self.thread_bytes > FUTURE_256.bytes:
            return (
                f"the scenes know objects of up to {FUTURE_256.bytes} bytes and this one has {self.thread_bytes}; "
                "announce less to play it"
            )
        return compile.missing() or probe.kernel_refusal()

    def play(self, option: str, heard: Heard = lambda done, total: True) -> "Survivors":
        """Build and execute the scenes of this design's size and alignment now; each beside what was computed.

        ``heard`` is told after each scene how many are done, of how many, and says whether to go on.
        """
        self.under(option)  # a UsageError here is the answer: this option has no room
        if reason := self.unplayable():
            return Survivors(self, option, {}, reason)
        child, rows, total = Child(*self._request(option)), {}, len(self.old()) * len(ROLES)
        go_on = heard(0, total)
        with contextlib.closing(iter(child)) as stream:  # leaving early ends the child
            while go_on and (row := next(stream, None)):
                rows[row["built_for"], row["role"]] = row
                go_on = heard(len(rows), total)
        if not go_on and len(rows) < total:
            return Survivors(self, option, rows, "stopped before its end")
        ended = child.outcome
        failed = ended is not None and ended.status != "pass"
        return Survivors(self, option, rows, f"{ended.status}: {ended.reason}" if failed else None)

    def _request(self, option: str) -> tuple:
        """What the child is to do, with what, in which environment, and by when."""
        arguments = {
            "option": option,
            "design": asdict(self.played),
            "old": [one.name for one in self.old()],
        }
        return play_in_child, arguments, probe.LIBC_LEAVES, TIMEOUT_S

    @property
    def c_source(self) -> str:
        """The declaration from which a compiler makes this layout."""
        return self.struct.c_source("rseq")

    def figure(self, option: str = "offset-size") -> figures.Figure:
        """Byte by byte, one cache line a row."""
        return figures.bytes_of([self.under(option)], f"The design under {option}")

    def __repr__(self) -> str:
        words = "".join(f".add({one.name!r}, {one.size_bytes}, {one.align_bytes})" for one in self.fields)
        return "\n\n".join(
            [f"Design({self.base!r}, feature_bytes={self.feature_bytes}){words}", repr(self.under())]
            + [repr(one) for one in (self.notes(), self.memory())]
        )

    def _repr_html_(self) -> str:
        parts = (self.figure(), self.notes(), self.memory())
        return "".join(part._repr_html_() for part in parts)


@dataclass(frozen=True)
class Survivors:
    """What happened to the old consumers of a design, beside what the layouts had said."""

    design: Design
    option: str
    rows: Mapping[tuple[str, str], Mapping]
    reason: str | None

    @property
    def table(self) -> Table:
        found = []
        for consumer in self.design.old():
            for role in ROLES:
                said = self.design.survives(self.option, consumer, role)
                row = self.rows.get((consumer.name, role))
                seen = outcome(row) if row else None
                found.append(
                    {
                        "built for": consumer.name,
                        "consumer": role,
                        "computed": "works" if said.works else "breaks",
                        "executed": _word(seen) if seen else "not measured",
                        "agree": "" if not seen or seen.good is None else _yes(seen.good == said.works),
                        "what happened": seen.why if seen else self.reason or "the scene said nothing",
                        "kernel": row["kernel"] if row else "",
                    }
                )
        size = self.design.played
        return Table(
            pd.DataFrame(found),
            f"{self.option}, an object of {size.bytes} bytes aligned to {size.align_bytes}: computed from the layouts, "
            "and executed on this machine now. Scenes play sizes and alignments, not the names of fields",
        )

    def sentence(self) -> str:
        """How many scenes there were, and whether computation and execution agree."""
        if not self.rows:
            return f"Not measured: {self.reason}"
        frame = self.table.frame
        played = frame[frame["agree"] != ""]
        differ = played[played["agree"] == "no"]
        works = int((played["executed"] == "works").sum())
        return (
            f"{len(played)} of {len(frame)} scenes of {self.option} were executed: {works} work. "
            + (
                "Each ended as the layouts say."
                if differ.empty
                else f"{len(differ)} ended otherwise than the layouts say; the execution is right."
            )
            + (f" Not all: {self.reason}." if self.reason else "")
        )

    def __repr__(self) -> str:
        return f"{self.sentence()}\n{self.table!r}"

    def _repr_html_(self) -> str:
        return f"<p class='rl-claim'>{html.escape(self.sentence())}</p>{self.table._repr_html_()}"


def play_in_child(arguments: Mapping) -> Iterator[dict]:
    """In a child: one row for each old consumer in each role, with a libc that has the designed object."""
    scheme, design = SCHEME[arguments["option"]], Layout(**arguments["design"])

    def one(told: tuple[str, str]) -> dict:
        old, role = told
        return scenes.row(_case(scheme, design, LAYOUT[old], role), None) | {"built_for": old, "role": role}

    yield from parties.side_by_side(one, [(old, role) for old in arguments["old"] for role in ROLES])


def _case(scheme, design: Layout, old: Layout, role: str) -> Case:
    """The scene of one old consumer; the criterion says by which rule the row is judged."""
    if role == REFERS:
        return Case("old-consumer", role, Setup(scheme, design, (Consumer("one", old),)), may_be_refused=True)
    program = Consumer("program", old, "program", ('-DDEFINES="globl"',))
    setup = Setup(scheme, design, (program, Consumer("one", old)))
    return Case("interpose-program", role, setup, may_be_refused=True)


def _moved(option: str, now: layout.Layout, consumer: Layout) -> str | None:
    """The first field of an old consumer that does not lie where it was built to find it."""
    there = _places(now)
    for (struct, name), place in _places(layout.of_fields(option, RELEASE[consumer.name], ())).items():
        if name != layout.RESERVED.name and there.get((struct, name)) != place:
            return f"it looks for {name} at byte {place[0]}, where it is no more"
    return None


def _places(found: layout.Layout) -> dict[tuple[str, str], tuple[int, int]]:
    return {
        (struct.name, member.name): (member.offset_bytes, member.size_bytes)
        for struct in found.structs
        for member in struct.fields
    }


def _at(struct: layout.Struct, offset_bytes: int) -> str | None:
    """The field that holds this byte, if any does."""
    return next((one.name for one in struct.fields if one.offset_bytes <= offset_bytes < one.end_bytes), None)


def _word(found) -> str:
    if found.good is None:
        return "could not be built"
    return "works" if found.good else f"breaks, {found.manner}"


def _yes(agrees: bool) -> str:
    return "yes" if agrees else "no"
