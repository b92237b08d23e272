"""Code layouts: the same source compiled many times, each time with its code at other places.

Where a loop lies decides what it costs (Mytkowicz et al., ASPLOS 2009), so a comparison that one build carries says
nothing of the next compilation. A build is a number; :func:`layout` draws from it what differs. One child process
measures one build.

A source is compiled to assembly once for each loop alignment. A layout then changes the text: it orders and pads the
functions, pads the loops at the marks that native/layout.h leaves, and moves the stack; objects are linked in drawn
order.
"""

import hashlib
import os
import platform
import random
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from rseqlab import native
from rseqlab.lab import compile
from rseqlab.lab.experiment import Column, Part
from rseqlab.lab.probe import LIBC_LEAVES, LIBC_OWNS, libc_refusal

COLUMNS = (
    Column(
        "build",
        "int",
        "number of the code layout; empty: the installed extension, not laid out",
        nullable=True,
    ),
    Column("process", "int", "number of the process within its build and start", nullable=True),
)
"""What every timed row says first of where it was measured; both are empty in rows of before there were builds."""

ALIGNMENTS = (None, 1, 16, 32, 64)
"""Of loops, in bytes; None is the compiler's own choice. Each in turn, so that few builds have all of them."""
PADDING_BYTES = 256
"""Fewer than so many before a function, which is aligned again after them."""
LOOP_PADDING_BYTES = 64
"""Fewer than so many before a loop."""
STACK_BYTES = ENVIRONMENT_BYTES = 4096
STACK_STEP_BYTES = 16

COMPILER, FLAGS = "RSEQLAB_CC", "RSEQLAB_CFLAGS"
"""Variables: the compiler of the timed loops instead of ``cc``, and flags that it is given last."""
PADDING_VARIABLE = "RSEQLAB_LAYOUT"
"""Nobody reads it: its length moves what lies above the stack."""

_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fno-strict-aliasing", "-fPIC", "-ffunction-sections")
_PAD_MARK = re.compile(r"^[ \t]*/\* rl-layout-pad \*/[ \t]*$", re.MULTILINE)
_SECTION = re.compile(r'^[ \t]*\.section[ \t]+(\.text\.[^,\s]+),[ \t]*"ax".*$', re.MULTILINE)
_LINKERS_OWN = re.compile(r"\.text\.(unlikely|exit|startup|hot)\b")
"""Sections that a linker puts into a place of their own, whatever their order."""
_NOP_BYTES = 4 if platform.machine() == "aarch64" else 1

NATIVE = Path(native.__file__).resolve().parent


@dataclass(frozen=True)
class Layout:
    """What differs between two builds of one source. All of it follows from ``seed``; seed 0 changes nothing."""

    seed: int
    align_loops: int | None
    stack_offset_bytes: int
    environment_bytes: int
    function_padding_below_bytes: int
    loop_padding_below_bytes: int
    shuffled: bool


@dataclass(frozen=True)
class Unit:
    """One source and the flags that it is compiled with, beyond those that every timed loop has."""

    source: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """What is linked of some sources in each layout: a shared library, or a program where ``link`` says so.

    ``link`` comes behind the objects. ``depends`` are files that the sources include.
    """

    name: str
    units: tuple[Unit, ...]
    link: tuple[str, ...] = ("-shared", "-ldl", "-lpthread")
    depends: tuple[Path, ...] = ()


def of_native(name: str, *sources: str) -> Library:
    """A library of files of rseqlab/native."""
    units = tuple(Unit(NATIVE / source, (f"-I{NATIVE}",)) for source in sources)
    return Library(name, units, depends=tuple(sorted(NATIVE.rglob("*.h"))))


LOOPS = of_native(
    "loops.so", "rseq.c", "percpu.c", "cpu_id.c", "ops.c", "techniques.c", "abort.c", "takeover.c"
)
"""The timed loops of the native layer."""
OWN_TLS = of_native("own-tls-loops.so", "own_tls.c")
"""A library of its own, as a loader may refuse it."""
COPIES = of_native("copies.so", "rseq.c", "percpu.c", "copies.c")


