"""Which rows a reader sees: for each experiment the newest finished ones of this machine, else the shipped ones.

A run of one experiment never hides another run: each experiment is looked for by itself. Rows of another machine, rows
that other code made and damaged runs are passed over, and a note says so.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rseqlab import host
from rseqlab.experiments import catalogue
from rseqlab.lab import runner
from rseqlab.lab.archive import bundles_in, name_at
from rseqlab.lab.bundle import Bundle, BundleError, read_run
from rseqlab.lab.experiment import GROUPS, REGISTRATION
from rseqlab.lab.runner import runs_folder
from rseqlab.lab.stale import code_digest
from rseqlab.paths import project_root

LOCAL, REFERENCE = "local run", "shipped reference run"

FRONT = "front.txt"
"""Names the shipped runs that are opened where there are none of the reader's: a machine more must not change them."""

FEW = 3
"""So many names stand in a sentence; of more the rest is counted."""


def reference_runs(group: str = "machine") -> list[Path]:
    """The runs of a group that are shipped in data/reference: in the order of their start, but the front page's last."""
    home = project_root() / "data" / "reference"
    front = (home / FRONT).read_text().split() if (home / FRONT).exists() else []
    found = [(read_run(path), path) for path in bundles_in(home)]
    found = [(run, folder) for run, folder in found if run["ended"]]  # one that is being measured is none yet
    found.sort(key=lambda one: (name_at(one[1]) in front, one[0]["started"]))
    return [folder for run, folder in found if run["group"] == group]


