"""The matrix: option x criterion, every cell the outcome of executed scenes with its rows behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rseqlab.lab import verdict
from rseqlab.lab.verdict import Judgement
from rseqlab.options.costs import cost
from rseqlab.options.criteria import (
    CRASH,
    CRITERIA,
    CRITERION,
    REFUSED,
    SILENT,
    WITHOUT,
    Criterion,
    Outcome,
    outcome,
)
from rseqlab.options.schemes import SCHEME, SCHEMES, Scheme

WORKS, BREAKS, COSTS, NOT_MEASURED = "works", "breaks", "costs", "not measured"
LEGEND = (
    "works; works-: without the new field, and its user knows. Breaks, in so many of its scenes: SILENT: nobody "
    "is told of a wrong value or of overwritten memory; CRASH: a process dies or hangs; refused: somebody is told "
    "no. 1.50x: what it costs against the plain choice; 1.50x=: no difference is shown; 1.50x?: too few builds or no A/A "
    "control for a verdict. (...): no kernel ever did it, its part is played. "
    "?: not measured."
)
COST_MARKS = {verdict.NEITHER: "=", verdict.NO_VERDICT: "?"}
COST_WORDS = {name: f", {name}" for name in COST_MARKS}
WORST_FIRST = (SILENT, CRASH, REFUSED)


@dataclass(frozen=True)
class Cell:
    """One outcome. ``rows`` are the keys of the rows behind it; ``bad`` of them break."""

    option: str
    criterion: str
    outcome: str
    experiment: str
    sentence: str
    emulated: bool = False
    manner: str | None = None
    factor: float | None = None
    judged: Judgement | None = None
    """On which side of 1 the factor's interval lies; None where nothing is estimated."""
    rows: tuple[tuple[str, ...], ...] = ()
    bad: int = 0

    @property
    def side(self) -> str:
        """On which side of 1 a factor lies, as the rule of verdicts says; empty where nothing is estimated."""
        return self.judged.verdict if self.judged else ""

    @property
    def label(self) -> str:
        """The outcome in two or three words."""
        if self.outcome == NOT_MEASURED:
            return NOT_MEASURED
        if self.outcome == COSTS:
            words = f"costs {self.factor:.2f}x{COST_WORDS.get(self.side, '')}"
        elif self.outcome == BREAKS:
            part = f" {self.bad}/{len(self.rows)}" if self.bad < len(self.rows) else ""
            words = f"breaks{part}: {self.manner}"
        else:
            words = "works, without" if self.manner == WITHOUT else "works"
        return f"emulated: {words}" if self.emulated else words

    @property
    def short(self) -> str:
        """The outcome where there is little room; :data:`LEGEND` says what it means."""
        if self.outcome == NOT_MEASURED:
            return "?"
        if self.outcome == COSTS:
            return f"{self.factor:.2f}x{COST_MARKS.get(self.side, '')}"
        if self.outcome == WORKS:
            word = "works-" if self.manner == WITHOUT else "works"
        else:
            word = REFUSED if self.manner == REFUSED else str(self.manner).upper()
            word += f" {self.bad}/{len(self.rows)}" if self.bad < len(self.rows) else ""
        return f"({word})" if self.emulated else word

    def document(self) -> dict:
        """The cell as JSON."""
        return {
            "option": self.option,
            "criterion": self.criterion,
            "outcome": self.outcome,
            "label": self.label,
            "short": self.short,
            "emulated": self.emulated,
            "manner": self.manner,
            "factor": self.factor,
            "low": self.judged and self.judged.effect.low,
            "high": self.judged and self.judged.effect.high,
            "verdict": self.side or None,
            "experiment": self.experiment,
            "rows": [list(key) for key in self.rows],
            "bad_rows": self.bad,
            "sentence": self.sentence,
        }


Tables = Mapping[str, Sequence[Mapping]]


def cells(tables: Tables, missing: Mapping[str, str]) -> list[Cell]:
    """Every cell, by criterion, then option. ``missing`` says why an experiment has no table in this run."""
    return [cell(scheme, criterion, tables, missing) for criterion in CRITERIA for scheme in SCHEMES]