@cache
def layout(number: int) -> Layout:
    """The layout of a build: always the same for one number. Build 0 is what the compiler does by itself.

    >>> layout(7) == layout(7), layout(7) == layout(8), layout(0).shuffled
    (True, False, False)
    """
    if number < 0:
        raise ValueError(f"build {number}; builds are numbered from 0")
    draw = random.Random(f"rseqlab layout {number}")
    plain = number == 0
    return Layout(
        seed=number,
        align_loops=ALIGNMENTS[number % len(ALIGNMENTS)],
        stack_offset_bytes=0 if plain else draw.randrange(0, STACK_BYTES, STACK_STEP_BYTES),
        environment_bytes=0 if plain else draw.randrange(ENVIRONMENT_BYTES),
        function_padding_below_bytes=0 if plain else PADDING_BYTES,
        loop_padding_below_bytes=0 if plain else LOOP_PADDING_BYTES,
        shuffled=not plain,
    )


def compiler() -> str:
    """The compiler of the timed loops."""
    return os.environ.get(COMPILER) or "cc"


def missing() -> str | None:
    """Why there are no builds here but the installed extension, or None."""
    return compile.missing(compiler())


def numbers(count: int) -> list[int | None]:
    """The builds that ``count`` builds are; only None, the installed extension, where nothing can be compiled."""
    return [None] if missing() else list(range(count))


@dataclass(frozen=True)
class Start:
    """One way to start a process of a part: who registers its threads, and why there is none of them, or None."""

    name: str
    environment: Mapping[str, str]
    skip: str | None = None


def libc_or_self() -> tuple[Start, ...]:
    """Libc registers the threads; where it cannot, they do it themselves."""
    return (Start("self", LIBC_LEAVES),) if libc_refusal() else (Start("libc", LIBC_OWNS),)


def libc_and(other: str) -> tuple[Start, ...]:
    """Both ways: libc registers the threads, and it does not, which is called ``other``."""
    return (Start("libc", LIBC_OWNS, libc_refusal()), Start(other, LIBC_LEAVES))


def parts(
    size: Mapping,
    rows: Callable[[str], int],
    timeout_s: float,
    starts: Sequence[Start],
    skip: str | None = None,
) -> list[Part]:
    """``size["processes"]`` child processes of each of ``size["builds"]`` builds and each start.

    ``rows`` says how many a part of a start has. The builds take turns, so that a drift of the machine meets all of
    them. Where nothing can be compiled, as many processes measure the installed extension.
    """
    found = numbers(size["builds"])
    processes = size["processes"] * (size["builds"] if found == [None] else 1)
    return [
        Part(
            id=f"{start.name}-{'installed' if number is None else number}-{process}",
            rows=rows(start.name),
            timeout_s=timeout_s,
            environment=start.environment,
            arguments={
                **size,
                "start": start.name,
                "build": number,
                "process": process,
                "seed": (number or 0) * processes + process,
            },
            skip=skip or start.skip,
        )
        for process in range(processes)
        for number in found
        for start in starts
    ]


def environment(arguments: Mapping) -> dict[str, str]:
    """What a child that measures a part is given beside the part's own environment. Not recorded: describe() is."""
    number = arguments.get("build")
    return {PADDING_VARIABLE: "x" * layout(number).environment_bytes} if number is not None else {}


def describe(number: int) -> dict:
    """The record of a build in run.json: everything that a stranger needs to compile it again.

    Raises CompileError where no compiler is there.
    """
    drawn = layout(number)
    record = asdict(drawn) | {
        "compiler": compile.compiler_id(compiler()),
        "flags": [*_flags(drawn.align_loops), *_own_flags()],
    }
    refused = None if drawn.align_loops is None or _takes_alignment() else _alignment(drawn.align_loops)
    return record | {"refused_flags": [refused] if refused else []}


def _own_flags() -> tuple[str, ...]:
    return tuple(os.environ.get(FLAGS, "").split())


def _alignment(align_loops: int) -> str:
    return f"-falign-loops={align_loops}"


def _is_clang() -> bool:
    return "clang" in compile.compiler_id(compiler())


def _flags(align_loops: int | None) -> tuple[str, ...]:
    # clang's own assembler would print the inline assembly anew, without the marks; gcc would make one of two loops.
    special = ("-fno-integrated-as",) if _is_clang() else ("-fno-ipa-icf",)
    aligned = (_alignment(align_loops),) if align_loops is not None and _takes_alignment() else ()
    return (*_FLAGS, *special, *aligned)


@cache
def _takes_alignment() -> bool:
    command = [compiler(), "-Werror", _alignment(16), "-x", "c", "-S", "-", "-o", "-"]
    done = subprocess.run(
        command, input="int one;", capture_output=True, text=True, timeout=compile.TIMEOUT_S
    )
    return done.returncode == 0


