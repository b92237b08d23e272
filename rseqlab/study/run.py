"""The study that a notebook shows: for each experiment the newest rows of this machine, else shipped ones."""

import hashlib
import html
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import pandas as pd

from rseqlab import host
from rseqlab.errors import LabError, UsageError
from rseqlab.experiments import catalogue
from rseqlab.lab import runner
from rseqlab.lab.archive import bundles_in
from rseqlab.lab.bundle import Bundle, OldRows, digest
from rseqlab.lab.runner import runs_folder
from rseqlab.paths import project_root
from rseqlab.study.missing import Footnote, footnote
from rseqlab.study.selection import (
    FRONT,
    LOCAL,
    REFERENCE,
    Found,
    Selection,
    reference_runs,
    select,
)

__all__ = [
    "CHOSEN",
    "FRONT",
    "LOCAL",
    "MIXED",
    "REFERENCE",
    "SHIPPED",
    "NotMeasured",
    "StudyRun",
    "bundles_in",
    "open_ahead",
    "open_run",
    "reference_runs",
]

CHOSEN, MIXED = "chosen run", "local and shipped runs"

SHIPPED = "shipped"
"""In the place of a folder: the shipped runs alone, whatever was measured here."""

SHOWN_FACTS = {
    "kernel_release": "kernel",
    "arch": "architecture",
    "cpu_model": "CPU",
    "cpus_online": "CPUs online",
    "virtualisation": "virtualisation",
    "libc_package": "libc package",
    "libc": "libc",
    "at_rseq_feature_size_bytes": "AT_RSEQ_FEATURE_SIZE",
    "at_rseq_align_bytes": "AT_RSEQ_ALIGN",
    "rseq_libc_size": "__rseq_size",
    "rseq_registered_size": "registered bytes",
    "rseq_live_bytes": "live bytes",
    "distribution": "distribution",
    "native_compiler": "compiler",
}
"""The facts that stand at the top of a report, and what a reader calls them."""


class NotMeasured(LabError):
    """The run has no rows for this; the message is the recorded reason. Shows itself as such."""

    def __str__(self) -> str:
        return f"Not measured: {super().__str__()}"

    def _repr_html_(self) -> str:
        return f"<p class='rl-claim'><span class='rl-verdict rl-not-measured'>not measured</span> {html.escape(super().__str__())}</p>"


class _ShownTables(Mapping[str, list[dict]]):
    """Each shown experiment's rows, which its bundle reads when they are first asked for."""

    def __init__(self, bundles: Mapping[str, Bundle]):
        self._bundles = bundles

    def __getitem__(self, name: str) -> list[dict]:
        return self._bundles[name].tables[name]

    def __contains__(self, name: object) -> bool:
        return name in self._bundles

    def __iter__(self) -> Iterator[str]:
        return iter(self._bundles)

    def __len__(self) -> int:
        return len(self._bundles)


