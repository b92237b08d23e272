"""null-repeats: how often does this lab see a difference where there is none, and find one that is there?

Each build has many copies of each kind of loop at places of their own, so that a comparison of two copies is one of a
thing with itself, code layout included. ``chain-plus-one`` executes one instruction more of a known chain than
``chain``: a difference of one in twenty. The comparisons are made afterwards, of disjoint sets of builds and copies.
"""

from collections.abc import Iterator

from rseqlab import host, rseq
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, calibrate, interleaved, pinned

LOOPS = {
    "read-throughput": "RL_COPY_READ_THROUGHPUT",
    "read-dependent": "RL_COPY_READ_DEPENDENT",
    "sched_getcpu": "RL_COPY_SCHED_GETCPU",
    "counter-rseq": "RL_COPY_COUNTER_RSEQ",
    "counter-thread-local": "RL_COPY_COUNTER_THREAD_LOCAL",
    "chain": "RL_COPY_CHAIN",
    "chain-plus-one": "RL_COPY_CHAIN_PLUS_ONE",
}
COPIES = 24
"""Of each loop (native/copies.h)."""
LINKS = {"chain": 20, "chain-plus-one": 21}
"""Dependent instructions of one iteration."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "copies": 4, "batch_ns": 1_000_000},
    "full": {"builds": 40, "processes": 2, "rounds": 2, "copies": COPIES, "batch_ns": 1_000_000},
}
"""As few samples as a verdict needs at least: more would only make a false one rarer. In full there are five disjoint
sets of 8 builds."""


def plan(profile: str) -> list[Part]:
    """Several processes of each build."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(LOOPS) * size["copies"]
    return builds.parts(size, lambda _: rows, timeout_s=60, starts=builds.libc_or_self())


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process, pinned."""
    if task.arguments["start"] == "libc":
        yield from _measured(task, rseq.attach())
    else:
        with rseq.register() as area:
            yield from _measured(task, area)


def _measured(task: Task, area: rseq.Area) -> Iterator[dict]:
    size = task.arguments
    ffi, lib = builds.load(builds.COPIES, size["build"], (builds.NATIVE / "copies.cdef.h").read_text())
    indices = host.possible_cpus()
    with pinned(host.allowed_cpus()[-1]) as cpu:

        def batch(loop: str, copy: int, iterations: int) -> dict:
            total = ffi.new("uint64_t *")
            kind = getattr(lib, LOOPS[loop])
            elapsed_ns = lib.rl_copy_loop(kind, copy, area.offset_bytes, indices, iterations, total)
            expected = iterations * (LINKS.get(loop) or (1 if loop.startswith("counter") else cpu))
            if elapsed_ns <= 0 or total[0] % SUMS_MODULO != expected % SUMS_MODULO:
                raise Failed(
                    f"{loop}, copy {copy}: {iterations} iterations left {total[0]}, not {expected}; "
                    f"the loop answered {elapsed_ns}"
                )
            return {
                "start": size["start"],
                "loop": loop,
                "copy": copy,
                "elapsed_ns": elapsed_ns,
                "ns_per_iteration": elapsed_ns / iterations,
            }

        timed = [
            Variant((loop, str(copy)), lambda n, one=loop, k=copy: batch(one, k, n))
            for loop in LOOPS
            for copy in range(size["copies"])
        ]
        # Copies of a loop take the same time but for where they lie: one of them tells the iterations of all.
        known = {
            loop: calibrate(Variant((loop,), lambda n, one=loop: batch(one, 0, n)), size["batch_ns"])
            for loop in LOOPS
        }
        iterations = {variant.key: known[variant.key[0]] for variant in timed}
        yield from interleaved(
            timed, size["rounds"], size["batch_ns"], size["seed"], task.pending, iterations
        )


SUMS_MODULO = 1 << 32
"""The loops of reads add up in 32 bits."""

EXPERIMENT = Experiment(
    name="null-repeats",
    question="How often does a comparison of a thing with itself give a verdict, and how often is a known difference found?",
    serves="how far to believe any verdict of this lab",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every copy is timed once a round"),
        Column("loop", "text", "which loop: all its copies have the same source", choices=tuple(LOOPS)),
        Column("copy", "int", "which of its places in the build"),
        Column("start", "text", "who registered the thread", choices=("libc", "self")),
        Column("position", "int", "place of the batch within its round"),
        Column("iterations", "int", "in the batch", minimum=1),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC", minimum=1),
        Column("ns_per_iteration", "float", "elapsed_ns / iterations", minimum=1e-6),
    ),
    key=("round", "loop", "copy"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 8, "full": 85},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.COPIES),
)
