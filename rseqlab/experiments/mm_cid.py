"""mm-cid: how much memory does data by mm_cid touch, against data by cpu_id, as threads and CPUs grow?

A counter with one page for each index, incremented by threads that may use some of the CPUs. The slots that
are not zero afterwards are the indices that were ever used; each costs its page. Threads stay where the
scheduler puts them, or are moved from CPU to CPU, as those of a process that wanders over a large machine.
"""

import os
from collections.abc import Iterator

from rseqlab import host
from rseqlab.lab import builds, ops
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Need, Part, Task
from rseqlab.lab.probe import LIBC_OWNS, libc_refusal, thread_that_libc_may_own
from rseqlab.lab.timing import Variant, interleaved

WAYS = {"cpu_id": "counter/rseq", "cpu_id-again": "counter/rseq-again", "mm_cid": "counter/rseq-mm_cid"}
"""What the data is indexed by; ``cpu_id-again`` is the same source at another place: the A/A control."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 1_500_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 4_000_000},
}


def _no_mm_cid() -> str | None:
    if reason := libc_refusal():
        return reason
    live = thread_that_libc_may_own()["values"]["live_bytes"]
    return None if live >= 28 else f"mm_cid needs 28 live bytes (Linux 6.3); here are {live}"


def cpu_counts() -> list[int]:
    """1, 2, 4 and so on, and all of the CPUs that this process may use."""
    allowed = len(host.allowed_cpus())
    return sorted({1 << power for power in range(allowed.bit_length()) if 1 << power <= allowed} | {allowed})


def conditions() -> list[tuple[int, int, int]]:
    """(CPUs, threads, moves): 1, 2, and two and eight times as many threads as CPUs; left alone, and moved."""
    return [
        (cpus, threads, moves)
        for cpus in cpu_counts()
        for threads in sorted({1, 2, 2 * cpus, 8 * cpus})
        for moves in (0, 2 * cpus)
        if cpus > 1 or not moves
    ]


def plan(profile: str) -> list[Part]:
    """Several processes of each build."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(WAYS) * len(conditions())
    return builds.parts(size, lambda _: rows, timeout_s=300, starts=(builds.Start("libc", LIBC_OWNS),))


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process, whose threads inherit the CPUs that it may use at the time."""
    size, allowed = task.arguments, host.allowed_cpus()
    loops = builds.loops(size)
    page_bytes = os.sysconf("SC_PAGESIZE")

    def batch(way: str, cpus: int, threads: int, moves: int, iterations: int) -> dict:
        row = ops.run_job(WAYS[way], threads, iterations, stride_bytes=page_bytes, moves=moves, loops=loops)
        row.pop(ops.SIGNALS)
        load = f"{threads} on {cpus}{', moved' if moves else ''}"
        return {
            "way": way,
            "cpus": cpus,
            "threads": threads,
            "moves": moves,
            "load": load,
            "start": "libc",
            **row,
        }

    try:
        for condition in conditions():
            os.sched_setaffinity(0, set(allowed[-condition[0] :]))
            variants = [
                Variant((way, *map(str, condition)), lambda n, w=way, c=condition: batch(w, *c, n))
                for way in WAYS
            ]
            yield from interleaved(variants, size["rounds"], size["batch_ns"], size["seed"], task.pending)
    finally:
        os.sched_setaffinity(0, set(allowed))


EXPERIMENT = Experiment(
    name="mm-cid",
    question="How much memory does data by mm_cid touch, against data by cpu_id, as threads and CPUs grow?",
    serves="a field that was added later: what it is for",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every way is timed once a round"),
        Column("way", "text", "what the data is indexed by", choices=tuple(WAYS)),
        Column("cpus", "int", "CPUs that the threads may use", minimum=1),
        Column("threads", "int", "threads that increment", minimum=1),
        Column("moves", "int", "of each thread to another of these CPUs"),
        Column("load", "text", "threads on CPUs, in words"),
        Column("start", "text", "who registers the threads", choices=("libc",)),
        Column("position", "int", "place within the round's random order"),
        *ops.COLUMNS,
        Column("slots_used", "int", "indices that were used"),
        Column(
            "resident_bytes", "int", "memory of the data, one page for each index that was used, mincore(2)"
        ),
    ),
    key=("round", "way", "cpus", "threads", "moves"),
    needs=(LINUX, NATIVE, REGISTRATION, Need("mm_cid", _no_mm_cid)),
    seconds={"quick": 6, "full": 50},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
