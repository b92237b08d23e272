"""The run that a notebook shows: the newest local one, or the shipped reference where there is none."""

import hashlib
import html
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from rseqlab.errors import LabError, UsageError
from rseqlab.experiments import catalogue
from rseqlab.host import cpu_title
from rseqlab.lab.archive import bundles_in, name_at
from rseqlab.lab.bundle import Bundle, BundleError, OldTable, digest, read_run
from rseqlab.lab.experiment import GROUPS, REGISTRATION
from rseqlab.lab.runner import project_root, runs_folder

LOCAL, REFERENCE, CHOSEN = "local run", "shipped reference run", "chosen run"

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


@dataclass(frozen=True)
class StudyRun:
    """A checked bundle, and where it comes from. In Jupyter it shows what a notebook is about to read."""

    bundle: Bundle
    origin: str
    note: str | None = None
    """Why this run and not a newer one."""

    others: Mapping[str, "StudyRun"] = field(default_factory=dict, compare=False)
    """Group to the run that answers for its experiments where this run has none of them."""

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
            raise NotMeasured(f"{name} is not part of this run.")
        if record["status"] not in ("pass",):
            raise NotMeasured(
                f"{name} ended with {record['status']}: {(record['reason'] or 'no reason recorded').rstrip('.')}."
            )
        if name not in self._frames:
            columns = [column.name for column in catalogue()[name].all_columns()]
            try:
                rows = self.bundle.tables[name]
            except OldTable as error:
                raise NotMeasured(f"{error}.") from None
            self._frames[name] = pd.DataFrame(rows, columns=columns)
        return self._frames[name]

    def __getitem__(self, name: str) -> pd.DataFrame:
        """``run["cpu-id-read"]`` is ``run.table("cpu-id-read")``."""
        return self.table(name)

    def __iter__(self) -> Iterator[str]:
        """The experiments that have rows here, or in the runs that answer for other groups."""
        for run in (self, *(one for _, one in sorted(self.others.items()))):
            for name, record in run.bundle.run["experiments"].items():
                if record["rows"] and (run is self or name not in self.bundle.run["experiments"]):
                    yield name

    def _ipython_key_completions_(self) -> list[str]:
        """What Tab offers after ``run["``."""
        return list(self)

    def source(self, name: str) -> "StudyRun":
        """The run whose rows of this experiment are shown: this one, or the one that is open for its group."""
        known = catalogue().get(name)
        if name in self.bundle.run["experiments"] or known is None:
            return self
        return self.others.get(known.group, self)

    def of_group(self, group: str) -> "StudyRun":
        """The run that answers for a group of experiments. Raises NotMeasured with the command that measures one."""
        if group == self.bundle.run["group"]:
            return self
        if group not in self.others:
            names = " ".join(name for name, one in catalogue().items() if one.group == group)
            raise NotMeasured(f"There is no run of {group} here; measure one with: rseqlab run {names}")
        return self.others[group]

    @property
    def digest(self) -> str:
        """Names the content of this run and of those that answer for other groups."""
        parts = [self.bundle.digest, *(one.bundle.digest for _, one in sorted(self.others.items()))]
        return parts[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def facts(self) -> dict:
        """The machine's facts, by name."""
        return self.bundle.machine["facts"]

    @property
    def id(self) -> str:
        return self.bundle.run["run_id"]

    def machine(self) -> dict[str, str]:
        """Label to value, in reading order; an unknown fact gives its reason."""
        reasons = self.bundle.machine["reasons"]
        known = {
            label: str(self.facts[name])
            if self.facts.get(name) is not None
            else f"unknown: {reasons.get(name, 'not recorded')}"
            for name, label in SHOWN_FACTS.items()
        }
        return known | {"CPU": cpu_title(self.facts)}

    def __repr__(self) -> str:
        facts = self.machine()
        return (
            f"{self.origin} {self.id}, digest {self.bundle.digest[:12]}: {facts['CPU']}, Linux {facts['kernel']}, "
            f"{facts['libc']}, profile {self.bundle.run['profile']}"
        )

    def _repr_html_(self) -> str:
        label, rest = repr(self).split(", ", 1)
        return f"<div class='rl-run'><strong>{html.escape(label)}</strong>, {html.escape(rest)}</div>"


def local_runs() -> list[tuple[Path, dict]]:
    """(folder, run.json) of finished local runs, newest first, by the time at which they ended."""
    found = []
    for path in bundles_in(runs_folder()):
        try:
            record = read_run(path)
        except BundleError:
            continue  # an unfinished or foreign folder is not a run to show; opening it by name says why
        if record["ended"]:
            found.append((path, record))
    return sorted(found, key=lambda run: run[1]["ended"], reverse=True)


FRONT = "front.txt"
"""Names the shipped runs that are opened where there are none of the reader's: a machine more must not change them."""


def reference_runs(group: str = "machine") -> list[Path]:
    """The runs of a group that are shipped in data/reference: in the order of their start, but the front page's last."""
    home = project_root() / "data" / "reference"
    front = (home / FRONT).read_text().split() if (home / FRONT).exists() else []
    found = [(read_run(path), path) for path in bundles_in(home)]
    found = [(run, folder) for run, folder in found if run["ended"]]  # one that is being measured is none yet
    found.sort(key=lambda one: (name_at(one[1]) in front, one[0]["started"]))
    return [folder for run, folder in found if run["group"] == group]


def _origin(folder: Path) -> str:
    parent = folder.resolve().parent
    if parent == (project_root() / "data" / "reference").resolve():
        return REFERENCE
    return LOCAL if parent == runs_folder().resolve() else CHOSEN


def _needs_rseq(name: str) -> bool:
    """Whether this experiment tells of this machine's rseq. What is counted under an emulator does not."""
    known = catalogue().get(name)
    return known is None or REGISTRATION in known.needs  # an unknown one is for Bundle to refuse


_AHEAD: dict[str, StudyRun] = {}
"""By folder: what :func:`open_ahead` opened in this process, or in the one that it is a fork of."""


def open_ahead() -> StudyRun:
    """Open the run of $RSEQLAB_RUN for the forks of this process: their open_run() need not check every row again."""
    chosen = os.environ["RSEQLAB_RUN"]
    _AHEAD[chosen] = open_run()
    for one in (_AHEAD[chosen], *_AHEAD[chosen].others.values()):
        one.bundle.check()  # reads every table: here once, and not in every fork
    return _AHEAD[chosen]


def open_run(folder: str | Path | None = None) -> StudyRun:
    """The run in ``folder``, or $RSEQLAB_RUN, or the newest local one, or the shipped reference.

    A local run in which nothing could be measured that needs rseq is passed over, and ``note`` says so. Raises
    BundleError where the run is damaged: it is never silently replaced by another. Its ``others`` are the newest
    runs of the other groups, local before shipped.
    """
    chosen = os.environ.get("RSEQLAB_RUN") or None if folder is None else folder
    if chosen == "":
        raise UsageError("The folder of the run is empty text; name one, or leave it out for the newest.")
    ahead = _AHEAD.get(str(chosen))
    if ahead and ahead.bundle.digest == digest(Path(chosen)):
        return ahead
    if chosen is not None:
        bundle = Bundle(Path(chosen), catalogue())
        origin, note = _origin(Path(chosen)), None
    else:
        bundle, origin, note = _newest_of_machine()
    others = {group: _newest_of(group) for group in GROUPS if group != bundle.run["group"]}
    return StudyRun(bundle, origin, note, {group: one for group, one in others.items() if one})


def _newest_of_machine() -> tuple[Bundle, str, str | None]:
    """The bundle to show, where it comes from, and why not a newer one."""
    note = None
    for newest, record in local_runs():
        if record["group"] != "machine":
            continue
        experiments = record["experiments"].items()
        if any(one["status"] == "pass" and _needs_rseq(name) for name, one in experiments):
            return Bundle(newest, catalogue()), LOCAL, note
        reasons = "; ".join(
            f"{name}: {one['status']}, {one['reason']}"
            for name, one in experiments
            if one["status"] != "pass"
        )
        note = (
            note
            or f"On this machine nothing could be measured that needs rseq (run {record['run_id']}). {reasons}"
        )
    for newest in reference_runs("machine")[-1:]:
        return Bundle(newest, catalogue()), REFERENCE, note
    raise LabError(f"There is no run in {runs_folder()} and none is shipped; measure one with: rseqlab run")


def _newest_of(group: str) -> StudyRun | None:
    """The newest run of a group in which something was measured; None where there is none."""
    for folder, record in local_runs():
        if record["group"] == group and any(
            one["status"] == "pass" for one in record["experiments"].values()
        ):
            return StudyRun(Bundle(folder, catalogue()), LOCAL)
    for folder in reference_runs(group)[-1:]:
        return StudyRun(Bundle(folder, catalogue()), REFERENCE)
    return None
