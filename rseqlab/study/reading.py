"""What a rule looked at while it judged: the run is watched as the rule reads it, so nothing is told twice.

``table[condition]`` and ``table.dropna(...)`` are how a rule chooses rows, ``table["column"]`` is how it looks at
one: both are noted. What a rule picks out of its chosen rows by ``.loc`` is a closer look, and no choice.
"""

import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from rseqlab.experiments import catalogue
from rseqlab.lab import stats
from rseqlab.study.levels import levels, origins
from rseqlab.study.run import StudyRun

MOST_ROWS = 12
"""So many lines of a summary are shown; how many there are besides is said."""
_NUMBERING = ("part", "build", "process", "round", "repeat", "boot")
"""Columns that number what was repeated: a summary goes over them."""
_FEW = 4
"""A number with at most so many values tells rows apart, as words do; one with more is summarised."""


class _Watched(pd.DataFrame):
    """Rows that note which columns are looked at, and what is chosen of them."""

    _metadata = ["choice"]  # noqa: RUF012

    @classmethod
    def of(cls, frame: pd.DataFrame, choice: "_Choice") -> "_Watched":
        """The same rows, watched."""
        watched = cls(frame)
        watched.choice = choice
        return watched

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if isinstance(key, str):
            self.choice.columns.add(key)
        elif isinstance(key, list):
            self.choice.columns.update(key)
        elif isinstance(found, pd.DataFrame):
            return _Watched.of(found, self.choice.narrowed(found))
        return found

    def dropna(self, *, subset=None, **options):
        """As pandas has it; which rows remain is noted."""
        found = super().dropna(subset=subset, **options)
        self.choice.columns.update(subset or ())
        return _Watched.of(found, self.choice.narrowed(found))


@dataclass(eq=False)
class _Choice:
    """Some rows of an experiment, and what was chosen of them in turn."""

    experiment: str
    frame: pd.DataFrame
    columns: set[str] = field(default_factory=set)
    narrower: list["_Choice"] = field(default_factory=list)

    def narrowed(self, frame: pd.DataFrame) -> "_Choice":
        """The choice of some of these rows; it was made by what was looked at here."""
        self.narrower.append(_Choice(self.experiment, frame, self.columns))
        return self.narrower[-1]

    def last(self) -> Iterable["_Choice"]:
        """The choices of which no further choice was made."""
        if not self.narrower:
            yield self
        for one in self.narrower:
            yield from one.last()


