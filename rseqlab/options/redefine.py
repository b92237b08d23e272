"""Who else defines the names that glibc exports of rseq: the test cases, their programs, and their answers as rows.

glibc 2.35 and newer export where the area of each thread lies, ``__rseq_offset``, and how much of it is in use,
``__rseq_size``. A program or a library may define these names as well. Each test case here is one such definition;
its program (experiments/c/redefine_program.c) asks the kernel what became of the registration of the main thread
and of a new one. It is run on this machine, or in a guest.
"""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rseqlab.lab import compile
from rseqlab.lab.compile import Target
from rseqlab.lab.experiment import Column
from rseqlab.options import parties

C = Path(__file__).resolve().parents[1] / "experiments" / "c"
HEADERS = (C / "redefine.h", C / "rseq_call.h")
SOURCES = tuple(
    f"experiments/c/{name}"
    for name in ("redefine.h", "redefine_definition.c", "redefine_program.c", "rseq_call.h")
)
FLAGS = ("-O2", "-Wall", "-Wextra")
LIBRARY, PROGRAM = "libdefinition.so", "program"

NOBODY, REFERS, BY_PROGRAM, HIDDEN = (
    "nobody",
    "nobody, and the program has a copy of them",
    "program",
    "program, hidden",
)
LINKED, PRELOADED, LATE = "linked library", "preloaded library", "library opened late"
DEFINERS = (NOBODY, REFERS, BY_PROGRAM, HIDDEN, LINKED, PRELOADED, LATE)
BINDINGS = {"strong": "", "weak": "__attribute__((weak))", "none": ""}
"""The binding of the definition, and how it is said in C; none where nobody defines anything."""

MAIN, NEW = THREADS = ("main", "new")
BY_LIBC, BY_DEFINITION, ELSEWHERE, NOWHERE = (
    "where libc says",
    "where the definition says",
    "elsewhere",
    "nowhere",
)
NOT_STARTED = "not started"
LEGACY_BYTES = 32


@dataclass(frozen=True)
class Value:
    """What a definition says. ``macro`` is its name in C, ``bytes`` the size that it claims."""

    macro: str
    bytes: int
    only_size: bool = False


VALUES = {
    "own area of zeros, 32 bytes": Value("OWN_ZEROED", 32),
    "own area of zeros, 20 bytes": Value("OWN_ZEROED", 20),
    "own area, marked unregistered": Value("OWN_UNREGISTERED", 32),
    "8 bytes beside its own area": Value("SHIFTED", 32),
    "offset 0, size 0": Value("ZERO", 0),
    "offset 1 TiB": Value("FAR", 32),
    "libc's own values": Value("OF_LIBC", 0),
    "only the size: 20": Value("0", 20, only_size=True),
    "only the size: 64": Value("0", 64, only_size=True),
}
NO_VALUE = "libc's"
PLAIN_VALUE = next(iter(VALUES))
"""The value with which each definer is tried; the others are tried where a definer is known to be heard."""


@dataclass(frozen=True)
class Case:
    """One definition: who makes it, how it binds, what it says."""

    definer: str
    binding: str
    value: str
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """The values of the columns that name it."""
        binding = f"{self.binding}, LD_DYNAMIC_WEAK" if self.environment else self.binding
        return self.definer, binding, self.value


DYNAMIC_WEAK = (("LD_DYNAMIC_WEAK", "1"),)


def cases() -> list[Case]:
    """Every definer with one value, strong and weak; every value by the program and by a linked library."""
    found = [Case(NOBODY, "none", NO_VALUE), Case(REFERS, "none", NO_VALUE)]
    found += [
        Case(definer, binding, PLAIN_VALUE)
        for definer in (BY_PROGRAM, LINKED, PRELOADED)
        for binding in ("strong", "weak")
    ]
    found += [Case(HIDDEN, "strong", PLAIN_VALUE), Case(LATE, "strong", PLAIN_VALUE)]
    found += [Case(LINKED, "weak", PLAIN_VALUE, DYNAMIC_WEAK)]
    found += [
        Case(definer, "strong", value) for definer in (BY_PROGRAM, LINKED) for value in list(VALUES)[1:]
    ]
    return found


