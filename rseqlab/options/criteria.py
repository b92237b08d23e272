"""What an option must survive, and what it costs: each criterion with the rows that answer it and the rule.

A rule looks at one row and says what it is worth; :mod:`rseqlab.options.matrix` puts the rows together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rseqlab.options.scenes import NOT_BUILT, REFUSED_TO_BUILD

SILENT, CRASH, REFUSED, WITHOUT = "silent", "crash", "refused", "without"
"""How it breaks, worst first: nobody notices, a process dies, somebody is told no. And how it works:
without the new field, as its user was told."""


@dataclass(frozen=True)
class Criterion:
    """One row of the matrix. ``cost`` where the answer is a factor and not an outcome."""

    id: str
    label: str
    question: str
    experiment: str
    cost: bool = False


CRITERIA = (
    Criterion(
        "old-consumer",
        "old library, new libc",
        "Does a library built for the original struct work with a libc that has a later one?",
        "option-skew",
    ),
    Criterion(
        "new-consumer",
        "new library, old libc",
        "Does a library built for a later struct see that this libc has only the original?",
        "option-skew",
    ),
)
CRITERION = {criterion.id: criterion for criterion in CRITERIA}


@dataclass(frozen=True)
class Outcome:
    """What one row is worth: ``good`` is None where the scene could not be built."""

    good: bool | None
    manner: str | None
    why: str


def outcome(row: Mapping) -> Outcome:
    """The rule for a scene: every party reads what is there, and nobody writes where nothing is."""
    ended, said = row["ended"], row["said"]
    if ended == NOT_BUILT:
        return Outcome(None, None, f"could not be built: {said}")
    if ended == REFUSED_TO_BUILD:
        return Outcome(False, REFUSED, f"the compiler or linker refuses: {said}")
    if ended == "hung":
        return Outcome(False, CRASH, "the program hangs")
    if ended.startswith("SIG"):
        return Outcome(False, CRASH, f"the program dies of {ended}")
    if ended != "exit 0":
        return Outcome(
            False, REFUSED, f"the loader refuses: {said}" if said else f"the program ends with {ended}"
        )
    if row["overwritten_bytes"]:
        return Outcome(
            False,
            SILENT,
            f"{row['overwritten_by']} overwrites {row['overwritten_bytes']} bytes that are not the area's "
            f"({row['overwritten_at']})",
        )
    if row["wrong"]:
        return Outcome(False, SILENT, f"{row['wrong']} of {row['parties']} consumers believe a wrong value")
    if row["registered"] not in (None, "accepted"):
        return Outcome(False, REFUSED, f"the kernel answers {row['registered']} to the registration")
    if row["refused"]:
        return Outcome(
            False, REFUSED, f"{row['refused']} of {row['parties']} consumers get no registered area"
        )
    if row["live"] + row["unaware"] < row["parties"]:
        return Outcome(False, REFUSED, "a consumer never got to read")
    if row["unaware"]:
        return Outcome(True, WITHOUT, "the consumer knows that it must do without the new field")
    return Outcome(True, None, "every read is right")
