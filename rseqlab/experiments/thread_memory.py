"""thread-memory: how many bytes does each thread pay for its area, under each option?

Computed from what compiler and allocator really give (size, alignment, what malloc took), for up to a
hundred thousand threads; and measured: what a process with a thousand waiting threads holds in memory
more than before it started them. A page is the least that a process can hold, and most threads have room
left in theirs: a computed difference that is not seen in the measured figures is a result.
"""

import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, PACKAGE, Target, attempt, build
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES

EXTENDED_BYTES = (64, 256)
"""What comes after 32 bytes: what Linux 7.0 asks for, and a struct of several cache lines."""

COMPUTED_THREADS = (1, 1_000, 100_000)
MEASURED_THREADS = 1_000


@dataclass(frozen=True)
class Layout:
    """What each thread has: (bytes, alignment) of an area, of a second one, and of an allocated extension."""

    option: str | None
    area: tuple[int, int] = (0, 1)
    second: tuple[int, int] = (0, 1)
    extension: tuple[int, int] = (0, 1)
    extended_bytes: int | None = None
    again: bool = False

    @property
    def name(self) -> str:
        words = [self.option or "none", str(self.extended_bytes or ""), "again" if self.again else ""]
        return " ".join(filter(None, words))


def _extended(size_bytes: int) -> list[Layout]:
    small, large = (32, 32), (size_bytes, 64)
    return [
        Layout("grow-symbol", area=large, extended_bytes=size_bytes),
        Layout("version-symbol", area=large, second=small, extended_bytes=size_bytes),
        Layout("pointer", area=small, extension=large, extended_bytes=size_bytes),
        Layout("handshake", area=large, extended_bytes=size_bytes),
        Layout("offset-size", area=large, extended_bytes=size_bytes),
    ]


LAYOUTS = (
    Layout(None),
    Layout(None, again=True),
    Layout("padding", area=(32, 32)),
    Layout("private", area=(32, 32), second=(32, 32)),
    *(layout for size in EXTENDED_BYTES for layout in _extended(size)),
)
"""``none again`` is the null: no area, once more. ``private`` is two libraries with an area each,
``version-symbol`` the old object beside the new one."""

PROFILE = {"quick": {"processes": 8, "rounds": 1}, "full": {"processes": 10, "rounds": 3}}

_SOURCE = PACKAGE / "experiments" / "c" / "thread_memory.c"


def program(layout: Layout) -> str:
    """The path of the program that has this layout. Raises CompileError."""
    parts = {"AREA": layout.area, "SECOND": layout.second, "EXTENSION": layout.extension}
    sizes = [
        f"-D{name}_{what}={number}"
        for name, part in parts.items()
        for what, number in zip(("BYTES", "ALIGN"), part, strict=True)
    ]
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", *sizes, "-lpthread", "-ldl")
    return str(build(Target("thread_memory", (_SOURCE,), flags)))


def plan(profile: str) -> list[Part]:
    """One part computes, the others measure."""
    size = PROFILE[profile]
    programs, refusal = attempt(lambda: {layout.name: program(layout) for layout in LAYOUTS})

    def part(name: str, rows: int, **arguments) -> Part:
        return Part(name, rows, 120, LIBC_LEAVES, {"programs": programs, **arguments}, refusal)

    computed = part("computed", len(LAYOUTS) * len(COMPUTED_THREADS), kind="computed")
    rows = len(LAYOUTS) * size["rounds"]
    return [
        computed,
        *(
            part(f"measured-{number}", rows, kind="measured", seed=number, rounds=size["rounds"])
            for number in range(size["processes"])
        ),
    ]


NUMBERS = (
    "threads",
    "rss_bytes",
    "pss_bytes",
    "area_bytes",
    "second_bytes",
    "heap_bytes",
    "least_stack_bytes",
)


def run(path: str, threads: int) -> dict | str:
    """What the program says, or why it could not start that many threads."""
    said = subprocess.run([path, str(threads)], capture_output=True, text=True, timeout=60)
    if said.returncode:
        return said.stderr.strip() or f"the program ended with {said.returncode}"
    seen = dict(zip(NUMBERS, map(int, said.stdout.split()), strict=True))
    return seen | {
        name: None for name, value in seen.items() if value == -1
    }  # this kernel or libc does not say


