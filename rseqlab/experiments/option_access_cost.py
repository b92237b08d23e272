"""option-access-cost: what does reading one field cost under each option, by each way to find the area?

One program per process holds all ways: libraries loaded at its start for each TLS model, libraries that
it opens, and its own local-exec areas, so that every ratio is between batches of the same process and
round. A provider plays libc for every option alike; no area is registered, so this is the reader's side
only. What libc's own area costs to read is cpu-id-read's.
"""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rseqlab import host
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, PACKAGE, Target, attempt, build, compiler_id
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES
from rseqlab.lab.timing import Variant, interleaved, pinned

ORDERS = ("throughput", "dependent", "fenced", "first-use")
"""Reads may overlap; each read's address waits for the last value; a barrier after each read; or the
only read of a fresh thread, with the clock read before and after it."""

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
"""``... again`` is the same code at another place, the A/A null: where code lies counts at this scale."""

PROFILE = {
    "quick": {
        "processes": 8,
        "rounds": 4,
        "batch_ns": 1_000_000,
        "first_uses": 5,
        "orders": ("throughput", "dependent"),
    },
    "full": {
        "processes": 12,
        "rounds": 10,
        "batch_ns": 1_500_000,
        "first_uses": 40,
        "orders": ("throughput", "dependent", "fenced"),
    },
}

BALLAST_BYTES = {"by-dlopen": 0, "by-dlopen-large": 4096}
"""Other thread-local data of an opened library. glibc spares 512 bytes (glibc.rtld.optional_static_tls)."""

_C = PACKAGE / "experiments" / "c"
_NATIVE = PACKAGE / "native"
_MACROS = {name: name.upper().replace("-", "_") for name in MODELS}


def _headers() -> tuple[Path, ...]:
    return (
        *sorted(_C.glob("access*.h")),
        _NATIVE / "read_loop.h",
        _NATIVE / "rseqlab.h",
        *sorted((_NATIVE / "arch").glob("*.h")),
    )


def _target(
    name: str, source: str, *flags: str, compiler: str = "cc", depends: tuple[Path, ...] = ()
) -> Target:
    # A red zone would lie where the calls that the assembly makes put their return address.
    red_zone = () if compiler.startswith("aarch64") or host.arch() == "aarch64" else ("-mno-red-zone",)
    # Loops that lie alike, and no two functions of the same code made one: the null needs both.
    placed = (
        "-falign-functions=64",
        "-falign-loops=64",
        *(() if "clang" in compiler_id(compiler) else ("-fno-ipa-icf",)),
    )
    common = (
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        f"-I{_NATIVE}",
        f"-I{_C}",
        *red_zone,
        *placed,
        "-Wl,-z,now",
    )
    sources = tuple(_C / one for one in source.split())
    return Target(name, sources, (*common, *flags), compiler, (*_headers(), *depends))


@dataclass(frozen=True)
class Built:
    """The program, and the libraries that it is told to open."""

    program: Path
    opened: tuple[Path, ...]

    def command(self) -> list[str]:
        return [str(self.program), *map(str, self.opened)]


def build_all(compiler: str = "cc") -> Built:
    """Everything that one process needs. Raises CompileError."""
    shared = ("-fPIC", "-shared")
    script = _C / "access_provider.map"
    provider = build(
        _target(
            "libaccess_provider.so",
            "access_provider.c",
            *shared,
            f"-Wl,--version-script={script}",
            compiler=compiler,
            depends=(script,),
        )
    )
    consumers = [
        build(
            _target(
                f"libaccess_{model}.so",
                "access_consumer.c",
                *shared,
                f"-DMODEL={_MACROS[model]}",
                f'-DMODEL_NAME="{model}"',
                f"-DWITH_CHECKS={int(model == 'initial-exec')}",
                str(provider),
                compiler=compiler,
            )
        )
        for model in MODELS[:3]
    ]
    opened = [
        build(
            _target(
                f"access_private_{access.tls_model}_{access.loaded}.so",
                "access_private.c",
                *shared,
                f"-DMODEL={_MACROS[access.tls_model]}",
                f'-DLABEL="{access.label}"',
                f"-DBALLAST_BYTES={BALLAST_BYTES[access.loaded]}",
                compiler=compiler,
            )
        )
        for access in ACCESSES
        if access.loaded in BALLAST_BYTES
    ]
    libraries = [*map(str, consumers), str(provider), "-ldl", "-lpthread"]
    program = _target("access", "access_main.c access_step.c", *libraries, compiler=compiler)
    return Built(build(program), tuple(opened))


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
    """As many processes as the profile says; where nothing can be built, why."""
    size = PROFILE[profile]
    command, refusal = attempt(lambda: build_all().command())
    rows = len(ACCESSES) * (size["rounds"] * len(size["orders"]) + size["first_uses"])
    return [
        Part(
            id=f"none-{number}",
            rows=rows,
            timeout_s=120,
            environment=LIBC_LEAVES,
            arguments={"seed": number, "command": command, **size},
            skip=refusal,
        )
        for number in range(size["processes"])
    ]


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size = task.arguments
    with pinned(host.allowed_cpus()[-1]) as cpu, started(size["command"]) as program:

        def batch(access: Access, order: str, iterations: int) -> dict:
            elapsed_ns, total = program.batch(access.label, order, iterations)
            expected = FIELD_VALUE * iterations * (access.option is not None)
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
)
