"""usage-live: whose area has each running thread that may be asked about, and how long does asking stop it?

Only counts leave the machine: no name, no number of a process, no control group. `rseqlab census --live` shows them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

from rseqlab import abi, host
from rseqlab.census import process
from rseqlab.lab.experiment import LINUX, NATIVE, Column, Experiment, Part, Task

TIMEOUT_S = 60
ASKED, NOT_ASKED = "asked", "not asked"


def plan(_: str) -> list[Part]:
    return [Part("threads", 6, TIMEOUT_S)]


def measure(task: Task) -> Iterator[dict]:
    """One row for each kind of registration that there is, and one for each reason not to ask."""
    usual = abi.SIGNATURES.get(host.arch())
    threads: Counter[tuple] = Counter()
    processes, stops = defaultdict(set), defaultdict(list)
    elapsed_ns = 0
    for row in process.inspect({"pids": None, "leave_out": []}):
        if "elapsed_ns" in row:
            elapsed_ns = row["elapsed_ns"]
            unseen, pid = row["outside"], None
        else:
            unseen, pid = row["not_inspected"], row["pid"]
        for why, count in unseen.items():
            threads[NOT_ASKED, "none", None, None, why] += count
        for one in row.get("threads", ()):
            signature = (
                "none" if one["signature"] is None else "usual" if one["signature"] == usual else "other"
            )
            kind = (ASKED, one["owner"], one["size_bytes"], one["flags"], f"signature: {signature}")
            threads[kind] += 1
            processes[kind].add(pid)
            stops[kind].append(one["stopped_ns"])
    for kind, count in sorted(threads.items(), key=str):
        outcome, owner, size, flags, about = kind
        registration = about if outcome == NOT_ASKED else owner
        if outcome == ASKED and size is not None:
            registration = f"{owner}, {size} bytes, flags {flags}, {about}"
        if task.pending(outcome, registration):
            yield {
                "outcome": outcome,
                "registration": registration,
                "owner": owner,
                "size_bytes": size,
                "threads": count,
                "processes": len(processes[kind]) or None,
                "longest_stop_ns": max(stops[kind], default=None),
                "elapsed_ns": elapsed_ns,
            }


EXPERIMENT = Experiment(
    name="usage-live",
    question="Whose area has each running thread that may be asked about?",
    serves="usage: the census of the reader's own machine",
    columns=(
        Column("outcome", "text", "whether the kernel was asked", choices=(ASKED, NOT_ASKED)),
        Column("registration", "text", "owner, length, flags and signature; or why the kernel was not asked"),
        Column("owner", "text", "whose area it is", choices=tuple(process.OWNERS)),
        Column("size_bytes", "int", "registered length; empty: no area, or not asked", nullable=True),
        Column("threads", "int", "so many threads", minimum=1),
        Column("processes", "int", "of so many processes; empty: not told apart", nullable=True),
        Column(
            "longest_stop_ns",
            "int",
            "the longest that one of them stood still for the question",
            nullable=True,
        ),
        Column("elapsed_ns", "int", "what asking all of them took"),
    ),
    key=("outcome", "registration"),
    needs=(LINUX, NATIVE),
    seconds={"quick": 2, "full": 2},
    plan=plan,
    measure=measure,
)
