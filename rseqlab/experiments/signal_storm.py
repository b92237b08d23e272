"""signal-storm: does counting go on, and lose nothing, while signals interrupt it up to 10,000 times a second?

Every thread has a timer whose handler increments the same counter by the same technique, so that a section
runs inside of the interruption of another. The sum must equal both, exactly.
"""

from collections.abc import Iterator

from rseqlab.lab import ops
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task, alike
from rseqlab.lab.timing import Variant, interleaved

STORMS = {"none": 0, "none-again": 0, "100 Hz": 100, "1 kHz": 1000, "10 kHz": 10_000}
"""Signals a second to each thread; ``none-again`` is the A/A null."""

TECHNIQUES = ("counter/rseq", "counter/atomic-own-line")
PROFILE = {
    "quick": {"processes": 8, "rounds": 4, "batch_ns": 6_000_000},
    "full": {"processes": 10, "rounds": 10, "batch_ns": 30_000_000},
}


def plan(profile: str) -> list[Part]:
    """Several processes, all alike."""
    size = PROFILE[profile]
    return alike(
        size, size["rounds"] * len(STORMS) * len(TECHNIQUES) * len(ops.thread_counts()), timeout_s=180
    )


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size = task.arguments

    def batch(storm: str, technique: str, threads: int, iterations: int) -> dict:
        row = ops.run_job(technique, threads, iterations, ops.places(threads), storm_hz=STORMS[storm])
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
)