@dataclass(frozen=True)
class Built:
    """A case's files: the program, and the library that makes the definition, where one does."""

    program: Path
    library: Path | None


def build(case: Case, compiler: str = "cc") -> Built:
    """The case's files for one architecture. Raises CompileError."""
    program, depends = C / "redefine_program.c", HEADERS
    if case.definer == NOBODY:
        return Built(_program((program,), compiler), None)
    if case.definer == REFERS:
        fixed = (*FLAGS, "-DREFERS=1", "-fno-pie", "-no-pie")
        return Built(compile.build(Target(PROGRAM, (program,), fixed, compiler, depends)), None)
    value = VALUES[case.value]
    told = [f"-DVALUE={value.macro}", f"-DSIZE={value.bytes}", f"-DONLY_SIZE={int(value.only_size)}"]
    attribute = BINDINGS[case.binding]
    if case.definer == HIDDEN:
        attribute += '__attribute__((visibility("hidden")))'
    told += [f"-DBINDING={attribute}"]
    definition = C / "redefine_definition.c"
    if case.definer in (BY_PROGRAM, HIDDEN):
        return Built(_program((program, definition), compiler, *told), None)
    flags = (*FLAGS, *told, *parties.SHARED, f"-Wl,-soname,{LIBRARY}")
    library = compile.build(Target(LIBRARY, (definition,), flags, compiler, depends))
    linked = ("-Wl,--no-as-needed", str(library)) if case.definer == LINKED else ()
    return Built(_program((program,), compiler, *linked), library)


def _program(sources: tuple[Path, ...], compiler: str, *flags: str) -> Path:
    """Position-independent, and with its symbols exported, as a program that has plugins is."""
    told = (*FLAGS, "-fPIE", "-pie", "-rdynamic", *flags, "-pthread")
    return compile.build(Target(PROGRAM, sources, told, compiler, HEADERS))


def start(case: Case, folder: str) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment of a case's program whose library lies in this folder."""
    environment = dict(case.environment)
    if case.definer == PRELOADED:
        environment["LD_PRELOAD"] = f"{folder}/{LIBRARY}"
    return ([f"open={LIBRARY}"] if case.definer == LATE else []), environment


def run(case: Case, libc: Path | None) -> list[dict]:
    """The rows of one case on this machine; whatever its program does is a row. Raises CompileError."""
    built = build(case)
    folder = parties.stage({LIBRARY: built.library}) if built.library else built.program.parent
    arguments, environment = start(case, str(folder))
    ended, told, errors = parties.execute([str(built.program), *arguments], folder, environment, libc)
    return list(rows(case, lines(told), ended, parties.words(errors)))


def lines(text: str) -> list[dict]:
    """The JSON objects among a program's lines; what is none is passed over, as a dying program may cut one off."""
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


