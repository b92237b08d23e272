"""null-repeats: how often does this lab see a difference where there is none?

One loop under three names, compared as every comparison here is: fresh processes, interleaved batches in random
order, pairs of one round. Two of the names play the two sides of a claim, the third the null by which a claim's
interval is widened. Each repeat has processes of its own, so repeats are independent of each other.
"""

from collections.abc import Iterator

from rseqlab import host, native
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, interleaved, pinned

NAMES = ("one", "other", "again")
PROFILE = {
    "quick": {"repeats": 2, "processes": 8, "rounds": 4, "batch_ns": 1_000_000},
    "full": {"repeats": 100, "processes": 8, "rounds": 4, "batch_ns": 1_000_000},
}
"""As few processes and hardly more pairs than a verdict needs at least: more would only make a false one rarer."""


def plan(profile: str) -> list[Part]:
    """One part for each process of each repeat."""
    size = PROFILE[profile]
    return [
        Part(
            id=f"{repeat}-{process}",
            rows=size["rounds"] * len(NAMES),
            timeout_s=60,
            arguments={"repeat": repeat, "seed": repeat * size["processes"] + process, **size},
        )
        for repeat in range(size["repeats"])
        for process in range(size["processes"])
    ]


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process: the same batch by three names."""
    size = task.arguments
    ffi, lib = native.core()
    with pinned(host.allowed_cpus()[-1]):

        def batch(name: str, iterations: int) -> dict:
            total = ffi.new("uint64_t *")
            elapsed_ns = lib.rl_read_loop(lib.RL_READ_SCHED_GETCPU, 0, 0, iterations, total)
            if elapsed_ns <= 0:
                raise Failed(f"the loop answered {elapsed_ns}")
            return {
                "repeat": size["repeat"],
                "name": name,
                "elapsed_ns": elapsed_ns,
                "ns_per_read": elapsed_ns / iterations,
            }

        timed = [Variant((name,), lambda n, name=name: batch(name, n)) for name in NAMES]
        yield from interleaved(timed, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="null-repeats",
    question="How often does a comparison of a thing with itself give a verdict?",
    serves="how far to believe any verdict of this lab",
    columns=(
        Column("repeat", "int", "which of the repeated comparisons"),
        Column("round", "int", "round within the process"),
        Column("name", "text", "one of the three names of the same loop", choices=NAMES),
        Column("position", "int", "place of the batch within its round"),
        Column("iterations", "int", "calls in the batch", minimum=1),
        Column("elapsed_ns", "int", "time of the batch", minimum=1),
        Column("ns_per_read", "float", "elapsed_ns / iterations"),
    ),
    key=("round", "name"),
    needs=(LINUX, NATIVE),
    seconds={"quick": 5, "full": 200},
    plan=plan,
    measure=measure,
)
