"""option-access-cost: what does reading one field cost under each option, by each way to find the area?

One program per process holds all ways: libraries loaded at its start for each TLS model, libraries that
it opens, and its own local-exec areas, so that every ratio is between batches of the same process and
round. A provider plays libc for every option alike; no area is registered, so this is the reader's side
only. What libc's own area costs to read is cpu-id-read's.
"""

import random
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rseqlab import host
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, PACKAGE, Target, attempt, build, compiler_id
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES
from rseqlab.lab.timing import Variant, interleaved, pinned

ORDERS = ("throughput", "dependent", "fenced", "first-use")
"""Reads may overlap; each read's address waits for the last value; a barrier after each read; or the
only read of a fresh thread, with the clock read before and after it."""

SUMS_MODULO = 1 << 32
"""The loops add up in 32 bits (native/read_loop.h)."""

FIELD_VALUE = 41
"""What the field reads in every area (access.h)."""

TLS_OPTIONS = ("private", "grow-symbol", "version-symbol", "pointer", "handshake", "padding")
MODELS = ("initial-exec", "global-dynamic", "descriptor", "local-exec")
OFFSETS = ("offset-exported", "offset-kept")
"""A library that looks at libc's offset each time, or at its own copy of it."""
LOADED = ("at-start", "by-dlopen", "by-dlopen-large")
"""When the library that owns the area was loaded; large: with more thread-local data than a loader spares."""
CHECKS = ("none", "hoisted", "each")
"""Whether the size (for pointer: that it is set) is looked at never, before the loop, or at each read."""


@dataclass(frozen=True)
class Access:
    """One way of reading. Its label is what the program calls it."""

    option: str | None
    tls_model: str | None
    loaded: str = "at-start"
    check: str = "none"
    again: bool = False

    @property
    def label(self) -> str:
        if self.option is None:
            return "nothing"
        return f"{self.option} {self.tls_model} {self.loaded} {self.check}" + " again" * self.again


ACCESSES = (
    Access(None, None),
    *(Access(option, model) for model in MODELS for option in TLS_OPTIONS),
    *(Access("offset-size", offset) for offset in OFFSETS),
    Access("offset-size", "offset-kept", again=True),
    Access("grow-symbol", "initial-exec", check="hoisted"),
    Access("grow-symbol", "initial-exec", check="each"),
    Access("pointer", "initial-exec", check="each"),
    Access("handshake", "initial-exec", check="hoisted"),
    Access("handshake", "initial-exec", check="each"),
    Access("offset-size", "offset-exported", check="each"),
    Access("offset-size", "offset-kept", check="hoisted"),
    Access("offset-size", "offset-kept", check="each"),
    Access("private", "global-dynamic", loaded="by-dlopen"),
    Access("private", "descriptor", loaded="by-dlopen"),
    Access("private", "global-dynamic", loaded="by-dlopen-large"),
    Access("private", "descriptor", loaded="by-dlopen-large"),
)
"""``... again`` is the same source at another place: the A/A control. ``nothing`` is the loop with a move between
registers in the place of the read."""

PROFILE = {
    "quick": {
        "builds": 8,
        "processes": 2,
        "rounds": 2,
        "batch_ns": 1_000_000,
        "first_uses": 5,
        "orders": ("throughput", "dependent"),
    },
    "full": {
        "builds": 24,
        "processes": 2,
        "rounds": 3,
        "batch_ns": 1_000_000,
        "first_uses": 20,
        "orders": ("throughput", "dependent", "fenced"),
    },
}

BALLAST_BYTES = {"by-dlopen": 0, "by-dlopen-large": 4096}
"""Other thread-local data of an opened library. glibc spares 512 bytes (glibc.rtld.optional_static_tls)."""

_C = PACKAGE / "experiments" / "c"
_NATIVE = PACKAGE / "native"
_MACROS = {name: name.upper().replace("-", "_") for name in MODELS}


