"""The matrix of extension options on a run: for the terminal, as JSON, as HTML."""

import html
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from rseqlab.errors import UsageError
from rseqlab.options import matrix
from rseqlab.options.criteria import CRITERIA, CRITERION
from rseqlab.options.matrix import LEGEND, NOT_MEASURED, Cell
from rseqlab.options.schemes import SCHEME, SCHEMES
from rseqlab.study.run import LOCAL, MIXED, REFERENCE, NotMeasured, StudyRun, open_run
from rseqlab.study.selection import FEW, names


@cache
def matrix_of(run: StudyRun) -> "Matrix":
    """The run's matrix, once for each run: it goes through every row of a third of the experiments."""
    return Matrix(run)


def open_matrix(folder: Path | None = None) -> "Matrix":
    """The matrix of a run, as open_run finds it."""
    return Matrix(open_run(folder))


@dataclass(frozen=True)
class Matrix:
    """Option x criterion on one run. In Jupyter it is an HTML table, each cell's sentence its tooltip."""

    run: StudyRun

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """By (option, criterion)."""
        tables, missing = {}, {}
        for name in {criterion.experiment for criterion in CRITERIA}:
            try:
                self.run.table(name)
                tables[name] = self.run.bundle.tables[name]
            except NotMeasured as reason:
                missing[name] = reason.args[0]
        cells = matrix.cells(tables, missing)
        return {(cell.option, cell.criterion): self._with_run(cell) for cell in cells}

    def _with_run(self, cell: Cell) -> Cell:
        """The cell as it is; where the study has rows of this machine and the cell has not, its sentence says so."""
        source = self.run.source(cell.experiment)
        if self.run.origin != MIXED or source.origin == LOCAL or cell.outcome == NOT_MEASURED:
            return cell
        return replace(cell, sentence=f"{cell.sentence} (Rows of the {source.origin} {source.id}.)")

    @cached_property
    def shipped(self) -> list[str]:
        """The experiments whose cells have shipped rows, not this machine's."""
        names = sorted({criterion.experiment for criterion in CRITERIA})
        records = self.run.bundle.run["experiments"]
        return [name for name in names if name in records and self.run.source(name).origin == REFERENCE]

    @property
    def note(self) -> str | None:
        """What a reader must know who has not measured this himself."""
        if self.shipped and self.run.origin == MIXED:
            return (
                f"Not measured on this machine, but shipped: the cells of {names(self.shipped)}. "
                f"`rseqlab run{''.join(f' {one}' for one in self.shipped) if len(self.shipped) <= FEW else ''}` "
                "measures them here."
            )
        if self.shipped:
            notes = (
                self.run.note or "",
                "This is the shipped reference run, not this machine. `rseqlab run` measures here; it needs Linux "
                "and a C compiler.",
            )
            return " ".join(filter(None, notes))
        return None

    def cell(self, option: str, criterion: str) -> Cell:
        """One cell. Raises UsageError that lists the valid names."""
        if option not in SCHEME or criterion not in CRITERION:
            raise UsageError(
                f"There is no cell {option}/{criterion}. The options are: {', '.join(SCHEME)}. "
                f"The criteria are: {', '.join(CRITERION)}."
            )
        return self.cells[option, criterion]

    def of(self, option: str) -> list[Cell]:
        """One option's cells, in the criteria's order."""
        return [self.cell(option, criterion.id) for criterion in CRITERIA]

    def grid(self) -> list[tuple[str, list[Cell]]]:
        """(criterion's label, its cells in the options' order), by row."""
        return [
            (criterion.label, [self.cells[scheme.id, criterion.id] for scheme in SCHEMES])
            for criterion in CRITERIA
        ]

    def document(self) -> dict:
        """The matrix as JSON."""
        return {
            "schema": "rseqlab/options",
            "version": 1,
            "run_id": self.run.id,
            "origin": self.run.origin,
            "digest": self.run.digest,
            "runs": self.run.documents(),
            "legend": LEGEND,
            "options": [
                {"id": one.id, "idea": one.idea, "who": one.who, "source": one.source} for one in SCHEMES
            ],
            "criteria": [
                {"id": one.id, "label": one.label, "question": one.question, "experiment": one.experiment}
                for one in CRITERIA
            ],
            "cells": [cell.document() for cell in self.cells.values()],
        }

    def __repr__(self) -> str:
        rows = [["", *(scheme.id for scheme in SCHEMES)]]
        rows += [[label, *(cell.short for cell in cells)] for label, cells in self.grid()]
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines = [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, "", LEGEND])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(scheme.id)}</th>" for scheme in SCHEMES)
        body = "".join(
            f"<tr><th>{html.escape(label)}</th>"
            + "".join(
                f"<td class='rl-cell rl-{cell.outcome.replace(' ', '-')}' "
                f"title='{html.escape(cell.sentence, quote=True)}'>{html.escape(cell.short)}</td>"
                for cell in cells
            )
            + "</tr>"
            for label, cells in self.grid()
        )
        return (
            f"<table class='rl-table rl-matrix'><caption>{html.escape(LEGEND)}</caption>"
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
        )
