"""context-switch-cost: what does a context switch cost those who registered an area, and their neighbours?

Two sides on one CPU hand a number back and forth, so that each round trip is two switches. Which side has
registered an area, and how long, is what varies. The switches are counted: a round trip that did not
switch would be no measurement.
"""

from collections.abc import Iterator

from rseqlab import host, native
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, PACKAGE
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES
from rseqlab.lab.timing import Variant, interleaved, pinned

BETWEEN = {"processes": 0, "threads": 1}
"""Two processes with two pipes, or two threads with a futex."""

PAIRS = {
    "none-none": (0, 0),
    "none-none-again": (0, 0),
    "32-32": (32, 32),
    "64-64": (64, 64),
    "32-none": (32, 0),
    "64-none": (64, 0),
}
"""Bytes that each side registered. ``...-again`` is the same source at another place: the A/A control."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 3_000_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 6_000_000},
}

_C = PACKAGE / "experiments" / "c"

CDEF = """
struct job { int futex_between_threads, again; uint32_t length_bytes[2]; uint32_t signature; uint64_t turns; };
struct outcome {
    int64_t elapsed_ns, voluntary_switches, involuntary_switches, number;
    int32_t cpu_id[2];
};
int ping_pong(const struct job *job, struct outcome *outcome);
"""


LIBRARY = builds.Library(
    "ping_pong.so",
    (builds.Unit(_C / "ping_pong.c", (f"-I{builds.NATIVE}",)),),
    ("-shared", "-lpthread"),
    (_C / "ping_pong_sides.h", _C / "rseq_call.h", builds.NATIVE / "layout.h"),
)


def plan(profile: str) -> list[Part]:
    """Several processes of each build; libc registers nothing in them."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(PAIRS) * len(BETWEEN)
    return builds.parts(size, lambda _: rows, timeout_s=120, starts=(builds.Start("none", LIBC_LEAVES),))


def complaint(outcome: dict, lengths: tuple[int, int], turns: int, cpu: int) -> str | None:
    """What is wrong with a batch, or None: a number lost, a switch that was none, an area not kept."""
    if outcome["number"] != 2 * turns:
        return f"the number is {outcome['number']} after {turns} round trips, not {2 * turns}"
    switches = outcome["voluntary_switches"] + outcome["involuntary_switches"]
    if switches < 2 * turns - 2:  # the first and the last handing over lie at the edges of the count
        return f"{turns} round trips made {switches} context switches, not {2 * turns}"
    expected = [cpu if length else -1 for length in lengths]
    if outcome["cpu_id"] != expected:
        return f"the areas hold the CPU numbers {outcome['cpu_id']}, not {expected}"
    return None


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process. A length that the kernel refuses gives one row with its answer."""
    size = task.arguments
    ffi, lib = builds.load(LIBRARY, size["build"], CDEF)
    signature = native.core()[1].rl_signature()

    def run(pair: str, between: str, turns: int) -> tuple[int, dict]:
        job = ffi.new(
            "struct job *", [BETWEEN[between], pair.endswith("-again"), PAIRS[pair], signature, turns]
        )
        outcome = ffi.new("struct outcome *")
        answer = lib.ping_pong(job, outcome)
        numbers = ("elapsed_ns", "voluntary_switches", "involuntary_switches", "number")
        return answer, {name: getattr(outcome, name) for name in numbers} | {"cpu_id": list(outcome.cpu_id)}

    with pinned(host.allowed_cpus()[-1]) as cpu:

        def row(pair: str, between: str, seen: dict, turns: int | None, reason: str | None) -> dict:
            elapsed_ns = seen.get("elapsed_ns")
            return {
                "pair": pair,
                "between": between,
                "start": "none",
                "cpu": cpu,
                "elapsed_ns": elapsed_ns,
                "voluntary_switches": seen.get("voluntary_switches"),
                "involuntary_switches": seen.get("involuntary_switches"),
                "ns_per_round_trip": elapsed_ns / turns if turns else None,
                "reason": reason,
            }

        def batch(pair: str, between: str, turns: int) -> dict:
            answer, outcome = run(pair, between, turns)
            wrong = f"it answered {answer}" if answer else complaint(outcome, PAIRS[pair], turns, cpu)
            if wrong:
                raise Failed(f"{pair}, {between}: {wrong}")
            return row(pair, between, outcome, turns, None)

        timed = []
        for between in BETWEEN:
            for pair in PAIRS:
                answer, _ = run(pair, between, 4)
                if answer == 0:
                    timed.append(Variant((pair, between), lambda n, p=pair, b=between: batch(p, b, n)))
                elif task.pending(0, pair, between):
                    reason = f"the kernel answered {answer} to this registration"
                    yield {"round": 0, "position": None, "iterations": None} | row(
                        pair, between, {}, None, reason
                    )
        yield from interleaved(timed, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="context-switch-cost",
    question="What does a context switch cost those who registered an area, and their neighbours?",
    serves="cost to the context switch for users and for non-users, at 32 bytes and extended",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every variant is timed once a round"),
        Column("pair", "text", "bytes that each side registered", choices=tuple(PAIRS)),
        Column("between", "text", "what the two sides are", choices=tuple(BETWEEN)),
        Column("start", "text", "who registered the thread at process start", choices=("none",)),
        Column("cpu", "int", "the CPU that both sides were pinned to"),
        Column("position", "int", "place within the round's random order", nullable=True),
        Column("iterations", "int", "round trips in the batch", nullable=True, minimum=1),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC", nullable=True, minimum=1),
        Column("voluntary_switches", "int", "of both sides inside the timed part, getrusage", nullable=True),
        Column("involuntary_switches", "int", "the same", nullable=True),
        Column(
            "ns_per_round_trip", "float", "elapsed_ns / iterations: two switches", nullable=True, minimum=1e-6
        ),
        Column("reason", "text", "why it was not measured", nullable=True),
    ),
    key=("round", "pair", "between"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 5, "full": 45},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(LIBRARY),
)
