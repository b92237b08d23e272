"""How often the rule of verdicts is wrong: on a thing against itself, and on a difference whose size is known.

Rows of null-repeats: copies of one loop at several places of each build. Builds are put into disjoint sets of as many
as a verdict needs at least; in each set, disjoint pairs of copies are compared as any claim is, with the next pair for
their A/A control. ``chain-plus-one`` executes one instruction more of a dependent chain than ``chain``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rseqlab.lab import stats, verdict
from rseqlab.lab.verdict import MIN_BUILDS
from rseqlab.study.levels import LEVELS
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.sentences import Sentences

EXPERIMENT = "null-repeats"
CHAIN, LONGER = "chain", "chain-plus-one"
TRUE_RATIO = 21 / 20
"""What the one instruction more makes out: a chain of 21 against one of 20, each of one cycle."""

LEAST_COMPARISONS, LEAST_DIFFERENCES = 200, 100
"""So many are needed to speak of a share of 5 and of 90 %."""


@dataclass(frozen=True)
class Compared:
    """One comparison of a set of builds: which loop, which copies, and what the rule said."""

    builds: tuple[int, ...]
    loop: str
    copies: tuple[int, int]
    judged: verdict.Judgement
    bare: bool
    """Whether the interval left 1 out before it was widened."""


@dataclass(frozen=True)
class Rates:
    """The comparisons of a loop with itself, and those of two loops that differ by a known price."""

    alike: tuple[Compared, ...]
    different: tuple[Compared, ...]

    @property
    def wrong(self) -> list[Compared]:
        """Comparisons of a loop with itself that got a verdict."""
        return [one for one in self.alike if one.judged.verdict in (verdict.ABOVE, verdict.BELOW)]

    @property
    def found(self) -> list[Compared]:
        """Comparisons in which the longer loop was found to be longer."""
        return [one for one in self.different if one.judged.verdict == verdict.ABOVE]

    @property
    def covering(self) -> list[Compared]:
        """Comparisons whose interval holds the true price."""
        return [
            one for one in self.different if one.judged.effect.low <= TRUE_RATIO <= one.judged.effect.high
        ]

    def alike_sentence(self) -> str:
        """The rate on nothing, in words."""
        bare = sum(one.bare for one in self.alike)
        return (
            f"Of {len(self.alike)} comparisons of a loop with itself over sets of {MIN_BUILDS} builds {len(self.wrong)} "
            f"got a verdict ({_percent(len(self.wrong), len(self.alike))}; {bare} would have before the A/A control "
            "widened their intervals)."
        )

    def different_sentence(self) -> str:
        """The rate on a difference of 5 %, in words."""
        return (
            f"Of {len(self.different)} comparisons of a loop with one that takes {100 * (TRUE_RATIO - 1):.0f} % longer by "
            f"one instruction more the rule found {len(self.found)} "
            f"({_percent(len(self.found), len(self.different))}); {len(self.covering)} intervals hold the true price."
        )

    def document(self) -> dict:
        """The rates as JSON."""
        return {
            "comparisons": len(self.alike),
            "verdicts": len(self.wrong),
            "verdicts_before_widening": sum(one.bare for one in self.alike),
            "differences": len(self.different),
            "found": len(self.found),
            "intervals_with_the_true_ratio": len(self.covering),
            "true_ratio": TRUE_RATIO,
        }


def _percent(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} %" if of else "none"


def rates(run: StudyRun) -> Rates:
    """Both rates on a run. Raises NotMeasured where its rows are of one build."""
    key = "rates"
    if key not in run.kept:
        run.kept[key] = _rates(run)
    return run.kept[key]


def _rates(run: StudyRun) -> Rates:
    table = run.table(EXPERIMENT)
    if not {"build", "loop", "copy"} <= set(table) or table[["build", "loop", "copy"]].isna().any(axis=None):
        raise NotMeasured(f"{EXPERIMENT} of this run was measured in one build; measure it again")
    wide = table.pivot_table(index=LEVELS, columns=["loop", "copy"], values="ns_per_iteration", sort=True)
    builds = sorted(wide.index.unique("build"))
    sets = [builds[at : at + MIN_BUILDS] for at in range(0, len(builds), MIN_BUILDS)]
    alike: list[Compared] = []
    different: list[Compared] = []
    for chosen in sets:
        if len(chosen) < MIN_BUILDS:
            continue  # too few are left for a verdict
        rows = wide[wide.index.get_level_values("build").isin(chosen)]
        alike += _alike(rows, tuple(chosen))
        different += _different(rows, tuple(chosen))
    return Rates(tuple(alike), tuple(different))


def _copies(rows: pd.DataFrame, loop: str) -> list[int]:
    return [copy for name, copy in rows.columns if name == loop and rows[name, copy].notna().any()]


def _disjoint(copies: list[int]) -> list[tuple[int, int]]:
    """Pairs that share no copy; of an odd number the last is left over."""
    return list(zip(copies[::2], copies[1::2], strict=False))


def _alike(rows: pd.DataFrame, builds: tuple[int, ...]) -> Iterator[Compared]:
    """Every loop's disjoint pairs of copies."""
    loops = dict.fromkeys(name for name, _ in rows.columns if name != LONGER)
    disjoint = [(loop, pair) for loop in loops for pair in _disjoint(_copies(rows, loop))]
    for place, (loop, pair) in enumerate(disjoint):
        others = [one for one in disjoint[place + 1 :] + disjoint[:place] if one[0] == loop]
        control = (others or [None])[0]
        yield _compared(rows, builds, loop, (loop, loop), pair, control and control[1])


def _different(rows: pd.DataFrame, builds: tuple[int, ...]) -> Iterator[Compared]:
    """Each copy of the longer chain against one of the chain, with two others of the chain for the control."""
    copies = _copies(rows, CHAIN)
    for place, (longer, plain) in enumerate(zip(_copies(rows, LONGER), copies, strict=False)):
        others = (copies[place + 1 :] + copies[:place])[:2]
        control = (others[0], others[1]) if len(others) == 2 else None
        yield _compared(rows, builds, CHAIN, (LONGER, CHAIN), (longer, plain), control)


def _compared(
    rows: pd.DataFrame,
    builds: tuple[int, ...],
    loop: str,
    loops: tuple[str, str],
    copies: tuple[int, int],
    control: tuple[int, int] | None,
) -> Compared:
    effect = _ratio(rows, (loops[0], copies[0]), (loops[1], copies[1]))
    itself = _ratio(rows, (loop, control[0]), (loop, control[1])) if control else None
    judged = verdict.side(effect, itself)
    return Compared(builds, loops[0], copies, judged, not effect.low <= 1 <= effect.high)


def _ratio(rows: pd.DataFrame, above: tuple[str, int], below: tuple[str, int]) -> stats.Interval:
    both = rows[[above, below]].dropna()
    found = both.index.get_level_values("build").to_numpy()
    processes = list(zip(found.tolist(), both.index.get_level_values("process").tolist(), strict=True))
    numerators, denominators = (np.asarray(both[name], dtype=float) for name in (above, below))
    return stats.ratio(numerators, denominators, processes, found.tolist(), alone=True)


def show(run: StudyRun) -> Sentences | NotMeasured:
    """Both rates as sentences, for a notebook and the evidence."""
    try:
        found = rates(run)
    except NotMeasured as missing:
        return missing
    return Sentences((found.alike_sentence(), found.different_sentence()))