def make(library: Library, number: int) -> Path:
    """The library of one build, compiled if it is not in the cache. Raises CompileError with the compiler's words."""
    drawn, with_this = layout(number), compiler()
    texts = _assembly(library, drawn.align_loops)
    total = hashlib.sha256(compile.compiler_id(with_this).encode())
    total.update(Path(__file__).read_bytes() + repr(drawn).encode())
    for word in (*(text.name for text in texts), *library.link):
        total.update(word.encode() + b"\0")

    def link(made: Path) -> None:
        objects = []
        for place, text in enumerate(texts):
            moved = made.with_name(f"{place}.s")
            moved.write_text(rearranged(text.read_text(), drawn, f"{library.name} {place}"))
            objects.append(made.with_name(f"{place}.o"))
            compile.run(compile.Target(library.name, (moved,), ("-c",), with_this), objects[-1])
        if drawn.shuffled:
            random.Random(f"{drawn.seed} objects {library.name}").shuffle(objects)
        flags = ("-Wl,-z,now", *library.link)
        compile.run(compile.Target(library.name, tuple(objects), flags, with_this), made)

    return compile.produce(f"build{number}-{library.name}", total.hexdigest(), link, with_this)


def _assembly(library: Library, align_loops: int | None) -> list[Path]:
    """The assembly of each source, compiled side by side."""
    flags = _flags(align_loops)

    def one(unit: Unit) -> Path:
        all_flags = (*flags, *unit.flags, *_own_flags(), "-S")
        target = compile.Target(
            f"{unit.source.stem}.s", (unit.source,), all_flags, compiler(), library.depends
        )
        return compile.build(target)

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return list(pool.map(one, library.units))


def rearranged(text: str, drawn: Layout, name: str) -> str:
    """Assembly with its functions in drawn order, and padded: the order in which a file first names its sections is
    the order of the linked functions.
    """
    draw = random.Random(f"{drawn.seed} {name}")
    sections = list(dict.fromkeys(found[0].strip() for found in _SECTION.finditer(text)))
    sections = [line for line in sections if not _LINKERS_OWN.search(line)]
    if drawn.shuffled:
        draw.shuffle(sections)
    head = [f"\t.set rl_layout_stack, {drawn.stack_offset_bytes}"]
    for line in sections:
        head += [f"\t{line}", *_nops(draw, drawn.function_padding_below_bytes)]
    padded = _PAD_MARK.sub(lambda _: "\n".join(_nops(draw, drawn.loop_padding_below_bytes)), text)
    return "\n".join([*head, "\t.text", padded])


def _nops(draw: random.Random, below_bytes: int) -> list[str]:
    count = draw.randrange(below_bytes) // _NOP_BYTES if below_bytes else 0
    return [f"\t.rept {count}", "\tnop", "\t.endr"] if count else []


def prepares(*libraries: Library) -> Callable[[Mapping], str | None]:
    """An experiment's ``prepare``: compile what a part measures; why that cannot be done, or None."""

    def prepare(arguments: Mapping) -> str | None:
        number = arguments.get("build")
        if number is None:
            return None
        _, refusal = compile.attempt(lambda: [make(library, number) for library in libraries])
        return refusal

    return prepare


@cache
def _opened(path: Path, cdef: str):
    from cffi import FFI

    ffi = FFI()
    ffi.cdef(cdef)
    # Never unmapped, also not as Python ends: the thread's rseq_cs may still point to a descriptor in this library,
    # and the kernel ends a thread with SIGSEGV where it finds no descriptor there at the next preemption.
    return ffi, ffi.dlopen(str(path), ffi.RTLD_NOW | ffi.RTLD_NODELETE)


def load(library: Library, number: int, cdef: str):
    """cffi's (ffi, lib) of a build's library. Raises CompileError, or OSError where the loader refuses it."""
    return _opened(make(library, number), cdef)


def loops(arguments: Mapping):
    """(ffi, lib) of the native layer's timed loops in the part's build; the installed extension where it has none."""
    number = arguments.get("build")
    return native.core() if number is None else load(LOOPS, number, (NATIVE / "loops.cdef.h").read_text())


def own_tls_loops(arguments: Mapping):
    """(ffi, lib) of the area in initial-exec TLS. Raises NativeUnavailable where the loader refuses it."""
    number = arguments.get("build")
    if number is None:
        return native.own_tls()
    cdef = (NATIVE / "own_tls_loops.cdef.h").read_text()
    try:
        return load(OWN_TLS, number, cdef)
    except OSError as error:
        raise native.NativeUnavailable(f"The loader refused {OWN_TLS.name}: {error}.") from error
