"""Locations of samples and their intervals, over the units that would differ if a stranger measured again.

Needs numpy; children never import it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

LEVEL_PERCENT = 95
_EXACT_UP_TO = 60
"""So many units have their rank from the exact distribution; beyond, from its normal approximation."""
_T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Student's t by degrees of freedom: so few units have no signed-rank interval of 95 %."""


@dataclass(frozen=True)
class Interval:
    """A location with its 95 % interval, over ``samples`` values of ``processes`` processes of ``builds`` builds.

    ``unit`` says what was repeated independently: ``build``, ``process`` or ``pair``; ``units`` how many of them.
    ``builds`` is 0 where the rows name none.
    """

    median: float
    """Hodges and Lehmann's pseudomedian over the units, each of which counts with its own median."""
    low: float
    high: float
    samples: int
    processes: int = 1
    builds: int = 0
    unit: str = "pair"
    widened: float | None = None
    """What the A/A control added: a factor of a ratio, an amount of a difference. None: not widened."""

    @property
    def units(self) -> int:
        """How many independent repetitions the interval is over."""
        return {"build": self.builds, "process": self.processes}.get(self.unit, self.samples)


def interval(
    values: Sequence[float],
    processes: Sequence[object] | None = None,
    builds: Sequence[object] | None = None,
    *,
    log: bool = False,
) -> Interval:
    """The location of values and its 95 % interval over builds, else processes, else the values themselves.

    ``processes`` and ``builds`` say where each value comes from. Values of one build share its code layout, and
    values of one process its memory layout: they are no independent evidence (Mytkowicz et al., ASPLOS 2009; Kalibera
    and Jones, ISMM 2013). So each build, or where there is but one each process, counts once, with the median of its
    values. The location over these units is Hodges and Lehmann's pseudomedian, the interval that of Wilcoxon's exact
    signed-rank test (at least 95 %: of 8 units 96.1 %), which needs symmetry but no normal distribution: one build
    whose loop meets a bad place moves a mean and its t interval further. Fewer than six units have no such interval
    of 95 %; theirs is Student's.

    ``log``: units are averaged as logarithms, as ratios and times must be; all values are then above 0.

    >>> found = interval([10.0, 11.0, 12.0, 13.0], processes=["a", "a", "b", "b"])
    >>> found.median, found.samples, found.processes, found.unit
    (11.5, 4, 2, 'process')
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(
            f"{data.size} values, finite: {np.isfinite(data).all()}; an interval needs finite values"
        )
    if log and data.min() <= 0:
        raise ValueError(f"the least value is {data.min():g}; logarithms need values above 0")
    repeated = _Repeated.of(data.size, processes, builds)
    return repeated.interval(medians(np.log(data) if log else data, repeated.units), log)


@dataclass(frozen=True)
class _Repeated:
    """Which independent repetition each value belongs to."""

    units: np.ndarray
    unit: str
    processes: int
    builds: int

    @classmethod
    def of(
        cls, size: int, processes: Sequence[object] | None, builds: Sequence[object] | None
    ) -> "_Repeated":
        numbers = [_numbered(names) for names in (processes, builds)]
        counts = [0 if number is None else int(number.max()) + 1 for number in numbers]
        units, unit = numbers[1], "build"
        if units is None or counts[1] < 2:
            units, unit = numbers[0], "process"
        if units is None or units.max() == 0:
            units, unit = np.arange(size), "pair"
        return cls(units, unit, max(1, counts[0]), counts[1])

    def interval(self, values: np.ndarray, log: bool) -> Interval:
        """The location of one value for each unit; they are logarithms where ``log`` is true."""
        middle, low, high = location(values)
        if log:
            middle, low, high = math.exp(middle), math.exp(low), math.exp(high)
        return Interval(middle, low, high, self.units.size, self.processes, self.builds, self.unit)


def _numbered(names: Sequence[object] | None) -> np.ndarray | None:
    """0, 1, ... for each name as it first comes; None where no name is known."""
    if names is None or len(names) == 0 or any(name is None or name != name for name in names):
        return None
    known: dict[object, int] = {}
    return np.asarray([known.setdefault(name, len(known)) for name in names])


def medians(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The median of each unit's values; ``units`` are numbers from 0, one for each value."""
    order = np.argsort(units, kind="stable")
    edges = np.flatnonzero(np.diff(units[order])) + 1
    return np.asarray([np.median(part) for part in np.split(values[order], edges)])


