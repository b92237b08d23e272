"""From the tables of the cost experiments to one factor per option: what it costs against the plain choice.

Each factor is the median over pairs of the same process and round; the report's cost tables have the
intervals. An option that a table has no row for is not measured, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import median

from rseqlab.options.schemes import ORIGINAL, SLICE, Scheme

Rows = Sequence[Mapping]

PLAIN_OPTION = "grow-symbol"
"""Reads one thread-local symbol of libc, at an offset that the loader fixes: nothing in between."""
NATURAL_WAY = {"offset-size": "offset-kept"}
EXTENDING = ("grow-symbol", "version-symbol", "offset-size")
"""The options that register more than 32 bytes once the struct has grown."""


@dataclass(frozen=True)
class Cost:
    """A factor against the plain choice, and the sentence that its numbers make. None: no such rows."""

    factor: float | None
    sentence: str
    rows: tuple[tuple[str, ...], ...] = ()


def cost(criterion: str, scheme: Scheme, rows: Rows) -> Cost:
    """One option's cost by the rule of its criterion."""
    return {"access": _access, "memory": _memory, "registration": _registration, "switch": _switch}[
        criterion
    ](scheme, rows)


def _paired(rows: Rows, value: str, top: Mapping, bottom: Mapping) -> tuple[float, float, float, int] | None:
    """(ratio, numerator, denominator, pairs): medians over the rounds that have both."""

    def chosen(wanted: Mapping) -> dict[tuple, float]:
        return {(row["part"], row["round"]): row[value] for row in _with(rows, wanted) if row[value]}

    above, below = chosen(top), chosen(bottom)
    both = [key for key in above if key in below]
    if not both:
        return None
    return (
        median(above[key] / below[key] for key in both),
        median(above[key] for key in both),
        median(below[key] for key in both),
        len(both),
    )


def _with(rows: Rows, wanted: Mapping) -> list[Mapping]:
    """The rows that have these values; there are thousands, so all of a row's are compared at once."""
    names, values = itemgetter(*wanted), tuple(wanted.values())
    return [row for row in rows if names(row) == values]


def _access(scheme: Scheme, rows: Rows) -> Cost:
    """A dependent read, by the way that a library of that option takes, against a plain thread-local symbol."""

    def way(option: str) -> dict:
        model = NATURAL_WAY.get(option, "initial-exec")
        label = {"option": option, "tls_model": model, "loaded": "at-start", "check": "none"}
        return label | {"order": "dependent"}

    labels = [row["access"] for row in _with(rows, way(scheme.id))]
    plain = [row["access"] for row in _with(rows, way(PLAIN_OPTION))]
    if not labels or not plain:
        return Cost(None, f"option-access-cost has no dependent read for {scheme.id}")
    # A way may be there twice, as a null of itself: the longer label says so.
    mine_label, plain_label = min(labels), min(plain)
    found = _paired(
        rows,
        "ns_per_read",
        {"access": mine_label, "order": "dependent"},
        {"access": plain_label, "order": "dependent"},
    )
    if found is None:
        return Cost(None, "the run has no pair of batches for it")
    factor, mine, theirs, pairs = found
    sentence = (
        f"A read that waits for the last one takes {mine:.2f} ns by {mine_label} and {theirs:.2f} ns by {plain_label}: "
        f"{factor:.2f} times, median of {pairs} pairs."
    )
    return Cost(factor, sentence, ((mine_label, "dependent"), (plain_label, "dependent")))


def _memory(scheme: Scheme, rows: Rows) -> Cost:
    """Bytes of the areas that each thread holds, with the struct grown as little as the table has it."""
    computed = [row for row in rows if row["kind"] == "computed" and row["bytes_per_thread"]]
    mine = [row for row in computed if row["option"] == scheme.id]
    if not mine:
        return Cost(None, f"thread-memory has no computed row for {scheme.id}")
    size = min((row["extended_bytes"] or 0 for row in mine), default=0)
    chosen = next(row for row in mine if (row["extended_bytes"] or 0) == size)
    least = min(row["bytes_per_thread"] for row in computed if row["option"])
    factor = chosen["bytes_per_thread"] / least
    grown = f"with the struct grown to {size} bytes" if size else "the struct not grown"
    sentence = f"Each thread holds {chosen['bytes_per_thread']:.0f} bytes of areas, {grown}; the least is {least:.0f}."
    return Cost(factor, sentence, ((chosen["layout"], str(chosen["threads"])),))


def _length(scheme: Scheme) -> int:
    return SLICE.bytes if scheme.id in EXTENDING else ORIGINAL.bytes


def _registration(scheme: Scheme, rows: Rows) -> Cost:
    """Registering the length that the option registers once the struct has grown, against 32 bytes."""
    length = _length(scheme)

    def way(bytes_: int) -> dict:
        return {"way": f"register-{bytes_}", "turn": "round-trip", "start": "none"}

    found = _paired(rows, "ns_per_turn", way(length), way(ORIGINAL.bytes))
    if found is None:
        return Cost(None, f"registration-cost has no pairs for {length} bytes")
    factor, mine, theirs, pairs = found
    sentence = (
        f"Registering and unregistering {length} bytes takes {mine:.0f} ns, {ORIGINAL.bytes} bytes {theirs:.0f} ns: "
        f"{factor:.2f} times, median of {pairs} pairs."
    )
    return Cost(factor, sentence, ((f"register-{length}", "round-trip"),))


def _switch(scheme: Scheme, rows: Rows) -> Cost:
    """A round trip of two switches between two registered processes, against two without any area."""
    length = _length(scheme)
    found = _paired(
        rows,
        "ns_per_round_trip",
        {"pair": f"{length}-{length}", "between": "processes"},
        {"pair": "none-none", "between": "processes"},
    )
    if found is None:
        return Cost(None, f"context-switch-cost has no pairs for {length} bytes")
    factor, mine, theirs, pairs = found
    sentence = (
        f"Two switches take {mine:.0f} ns where both sides registered {length} bytes, {theirs:.0f} ns where none did: "
        f"{factor:.2f} times, median of {pairs} pairs."
    )
    return Cost(factor, sentence, ((f"{length}-{length}", "processes"), ("none-none", "processes")))