class _Facts(dict):
    """The machine's facts, which note those that are asked for."""

    def __init__(self, facts: dict) -> None:
        super().__init__(facts)
        self.asked: dict[str, object] = {}

    def get(self, key, default=None):
        self.asked[key] = super().get(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked[key] = super().get(key)
        return super().__getitem__(key)


@dataclass(frozen=True, eq=False)
class WatchedRun(StudyRun):
    """A run that notes what is read of it. It stands in for ``run`` while a rule judges."""

    run: StudyRun = field(kw_only=True)
    choices: list[_Choice] = field(default_factory=list)
    asked: dict[str, None] = field(default_factory=dict)
    """The experiments that were asked for, those without rows included, in order."""

    @classmethod
    def of(cls, run: StudyRun) -> "WatchedRun":
        """A watched twin of a run."""
        return cls(
            run.bundle, run.origin, run.notes, run.sources, run.skipped, run.older_full, run.opened, run=run
        )

    def table(self, name: str) -> pd.DataFrame:
        self.asked[name] = None
        frame = self.run.table(name)
        self.choices.append(_Choice(name, frame))
        return _Watched.of(frame, self.choices[-1])

    def source(self, name: str) -> StudyRun:
        return self.run.source(name)

    @cached_property
    def facts(self) -> _Facts:
        """The machine's facts, by name; which are asked for is noted."""
        return _Facts(self.run.facts)

    def facts_of(self, experiment: str) -> _Facts:
        """As above, of the machine of an experiment's rows."""
        watched = _Facts(self.run.facts_of(experiment))
        watched.asked = self.facts.asked
        return watched


def plain(run: StudyRun) -> StudyRun:
    """The run itself, where it may be watched: for what is computed once for all rules."""
    return run.run if isinstance(run, WatchedRun) else run


@dataclass(frozen=True)
class Rows:
    """The rows of one experiment that a rule looked at, summarised by the columns that it looked at."""

    experiment: str
    run_id: str
    file: str
    chosen: int
    of: int
    where: dict[str, str]
    """The columns that say the same in all of these rows."""
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    left_out: int = 0
    """Lines of the summary beyond MOST_ROWS."""

    @property
    def title(self) -> str:
        """How many rows of which file."""
        return f"{self.chosen:,} of {self.of:,} rows of {self.file}"

    @property
    def sentence(self) -> str:
        """Where they lie and what they have in common."""
        return f"{self.title} in run {self.run_id}{self._common}."

    @property
    def _common(self) -> str:
        where = f", where {', '.join(f'{name} is {value}' for name, value in self.where.items())}"
        rest = f". {self.left_out:,} more lines are left out" if self.left_out else ""
        return f"{where if self.where else ''}{rest}"

    def document(self) -> dict:
        """The rows as JSON."""
        return {
            "experiment": self.experiment,
            "run_id": self.run_id,
            "file": self.file,
            "rows": self.chosen,
            "of": self.of,
            "where": self.where,
            "columns": list(self.columns),
            "summary": [list(line) for line in self.lines],
            "left_out": self.left_out,
        }

    def __str__(self) -> str:
        table = [self.columns, *self.lines]
        widths = [max(len(line[place]) for line in table) for place in range(len(self.columns))]
        return "\n".join(
            [
                self.sentence,
                *(
                    "  "
                    + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
                    for line in table
                ),
            ]
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in line)}</tr>" for line in self.lines
        )
        # No caption: it would be as narrow as the table.
        return (
            f"<p>{html.escape(f'{self.file} of run {self.run_id}{self._common}.')}</p>"
            f"<table class='rl-table rl-rows' aria-label='{html.escape(self.title)}'>"
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


@dataclass(frozen=True)
class Reading:
    """What one rule read of a run, and how to measure that again."""

    rows: tuple[Rows, ...]
    facts: dict[str, str]
    """Facts of machine.json that the rule asked for."""
    commands: tuple[str, ...]

    @property
    def title(self) -> str:
        """What was looked at, in a few words; empty where nothing was."""
        return "; ".join([*(one.title for one in self.rows), *(["machine.json"] if self.facts else [])])

    def document(self) -> dict:
        """The reading as JSON."""
        return {
            "commands": list(self.commands),
            "rows": [one.document() for one in self.rows],
            "facts": self.facts,
        }

    @property
    def facts_sentence(self) -> str:
        """The facts with their values; empty where none was asked for."""
        told = ", ".join(f"{name} is {value}" for name, value in self.facts.items())
        return f"In machine.json {told}." if told else ""


NOTHING = Reading((), {}, ())


def reading(watched: WatchedRun, claim_id: str, experiment: str) -> Reading:
    """What was read of a watched run; ``experiment`` measures again where the rule asked for facts only."""
    last: dict[str, list[_Choice]] = {}
    for choice in watched.choices:
        last.setdefault(choice.experiment, []).extend(choice.last())
    rows = tuple(_rows(watched, name, choices) for name, choices in last.items())
    asked = watched.__dict__["facts"].asked if "facts" in watched.__dict__ else {}
    facts = {name: "unknown" if value is None else str(value) for name, value in asked.items()}
    names = list(watched.asked) or [experiment]
    return Reading(rows, facts, (*commands(watched, *names), f"rseqlab claims {claim_id}"))


def commands(run: StudyRun, *experiments: str) -> list[str]:
    """The command lines that measure experiments again, in the profile in which the run measured them."""
    by_command: dict[tuple[str, str], list[str]] = {}
    for name in dict.fromkeys(experiments):
        source = run.source(name)
        group = catalogue()[name].group
        by_command.setdefault((group, source.bundle.run["profile"]), []).append(name)
    found = []
    for (group, profile), names in by_command.items():
        if group == "kernels":
            found.append(
                f"rseqlab kernels run --profile {profile}{''.join(f' --only {one}' for one in names)}"
            )
            continue
        if group == "workloads":
            found.append("make workloads")
        found.append(f"rseqlab run --profile {profile} {' '.join(names)}")
    return found


def _rows(run: StudyRun, experiment: str, choices: list[_Choice]) -> Rows:
    """The rows that several choices of one experiment are of, each once."""
    all_rows = run.source(experiment).table(experiment)
    places = list(dict.fromkeys(place for choice in choices for place in choice.frame.index))
    looked = {name for choice in choices for name in choice.columns}
    chosen = all_rows.loc[places, [name for name in all_rows.columns if name in looked]]
    repeated = all_rows.loc[places]
    chosen = chosen.drop(columns=[name for name in _NUMBERING if name in chosen])
    measured = [name for name in chosen if _is_measured(chosen[name])]
    keys = [name for name in chosen if name not in measured]
    where = {
        name: _text(chosen[name].iloc[0])
        for name in keys
        if len(chosen) > 1 and chosen[name].nunique(dropna=False) == 1
    }
    apart = [name for name in keys if name not in where]
    groups = chosen.groupby(apart, dropna=False, sort=False) if apart else [((), chosen)]
    lines = tuple(
        (
            *map(_text, key),
            f"{len(group):,}",
            *(_summary(group[name], repeated) for name in measured),
        )
        for key, group in groups
    )
    return Rows(
        experiment,
        run.source(experiment).id,
        f"{experiment}.csv",
        len(places),
        len(all_rows),
        where,
        (*apart, "rows", *measured),
        lines[:MOST_ROWS],
        max(0, len(lines) - MOST_ROWS),
    )


def _is_measured(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not (
        pd.api.types.is_bool_dtype(values) or values.nunique() <= _FEW
    )


def _text(value: object) -> str:
    if value is None or value != value:
        return "none"
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return (
        f"{value:,.0f}"
        if float(value).is_integer()
        else f"{value:.3f}"
        if abs(value) < 10
        else f"{value:,.1f}"
    )


def _summary(values: pd.Series, rows: pd.DataFrame) -> str:
    """A count by its median and ends, a measured quantity by its location and that location's interval."""
    known = values.dropna()
    if known.empty:
        return "none"
    if (known % 1 == 0).all():
        ends = _number(known.min()), _number(known.max())
        return ends[0] if ends[0] == ends[1] else f"{_number(known.median())} ({ends[0]} to {ends[1]})"
    origin = origins(levels(rows.loc[known.index])) if "round" in rows else ()
    found = stats.interval(known.to_numpy(), *origin, log=bool(known.min() > 0))
    return f"{_number(found.median)} [{_number(found.low)} to {_number(found.high)}]"
