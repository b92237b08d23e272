"""false-sharing: what does it cost to put the counters of several CPUs too close together?

Two threads on two CPUs, each counting in its CPU's slot and nowhere else. Only the distance between the
slots differs.
"""

import itertools
from collections.abc import Iterator

from rseqlab import host
from rseqlab.lab import builds, ops
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Need, Part, Task
from rseqlab.lab.timing import Variant, interleaved

STRIDES = {
    "8 bytes": 8,
    "16 bytes": 16,
    "32 bytes": 32,
    "64 bytes": 64,
    "128 bytes": 128,
    "128 bytes-again": 128,
    "256 bytes": 256,
    "4096 bytes": 4096,
}
"""Distance between the slots of neighbouring CPUs; ``128 bytes-again`` is the same distance and source, the
loop at another place: the A/A control."""

TECHNIQUES = ("counter/rseq", "counter/sched_getcpu-atomic")
PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 2_000_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 4_000_000},
}


def _one_cpu() -> str | None:
    return (
        None
        if len(host.allowed_cpus()) > 1
        else "two CPUs are needed to share a line; this process may use one"
    )


def plan(profile: str) -> list[Part]:
    """Several processes of each build."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(STRIDES) * len(TECHNIQUES)
    return builds.parts(size, lambda _: rows, timeout_s=120, starts=builds.libc_or_self())


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process: neighbouring CPUs where there are some, so that close slots share a line."""
    size = task.arguments
    loops = builds.loops(size)
    allowed = host.allowed_cpus()
    pair = next(([a, b] for a, b in itertools.pairwise(allowed) if b == a + 1), allowed[:2])

    def batch(distance: str, technique: str, iterations: int) -> dict:
        source = f"{technique}-again" if distance.endswith("-again") else technique
        row = ops.run_job(source, 2, iterations, pair, stride_bytes=STRIDES[distance], loops=loops)
        for name in (ops.SIGNALS, ops.SLOTS, ops.RESIDENT):
            row.pop(name)
        return {"distance": distance, "technique": technique, "start": size["start"], **row}

    variants = [
        Variant((distance, technique), lambda n, d=distance, t=technique: batch(d, t, n))
        for distance in STRIDES
        for technique in TECHNIQUES
    ]
    yield from interleaved(variants, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="false-sharing",
    question="What does it cost to put the counters of several CPUs too close together?",
    serves="the layout mistakes that users make",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every layout is timed once a round"),
        Column("distance", "text", "between the slots of neighbouring CPUs", choices=tuple(STRIDES)),
        Column("technique", "text", "how the increment is done", choices=TECHNIQUES),
        Column("start", "text", "who registers the threads", choices=("libc", "self")),
        Column("position", "int", "place within the round's random order"),
        *ops.COLUMNS,
    ),
    key=("round", "distance", "technique"),
    needs=(LINUX, NATIVE, REGISTRATION, Need("a second CPU", _one_cpu)),
    seconds={"quick": 5, "full": 30},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
