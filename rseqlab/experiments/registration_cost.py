"""registration-cost: what does registering an area cost, and what of it does each new thread pay?

Two yardsticks: a round trip of registering and unregistering stands beside two of the cheapest system
calls; a thread's start and end stands beside the same with one and two system calls more, and beside
the same in processes where libc's registration is on (or off).
"""

from collections.abc import Iterator

from rseqlab import host, native
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, PACKAGE
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, interleaved, pinned

LENGTHS_BYTES = (32, 64, 128, 256)
TURNS = ("round-trip", "thread")
"""A turn is two system calls, or the start and the end of a thread."""
EXTRA_CALLS = {"nothing-more": 0, "nothing-more-again": 0, "one-call-more": 1, "two-calls-more": 2}
"""System calls that each thread makes beyond its start and end. ``...-again`` is the same source at another place: the A/A
control."""
WAYS = (
    "nothing-more",
    "nothing-more-again",
    *(f"register-{n}" for n in LENGTHS_BYTES),
    *list(EXTRA_CALLS)[2:],
)
"""In a round trip, ``nothing-more`` is two calls of getppid."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 2, "batch_ns": 1_500_000},
    "full": {"builds": 24, "processes": 2, "rounds": 3, "batch_ns": 3_000_000},
}

AFTERWARDS = 1_000_000
"""The weight of the unregistered area's CPU number, -1, in the sum that registration.c checks."""

_C = PACKAGE / "experiments" / "c"

CDEF = """
int64_t registration_turns(uint32_t length_bytes, uint32_t signature, uint64_t turns, int64_t *sum);
int64_t yardstick_turns(uint64_t turns, int64_t *sum);
int64_t yardstick_turns_again(uint64_t turns, int64_t *sum);
int64_t thread_turns(unsigned calls, uint64_t turns, int64_t *sum);
int64_t thread_turns_again(unsigned calls, uint64_t turns, int64_t *sum);
"""


LIBRARY = builds.Library(
    "registration.so",
    (builds.Unit(_C / "registration.c", (f"-I{builds.NATIVE}",)),),
    ("-shared", "-lpthread"),
    (_C / "rseq_call.h", builds.NATIVE / "layout.h"),
)


def variants_of(start: str) -> list[tuple[str, str]]:
    """(way, turn). Where libc owns the thread there is no place for another registration."""
    lengths = [f"register-{length}" for length in LENGTHS_BYTES] if start == "none" else []
    round_trips = ["nothing-more", "nothing-more-again", *lengths]
    return [(way, "round-trip") for way in round_trips] + [(way, "thread") for way in EXTRA_CALLS]


def plan(profile: str) -> list[Part]:
    """Processes alternate between builds and between the two starts, so that a drift of the machine meets all."""
    size = PROFILE[profile]
    return builds.parts(
        size,
        lambda start: size["rounds"] * len(variants_of(start)),
        timeout_s=120,
        starts=builds.libc_and("none"),
    )


def expected_sum(way: str, turn: str, turns: int, cpu: int) -> int:
    """What the C's check must add up to: see registration.c."""
    if turn == "thread":
        return turns * (1 + EXTRA_CALLS[way])
    return turns * (cpu - AFTERWARDS) if way.startswith("register-") else 2 * turns


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process. A length that the kernel refuses gives one row with its answer."""
    size, start = task.arguments, task.arguments["start"]
    ffi, lib = builds.load(LIBRARY, size["build"], CDEF)
    signature = native.core()[1].rl_signature()

    def run(way: str, turn: str, turns: int) -> tuple[int, int]:
        total = ffi.new("int64_t *")
        again = way.endswith("-again")
        if turn == "thread":
            threads = lib.thread_turns_again if again else lib.thread_turns
            return threads(EXTRA_CALLS[way], turns, total), total[0]
        if way.startswith("register-"):
            return lib.registration_turns(int(way.rpartition("-")[2]), signature, turns, total), total[0]
        yardstick = lib.yardstick_turns_again if again else lib.yardstick_turns
        return yardstick(turns, total), total[0]

    with pinned(host.allowed_cpus()[-1]) as cpu:

        def row(way: str, turn: str, elapsed_ns: int | None, turns: int | None, reason: str | None) -> dict:
            return {
                "way": way,
                "turn": turn,
                "start": start,
                "length_bytes": int(way.rpartition("-")[2]) if way.startswith("register-") else None,
                "cpu": cpu,
                "elapsed_ns": elapsed_ns,
                "ns_per_turn": elapsed_ns / turns if turns else None,
                "reason": reason,
            }

        def batch(way: str, turn: str, turns: int) -> dict:
            elapsed_ns, total = run(way, turn, turns)
            expected = expected_sum(way, turn, turns, cpu)
            if elapsed_ns < 0 or total != expected:
                raise Failed(
                    f"{way}, {turn}: {turns} turns on CPU {cpu} added up to {total}, not {expected}; "
                    f"the loop answered {elapsed_ns}"
                )
            return row(way, turn, elapsed_ns, turns, None)

        timed = []
        for way, turn in variants_of(start):
            answer = run(way, turn, 1)[0]
            if answer >= 0:
                timed.append(Variant((way, turn), lambda n, w=way, t=turn: batch(w, t, n)))
            elif task.pending(0, way, turn):
                reason = f"the kernel answered {answer} to this registration"
                yield {"round": 0, "position": None, "iterations": None} | row(way, turn, None, None, reason)
        yield from interleaved(timed, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="registration-cost",
    question="What does registering an area cost, and what of it does each new thread pay?",
    serves="what each thread's start pays for an area, by its length",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every variant is timed once a round"),
        Column("way", "text", "what is done", choices=WAYS),
        Column("turn", "text", "what is repeated", choices=TURNS),
        Column("start", "text", "who registered the process's threads", choices=("libc", "none")),
        Column("length_bytes", "int", "the length that is registered", nullable=True),
        Column("cpu", "int", "the CPU that the process was pinned to"),
        Column("position", "int", "place within the round's random order", nullable=True),
        Column("iterations", "int", "turns in the batch", nullable=True, minimum=1),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC", nullable=True, minimum=1),
        Column("ns_per_turn", "float", "elapsed_ns / iterations", nullable=True, minimum=1e-6),
        Column("reason", "text", "why it was not measured", nullable=True),
    ),
    key=("round", "way", "turn"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 4, "full": 25},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(LIBRARY),
)