def location(units: np.ndarray) -> tuple[float, float, float]:
    """(pseudomedian, low, high) of independent values, the interval at 95 % or more.

    >>> location(np.asarray([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]))
    (4.5, 2.0, 7.0)
    """
    count = len(units)
    if np.ptp(units) == 0:
        return float(units[0]), float(units[0]), float(units[0])
    above, right = np.triu_indices(count)
    walsh = np.sort((units[above] + units[right]) / 2)
    middle = float(np.median(walsh))
    if count - 1 in _T_975:
        reach = _T_975[count - 1] * float(np.std(units, ddof=1)) / math.sqrt(count)
        mean = float(np.mean(units))
        return middle, min(middle, mean - reach), max(middle, mean + reach)
    rank = _rank(count)
    return middle, float(walsh[rank - 1]), float(walsh[-rank])


@cache
def _rank(count: int) -> int:
    """Which average is the interval's end, counted from 1: the innermost beyond which lie at most 2.5 %."""
    tail = (1 - LEVEL_PERCENT / 100) / 2
    if count > _EXACT_UP_TO:
        spread = math.sqrt(count * (count + 1) * (2 * count + 1) / 24)
        return int(count * (count + 1) / 4 - 1.959964 * spread)
    cumulative = np.cumsum(_signed_ranks(count)) / 2.0**count
    return int(np.searchsorted(cumulative, tail, side="right"))


def _signed_ranks(count: int) -> np.ndarray:
    """How many of the 2**count sign patterns have each sum of positive ranks."""
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):
        ways[rank:] += ways[:-rank].copy()
    return ways


def false_share(count: int) -> float:
    """The share of comparisons of a thing with itself whose interval over ``count`` units leaves the middle out.

    Exact, over all sign patterns; before any widening.

    >>> round(false_share(8), 4), round(false_share(12), 4)
    (0.0391, 0.0425)
    """
    return float(2 * np.cumsum(_signed_ranks(count))[_rank(count) - 1] / 2.0**count)


def least(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """The least of each unit's values; ``units`` are numbers from 0, one for each value."""
    found = np.full(int(units.max()) + 1, math.inf)
    np.minimum.at(found, units, values)
    return found


def ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    processes: Sequence[object] | None = None,
    builds: Sequence[object] | None = None,
    *,
    alone: bool = False,
) -> Interval:
    """The location of the ratios of paired batches of one build, process and round, with its interval.

    Pairing takes out whatever slowed a whole round down. ``alone``: one pinned thread that waits for nobody did each
    batch, which others can only have slowed down. Then a build counts with the ratio of its least times, as timeit has
    it: where a host was busy with eight other processes, null-repeats found 110 of 120 differences of 5 % by least
    times and 29 by the medians of pairs, with 11 and 3 verdicts on 360 A/A comparisons.

    >>> round(ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]).median, 12)
    2.0
    """
    return _compared(numerators, denominators, processes, builds, alone, True)


def difference(
    more: Sequence[float],
    less: Sequence[float],
    processes: Sequence[object] | None = None,
    builds: Sequence[object] | None = None,
    *,
    alone: bool = False,
) -> Interval:
    """The same of differences.

    >>> difference([3.0, 4.0], [1.0, 2.0]).median
    2.0
    """
    return _compared(more, less, processes, builds, alone, False)


def _compared(
    above: Sequence[float],
    below: Sequence[float],
    processes: Sequence[object] | None,
    builds: Sequence[object] | None,
    alone: bool,
    log: bool,
) -> Interval:
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators, {len(below)} denominators; they come in pairs")
    first, second = (np.asarray(values, dtype=float) for values in (above, below))
    if first.size == 0 or not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(f"{first.size} pairs; an interval needs finite values")
    if log and min(first.min(), second.min()) <= 0:
        raise ValueError("a ratio needs values above 0")
    if log:
        first, second = np.log(first), np.log(second)
    repeated = _Repeated.of(first.size, processes, builds)
    if alone and repeated.unit != "pair":
        values = least(first, repeated.units) - least(second, repeated.units)
    else:
        values = medians(first - second, repeated.units)
    return repeated.interval(values, log)


def scaled(found: Interval, factor: float) -> Interval:
    """The same interval in another unit."""
    return replace(found, median=factor * found.median, low=factor * found.low, high=factor * found.high)


def spread_percent(values: Sequence[float]) -> float:
    """Half of the interquartile range, as a percentage of the median.

    >>> spread_percent([90, 100, 100, 100, 110])
    0.0
    """
    low, median, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(100 * (high - low) / 2 / median) if median else 0.0
