"""usage-live: whose area has each running thread that may be asked about, and how long does asking stop it?

Only counts leave the machine: no name, no number of a process, no control group. `rseqlab census --live` shows them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from rseqlab import abi, host
from rseqlab.census import process
from rseqlab.lab.experiment import LINUX, NATIVE, Column, Experiment, Part, Task

TIMEOUT_S = 60
NOT_ASKED = "not asked"
OUTCOMES = (*process.OWNERS, NOT_ASKED)


def plan(_: str) -> list[Part]:
    return [Part("threads", len(OUTCOMES), TIMEOUT_S)]


def measure(task: Task) -> Iterator[dict]:
    """One row for each owner, and one for the threads that were not asked about."""
    usual = abi.SIGNATURES.get(host.arch())
    kinds: dict[str, Counter[str]] = {name: Counter() for name in OUTCOMES}
    processes, stops = defaultdict(set), defaultdict(list)
    elapsed_ns = 0
    for row in process.inspect({"pids": None, "leave_out": []}):
        if "elapsed_ns" in row:
            elapsed_ns = row["elapsed_ns"]
        kinds[NOT_ASKED].update(row["outside"] if "outside" in row else row["not_inspected"])
        for one in row.get("threads", ()):
            owner = one["owner"]
            signature = "usual" if one["signature"] == usual else "other"
            kind = f"{one['size_bytes']} bytes, flags {one['flags']}, {signature} signature"
            kinds[owner][kind if one["size_bytes"] is not None else "no area"] += 1
            processes[owner].add(row["pid"])
            stops[owner].append(one["stopped_ns"])
    for outcome, found in kinds.items():
        if task.pending(outcome):
            ordered = sorted(found.items(), key=lambda one: (-one[1], one[0]))
            yield {
                "outcome": outcome,
                "threads": found.total(),
                "processes": len(processes[outcome]) if outcome != NOT_ASKED else None,
                "registrations": "; ".join(f"{kind}: {count}" for kind, count in ordered) or None,
                "longest_stop_ns": max(stops[outcome], default=None),
                "elapsed_ns": elapsed_ns,
            }


EXPERIMENT = Experiment(
    name="usage-live",
    question="Whose area has each running thread that may be asked about?",
    serves="usage: the census of the reader's own machine",
    columns=(
        Column("outcome", "text", "whose area it is, or that the kernel was not asked", choices=OUTCOMES),
        Column("threads", "int", "so many threads"),
        Column("processes", "int", "of so many processes; empty: not told apart", nullable=True),
        Column("registrations", "text", "how many of which kind; of those not asked: why", nullable=True),
        Column(
            "longest_stop_ns",
            "int",
            "the longest that one of them stood still for the question",
            nullable=True,
        ),
        Column("elapsed_ns", "int", "what asking all of them took"),
    ),
    key=("outcome",),
    needs=(LINUX, NATIVE),
    seconds={"quick": 2, "full": 2},
    plan=plan,
    measure=measure,
)