def cell(scheme: Scheme, criterion: Criterion, tables: Tables, missing: Mapping[str, str]) -> Cell:
    """One cell from a run's tables."""
    place = (scheme.id, criterion.id)
    if criterion.experiment not in tables:
        why = missing.get(criterion.experiment, f"{criterion.experiment} is not part of this run")
        return Cell(*place, NOT_MEASURED, criterion.experiment, why)
    if criterion.cost:
        found = cost(criterion.id, scheme, tables[criterion.experiment])
        outcome_ = NOT_MEASURED if found.factor is None else COSTS
        # What registers a legacy length is the real kernel's cost, whatever would be played later.
        return Cell(
            *place,
            outcome_,
            criterion.experiment,
            found.sentence,
            factor=found.factor,
            judged=found.judged,
            rows=found.rows,
        )
    rows = [
        row
        for row in tables[criterion.experiment]
        if row["option"] == scheme.id and row["criterion"] == criterion.id
    ]
    if criterion.id == "checker" and rows:
        return _checker(place, criterion, rows, tables, missing)
    return _scenes(place, criterion, rows)


def _checker(
    place: tuple[str, str],
    criterion: Criterion,
    rows: list[Mapping],
    tables: Tables,
    missing: Mapping[str, str],
) -> Cell:
    """Whether a tool that runs nothing warns exactly where old binaries come to harm."""
    real = [
        cell(SCHEME[place[0]], CRITERION[name], tables, missing)
        for name in ("old-consumer", "interpose-program")
    ]
    keys = tuple(_key(row) for row in rows)
    if unknown := [one for one in real if one.outcome == NOT_MEASURED]:
        return Cell(*place, NOT_MEASURED, criterion.experiment, unknown[0].sentence, rows=keys)
    reported = [row for row in rows if row["found_count"]]
    warned = sorted({row["found"] for row in reported})
    harmed = [one.criterion for one in real if one.outcome == BREAKS and one.manner in (SILENT, CRASH)]
    says = (
        f"abidiff reports {' and '.join(warned)} in {len(reported)} of {len(rows)} pairs of files"
        if warned
        else f"abidiff reports no change in any of {len(rows)} pairs of files"
    )
    happens = f"old binaries come to harm ({', '.join(harmed)})" if harmed else "no old binary comes to harm"
    sentence = f"{says}; {happens}."
    if bool(warned) == bool(harmed):
        return Cell(*place, WORKS, criterion.experiment, sentence, rows=keys)
    manner = SILENT if harmed else REFUSED
    return Cell(*place, BREAKS, criterion.experiment, sentence, manner=manner, rows=keys, bad=len(rows))


def _key(row: Mapping) -> tuple[str, ...]:
    return (row["part"], row["option"], row["criterion"], row["case"])


def _scenes(place: tuple[str, str], criterion: Criterion, rows: list[Mapping]) -> Cell:
    """Works where every scene works; breaks in the worst manner of those that break."""
    if not rows:
        why = f"{criterion.experiment} has no scene for this option"
        return Cell(*place, NOT_MEASURED, criterion.experiment, why)
    found = [(row, outcome(row)) for row in rows]
    if unbuilt := [(row, one) for row, one in found if one.good is None]:
        return Cell(*place, NOT_MEASURED, criterion.experiment, _tell(unbuilt, len(rows)))
    keys = tuple(_key(row) for row in rows)
    emulated = any(row["kernel"] == "played" for row in rows)
    bad = [(row, one) for row, one in found if not one.good]
    manners = {one.manner for _, one in (bad or found)}
    if bad:
        manner = next(manner for manner in WORST_FIRST if manner in manners)
        return Cell(
            *place,
            BREAKS,
            criterion.experiment,
            _tell(bad, len(rows)),
            emulated,
            manner,
            rows=keys,
            bad=len(bad),
        )
    how = WITHOUT if WITHOUT in manners else None
    return Cell(*place, WORKS, criterion.experiment, _tell(found, len(rows)), emulated, how, rows=keys)


def _tell(found: list[tuple[Mapping, Outcome]], all_: int) -> str:
    """The scenes by what happened in them, most frequent first."""
    by_reason: dict[str, list[str]] = {}
    for row, one in found:
        by_reason.setdefault(one.why, []).append(row["case"])
    if len(by_reason) == 1 and all(one.good for _, one in found):
        (why,) = by_reason
        return f"All {all_} scenes: {why}." if all_ > 1 else f"{why[0].upper()}{why[1:]}."
    parts = [
        f"{len(names)} of {all_} scenes: {why} ({'; '.join(names[:3])}{'; ...' if len(names) > 3 else ''})"
        for why, names in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    return ". ".join(parts) + "."
