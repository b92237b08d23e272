"""From the tables of the cost experiments to one factor per option: what it costs against the plain choice.

Timed factors are judged by the rule of :mod:`rseqlab.lab.verdict`, with the same interval that is printed. An option
that a table has no row for is not measured, with the reason.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from rseqlab.lab import stats, verdict
from rseqlab.lab.stats import Interval
from rseqlab.options.schemes import ORIGINAL, SLICE, Scheme

Rows = Sequence[Mapping]

PLAIN_OPTION = "grow-symbol"
"""Reads one thread-local symbol of libc, at an offset that the loader fixes: nothing in between."""
NATURAL_WAY = {"offset-size": "offset-kept"}
EXTENDING = ("grow-symbol", "version-symbol", "offset-size")
"""The options that register more than 32 bytes once the struct has grown."""

CONTROLS = {
    "option-access-cost": (
        "offset-size offset-kept at-start none again",
        "offset-size offset-kept at-start none",
    ),
    "registration-cost": ("nothing-more-again", "nothing-more"),
    "context-switch-cost": ("none-none-again", "none-none"),
}
"""The A/A control of each cost experiment: a second instantiation of a way, and that way."""


@dataclass(frozen=True)
class Cost:
    """A factor against the plain choice, and the sentence that its numbers make. None: no such rows.

    ``judged`` says on which side of 1 the factor's interval lies; None where nothing is estimated.
    """

    factor: float | None
    sentence: str
    rows: tuple[tuple[str, ...], ...] = ()
    judged: verdict.Judgement | None = None


@dataclass(frozen=True)
class _Pair:
    """Two ways side by side: where each lies, and their ratio."""

    above: Interval
    below: Interval
    judged: verdict.Judgement

    @property
    def factor(self) -> float:
        return self.judged.effect.median

    @property
    def words(self) -> str:
        effect, shown = self.judged.effect, self.judged.verdict
        told = f" {verdict.NEITHER.capitalize()}." if shown == verdict.NEITHER else self.judged.note
        return f"{verdict.number(effect.median)} times, build by build {verdict.words(effect)}.{told}"


def cost(criterion: str, scheme: Scheme, rows: Rows) -> Cost:
    """One option's cost by the rule of its criterion."""
    return {"access": _access, "memory": _memory, "registration": _registration, "switch": _switch}[
        criterion
    ](scheme, rows)


def _paired(
    rows: Rows,
    value: str,
    top: Mapping,
    bottom: Mapping,
    control: tuple[Mapping, Mapping],
    alone: bool = False,
) -> _Pair | None:
    """The builds, processes and rounds that have both; None where there are none.

    ``control``: the A/A control's ways; ``alone``: as :func:`rseqlab.lab.stats.ratio` has it.
    """

    def chosen(wanted: Mapping) -> dict[tuple, float]:
        return {_place(row): row[value] for row in _with(rows, wanted) if row[value]}

    above, below = chosen(top), chosen(bottom)
    effect = _ratio(above, below, alone)
    if effect is None:
        return None
    again, first = map(chosen, control)
    judged = verdict.side(effect, _ratio(again, first, alone))
    return _Pair(_location(above), _location(below), judged)


def _place(row: Mapping) -> tuple[Hashable, Hashable, int]:
    """(build, process, round); rows of before there were builds have none, and name their process by their part."""
    build, process = row.get("build"), row.get("process")
    return build, row["part"] if process is None else (build, process), row["round"]


def _ratio(above: Mapping[tuple, float], below: Mapping[tuple, float], alone: bool) -> Interval | None:
    both = [place for place in above if place in below]
    if not both:
        return None
    return stats.ratio(
        [above[place] for place in both],
        [below[place] for place in both],
        [place[1] for place in both],
        [place[0] for place in both],
        alone=alone,
    )


def _location(values: Mapping[tuple, float]) -> Interval:
    processes, builds = ([place[level] for place in values] for level in (1, 0))
    return stats.interval(list(values.values()), processes, builds, log=True)


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
    # A way may be there twice, as an A/A control: the longer label says so.
    mine_label, plain_label = min(labels), min(plain)
    dependent = {"order": "dependent"}
    again, first = ({"access": name} | dependent for name in CONTROLS["option-access-cost"])
    rows_of = ((mine_label, "dependent"), (plain_label, "dependent"))
    if mine_label == plain_label:
        return Cost(1.0, f"It is the plain choice: {plain_label}.", rows_of[:1])
    found = _paired(
        rows,
        "ns_per_read",
        {"access": mine_label} | dependent,
        {"access": plain_label} | dependent,
        (again, first),
        alone=True,
    )
    if found is None:
        return Cost(None, "the run has no pair of batches for it")
    sentence = (
        f"A read that waits for the last one takes {found.above.median:.2f} ns by {mine_label} and "
        f"{found.below.median:.2f} ns by {plain_label}: {found.words}"
    )
    return Cost(found.factor, sentence, rows_of, found.judged)


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

    if length == ORIGINAL.bytes:
        return Cost(1.0, f"It registers {length} bytes, as before.", ((f"register-{length}", "round-trip"),))
    again, first = (
        {"way": name, "turn": "round-trip", "start": "none"} for name in CONTROLS["registration-cost"]
    )
    found = _paired(rows, "ns_per_turn", way(length), way(ORIGINAL.bytes), (again, first))
    if found is None:
        return Cost(None, f"registration-cost has no pairs for {length} bytes")
    sentence = (
        f"Registering and unregistering {length} bytes takes {found.above.median:.0f} ns, {ORIGINAL.bytes} bytes "
        f"{found.below.median:.0f} ns: {found.words}"
    )
    return Cost(found.factor, sentence, ((f"register-{length}", "round-trip"),), found.judged)


def _switch(scheme: Scheme, rows: Rows) -> Cost:
    """A round trip of two switches between two registered processes, against two without any area."""
    length = _length(scheme)

    def pair(name: str) -> dict:
        return {"pair": name, "between": "processes"}

    again, first = map(pair, CONTROLS["context-switch-cost"])
    found = _paired(rows, "ns_per_round_trip", pair(f"{length}-{length}"), pair("none-none"), (again, first))
    if found is None:
        return Cost(None, f"context-switch-cost has no pairs for {length} bytes")
    sentence = (
        f"Two switches take {found.above.median:.0f} ns where both sides registered {length} bytes, "
        f"{found.below.median:.0f} ns where none did: {found.words}"
    )
    rows_of = ((f"{length}-{length}", "processes"), ("none-none", "processes"))
    return Cost(found.factor, sentence, rows_of, found.judged)