def _rounded(part: tuple[int, int]) -> int:
    size, align = part
    return -(-size // align) * align


def row(layout: Layout, kind: str, threads: int, number: int, position: int, seen: dict, **others) -> dict:
    return {
        "round": number,
        "position": position,
        "layout": layout.name,
        "option": layout.option,
        "extended_bytes": layout.extended_bytes,
        "kind": kind,
        "threads": threads,
        "bytes_per_thread": None,
        "total_bytes": None,
        "reason": None,
        **{name: seen.get(name) for name in NUMBERS[1:]},
        **others,
    }


def _check(layout: Layout, seen: dict, threads: int) -> None:
    """Every thread was there, and the compiler gave what the layout says."""
    given = (seen["threads"], seen["area_bytes"], seen["second_bytes"])
    wanted = (threads, layout.area[0], layout.second[0])
    if given != wanted or seen["heap_bytes"] < layout.extension[0] * threads:
        raise Failed(
            f"{layout.name}: threads, area and second area are {given}, not {wanted}; the heap grew by "
            f"{seen['heap_bytes']} bytes for {threads} extensions of {layout.extension[0]}"
        )


def _computed(task: Task) -> Iterator[dict]:
    for position, layout in enumerate(LAYOUTS):
        seen = run(task.arguments["programs"][layout.name], MEASURED_THREADS)
        if isinstance(seen, str):
            seen = run(task.arguments["programs"][layout.name], 1)
        if isinstance(seen, str):
            raise Failed(f"{layout.name}: {seen}")
        _check(layout, seen, seen["threads"])
        each = _rounded(layout.area) + _rounded(layout.second) + seen["heap_bytes"] / seen["threads"]
        for threads in COMPUTED_THREADS:
            if task.pending(0, layout.name, threads):
                held = {
                    name: seen[name]
                    for name in ("area_bytes", "second_bytes", "heap_bytes", "least_stack_bytes")
                }
                held["heap_bytes"] = round(seen["heap_bytes"] / seen["threads"] * threads)
                total = {"bytes_per_thread": each, "total_bytes": round(each * threads)}
                yield row(layout, "computed", threads, 0, position, held, **total)


def _measured(task: Task) -> Iterator[dict]:
    for number in range(task.arguments["rounds"]):
        drawn = list(LAYOUTS)
        random.Random(task.arguments["seed"] * 1_000_003 + number).shuffle(drawn)
        for position, layout in enumerate(drawn):
            if not task.pending(number, layout.name, MEASURED_THREADS):
                continue
            seen = run(task.arguments["programs"][layout.name], MEASURED_THREADS)
            if isinstance(seen, str) or seen["pss_bytes"] is None:
                reason = seen if isinstance(seen, str) else "this kernel has no /proc/self/smaps_rollup"
                yield row(layout, "measured", MEASURED_THREADS, number, position, {}, reason=reason)
                continue
            _check(layout, seen, MEASURED_THREADS)
            each = seen["pss_bytes"] / MEASURED_THREADS
            total = {"bytes_per_thread": each, "total_bytes": seen["pss_bytes"]}
            yield row(layout, "measured", MEASURED_THREADS, number, position, seen, **total)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part. Each figure comes from a process of its own."""
    return (_computed if task.arguments["kind"] == "computed" else _measured)(task)


EXPERIMENT = Experiment(
    name="thread-memory",
    question="How many bytes does each thread pay for its area, under each option?",
    serves="bytes per thread of every option",
    columns=(
        Column("round", "int", "every layout is measured once a round"),
        Column("position", "int", "place within the round's random order"),
        Column(
            "layout", "text", "option and extended size", choices=tuple(layout.name for layout in LAYOUTS)
        ),
        Column(
            "option",
            "text",
            "empty: threads without any area",
            nullable=True,
            choices=tuple(dict.fromkeys(layout.option for layout in LAYOUTS if layout.option)),
        ),
        Column("extended_bytes", "int", "the struct once it has grown; empty: it has not", nullable=True),
        Column("kind", "text", "how bytes_per_thread was found", choices=("computed", "measured")),
        Column("threads", "int", "threads of the process beside its first", minimum=1),
        Column(
            "bytes_per_thread",
            "float",
            "computed: of the areas; measured: of all a thread holds",
            nullable=True,
        ),
        Column("total_bytes", "int", "bytes_per_thread * threads", nullable=True),
        Column(
            "rss_bytes", "int", "what the resident set grew by, smaps_rollup", nullable=True, minimum=-1e12
        ),
        Column(
            "pss_bytes",
            "int",
            "what the proportional set grew by, smaps_rollup",
            nullable=True,
            minimum=-1e12,
        ),
        Column("area_bytes", "int", "sizeof the area", nullable=True),
        Column("second_bytes", "int", "sizeof the second area", nullable=True),
        Column("heap_bytes", "int", "what malloc took for all extensions", nullable=True),
        Column("least_stack_bytes", "int", "what libc needs for a stack, its TLS included", nullable=True),
        Column("reason", "text", "why it was not measured", nullable=True),
    ),
    key=("round", "layout", "threads"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 5, "full": 25},
    plan=plan,
    measure=measure,
)