class Composed:
    """The shown rows of several runs, where one bundle is asked for. ``directory`` and the machine are the first's."""

    def __init__(self, selection: Selection, first: Found) -> None:
        bundles = selection.bundles
        self.directory = first.folder
        self.machine = bundles[first.folder].machine
        records = {
            name: selection.shown[name].run["experiments"][name]
            for name in catalogue()
            if name in selection.shown
        }
        self.run = dict(first.run) | {"experiments": records}
        self.tables = _ShownTables(
            {
                name: bundles[run.folder]
                for name, run in selection.shown.items()
                if name in bundles[run.folder].tables
            }
        )
        lines = (
            f"{name} {bundles[run.folder].digest}\n" for name, run in sorted(selection.shown.items(), key=str)
        )
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class StudyRun:
    """Checked rows, and where they come from. In Jupyter it shows what a notebook is about to read.

    Of one run, as --run names it, or composed of several: then ``source(experiment)`` is the one that has its rows.
    """

    bundle: Bundle | Composed
    origin: str
    notes: tuple[str, ...] = ()
    """What was passed over, and why: one sentence each."""

    sources: Mapping[str, "StudyRun"] = field(default_factory=dict, compare=False)
    """Experiment to the run of its rows; empty where this is one run."""

    skipped: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Experiment to the reason why it, or a part of it, could not be measured on this machine, or in this run."""

    older_full: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Experiment whose rows are of another profile to the folder's name of an older full run of this machine."""

    opened: str | None = None
    """What open_run was told: a folder, SHIPPED, or nothing."""

    @cached_property
    def _frames(self) -> dict[str, pd.DataFrame]:
        return {}

    @cached_property
    def kept(self) -> dict:
        """What was drawn from the tables already, by whoever drew it, under a key of its own: rows do not change."""
        return {}

    def table(self, name: str) -> pd.DataFrame:
        """An experiment's rows, as measured, from ``source(name)``. Raises NotMeasured with the recorded reason."""
        if (source := self.source(name)) is not self:
            return source.table(name)
        record = self.bundle.run["experiments"].get(name)
        if record is None:
            raise NotMeasured(self._why_not(name))
        if record["status"] not in ("pass",):
            raise NotMeasured(
                f"{name} ended with {record['status']}: {(record['reason'] or 'no reason recorded').rstrip('.')}."
            )
        if name not in self._frames:
            columns = [column.name for column in catalogue()[name].all_columns()]
            try:
                rows = self.bundle.tables[name]
            except OldRows:
                raise NotMeasured(
                    f"{name}: the rows of run {self.id} were measured by an older release, in which this experiment "
                    f"asked something else; measure it with: {measures([name])}"
                ) from None
            self._frames[name] = pd.DataFrame(rows, columns=columns)
        return self._frames[name]

    def _why_not(self, name: str) -> str:
        if not self.sources:
            return f"{name} is not part of this run."
        if name in self.skipped:
            return f"{name} could not be measured here: {self.skipped[name].rstrip('.')}."
        return f"{name} is not part of these runs; measure it with: {measures([name])}"

    def __getitem__(self, name: str) -> pd.DataFrame:
        """``run["cpu-id-read"]`` is ``run.table("cpu-id-read")``."""
        return self.table(name)

    def __iter__(self) -> Iterator[str]:
        """The experiments that have rows here."""
        return (name for name, record in self.bundle.run["experiments"].items() if record["rows"])

    def _ipython_key_completions_(self) -> list[str]:
        """What Tab offers after ``run["``."""
        return list(self)

    def source(self, name: str) -> "StudyRun":
        """The run whose rows of this experiment are shown."""
        return self.sources.get(name, self)

    @property
    def runs(self) -> list["StudyRun"]:
        """The runs that rows are shown of: this machine's before shipped ones, then by how much is shown of each."""
        found = {one.id: one for one in self.sources.values()} or {self.id: self}
        return sorted(found.values(), key=lambda one: (one.origin != LOCAL, -len(self.shown_of(one))))

    def shown_of(self, one: "StudyRun") -> list[str]:
        """The experiments of which this run's rows are shown."""
        return [name for name in self.bundle.run["experiments"] if self.source(name) is one]

    def of_group(self, group: str) -> "StudyRun":
        """What is shown of a group of experiments. Raises NotMeasured with the command that measures it."""
        known = catalogue()
        found = {
            name: self.source(name)
            for name in self.bundle.run["experiments"]
            if name in known and known[name].group == group
        }
        if not found:
            names = [name for name, one in known.items() if one.group == group]
            raise NotMeasured(f"There is no run of {group} here; measure one with: {measures(names)}")
        runs = {one.id: one for one in found.values()}
        return next(iter(runs.values())) if len(runs) == 1 else self

    @property
    def digest(self) -> str:
        """Names the content of all rows that are shown."""
        return self.bundle.digest

    @property
    def note(self) -> str | None:
        """All notes, or None."""
        return " ".join(self.notes) or None

    @property
    def facts(self) -> dict:
        """The machine's facts, by name: of the run that ``id`` begins with."""
        return self.bundle.machine["facts"]

    def facts_of(self, experiment: str) -> dict:
        """The facts of the machine that an experiment's rows were measured on."""
        return self.source(experiment).facts

    @property
    def id(self) -> str:
        """The run's id; of several, the first one's and how many more there are."""
        more = len({one.id for one in self.sources.values()}) - 1
        return self.bundle.run["run_id"] + (f" and {more} more" if more > 0 else "")

    @property
    def footnote(self) -> Footnote:
        """What could not be measured on this machine, or in this run, and why."""
        stand_ins = [
            name for name in self.skipped if name in self.sources and self.source(name).origin != LOCAL
        ]
        return footnote(self.skipped, stand_ins)

    def machine(self) -> dict[str, str]:
        """Label to value, in reading order; an unknown fact gives its reason."""
        reasons = self.bundle.machine["reasons"]
        known = {
            label: str(self.facts[name])
            if self.facts.get(name) is not None
            else f"unknown: {reasons.get(name, 'not recorded')}"
            for name, label in SHOWN_FACTS.items()
        }
        return known | {"CPU": host.cpu_title(self.facts)}

    def documents(self) -> list[dict]:
        """The runs as JSON: each with its origin, profile, end, digest and the experiments that it has here."""
        return [
            {
                "run_id": one.id,
                "origin": one.origin,
                "profile": one.bundle.run["profile"],
                "started": one.bundle.run["started"],
                "ended": one.bundle.run["ended"],
                "digest": one.digest,
                "cpu": host.cpu_title(one.facts),
                "experiments": self.shown_of(one),
            }
            for one in self.runs
        ]

    def _when(self) -> str:
        ended = self.bundle.run["ended"]
        at = ended or self.bundle.run["started"]
        text = f"{'measured' if ended else 'not finished, begun'} {at[:16].replace('T', ' ')} UTC"
        return (
            text if os.environ.get("RSEQLAB_PAGE") else f"{text} ({ago(at)})"
        )  # a page is read on another day

    def __repr__(self) -> str:
        if self.sources:
            return "\n".join([self._head(), *(f"  {line}" for line in self._lines()), *self._tail()])
        facts = self.machine()
        return (
            f"{self.origin} {self.id}, digest {self.digest[:12]}: {facts['CPU']}, Linux {facts['kernel']}, "
            f"{facts['libc']}, profile {self.bundle.run['profile']}, {self._when()}"
        )

    @property
    def whose(self) -> str:
        """In words, of how many experiments the rows are this machine's, and of how many shipped."""
        ours = sum(one.origin == LOCAL for one in self.sources.values())
        return {
            LOCAL: "every row was measured on this machine",
            REFERENCE: "no row was measured on this machine",
        }.get(
            self.origin,
            f"{ours} experiments have rows of this machine, {len(self.sources) - ours} have shipped rows",
        )

    def _head(self) -> str:
        return f"{self.origin[0].upper()}{self.origin[1:]}, digest {self.digest[:12]}: {self.whose}"

    def _lines(self) -> list[str]:
        """One line for each run that is shown."""
        return [f"{one!r}: {count(self.shown_of(one))}" for one in self.runs]

    def _tail(self) -> list[str]:
        by_run: dict[str, list[str]] = {}
        for name, folder in self.older_full.items():
            by_run.setdefault(folder, []).append(name)
        return [
            f"  newer than a full run: {count(names)} of {folder}; --run {runs_folder() / folder} shows that"
            for folder, names in by_run.items()
        ]

    def _repr_html_(self) -> str:
        label, rest = repr(self).partition("\n")[0].split(", ", 1)
        head = f"<strong>{html.escape(label)}</strong>, {html.escape(rest)}"
        if not self.sources:
            return f"<div class='rl-run'>{head}{self.footnote._repr_html_()}</div>"
        lines = "".join(
            f"<li>{html.escape(repr(one))}: <details><summary>{html.escape(_counted(self.shown_of(one)))}</summary> "
            f"{html.escape(', '.join(self.shown_of(one)))}</details></li>"
            for one in self.runs
        )
        more = "".join(f"<li>{html.escape(line.strip())}</li>" for line in (*self._tail(), *self.notes))
        return f"<div class='rl-run'>{head}<ul>{lines}{more}</ul>{self.footnote._repr_html_()}</div>"


