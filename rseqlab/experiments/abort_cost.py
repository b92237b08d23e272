"""abort-cost: what does it cost when a section does not commit?

A thread traps inside a section, so that the kernel delivers a signal and aborts the section; or outside of
one, so that it only delivers the signal. The difference is what the abort adds. Where the section itself
finds another index at its start, the kernel has no part in it.
"""

from collections.abc import Iterator

from rseqlab import host, rseq
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, interleaved, pinned

EVENTS = {
    "commit": ("RL_EVENT_COMMIT", 0, 0),
    "other-index": ("RL_EVENT_OTHER_INDEX", 0, 1),
    "signal": ("RL_EVENT_TRAP", 1, 0),
    "signal-again": ("RL_EVENT_TRAP_AGAIN", 1, 0),
    "signal-announced": ("RL_EVENT_TRAP_ANNOUNCED", 1, 0),
    "signal-inside": ("RL_EVENT_TRAP_INSIDE", 1, 1),
}
"""Event: its loop, and the signals and aborts of each iteration. ``signal-announced``: after a section that
committed, its descriptor is still in ``rseq_cs``. ``signal-again`` is the same source at another place: the A/A
control."""

MOST_WITHOUT_SIGNAL = 0.01
"""So large a share of a batch may abort before it traps: more would be another event than the one that is timed."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 3, "batch_ns": 1_500_000},
    "full": {"builds": 24, "processes": 2, "rounds": 6, "batch_ns": 2_000_000},
}


def plan(profile: str) -> list[Part]:
    """Several processes of each build."""
    size = PROFILE[profile]
    rows = size["rounds"] * len(EVENTS)
    return builds.parts(size, lambda _: rows, timeout_s=60, starts=builds.libc_or_self())


def is_what_was_asked(event: str, iterations: int, signals: int, aborts: int) -> bool:
    """Whether a batch did what its event says.

    Whoever is preempted in a section aborts too, so there may be some more aborts, never fewer; and who is preempted
    before it traps has aborted without its signal.
    """
    _, signals_each, aborts_each = EVENTS[event]
    without_signal = signals_each * iterations - signals
    most = iterations * MOST_WITHOUT_SIGNAL if event == "signal-inside" else 0
    return aborts >= aborts_each * iterations and 0 <= without_signal <= most


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process, pinned: nothing but the trap interrupts on purpose."""
    size = task.arguments
    ffi, lib = builds.loops(size)

    def measured(area: rseq.Area) -> Iterator[dict]:
        def batch(event: str, iterations: int) -> dict:
            loop = EVENTS[event][0]
            signals, aborts = ffi.new("uint64_t *"), ffi.new("uint64_t *")
            elapsed_ns = lib.rl_event_loop(getattr(lib, loop), iterations, area.offset_bytes, signals, aborts)
            if elapsed_ns < 0 or not is_what_was_asked(event, iterations, signals[0], aborts[0]):
                raise Failed(
                    f"{event}: {iterations} times gave {signals[0]} signals and {aborts[0]} aborts; "
                    f"the loop answered {elapsed_ns}"
                )
            return {
                "event": event,
                "order": "one thread",
                "start": size["start"],
                "signals": signals[0],
                "aborts": aborts[0],
                "elapsed_ns": elapsed_ns,
                "ns_per_event": elapsed_ns / iterations,
            }

        variants = [Variant((event,), lambda n, e=event: batch(e, n)) for event in EVENTS]
        yield from interleaved(variants, size["rounds"], size["batch_ns"], size["seed"], task.pending)

    with pinned(host.allowed_cpus()[-1]):
        if size["start"] == "libc":
            yield from measured(rseq.attach())
        else:
            with rseq.register() as area:
                yield from measured(area)


EXPERIMENT = Experiment(
    name="abort-cost",
    question="What does it cost when a section does not commit?",
    serves="what rseq costs its users",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every event is timed once a round"),
        Column("event", "text", "what happens in each iteration", choices=tuple(EVENTS)),
        Column("order", "text", "one thread, pinned", choices=("one thread",)),
        Column("start", "text", "who registered the thread", choices=("libc", "self")),
        Column("position", "int", "place within the round's random order"),
        Column("iterations", "int", "events in the batch", minimum=1),
        Column("signals", "int", "handlers that ran"),
        Column("aborts", "int", "sections that did not commit"),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC", minimum=1),
        Column("ns_per_event", "float", "elapsed_ns / iterations, the loop included", minimum=1e-6),
    ),
    key=("round", "event"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 3, "full": 15},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS),
)
