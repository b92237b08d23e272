"""percpu-counter: what does an increment cost as an rseq critical section, and as everything else?

One process does all techniques at all thread counts, interleaved, on 1, 2 and twice as many threads as CPUs; each
process is of one build, several of each.
Every batch is checked: the sum over all slots must equal the increments exactly.
"""

from collections.abc import Iterator

from rseqlab import host
from rseqlab.lab import builds, ops
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, interleaved

TECHNIQUES = (
    "rseq",
    "rseq-again",
    "thread-local",
    "atomic-own-line",
    "atomic-shared-line",
    "mutex",
    "sched_getcpu-atomic",
)
"""``rseq-again`` is the same source at another place: the A/A control."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 1_000_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 1_000_000},
}

THREADS_BATCH_FACTOR, CROWD_BATCH_FACTOR = 2, 5
"""Threads need longer batches, so that a late start does not count; a crowd needs several time slices."""


def plan(profile: str) -> list[Part]:
    """Half of the processes leave the registration to libc; in the others each thread does it itself."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(TECHNIQUES) * len(ops.thread_counts(2))
    return builds.parts(size, lambda _: rows, timeout_s=300, starts=builds.libc_and("self"))


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size = task.arguments
    loops = builds.loops(size)

    def batch(technique: str, threads: int, iterations: int) -> dict:
        row = ops.run_job(f"counter/{technique}", threads, iterations, ops.places(threads), loops=loops)
        return {
            "technique": technique,
            "threads": threads,
            "start": size["start"],
            "elapsed_ns": row["elapsed_ns"],
            "cpu_ns": row["cpu_ns"],
            "increments": row["operations"],
            "sum": row["done"],
            "aborts": row["aborts_moved"] + row["aborts_migrated"] + row["aborts_interrupted"],
            "context_switches": row["context_switches"],
            "cpu_ns_per_increment": row["cpu_ns_per_operation"],
            "elapsed_ns_per_increment": row["elapsed_ns_per_operation"],
        }

    crowd = len(host.allowed_cpus())
    for threads in ops.thread_counts(2):
        variants = [
            Variant((technique, str(threads)), lambda n, t=technique, k=threads: batch(t, k, n))
            for technique in TECHNIQUES
        ]
        factor = 1 if threads == 1 else THREADS_BATCH_FACTOR if threads <= crowd else CROWD_BATCH_FACTOR
        batch_ns = size["batch_ns"] * factor
        yield from interleaved(variants, size["rounds"], batch_ns, size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="percpu-counter",
    question="What does an increment cost as an rseq critical section, and as what a program would use instead?",
    serves="what rseq buys its users",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every technique is timed once a round"),
        Column("technique", "text", "how the increment is done", choices=TECHNIQUES),
        Column("threads", "int", "threads that increment at the same time", minimum=1),
        Column("start", "text", "who registers the threads", choices=("libc", "self")),
        Column("position", "int", "place within the round's random order"),
        Column("iterations", "int", "increments of each thread", minimum=1),
        Column("increments", "int", "threads * iterations", minimum=1),
        Column("sum", "int", "over all slots afterwards; equals increments", minimum=1),
        Column("aborts", "int", "attempts that did not commit and were made again"),
        Column("context_switches", "int", "of the threads, inside the timed part"),
        Column("elapsed_ns", "int", "first thread's start to last thread's end, CLOCK_MONOTONIC", minimum=1),
        Column("cpu_ns", "int", "CPU time of all threads, CLOCK_THREAD_CPUTIME_ID", minimum=1),
        Column("cpu_ns_per_increment", "float", "cpu_ns / increments", minimum=1e-6),
        Column("elapsed_ns_per_increment", "float", "elapsed_ns / increments", minimum=1e-6),
    ),
    key=("round", "technique", "threads"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 14, "full": 120},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