def _counted(names: list[str]) -> str:
    return f"{len(names)} experiment{'s' * (len(names) != 1)}"


def count(names: list[str]) -> str:
    """How many, and their names where they are few.

    >>> count(["mm-cid"])
    '1 experiment (mm-cid)'
    """
    return f"{_counted(names)} ({', '.join(names)})" if len(names) <= 3 else _counted(names)


def ago(moment: str, now: datetime | None = None) -> str:
    """How long ago an ISO time was, in the largest unit that fits.

    >>> ago("2026-11-29T10:00:00Z", datetime(2026, 11, 29, 13, 30, tzinfo=UTC))
    '3 hours ago'
    """
    seconds = ((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds()
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if (number := int(seconds // size)) >= 1:
            return f"{number} {unit}{'s' * (number > 1)} ago"
    return "just now"


def measures(names: Iterable[str]) -> str:
    """The command that measures some experiments."""
    return f"rseqlab run {' '.join(names)}"


def _origin(folder: Path, run: Mapping) -> str:
    """Where a chosen run comes from; it is a local one only where it was measured on this machine."""
    parent = folder.resolve().parent
    if parent == (project_root() / "data" / "reference").resolve():
        return REFERENCE
    here = runner.identity({"facts": host.facts()[0]})
    return LOCAL if parent == runs_folder().resolve() and run["machine"] == here else CHOSEN


_AHEAD: dict[str, StudyRun] = {}
"""By what was asked for: what :func:`open_ahead` opened in this process, or in the one that it is a fork of."""


def open_ahead() -> StudyRun:
    """Open what $RSEQLAB_RUN says for the forks of this process: their open_run() need not check every row again."""
    _AHEAD[os.environ.get("RSEQLAB_RUN", "")] = found = open_run()
    for one in found.runs:
        one.bundle.read()  # every table: here once, and not in every fork
    return found


def open_run(folder: str | Path | None = None) -> StudyRun:
    """What a reader sees: the run in ``folder`` and nothing else; SHIPPED for the shipped runs; by default the study.

    Where no folder is given $RSEQLAB_RUN stands for it. The study has, for each experiment, the newest finished rows of
    this machine that are not stale, and shipped ones where there are none. Its ``notes`` say what was passed over.
    Raises BundleError where a named run is damaged: it is never silently replaced by another.
    """
    chosen = os.environ.get("RSEQLAB_RUN") or None if folder is None else str(folder)
    if chosen == "":
        raise UsageError(
            "The folder of the run is empty text; name one, or leave it out for the newest rows."
        )
    ahead = _AHEAD.get(chosen or "")
    if chosen is None or _is_shipped(chosen):
        # The forks of one process make one page: all of them show what that process opened.
        return (
            ahead
            if ahead and os.environ.get("RSEQLAB_PAGE")
            else _composed(select(local=chosen is None), chosen)
        )
    if ahead and ahead.bundle.digest == digest(Path(chosen)):
        return ahead
    bundle = Bundle(Path(chosen), catalogue())
    return StudyRun(bundle, _origin(Path(chosen), bundle.run), skipped=_skipped(bundle), opened=chosen)


def _is_shipped(chosen: str) -> bool:
    return chosen == SHIPPED and not Path(chosen).exists()


def _skipped(bundle: Bundle) -> dict[str, str]:
    return {
        name: record["reason"]
        for name, record in bundle.run["experiments"].items()
        if record["status"] in ("skip", "pass") and record["reason"]
    }


def _composed(selection: Selection, chosen: str | None) -> StudyRun:
    """The study of what was selected."""
    if not selection.shown:
        raise LabError(
            f"There is no run in {runs_folder()} and none is shipped; measure one with: rseqlab run"
            + "".join(f" {note}" for note in selection.notes)
        )
    single = {
        run.folder: StudyRun(selection.bundles[run.folder], run.origin) for run in selection.shown.values()
    }
    first = min(selection.shown.values(), key=_first)
    origins = {run.origin for run in selection.shown.values()}
    return StudyRun(
        Composed(selection, first),
        origins.pop() if len(origins) == 1 else MIXED,
        tuple(selection.notes),
        {name: single[run.folder] for name, run in selection.shown.items()},
        selection.skipped,
        {name: run.folder.name for name, run in selection.older_full.items()},
        chosen,
    )


def _first(run: Found) -> tuple:
    """Whose machine stands for the study's: the newest local run of the machine, else the shipped one of it."""
    newest = -datetime.fromisoformat(run.age[0]).timestamp()
    return run.run["group"] != "machine", run.origin != LOCAL, newest