def names(some: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    some = list(some)
    more = f" and {len(some) - FEW} more" if len(some) > FEW else ""
    return f"{', '.join(some[:FEW])}{more}"


@dataclass(frozen=True)
class Found:
    """A run that was looked at: where it lies, its run.json, and whether it is one of this machine."""

    folder: Path
    run: Mapping
    origin: str

    @property
    def id(self) -> str:
        return self.run["run_id"]

    @property
    def age(self) -> tuple[str, str]:
        """What a newer run has more of: by its end; one that did not end counts by its start."""
        return self.run["ended"] or self.run["started"], name_at(self.folder)


@dataclass
class Selection:
    """The rows to show, and what a reader must know of those that are not."""

    shown: dict[str, Found] = field(default_factory=dict)
    """Experiment to the run of its rows; also to a run in which it failed here, where no other has rows of it."""
    bundles: dict[Path, Bundle] = field(default_factory=dict)
    """By folder: the opened runs, each with the tables of its shown experiments."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Experiment to the reason why it, or a part of it, could not be measured on this machine."""
    stale: dict[str, Found] = field(default_factory=dict)
    """Experiment to the newest run of this machine that has rows of it, where all such rows are of other code."""
    older_full: dict[str, Found] = field(default_factory=dict)
    """Experiment whose newest rows are of another profile to an older run of the profile full that is not stale."""
    notes: list[str] = field(default_factory=list)

    def add_local(self, name: str, candidates: Iterable[Found]) -> None:
        """Choose among the runs of this machine, newest first, for one experiment."""
        failed = None
        for run in candidates:
            record = run.run["experiments"].get(name)
            if record is None or record["status"] is None:
                continue  # not part of it, or not ended
            if name in self.shown:
                if record["status"] == "pass" and run.run["profile"] == "full" and _is_fresh(name, record):
                    self.older_full[name] = run
                    break
            elif record["status"] == "skip":
                self.skipped.setdefault(name, record["reason"] or "no reason recorded")
            elif not _is_fresh(name, record):
                self.stale.setdefault(name, run)
            elif record["status"] == "pass":
                self._show(name, run, record)
                if run.run["profile"] == "full":
                    break
            else:
                failed = failed or run
        if failed and name not in self.shown:
            self.shown[name] = failed  # it is a result of this machine: no shipped rows take its place
        elif failed:
            record = failed.run["experiments"][name]
            self.notes.append(
                f"{name} ended with {record['status']} in run {failed.id}, newer than its rows that are shown: "
                f"{record['reason'] or 'no reason recorded'}"
            )

    def _show(self, name: str, run: Found, record: Mapping) -> None:
        self.shown[name] = run
        self.skipped.pop(name, None)
        self.stale.pop(name, None)
        if record["reason"]:
            self.skipped[name] = record["reason"]

    def add_shipped(self, run: Found) -> None:
        """Take a shipped run's rows of whatever has none yet."""
        for name, record in run.run["experiments"].items():
            if record["status"] == "pass" and name in catalogue():
                self.shown.setdefault(name, run)

    def open(self) -> tuple[Path, BundleError] | None:
        """Open what is shown; the first run that is damaged, with the reason, where one is."""
        by_folder: dict[Path, list[str]] = {}
        for name, run in self.shown.items():
            by_folder.setdefault(run.folder, []).append(name)
        for folder, wanted in by_folder.items():
            try:
                self.bundles[folder] = Bundle(folder, catalogue(), only=wanted, unfinished=True)
            except BundleError as error:
                return folder, error
        return None

    def of_stale(self) -> Iterable[str]:
        """One sentence on rows of this machine that other code made."""
        if self.stale:
            runs = dict.fromkeys(run.id for run in self.stale.values())
            yield (
                f"Rows of {len(self.stale)} experiment{'s' * (len(self.stale) > 1)} on this machine were made by other "
                f"code and are passed over (run {names(runs)}: {names(self.stale)}); `rseqlab run --resume` measures anew."
            )


def _is_fresh(name: str, record: Mapping) -> bool:
    return record["code_digest"] == code_digest(catalogue()[name])


@dataclass
class _Runs:
    """The runs that rows may be shown of, and notes on those that may not."""

    local: list[Found] = field(default_factory=list)
    """Of this machine, newest first."""
    shipped: list[Found] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def look_at_local(self) -> None:
        """All that lie in the folder of runs."""
        here = runner.identity({"facts": host.facts()[0]})
        others: dict[str, set[str]] = {}
        for folder in bundles_in(runs_folder()):
            try:
                found = Found(folder, read_run(folder), LOCAL)
            except BundleError as error:
                self._pass_over(folder, error)
                continue
            there = found.run["machine"]
            if differ := {name for name in {*there, *here} if there.get(name) != here.get(name)}:
                others[name_at(folder)] = differ
            else:
                self.local.append(found)
        self.local.sort(key=lambda one: one.age, reverse=True)
        if others:
            self.notes.append(_of_others(others))

    def look_at_shipped(self) -> None:
        """The front page's of each group first.

        Other runs of guests and of programs have the rows that it lacks. Of the machine only one run is shown: times of
        two machines do not belong beside each other.
        """
        for group in GROUPS:
            found = reference_runs(group)[::-1]
            shown = found[:1] if group == "machine" else found
            self.shipped += [Found(path, read_run(path), REFERENCE) for path in shown]

    def drop(self, folder: Path, error: BundleError) -> None:
        """Show nothing of this run; a note says why."""
        self.local = [one for one in self.local if one.folder != folder]
        self.shipped = [one for one in self.shipped if one.folder != folder]
        self._pass_over(folder, error)

    def _pass_over(self, folder: Path, error: BundleError) -> None:
        self.notes.append(f"The run in {name_at(folder)} is passed over: {error}")

    def of_rseq(self) -> Iterable[str]:
        """A sentence where rseq was tried on this machine, and nothing could be measured that needs it."""
        needs = {name for name, one in catalogue().items() if REGISTRATION in one.needs}
        tried = [
            (record, run.id)
            for run in self.local
            for name, record in run.run["experiments"].items()
            if name in needs and record["status"]
        ]
        if tried and not any(record["status"] == "pass" for record, _ in tried):
            record, run_id = tried[0]
            yield (
                f"On this machine nothing could be measured that needs rseq (run {run_id}): "
                f"{record['status']}, {record['reason']}"
            )


def _of_others(differ: Mapping[str, set[str]]) -> str:
    what = "1 run in" if len(differ) == 1 else f"{len(differ)} runs in"
    return (
        f"{what} {runs_folder().name}/ passed over, as measured on another machine or under other conditions "
        f"({names(sorted(set().union(*differ.values())))} differ): {names(differ)}. `--run DIR` shows one."
    )


def select(local: bool = True) -> Selection:
    """What is shown; with ``local`` false, of the shipped runs alone."""
    runs = _Runs()
    if local:
        runs.look_at_local()
    runs.look_at_shipped()
    while True:
        found = Selection()
        for name in catalogue():
            found.add_local(name, runs.local)
        for one in runs.shipped:
            found.add_shipped(one)
        damaged = found.open()
        if damaged is None:
            break
        runs.drop(*damaged)
    found.notes = [*runs.of_rseq(), *runs.notes, *found.of_stale(), *found.notes]
    return found