_HEADERS = (
    *sorted(_C.glob("access*.h")),
    _NATIVE / "layout.h",
    _NATIVE / "read_loop.h",
    _NATIVE / "rseqlab.h",
    *sorted((_NATIVE / "arch").glob("*.h")),
)


@dataclass(frozen=True)
class _Piece:
    """What is linked of some sources: their flags, and what comes behind them."""

    name: str
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ("-shared",)
    depends: tuple[Path, ...] = ()

    def library(self) -> builds.Library:
        """The same for a build."""
        units = tuple(
            builds.Unit(_C / source, (*_includes(host.arch()), *self.flags)) for source in self.sources
        )
        return builds.Library(self.name, units, self.link, (*_HEADERS, *self.depends))

    def target(self, compiler: str) -> Target:
        """The same for one compilation that is not laid out."""
        arch = "aarch64" if compiler.startswith("aarch64") else host.arch()
        # No two functions of the same code made one: the control needs both.
        apart = () if "clang" in compiler_id(compiler) else ("-fno-ipa-icf",)
        common = ("-std=gnu11", "-O2", "-Wall", "-Wextra", *_includes(arch), *apart, "-Wl,-z,now")
        position = ("-fPIC",) * ("-shared" in self.link)
        sources = tuple(_C / source for source in self.sources)
        flags = (*common, *position, *self.flags, *self.link)
        return Target(self.name, sources, flags, compiler, (*_HEADERS, *self.depends))


def _includes(arch: str) -> tuple[str, ...]:
    # A red zone would lie where the calls that the assembly makes put their return address.
    return (f"-I{_NATIVE}", f"-I{_C}", *(() if arch == "aarch64" else ("-mno-red-zone",)))


@dataclass(frozen=True)
class Built:
    """The program, and the libraries that it is told to open."""

    program: Path
    opened: tuple[Path, ...]

    def command(self) -> list[str]:
        return [str(self.program), *map(str, self.opened)]


def build_all(compiler: str = "cc") -> Built:
    """Everything that one process needs, by one compilation that is not laid out. Raises CompileError."""
    return _built(lambda piece: build(piece.target(compiler)))


def build_number(number: int) -> Built:
    """The same in the layout of a build. Raises CompileError."""
    return _built(lambda piece: builds.make(piece.library(), number))


def _built(make: Callable[[_Piece], Path]) -> Built:
    script = _C / "access_provider.map"
    provider = make(
        _Piece(
            "libaccess_provider.so",
            ("access_provider.c",),
            link=("-shared", f"-Wl,--version-script={script}"),
            depends=(script,),
        )
    )
    consumers = [
        make(
            _Piece(
                f"libaccess_{model}.so",
                ("access_consumer.c",),
                (
                    f"-DMODEL={_MACROS[model]}",
                    f'-DMODEL_NAME="{model}"',
                    f"-DWITH_CHECKS={int(model == 'initial-exec')}",
                ),
                ("-shared", str(provider)),
            )
        )
        for model in MODELS[:3]
    ]
    opened = [
        make(
            _Piece(
                f"access_private_{access.tls_model}_{access.loaded}.so",
                ("access_private.c",),
                (
                    f"-DMODEL={_MACROS[access.tls_model]}",
                    f'-DLABEL="{access.label}"',
                    f"-DBALLAST_BYTES={BALLAST_BYTES[access.loaded]}",
                ),
            )
        )
        for access in ACCESSES
        if access.loaded in BALLAST_BYTES
    ]
    libraries = (*map(str, consumers), str(provider), "-ldl", "-lpthread")
    program = make(_Piece("access", ("access_main.c", "access_step.c"), link=libraries))
    return Built(program, tuple(opened))


def _prepare(arguments: Mapping) -> str | None:
    """Compile a part's build; why that cannot be done, or None."""
    return attempt(lambda: build_number(arguments["build"]))[1]


