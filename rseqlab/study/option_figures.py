"""The figures of the extension options: the matrix, and cost against compatibility."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch, Rectangle

from rseqlab.options.criteria import CRASH, CRITERIA, REFUSED, SILENT
from rseqlab.options.matrix import COSTS, LEGEND, NOT_MEASURED, WORKS, Cell
from rseqlab.options.schemes import SCHEMES
from rseqlab.study.figures import BLUE, GREEN, ORANGE, PINK, SKY, Figure, _finish, _shows_missing
from rseqlab.study.matrix import matrix_of
from rseqlab.study.options import standing
from rseqlab.study.run import NotMeasured, StudyRun

FILLS = {WORKS: GREEN, REFUSED: SKY, CRASH: ORANGE, SILENT: PINK, COSTS: BLUE}
LABELS = {
    WORKS: "works (-: without the new field)",
    REFUSED: "breaks, refused",
    CRASH: "breaks, crash",
    SILENT: "breaks, SILENT",
    COSTS: "costs, factor",
}
STRENGTH = {WORKS: 0.2, REFUSED: 0.3, CRASH: 0.45, SILENT: 0.5, COSTS: 0.15}
"""How full a fill is: the worse, the fuller, so that it reads without colour; the words say the rest. No fuller than
this: the words must be readable on it in light and in dark."""


def _kind(cell: Cell) -> str:
    return cell.manner if cell.outcome not in (WORKS, COSTS, NOT_MEASURED) else cell.outcome


@_shows_missing
def options_matrix(run: StudyRun) -> Figure:
    """Every option against every criterion: the study's central figure."""
    whole = matrix_of(run)
    grid = whole.grid()
    if all(cell.outcome == NOT_MEASURED for _, cells in grid for cell in cells):
        raise NotMeasured(grid[0][1][0].sentence)
    canvas = Canvas(figsize=(9.2, 0.31 * len(grid) + 1.2))
    axes = canvas.subplots()
    for down, (_, cells) in enumerate(grid):
        for across, cell in enumerate(cells):
            kind = _kind(cell)
            axes.add_patch(
                Rectangle(
                    (across + 0.03, down + 0.05),
                    0.94,
                    0.9,
                    facecolor=FILLS.get(kind, "none"),
                    alpha=STRENGTH.get(kind, 1),
                    linewidth=0,
                )
            )
            if cell.emulated:
                axes.add_patch(
                    Rectangle(
                        (across + 0.03, down + 0.05),
                        0.94,
                        0.9,
                        fill=False,
                        linestyle=(0, (2, 2)),
                        linewidth=0.8,
                        edgecolor=mpl.rcParams["text.color"],
                    )
                )
            axes.text(across + 0.5, down + 0.53, cell.short, ha="center", va="center", fontsize=8)
    axes.set_xlim(0, len(SCHEMES))
    axes.set_ylim(len(grid), 0)
    axes.set_yticks([place + 0.5 for place in range(len(grid))], [label for label, _ in grid], fontsize=8.5)
    axes.set_xticks([place + 0.5 for place in range(len(SCHEMES))], [one.id for one in SCHEMES], fontsize=9)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    keys = [Patch(facecolor=FILLS[kind], alpha=STRENGTH[kind], label=label) for kind, label in LABELS.items()]
    keys.append(
        Patch(
            fill=False, linestyle=(0, (2, 2)), edgecolor=mpl.rcParams["text.color"], label="(kernel played)"
        )
    )
    canvas.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=8)
    numbers = pd.DataFrame(
        [{"criterion": label} | {cell.option: cell.short for cell in cells} for label, cells in grid]
    )
    silent = sum(_kind(cell) == SILENT for _, cells in grid for cell in cells)
    measured = sum(cell.outcome != NOT_MEASURED for _, cells in grid for cell in cells)
    return _finish(
        canvas,
        "Matrix of criteria (rows) and options (columns). "
        + ". ".join(
            f"{label}: " + ", ".join(f"{cell.option} {cell.short}" for cell in cells) for label, cells in grid
        ),
        f"Every cell is the outcome of executed scenes: {measured} of {len(SCHEMES) * len(CRITERIA)} cells are "
        f"measured, {silent} break without anybody being told. {LEGEND}",
        numbers,
    )


@_shows_missing
def cost_against_compatibility(run: StudyRun) -> Figure:
    """What a read costs under each option, against how many criteria the option survives."""
    numbers = standing(run)
    canvas = Canvas(figsize=(7.2, 3.8))
    axes = canvas.subplots()
    for row in numbers.itertuples():
        axes.plot(
            row.read_factor,
            row.survived,
            marker="o" if not row.emulated else "D",
            color=BLUE if not row.emulated else ORANGE,
            fillstyle="full" if not row.emulated else "none",
            linestyle="none",
            markersize=8,
        )
    places = numbers.sort_values(["survived", "read_factor"])
    last: tuple[float, float] | None = None
    for row in places.itertuples():
        near = last and abs(last[0] - row.read_factor) < 0.08 and abs(last[1] - row.survived) < 0.7
        axes.annotate(
            row.option,
            (row.read_factor, row.survived),
            xytext=(8, 9 if near else -3),
            textcoords="offset points",
            fontsize=9,
        )
        last = (row.read_factor, row.survived)
    axes.set_xlabel("a read that waits for the last one, as a multiple of a plain thread-local symbol")
    axes.set_ylabel("criteria survived")
    axes.margins(x=0.18, y=0.18)
    axes.grid(alpha=0.15)
    return _finish(
        canvas,
        "Scatter of cost and compatibility. "
        + "; ".join(
            f"{row.option}: survives {row.survived} of {row.criteria} criteria, reads at {row.read_factor:.2f} times"
            for row in numbers.itertuples()
        ),
        "Up and left is better. Diamonds: no kernel ever did it, its part is played. A criterion counts as survived "
        "where every scene of it ends well.",
        numbers,
    )
