"""Runs side by side: machines, kernels, or two runs of one machine. What agrees, and what does not.

An effect of two runs agrees where their intervals overlap; a verdict agrees where it is the same, or where one of the
two gives none. Of n runs each is compared with the first.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import matplotlib as mpl
import nbformat
import pandas as pd
from matplotlib.figure import Figure as Canvas

from rseqlab.errors import UsageError
from rseqlab.experiments import catalogue
from rseqlab.host import cpu_title
from rseqlab.lab import verdict
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.exchange import members
from rseqlab.options.matrix import NOT_MEASURED as NOT_PLAYED
from rseqlab.study import kernels
from rseqlab.study.claims import FAILS, HOLDS, NOT_MEASURED, Verdicts, judge
from rseqlab.study.figures import BLUE, GREEN, ORANGE, PINK, SKY, STYLE, Figure, _finish
from rseqlab.study.hardware import hardware
from rseqlab.study.matrix import matrix_of
from rseqlab.study.report import Identity
from rseqlab.study.run import CHOSEN, NotMeasured, StudyRun
from rseqlab.study.stability import letters_of
from rseqlab.study.tables import Sentences, Table

MARKS = (("o", BLUE), ("s", ORANGE), ("^", GREEN), ("D", PINK), ("v", SKY))
FACTOR = (0.2, 20)
"""Effects further away than this would press all the others into one line; the table has them."""

SIDE_BY_SIDE = len(MARKS)
"""Of more runs than this, tables have the runs that say the same in one cell, and figures tell the first from the others."""


def open_runs(folders: list[Path]) -> list[StudyRun]:
    """The runs in the folders, and those of studies among them. Raises UsageError where there are not two."""
    found = [StudyRun(Bundle(path, catalogue()), CHOSEN) for folder in folders for path in members(folder)]
    found = list({run.bundle.digest: run for run in found}.values())
    if len(found) < 2:
        raise UsageError(
            f"--compare was given {len(found)} run(s) in {', '.join(map(str, folders))}; it needs two or more, or a "
            "study that `rseqlab bundle merge` made."
        )
    return found


def grouped(words: dict[str, str]) -> str:
    """What the letters say, each thing once, the most frequent first: ``holds: A, C; fails: B``."""
    by_word: dict[str, list[str]] = {}
    for letter, word in words.items():
        by_word.setdefault(word, []).append(letter)
    found = sorted(by_word.items(), key=lambda one: -len(one[1]))
    return "; ".join(f"{word}: {', '.join(letters)}" for word, letters in found)


def _facts(run: StudyRun) -> dict[str, str]:
    """The facts of a run's machine, and of the kernels that it booted."""
    facts = run.machine() | {"digest": run.bundle.digest[:12]}
    try:
        return facts | {"kernels in guests": kernels.guests(run)}
    except NotMeasured:
        return facts | {"kernels in guests": "none"}


