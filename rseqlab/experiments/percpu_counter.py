"""percpu-counter: what does an increment cost as an rseq critical section, and as everything else?

One process does all techniques at all thread counts, interleaved, several processes one after another.
Every batch is checked: the sum over all slots must equal the increments exactly.
"""

from collections.abc import Iterator

from rseqlab import host, native
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES, LIBC_OWNS, libc_refusal
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
"""``rseq-again`` is ``rseq`` once more: the A/A null."""

PROFILE = {
    "quick": {"processes": 6, "rounds": 5, "batch_ns": 2_000_000},
    "full": {"processes": 15, "rounds": 10, "batch_ns": 5_000_000},
}

THREADS_BATCH_FACTOR, CROWD_BATCH_FACTOR = 5, 15
"""Threads need longer batches, so that a late start does not count; a crowd needs several time slices."""


def thread_counts() -> list[int]:
    """1, 2 and twice the CPUs that this process may use. On one CPU, 2 is the crowd."""
    return sorted({1, 2, 2 * len(host.allowed_cpus())})


def plan(profile: str) -> list[Part]:
    """Half of the processes leave the registration to libc; in the others each thread does it itself."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(TECHNIQUES) * len(thread_counts())
    return [
        Part(
            id=f"{start}-{number}",
            rows=rows,
            timeout_s=300,
            environment=environment,
            arguments={"start": start, "seed": number, **size},
            skip=libc_refusal() if start == "libc" else None,
        )
        for number in range(size["processes"])
        for start, environment in (("libc", LIBC_OWNS), ("self", LIBC_LEAVES))
    ]


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    ffi, lib = native.core()
    size, allowed = task.arguments, host.allowed_cpus()
    slots = host.possible_cpus()

    def batch(technique: str, threads: int, iterations: int) -> dict:
        # As many threads as CPUs is a question about those CPUs; a crowd is the scheduler's to place.
        cpus = ffi.new("int32_t[]", allowed[-threads:] if threads <= len(allowed) else [-1] * threads)
        job = ffi.new(
            "struct rl_ops_job *",
            {
                "technique": lib.rl_ops_find(f"counter/{technique.removesuffix('-again')}".encode()),
                "threads": threads,
                "iterations": iterations,
                "cpus": cpus,
                "indices": slots,
            },
        )
        outcome = ffi.new("struct rl_ops_outcome *")
        answer = lib.rl_ops_run(job, outcome)
        increments = threads * iterations
        if answer or outcome.done != increments:
            raise Failed(
                f"{technique}, {threads} threads: {increments} increments summed up to {outcome.done}; "
                f"the run answered {answer}"
            )
        return {
            "technique": technique,
            "threads": threads,
            "start": size["start"],
            "elapsed_ns": outcome.elapsed_ns,
            "cpu_ns": outcome.cpu_ns,
            "increments": increments,
            "sum": outcome.done,
            "aborts": outcome.aborts.moved + outcome.aborts.migrated + outcome.aborts.interrupted,
            "context_switches": outcome.switches,
            "cpu_ns_per_increment": outcome.cpu_ns / increments,
            "elapsed_ns_per_increment": outcome.elapsed_ns / increments,
        }

    for threads in thread_counts():
        variants = [
            Variant((technique, str(threads)), lambda n, t=technique, k=threads: batch(t, k, n))
            for technique in TECHNIQUES
        ]
        factor = (
            1 if threads == 1 else THREADS_BATCH_FACTOR if threads <= len(allowed) else CROWD_BATCH_FACTOR
        )
        batch_ns = size["batch_ns"] * factor
        yield from interleaved(variants, size["rounds"], batch_ns, size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="percpu-counter",
    question="What does an increment cost as an rseq critical section, and as what a program would use instead?",
    serves="what rseq buys its users",
    columns=(
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
    seconds={"quick": 32, "full": 320},
    plan=plan,
    measure=measure,
)
