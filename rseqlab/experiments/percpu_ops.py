"""percpu-ops: what does each operation and structure cost on rseq, and by everything a program would use instead?

All techniques at all thread counts, interleaved, in several processes of each of several builds. Each batch is
checked: the operations that are found in the data must equal the operations that were asked for.
"""

from collections.abc import Iterator

from rseqlab.lab import builds, ops
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import thread_that_libc_may_own
from rseqlab.lab.timing import Variant, interleaved

TECHNIQUES = (
    "counter/nothing",
    "counter/thread-local",
    "counter/two-stores",
    "counter/rseq",
    "counter/rseq-again",
    "counter/rseq-mm_cid",
    "counter/atomic-own-line",
    "counter/atomic-shared-line",
    "counter/sched_getcpu-atomic",
    "counter/node_id-atomic",
    "counter/mutex",
    "counter/spinlock",
    "section/cmpeqv_storev",
    "section/cmpeqv_trystorev_storev",
    "section/cmpeqv_trystorev_storev_release",
    "section/cmpeqv_cmpeqv_storev",
    "section/cmpeqv_trymemcpy_storev",
    "section/offset_deref_addv",
    "lock/rseq",
    "lock/sched_getcpu-exchange",
    "lock/sched_getcpu-mutex",
    "list/thread-local",
    "list/rseq",
    "list/rseq-takeable",
    "list/rseq-mm_cid",
    "list/cas",
    "list/sched_getcpu-cas",
    "list/mutex",
    "list/spinlock",
    "ring/thread-local",
    "ring/rseq",
    "ring/mutex",
    "bytes/thread-local",
    "bytes/rseq",
    "bytes/mutex",
    "pool/rseq",
    "pool/malloc",
)
"""As native/techniques.c calls them; ``counter/rseq-again`` is the same source at another place: the A/A control.

``counter/nothing`` is the loop with a move between registers in the place of the operation. A lock operation is to take and to release; one of a list, a ring, a
ring of bytes (a record of 64) or a pool is to take something out and to put it back, or the reverse.
"""

PROFILE = {
    "quick": {
        "builds": 8,
        "processes": 2,
        "rounds": 2,
        "batch_ns": 1_000_000,
        "longer": (1, 1, 2, 3),
        "all": False,
    },
    "full": {
        "builds": 24,
        "processes": 2,
        "rounds": 2,
        "batch_ns": 1_000_000,
        "longer": (1, 2, 4, 8),
        "all": True,
    },
}
"""``longer``: batches of 1, of 2, and of twice and eight times as many threads as CPUs are so many times as
long, for a late start not to count and a crowd to need several time slices. ``all``: a bare section, too,
meets every crowd; in quick it runs on one thread only."""

FIELDS = {"mm_cid": 28, "node_id": 24}
"""Live bytes that a technique named for a field needs."""


def jobs(size: dict) -> list[tuple[str, int, int]]:
    """(technique, threads, batch_ns) of everything that one process measures."""
    counts = ops.thread_counts(2, 8)
    longer = dict(
        zip(counts, size["longer"][-len(counts) :] if len(counts) > 3 else size["longer"], strict=False)
    )
    return [
        (technique, threads, size["batch_ns"] * longer[threads])
        for threads in counts
        for technique in techniques()
        if threads == 1 or size["all"] or not technique.startswith("section/")
    ]


def techniques() -> list[str]:
    """Those that the area of a thread here has the fields for."""
    live = (thread_that_libc_may_own().get("values") or {}).get("live_bytes") or 0
    absent = [name for name, needed in FIELDS.items() if live < needed]
    return [one for one in TECHNIQUES if not any(name in one for name in absent)]


def plan(profile: str) -> list[Part]:
    """Processes in which libc registered the threads; where it cannot, each thread does it itself."""
    size = PROFILE[profile]
    todo = jobs(size)
    return builds.parts(
        size | {"jobs": todo},
        lambda _: size["rounds"] * len(todo),
        timeout_s=300,
        starts=builds.libc_or_self(),
    )


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process."""
    size = task.arguments
    loops = builds.loops(size)

    def batch(technique: str, threads: int, iterations: int) -> dict:
        row = ops.run_job(technique, threads, iterations, ops.places(threads), loops=loops)
        row.pop(ops.SIGNALS)
        return {"technique": technique, "threads": threads, "start": size["start"], **row}

    for threads in sorted({threads for _, threads, _ in size["jobs"]}):
        some = [(technique, batch_ns) for technique, count, batch_ns in size["jobs"] if count == threads]
        variants = [
            Variant((technique, str(threads)), lambda n, t=technique, k=threads: batch(t, k, n))
            for technique, _ in some
        ]
        yield from interleaved(variants, size["rounds"], some[0][1], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="percpu-ops",
    question="What does each per-CPU operation cost on rseq, and by everything that a program would use instead?",
    serves="what rseq buys its users, and where it does not pay",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every technique is timed once a round"),
        Column("technique", "text", "structure/way", choices=TECHNIQUES),
        Column("threads", "int", "threads that do it at the same time", minimum=1),
        Column("start", "text", "who registers the threads", choices=("libc", "self")),
        Column("position", "int", "place within the round's random order"),
        *ops.COLUMNS,
        Column("slots_used", "int", "indices whose data is not zero afterwards"),
        Column("resident_bytes", "int", "memory of the data by index, mincore(2)"),
    ),
    key=("round", "technique", "threads"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 20, "full": 200},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