@dataclass(frozen=True)
class Comparison:
    """Some runs, the first of which is the one that the others are compared with."""

    runs: list[StudyRun]

    @cached_property
    def names(self) -> list[str]:
        """A letter and what tells each run from the others."""
        return [
            f"{letter}: {cpu_title(run.facts)}, Linux {run.facts['kernel_release']}, "
            f"{run.facts['libc']}, {run.id}"
            for letter, run in zip(self.letters, self.runs, strict=True)
        ]

    @cached_property
    def letters(self) -> list[str]:
        return [letters_of(place) for place in range(len(self.runs))]

    @property
    def many(self) -> bool:
        """Whether there are more runs than stand side by side."""
        return len(self.runs) > SIDE_BY_SIDE

    @cached_property
    def judged(self) -> list[Verdicts]:
        """The ledger of each run, in one order."""
        return [judge(run) for run in self.runs]

    def machines(self) -> Table:
        """The facts of each machine; those that differ come first, and of many machines alone."""
        facts = [_facts(run) | hardware(run) for run in self.runs]
        labels = list(dict.fromkeys(label for one in facts for label in one))
        facts = [{label: one.get(label, "not recorded") for label in labels} for one in facts]
        if self.many:
            differ = [label for label in facts[0] if len({str(one[label]) for one in facts}) > 1]
            rows = [
                {"": letter, **{label: one[label] for label in differ}}
                for letter, one in zip(self.letters, facts, strict=True)
            ]
            same = "; ".join(f"{label} {facts[0][label]}" for label in facts[0] if label not in differ)
            return Table(pd.DataFrame(rows), f"The machines, by what differs. The same on all: {same}")
        rows = [
            {"": label, **{letter: one[label] for letter, one in zip(self.letters, facts, strict=True)}}
            for label in facts[0]
        ]
        rows.sort(key=lambda row: len({row[letter] for letter in self.letters}) == 1)
        return Table(pd.DataFrame(rows), "The machines, what differs first")

    @cached_property
    def effects(self) -> pd.DataFrame:
        """One row per claim: each run's verdict and effect, and whether they agree."""
        rows = []
        for alike in zip(*self.judged, strict=True):
            row = {"claim": alike[0].claim.id, "sentence": alike[0].claim.sentence}
            for letter, one in zip(self.letters, alike, strict=True):
                effect = one.finding.effect
                row[f"verdict {letter}"] = one.finding.verdict
                row[f"effect {letter}"] = (
                    f"{verdict.number(effect.median)} {verdict.ends(effect)}" if effect else ""
                )
            first, others = alike[0].finding, [one.finding for one in alike[1:]]
            row["verdicts"] = (
                "agree" if all({first.verdict, one.verdict} != {HOLDS, FAILS} for one in others) else "differ"
            )
            with_effect = [one.effect for one in others if one.effect and first.effect]
            overlap = [first.effect.low <= one.high and one.low <= first.effect.high for one in with_effect]
            row["effects"] = ("agree" if all(overlap) else "differ") if overlap else ""
            rows.append(row)
        return pd.DataFrame(rows)

    def claims(self) -> Table:
        """Every claim that a run measured on every run, with what differs first."""
        verdicts = self.effects[[f"verdict {letter}" for letter in self.letters]]
        shown = self.effects[(verdicts != NOT_MEASURED).any(axis=1)].sort_values(
            ["verdicts", "effects"], key=lambda column: column != "differ", kind="stable"
        )
        if self.many:
            shown = pd.DataFrame([self._claim_of_many(row) for row in shown.to_dict("records")])
        return Table(
            shown,
            "Each claim on each run: verdict, effect with its 95 % interval, and whether they agree. "
            f"{len(self.effects) - len(shown)} claims were measured on none of them and are left out",
        )

    def _claim_of_many(self, row: dict) -> dict:
        """A row of :attr:`effects` in a bearable width: who has which verdict, and from where to where effects go."""
        found = self._effects_of[row["claim"]]
        low, high = min(found, key=found.get, default=None), max(found, key=found.get, default=None)
        reach = (
            f"{verdict.number(found[low])} ({low}) to {verdict.number(found[high])} ({high})" if found else ""
        )
        return {
            "claim": row["claim"],
            "sentence": row["sentence"],
            "verdict by run": grouped({letter: row[f"verdict {letter}"] for letter in self.letters}),
            f"effect {self.letters[0]}": row[f"effect {self.letters[0]}"],
            "lowest and highest effect": reach,
            "verdicts": row["verdicts"],
            "effects": row["effects"],
        }

    @cached_property
    def _effects_of(self) -> dict[str, dict[str, float]]:
        """The median effect on each run that has one, by claim."""
        return {
            alike[0].claim.id: {
                letter: one.finding.effect.median
                for letter, one in zip(self.letters, alike, strict=True)
                if one.finding.effect
            }
            for alike in zip(*self.judged, strict=True)
        }

    def sentence(self) -> str:
        """How far the runs agree, counted over what all of them measured."""
        findings = [[one.finding for one in alike] for alike in zip(*self.judged, strict=True)]
        given = [{one.verdict for one in alike} for alike in findings]
        measured = [verdicts for verdicts in given if NOT_MEASURED not in verdicts]
        same = sum(len(verdicts) == 1 for verdicts in measured)
        contrary = sum({HOLDS, FAILS} <= verdicts for verdicts in measured)
        both = self.effects[self.effects["effects"] != ""]
        return (
            f"{len(measured)} of {len(given)} claims were measured on all runs: {same} have one verdict, "
            f"{len(measured) - same - contrary} are inconclusive on some, {contrary} have contrary verdicts. Of "
            f"{len(both)} effects {int((both['effects'] == 'agree').sum())} have intervals that overlap the first run's."
        )

    def forest(self) -> Figure:
        """Every ratio that the runs share, with its interval, by run. Raises NotMeasured where there is none."""
        rows = []
        for alike in zip(*self.judged, strict=True):
            effects = [one.finding.effect for one in alike]
            if all(effects) and all(FACTOR[0] < one.median < FACTOR[1] for one in effects):
                rows += [
                    {
                        "claim": alike[0].claim.id,
                        "run": letter,
                        "ratio": one.median,
                        "low": one.low,
                        "high": one.high,
                    }
                    for letter, one in zip(self.letters, effects, strict=True)
                ]
        if not rows:
            raise NotMeasured("the runs share no ratio")
        numbers = pd.DataFrame(rows, columns=["claim", "run", "ratio", "low", "high"])
        ids = list(dict.fromkeys(numbers["claim"]))
        with mpl.rc_context(STYLE):
            row_inches = 0.27 if not self.many else 0.2 + min(0.03 * len(self.runs), 0.6)
            canvas = Canvas(figsize=(7.6, 1.2 + row_inches * len(ids)))
            axes = canvas.add_subplot()
            step = min(0.16, 0.8 / len(self.runs))
            height = {
                letter: step * (len(self.runs) / 2 - place) for place, letter in enumerate(self.letters)
            }
            for part, label, marker, colour in self._looks(numbers):
                y = [
                    len(ids) - 1 - ids.index(name) + height[letter]
                    for name, letter in zip(part["claim"], part["run"], strict=True)
                ]
                reach = [part["ratio"] - part["low"], part["high"] - part["ratio"]]
                axes.errorbar(
                    part["ratio"],
                    y,
                    xerr=reach,
                    fmt=marker,
                    color=colour,
                    label=label,
                    markersize=3 if self.many else 4.5,
                )
            axes.axvline(1, color=STYLE["text.color"], linewidth=0.8)
            axes.set_xscale("log")
            axes.set_yticks(range(len(ids)), list(reversed(ids)))
            axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
            axes.grid(axis="x", which="major")
            axes.set_xlabel("ratio that the claim is about, with its 95 % interval (log scale)")
            axes.legend(loc="lower right")
            return _finish(
                canvas,
                f"{len(ids)} ratios, each with its interval on {len(self.runs)} runs. {self.sentence()}",
                "The same ratios on each run; rseqlab claims ID says what each is of.",
                numbers,
            )

    def _looks(self, numbers: pd.DataFrame) -> list[tuple[pd.DataFrame, str, str, str]]:
        """(rows, label, marker, colour) of what the forest draws: each run, or of many the first and the others."""
        if not self.many:
            looks = zip(self.letters, MARKS, strict=False)
            return [(numbers[numbers["run"] == letter], letter, *look) for letter, look in looks]
        first = numbers["run"] == self.letters[0]
        base = numbers[first].set_index("claim")
        low, high = numbers["claim"].map(base["low"]), numbers["claim"].map(base["high"])
        overlap = (numbers["low"] <= high) & (low <= numbers["high"])
        others = f"{self.letters[1]} to {self.letters[-1]}"
        looks = [
            (numbers[~first & overlap], f"{others}, overlapping {self.letters[0]}", "v", SKY),
            (numbers[~first & ~overlap], f"{others}, not overlapping {self.letters[0]}", "s", ORANGE),
            (numbers[first], self.letters[0], "o", BLUE),
        ]
        return [look for look in looks if len(look[0])]

    def kernels(self) -> Table:
        """The answers of the kernels in the runs' guests that are not the same everywhere. Raises NotMeasured."""
        found = kernels.side_by_side(dict(zip(self.letters, self.runs, strict=True)))
        if not self.many:
            return found
        rows = [
            {name: row[name] for name in ("mode", "question", "attempt")}
            | {"answer by run": grouped({letter: row[letter] for letter in self.letters})}
            for row in found.frame.to_dict("records")
        ]
        return Table(
            pd.DataFrame(rows, columns=["mode", "question", "attempt", "answer by run"]), found.caption
        )

    def options(self) -> Table:
        """The cells of the matrix that are not the same everywhere. Raises NotMeasured where no cell was played on all."""
        matrices = [matrix_of(run) for run in self.runs]
        keys = [
            key
            for key, cell in matrices[0].cells.items()
            if cell.factor is None and all(one.cells[key].outcome != NOT_PLAYED for one in matrices)
        ]
        if not keys:
            raise NotMeasured("no scene of the options was played on all runs")
        words = {key: [one.cells[key].short for one in matrices] for key in keys}
        rows = [
            {"cell": "/".join(key), **dict(zip(self.letters, found, strict=True))}
            for key, found in words.items()
            if len(set(found)) > 1
        ]
        frame = pd.DataFrame(rows, columns=["cell", *self.letters])
        if self.many:
            rows = [
                {"cell": row["cell"], "outcome by run": grouped({key: row[key] for key in self.letters})}
                for row in rows
            ]
            frame = pd.DataFrame(rows, columns=["cell", "outcome by run"])
        return Table(
            frame,
            f"Of {len(matrices[0].cells)} cells of the option matrix {len(keys)} are played scenes on all runs; "
            f"{len(keys) - len(rows)} of them have one outcome, these have not",
        )

    def document(self) -> dict:
        """The comparison as JSON."""
        return {
            "runs": [
                {"name": name, "run_id": run.id, "digest": run.bundle.digest}
                for name, run in zip(self.names, self.runs, strict=True)
            ],
            "sentence": self.sentence(),
            "claims": self.effects.to_dict("records"),
        }

    def notebook(self) -> nbformat.NotebookNode:
        """The comparison as cells, for the report."""
        cells = [nbformat.v4.new_markdown_cell("# Side by side\n\nEach run is compared with the first.")]
        parts = {
            "The runs": self.machines,
            "How far they agree": lambda: Sentences((self.sentence(),)),
            "The ratios": self.forest,
            "The option matrix": self.options,
            "The kernels of the guests": self.kernels,
            "Every claim": self.claims,
        }
        for title, show in parts.items():
            try:
                shown = show()
            except NotMeasured as missing:
                shown = missing
            cells.append(nbformat.v4.new_markdown_cell(f"## {title}"))
            data = {"text/html": shown._repr_html_(), "text/plain": repr(shown)}
            output = nbformat.v4.new_output("execute_result", data=data, execution_count=1)
            cells.append(nbformat.v4.new_code_cell("", outputs=[output], execution_count=1))
        return nbformat.v4.new_notebook(cells=cells)

    def identity(self) -> Identity:
        """What stands at the top of the page."""
        first, last = self.runs[0].bundle.run, self.runs[-1].bundle.run
        ids, digests = [run.id for run in self.runs], [run.bundle.digest[:12] for run in self.runs]
        if self.many:
            others = f"{len(self.runs) - 1} more"
            ids, digests = [ids[0], others], [digests[0], others]
        return Identity(
            title="rseqlab: runs side by side",
            run_id=" and ".join(ids),
            digest=" and ".join(digests),
            origin=CHOSEN,
            profile=" and ".join(dict.fromkeys(run.bundle.run["profile"] for run in self.runs)),
            started_utc=first["started"],
            ended_utc=last["ended"],
            machine=dict(zip(self.letters, (name.partition(": ")[2] for name in self.names), strict=True)),
            experiments=None,
        )
