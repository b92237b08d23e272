"""option-access-count: how many instructions does a thread execute to read one field, the calls included?

The same reads as option-access-cost, in the same program, which steps a copy of itself through one read
and counts. No clock is involved, so the numbers do not depend on the machine's load; they are instructions
of user space, not cycles.
"""

from collections.abc import Iterator

from rseqlab.experiments.option_access_cost import (
    ACCESSES,
    CHECKS,
    FIELD_VALUE,
    LOADED,
    MODELS,
    OFFSETS,
    ORDERS,
    TLS_OPTIONS,
    Access,
    build_all,
    started,
)
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, attempt
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES

READS = {"first": 1, "second": 2}
"""The only read of a fresh thread, or the one after it."""

MARKED = len(ORDERS)
"""The program's order for counting (RL_MARKED in access.h)."""

WAYS = tuple(access for access in ACCESSES if not access.again)
REPEATS = {"quick": 2, "full": 5}


def plan(profile: str) -> list[Part]:
    """One process; each count is taken in a copy of it."""
    command, refusal = attempt(lambda: build_all().command())
    repeats = REPEATS[profile]
    arguments = {"command": command, "repeats": repeats}
    rows = repeats * len(WAYS) * len(READS)
    return [Part("none-0", rows, 120, LIBC_LEAVES, arguments, refusal)]


def measure(task: Task) -> Iterator[dict]:
    """One row per way, read and repeat. Where the process may not be stepped, rows with the reason."""
    with started(task.arguments["command"]) as program:
        for number in range(task.arguments["repeats"]):
            for access in WAYS:
                for read, reads in READS.items():
                    if task.pending(number, access.label, read):
                        count, total = program.ask(access.label, MARKED, reads)
                        yield _row(number, access, read, count, total)


def _row(number: int, access: Access, read: str, count: int, total: int) -> dict:
    expected = FIELD_VALUE * (access.option is not None)
    if count >= 0 and total != expected:
        raise Failed(f"{access.label}: the stepped read gave {total}, not {expected}")
    return {
        "round": number,
        "access": access.label,
        "option": access.option,
        "tls_model": access.tls_model,
        "loaded": access.loaded if access.option else None,
        "check": access.check if access.option else None,
        "read": read,
        "executed_instructions": count if count >= 0 else None,
        "reason": None
        if count >= 0
        else f"a copy of the process could not be stepped: ptrace answered {count}",
    }


EXPERIMENT = Experiment(
    name="option-access-count",
    question="How many instructions does a thread execute to read one field, the calls included?",
    serves="access cost of every option, in executed instructions, first use and later",
    columns=(
        Column("round", "int", "the repeat"),
        Column("access", "text", "the way of reading", choices=tuple(access.label for access in WAYS)),
        Column(
            "option", "text", "empty: nothing is read", nullable=True, choices=(*TLS_OPTIONS, "offset-size")
        ),
        Column("tls_model", "text", "how the area is found", nullable=True, choices=(*MODELS, *OFFSETS)),
        Column("loaded", "text", "when the area's library was loaded", nullable=True, choices=LOADED),
        Column("check", "text", "when the size is looked at", nullable=True, choices=CHECKS),
        Column("read", "text", "which read of a fresh thread", choices=tuple(READS)),
        Column("executed_instructions", "int", "between the marks, in user space", nullable=True),
        Column("reason", "text", "why it was not counted", nullable=True),
    ),
    key=("round", "access", "read"),
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 3, "full": 6},
    plan=plan,
    measure=measure,
)
