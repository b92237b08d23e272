"""usage-aborts: how often does this kernel update areas and abort sections, for whatever runs here?

The kernel counts at its own tracepoints, first while the machine does what it does, then under a load of our own
that counts its aborts itself. Only counts leave the machine; `rseqlab census --trace SECONDS` shows processes.
"""

import functools
from collections.abc import Iterator

from rseqlab.census import trace
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Need, Part, Task

SECONDS = {"quick": 1, "full": 10}
BLOCK, BATCH_NS = 2, 20_000_000
TIMEOUT_S = 120
MACHINE, LOAD = "what runs here", "our own load"
WATCHING = Need("watching the kernel", functools.partial(trace.obstacle))


def plan(profile: str) -> list[Part]:
    """Watching first: both are told apart by their part, and neither sees the other."""
    return [
        Part("machine", 3, TIMEOUT_S, arguments={"seconds": SECONDS[profile]}),
        Part("load", 1, TIMEOUT_S, arguments={"rounds": 1, "block": BLOCK, "batch_ns": BATCH_NS}),
    ]


def measure(task: Task) -> Iterator[dict]:
    """One row for each event."""
    yield from _load(task) if "rounds" in task.arguments else _machine(task)


def _machine(task: Task) -> Iterator[dict]:
    *_, last = trace.watch(task.arguments)
    if "totals" not in last:
        raise Failed("; ".join(sorted(set(last["reasons"].values()))))
    for event in trace.EVENTS:
        if task.pending(MACHINE, event):
            count = last["totals"].get(event)
            yield {
                "what": MACHINE,
                "event": event,
                "count": count,
                "by_itself": None,
                "elapsed_ns": last["elapsed_ns"],
                "reason": None if count is not None else last["reasons"].get(event, "not watched"),
            }


def _load(task: Task) -> Iterator[dict]:
    rows = list(trace.load(task.arguments))
    seen = next(row["seen"] for row in rows if row["state"] == "seen")
    traced = [row for row in rows if row["state"] == "traced"]
    if task.pending(LOAD, "aborts"):
        yield {
            "what": LOAD,
            "event": "aborts",
            "count": seen.get("aborts"),
            "by_itself": sum(row["aborts"] for row in traced),
            "elapsed_ns": round(sum(row["cpu_ns"] for row in traced)),
            "reason": None if "aborts" in seen else "this kernel has no tracepoint for it",
        }


EXPERIMENT = Experiment(
    name="usage-aborts",
    question="How often does this kernel update areas and abort sections, for whatever runs here?",
    serves="usage: activity",
    columns=(
        Column("what", "text", "who runs", choices=(MACHINE, LOAD)),
        Column("event", "text", "what the kernel counted", choices=tuple(trace.EVENTS)),
        Column("count", "int", "so often", nullable=True),
        Column("by_itself", "int", "so often by the load's own count", nullable=True),
        Column("elapsed_ns", "int", "in that time; of our own load it is CPU time", minimum=1),
        Column("reason", "text", "why it was not counted", nullable=True),
    ),
    key=("what", "event"),
    needs=(LINUX, NATIVE, REGISTRATION, WATCHING),
    seconds={"quick": 6, "full": 14},
    plan=plan,
    measure=measure,
)