COLUMNS = (
    Column(
        "libc", "text", "the libc's version, as it calls itself; null where the program did not start", True
    ),
    Column("definer", "text", "who defines the names beside libc", choices=DEFINERS),
    Column("binding", "text", "the definition's binding"),
    Column("value", "text", "what the definition says", choices=(NO_VALUE, *VALUES)),
    Column("thread", "text", "the main thread, or one that pthread_create() started", choices=THREADS),
    Column("ended", "text", f"of the whole program: exit code, signal, `hung`, or `{NOT_STARTED}`"),
    Column("last_step", "text", "what it did when it ended, where that was no exit 0", True),
    Column("said", "text", "libc's or the loader's own words", True),
    Column(
        "names_offset_bytes", "int", "what the name __rseq_offset means to a library", True, (), -(1 << 62)
    ),
    Column("names_size_bytes", "int", "what the name __rseq_size means to a library", True),
    Column("libc_offset_bytes", "int", "__rseq_offset as the loader itself has it", True, (), -(1 << 62)),
    Column("libc_size_bytes", "int", "__rseq_size as the loader itself has it", True),
    Column(
        "registered",
        "text",
        "where the kernel has this thread's area",
        True,
        (BY_LIBC, BY_DEFINITION, ELSEWHERE, NOWHERE),
    ),
    Column("registered_offset_bytes", "int", "the same, from the thread pointer", True, (), -(1 << 62)),
    Column("registered_bytes", "int", "with which length", True),
    Column("again", "text", "the kernel's answer to a registration of a fresh area of 32 bytes", True),
    Column("at_libc", "text", "its answer to one of the area that the loader's values name", True),
    Column("at_definition", "text", "its answer to one of the area that the names' values name", True),
    Column("readings", "int", "readings of the CPU's number, each on another CPU", True),
    Column("libc_wrong", "int", "readings in which sched_getcpu() told another CPU than the kernel", True),
    Column("libc_no_cpu", "int", "of these, those in which it told a number that is no CPU anywhere", True),
    Column("reader_wrong", "int", "readings in which the area that the names give told another CPU", True),
    Column("reader_told", "int", "readings in which it told that the thread is not registered", True),
    Column("reader_died", "int", "readings that killed the reader", True),
)
KEY = ("definer", "binding", "value", "thread")


def rows(case: Case, told: Sequence[Mapping], ended: str, said: str | None) -> Iterator[dict]:
    """One row for each thread of what a program said and how it ended."""
    libc = next((line["libc"] for line in told if "libc" in line), None)
    steps = [line["step"] for line in told if "step" in line]
    base = dict(zip(KEY, case.key, strict=False)) | {
        "libc": libc,
        "ended": ended if libc else NOT_STARTED,
        "last_step": (steps[-1] if steps else "the start") if ended != "exit 0" and libc else None,
        "said": said,
    }
    for thread in THREADS:
        state = next((line for line in told if line.get("thread") == thread), {})
        read = next((line for line in told if line.get("read") == thread), {})
        yield base | {"thread": thread} | _state(state) | _read(read)


def _state(line: Mapping) -> dict:
    """The columns about a thread's registration; nulls where its program ended before it could say."""
    names = (
        "names_offset",
        "names_size",
        "libc_offset",
        "libc_size",
        "registered_offset",
        "registered_bytes",
    )
    answers = ("again", "at_libc", "at_names")
    found = {
        name if name.endswith("bytes") else f"{name}_bytes": line.get(name) if line else None
        for name in names
    }
    found |= {name: _answer(line.get(name)) for name in answers}
    found["at_definition"] = found.pop("at_names")
    found["registered"] = _where(line) if line else None
    if not line or line["ptrace_error"] or not line["registered"]:
        found["registered_offset_bytes"] = found["registered_bytes"] = None
    return found


def _answer(code: object) -> str | None:
    if not isinstance(code, int):
        return None
    return "killed" if code == 255 else parties.errno_name(code)


def _where(line: Mapping) -> str | None:
    """Where a thread is registered: by the kernel's own word, or by what it answers to more registrations."""
    if not line["ptrace_error"]:
        if not line["registered"]:
            return NOWHERE
        if line["registered_offset"] == line["libc_offset"]:
            return BY_LIBC
        return BY_DEFINITION if line["registered_offset"] == line["names_offset"] else ELSEWHERE
    if line["again"] == 0:
        return NOWHERE
    return {
        (True, False): BY_LIBC,
        (True, True): BY_LIBC,
        (False, True): BY_DEFINITION,
    }.get((line["at_libc"] == errno.EBUSY, line["at_names"] == errno.EBUSY))


def _read(line: Mapping) -> dict:
    """The columns about readings; nulls where its program ended before."""
    names = ("readings", "libc_wrong", "libc_no_cpu", "reader_wrong", "reader_told", "reader_died")
    return {name: line.get(name) for name in names}
