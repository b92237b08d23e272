"""percpu-peers: are our critical sections as fast as those of librseq, the C library of the same operations?

Both are compiled by the same compiler with the same options into one shared library, each in the same loop
around, and timed interleaved in one process on one CPU; each process is of one build, whose code layout it has. librseq keeps the offset of the area in a variable and
loads it each time; our sections are told it, so that a program may hold it in a register (``ours``) or load it
likewise (``ours-offset-loaded``). Each batch's memory shows afterwards that every turn was done. The
instructions of the same loops are rows of percpu-instructions.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rseqlab import host
from rseqlab.lab import builds, compile, librseq
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Need, Part, Task
from rseqlab.lab.probe import LIBC_OWNS
from rseqlab.lab.timing import Variant, interleaved, pinned

HERE = Path(__file__).parent / "c"

WHO = ("ours", "ours-again", "ours-offset-loaded", "theirs")
"""``ours-again`` is the same source at another place: the A/A control."""

COPIED_BYTES = (8, 16, 64, 256)
OPERATIONS = (
    ("addv", None),
    ("cmpeqv_storev", None),
    ("cmpnev_storeoffp_load", None),
    ("cmpeqv_trystorev_storev", None),
    ("cmpeqv_trystorev_storev_release", None),
    ("cmpeqv_cmpeqv_storev", None),
    ("offset_deref_addv", None),
    *(("cmpeqv_trymemcpy_storev", copied) for copied in COPIED_BYTES),
    *(("cmpeqv_trymemcpy_storev_release", copied) for copied in COPIED_BYTES),
)
"""The operations that both have, and the bytes that they copy."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 1_000_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 1_000_000},
}


CDEF = """
int rl_has_loop(const char *who, const char *operation, int bytes);
int64_t rl_time_loop(const char *who, const char *operation, int bytes, int cpu, int64_t iterations,
                     uint64_t *aborts);
"""


def library() -> builds.Library:
    """Both sides' loops. Only where there are headers of librseq."""
    headers = librseq.find()
    flags = ("-fno-unroll-loops", "-fvisibility=hidden", f"-I{builds.NATIVE}", *headers.flags)
    return builds.Library(
        "time-sections.so",
        tuple(builds.Unit(source, flags) for source in (HERE / "time_sections.c", builds.NATIVE / "rseq.c")),
        ("-shared", "-ldl"),
        (*sorted(HERE.glob("*.h")), *sorted(builds.NATIVE.rglob("*.h")), *headers.files),
    )


def _prepare(arguments: Mapping) -> str | None:
    """Compile a part's build; why that cannot be done, or None."""
    return builds.prepares(library())(arguments)


def _timed(lib) -> list[tuple[str, int | None]]:
    """The operations that the peer has on this architecture."""
    return [
        (operation, copied)
        for operation, copied in OPERATIONS
        if lib.rl_has_loop(b"theirs", operation.encode(), copied or -1)
    ]


def _loaded(number: int):
    return builds.load(library(), number, CDEF)


def plan(profile: str) -> list[Part]:
    """Several processes of each build. Where what was found of librseq does not compile, that is why there are none."""
    size = PROFILE[profile]
    found, refusal = compile.attempt(lambda: _timed(_loaded(0)[1]))
    rows = size["rounds"] * len(WHO) * len(found or ())
    skip = f"What was found of librseq does not compile. {refusal}" if refusal else None
    return builds.parts(size, lambda _: rows, 180, (builds.Start("libc", LIBC_OWNS),), skip)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size, title = task.arguments, librseq.find().title
    ffi, lib = _loaded(size["build"])
    with pinned(host.allowed_cpus()[-1]) as cpu:

        def batch(who: str, operation: str, copied: int | None, iterations: int) -> dict:
            aborts = ffi.new("uint64_t *")
            loop = who.replace("-", "_").encode()
            answer = lib.rl_time_loop(loop, operation.encode(), copied or -1, cpu, iterations, aborts)
            if answer < 0:
                raise Failed(f"{who}, {operation}: {iterations} turns on CPU {cpu} answered {answer}")
            return {
                "who": who,
                "operation": operation,
                "bytes_copied": copied,
                "cpu": cpu,
                "elapsed_ns": answer,
                "ns_per_operation": answer / iterations,
                "aborts": aborts[0],
                "peer": title,
            }

        variants = [
            Variant((who, operation, copied or ""), lambda n, w=who, o=operation, b=copied: batch(w, o, b, n))
            for operation, copied in _timed(lib)
            for who in WHO
        ]
        yield from interleaved(variants, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="percpu-peers",
    question="Are our critical sections as fast as those of librseq, the C library of the same operations?",
    serves="how far the per-CPU operations are from the best that exists",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every variant is timed once a round"),
        Column("who", "text", "whose section, and where the area's offset comes from", choices=WHO),
        Column(
            "operation", "text", "the section", choices=tuple(dict.fromkeys(name for name, _ in OPERATIONS))
        ),
        Column(
            "bytes_copied", "int", "by the section; none where it copies nothing", nullable=True, minimum=1
        ),
        Column("cpu", "int", "the CPU that the process was pinned to"),
        Column("position", "int", "place within the round's random order"),
        Column("iterations", "int", "operations in the batch", minimum=1),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC", minimum=1),
        Column("ns_per_operation", "float", "elapsed_ns / iterations, the loop included", minimum=1e-6),
        Column("aborts", "int", "attempts that did not commit and were made again"),
        Column("peer", "text", "which headers of librseq"),
    ),
    key=("round", "who", "operation", "bytes_copied"),
    needs=(
        LINUX,
        NATIVE,
        REGISTRATION,
        Need("the headers of librseq", librseq.missing),
        Need("a C compiler", compile.missing),
    ),
    seconds={"quick": 12, "full": 80},
    plan=plan,
    measure=measure,
    prepare=_prepare,
)
