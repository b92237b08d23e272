"""signal-storm: does counting go on, and lose nothing, while signals interrupt it up to 10,000 times a second?

Every thread has a timer whose handler increments the same counter by the same technique, so that a section
runs inside of the interruption of another. The sum must equal both, exactly.
"""

from collections.abc import Iterator

from rseqlab.lab import builds, ops
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, interleaved

STORMS = {"none": 0, "none-again": 0, "100 Hz": 100, "1 kHz": 1000, "10 kHz": 10_000}
"""Signals a second to each thread; ``none-again`` is the same source at another place: the A/A control."""

TECHNIQUES = ("counter/rseq", "counter/atomic-own-line")
PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 5_000_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 10_000_000},
}


def plan(profile: str) -> list[Part]:
    """Several processes of each build."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(STORMS) * len(TECHNIQUES) * len(ops.thread_counts())
    return builds.parts(size, lambda _: rows, timeout_s=180, starts=builds.libc_or_self())


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size = task.arguments
    loops = builds.loops(size)

    def batch(storm: str, technique: str, threads: int, iterations: int) -> dict:
        source = f"{technique}-again" if storm.endswith("-again") else technique
        row = ops.run_job(
            source, threads, iterations, ops.places(threads), storm_hz=STORMS[storm], loops=loops
        )
        for name in (ops.SLOTS, ops.RESIDENT):
            row.pop(name)
        load = f"{technique}, {threads}"
        return {
            "storm": storm,
            "technique": technique,
            "threads": threads,
            "load": load,
            "start": size["start"],
            **row,
        }

    for threads in ops.thread_counts():
        variants = [
            Variant(
                (storm, technique, str(threads)), lambda n, s=storm, t=technique, k=threads: batch(s, t, k, n)
            )
            for storm in STORMS
            for technique in TECHNIQUES
        ]
        yield from interleaved(variants, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="signal-storm",
    question="Does counting go on, and lose nothing, while signals interrupt it up to 10,000 times a second?",
    serves="nested signal handlers that run sections on the same data",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every storm is timed once a round"),
        Column("storm", "text", "signals a second to each thread", choices=tuple(STORMS)),
        Column("technique", "text", "how the increment is done, also by the handler", choices=TECHNIQUES),
        Column("threads", "int", "threads that increment", minimum=1),
        Column("load", "text", "technique and threads"),
        Column("start", "text", "who registers the threads", choices=("libc", "self")),
        Column("position", "int", "place within the round's random order"),
        *ops.COLUMNS,
        Column("signals", "int", "handlers that ran, each with one increment"),
    ),
    key=("round", "storm", "technique", "threads"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 7, "full": 60},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
