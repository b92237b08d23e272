"""takeover: what does it cost to take over another CPU's list, and what does its owner pay for that?

The owner takes nodes off its CPU's list and puts them back, or sleeps; the taker takes the whole list over,
again and again, by each way. Afterwards each node must be in one place.
"""

from collections.abc import Iterator

from rseqlab import host, percpu
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task

WAYS = {
    "fence-cpu": "RL_TAKER_FENCE_CPU",
    "fence-cpu-again": "RL_TAKER_FENCE_CPU",
    "fence-all": "RL_TAKER_FENCE_ALL",
    "move": "RL_TAKER_MOVE",
    "mutex": "RL_TAKER_MUTEX",
}
"""``move`` is the fallback where the kernel has no such fence. With ``mutex`` the owner locks for every operation
instead. ``fence-cpu-again`` is the same source at another place: the A/A control."""

OWNERS = ("busy", "sleeping")
PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "takeovers": 200, "moves": 4},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "takeovers": 400, "moves": 6},
}
"""``moves``: takeovers by moving to a busy CPU, which wait for the owner's time slice to end."""

PAUSE_NS = 5_000


def plan(profile: str) -> list[Part]:
    """Several processes of each build. On one CPU, owner and taker share it."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(WAYS) * len(OWNERS)
    return builds.parts(size, lambda _: rows, timeout_s=180, starts=builds.libc_or_self())


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process, one for each run of a way."""
    size, allowed = task.arguments, host.allowed_cpus()
    loops = builds.loops(size)
    refusal = percpu.fence_refusal()
    for number in range(size["rounds"]):
        for owner in OWNERS:
            for way in WAYS:
                if not task.pending(number, way, owner):
                    continue
                head = {"round": number, "way": way, "owner": owner, "start": size["start"]}
                if refusal and way.startswith("fence"):
                    yield head | dict.fromkeys(MEASURED) | {"reason": refusal}
                    continue
                count = size["moves"] if (way, owner) == ("move", "busy") else size["takeovers"]
                yield head | _run(loops, way, owner, count, allowed) | {"reason": None}


def _run(loops: tuple, way: str, owner: str, takeovers: int, allowed: list[int]) -> dict:
    ffi, lib = loops
    run = lib.rl_takeover_run_again if way.endswith("-again") else lib.rl_takeover_run
    job = {
        "how": getattr(lib, WAYS[way]),
        "takeovers": takeovers,
        "pause_ns": PAUSE_NS,
        "owner_cpu": allowed[-1],
        "taker_cpu": allowed[0],
        "indices": host.possible_cpus(),
        "busy": owner == "busy",
    }
    outcome = ffi.new("struct rl_takeover_outcome *")
    answer = run(ffi.new("struct rl_takeover_job *", job), outcome)
    if answer or outcome.lost:
        raise Failed(
            f"{way}, owner {owner}: {outcome.lost} nodes were not in one place; the run answered {answer}"
        )
    aborts = outcome.aborts
    return {
        "takeovers": takeovers,
        "taken_nodes": outcome.taken,
        "lost_nodes": outcome.lost,
        "owner_pairs": outcome.owner_pairs,
        "owner_aborts": aborts.moved + aborts.migrated + aborts.interrupted,
        "ns_per_takeover": outcome.taking_ns / takeovers,
        "owner_cpu_ns_per_pair": outcome.owner_cpu_ns / outcome.owner_pairs if outcome.owner_pairs else None,
    }


MEASURED = (
    "takeovers",
    "taken_nodes",
    "lost_nodes",
    "owner_pairs",
    "owner_aborts",
    "ns_per_takeover",
    "owner_cpu_ns_per_pair",
)

EXPERIMENT = Experiment(
    name="takeover",
    question="What does it cost to take over another CPU's list, and what does its owner pay for that?",
    serves="cross-CPU access: membarrier's rseq command, and the fallback",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every way runs once a round"),
        Column("way", "text", "how the list is taken over", choices=tuple(WAYS)),
        Column("owner", "text", "what the thread of that CPU does meanwhile", choices=OWNERS),
        Column("start", "text", "who registers the threads", choices=("libc", "self")),
        Column("takeovers", "int", "in this run", nullable=True, minimum=1),
        Column("taken_nodes", "int", "found in the lists", nullable=True),
        Column("lost_nodes", "int", "not in one place afterwards; must be 0", nullable=True),
        Column("owner_pairs", "int", "nodes that the owner took off and put back", nullable=True),
        Column("owner_aborts", "int", "of the owner's sections", nullable=True),
        Column(
            "ns_per_takeover",
            "float",
            "elapsed, one reading of the clock included",
            nullable=True,
            minimum=1e-6,
        ),
        Column(
            "owner_cpu_ns_per_pair",
            "float",
            "CPU time of the owner; null where it slept",
            nullable=True,
            minimum=1e-6,
        ),
        Column("reason", "text", "why it was not measured", nullable=True),
    ),
    key=("round", "way", "owner"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 6, "full": 40},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