class Program:
    """The running program: ask it for a batch. It ends with the child that started it."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.numbers = {label: number for number, label in enumerate(iter(self._line, ""))}

    def _line(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the program that reads the areas ended with {self.process.wait()}")
        return line.strip()

    def batch(self, label: str, order: str, iterations: int) -> tuple[int, int]:
        """(elapsed ns or -errno, sum of what was read)."""
        return self.ask(label, ORDERS.index(order), iterations)

    def ask(self, label: str, order: int, iterations: int) -> tuple[int, int]:
        """The same by the order's number in access.h."""
        self.process.stdin.write(f"{self.numbers[label]} {order} {iterations}\n")
        self.process.stdin.flush()
        elapsed_ns, total = self._line().split()
        return int(elapsed_ns), int(total)


@contextmanager
def started(command: list[str]) -> Iterator[Program]:
    """A program for the length of a block."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def plan(profile: str) -> list[Part]:
    """Several processes of each build."""
    size = PROFILE[profile]
    rows = len(ACCESSES) * (size["rounds"] * len(size["orders"]) + size["first_uses"])
    return builds.parts(size, lambda _: rows, timeout_s=120, starts=(builds.Start("none", LIBC_LEAVES),))


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size = task.arguments
    command = size.get("command") or build_number(size["build"]).command()
    with pinned(host.allowed_cpus()[-1]) as cpu, started(command) as program:

        def batch(access: Access, order: str, iterations: int) -> dict:
            elapsed_ns, total = program.batch(access.label, order, iterations)
            expected = FIELD_VALUE * iterations * (access.option is not None) % SUMS_MODULO
            if elapsed_ns < 0 or total != expected:
                raise Failed(
                    f"{access.label}, {order}: {iterations} reads summed up to {total}, not {expected}; "
                    f"the loop answered {elapsed_ns}"
                )
            return {
                "access": access.label,
                "option": access.option,
                "tls_model": access.tls_model,
                "loaded": access.loaded if access.option else None,
                "check": access.check if access.option else None,
                "order": order,
                "start": "none",
                "cpu": cpu,
                "elapsed_ns": elapsed_ns,
                "ns_per_read": elapsed_ns / iterations,
            }

        variants = [
            Variant((access.label, order), lambda n, a=access, o=order: batch(a, o, n))
            for access in ACCESSES
            for order in size["orders"]
        ]
        yield from interleaved(variants, size["rounds"], size["batch_ns"], size["seed"], task.pending)
        for number in range(size["first_uses"]):
            drawn = list(ACCESSES)
            random.Random(size["seed"] * 1_000_003 + number).shuffle(drawn)
            for position, access in enumerate(drawn):
                if task.pending(number, access.label, "first-use"):
                    yield {"round": number, "position": position, "iterations": 1} | batch(
                        access, "first-use", 1
                    )


EXPERIMENT = Experiment(
    name="option-access-cost",
    question="What does reading one field cost under each option, by each way to find the area?",
    serves="access cost of every option, by TLS model, with and without the size check",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every variant is timed once a round"),
        Column(
            "access",
            "text",
            "the way of reading: the next four columns",
            choices=tuple(a.label for a in ACCESSES),
        ),
        Column(
            "option", "text", "empty: the loop alone", nullable=True, choices=(*TLS_OPTIONS, "offset-size")
        ),
        Column("tls_model", "text", "how the area is found", nullable=True, choices=(*MODELS, *OFFSETS)),
        Column("loaded", "text", "when the area's library was loaded", nullable=True, choices=LOADED),
        Column("check", "text", "when the size is looked at", nullable=True, choices=CHECKS),
        Column("order", "text", "what the next read waits for", choices=ORDERS),
        Column("start", "text", "who registered the thread at process start", choices=("none",)),
        Column("cpu", "int", "the CPU that the process was pinned to"),
        Column("position", "int", "place within the round's random order"),
        Column("iterations", "int", "reads in the batch", minimum=1),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC"),
        Column("ns_per_read", "float", "elapsed_ns / iterations, the loop included"),
    ),
    key=("round", "access", "order"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 8, "full": 60},
    plan=plan,
    measure=measure,
    prepare=_prepare,
)
