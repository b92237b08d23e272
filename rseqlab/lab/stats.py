"""What samples say, and how far to believe them. Needs numpy and scipy; children never import it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

RESAMPLES = 1999
SEED = 20200714
"""Intervals are the same each time they are computed from the same samples."""

SPREAD_LIMIT_PERCENT = 10
STEAL_LIMIT_PERCENT = 1
NULL_LIMIT_PERCENT = 2
MIN_SAMPLES = 30
MIN_PROCESSES = 8
"""null-repeats: with 5 processes a tenth of all comparisons of a thing with itself gave a verdict, with 8 not."""


@dataclass(frozen=True)
class Interval:
    """A median with its nominal 95 % bootstrap interval, over ``samples`` values of ``processes`` processes."""

    median: float
    low: float
    high: float
    samples: int
    processes: int = 1

    @property
    def carries_a_verdict(self) -> bool:
        """Whether there is enough under it: a few processes say little about the next one."""
        return self.samples >= MIN_SAMPLES and self.processes >= MIN_PROCESSES


def interval(values: Sequence[float], processes: Sequence[object] | None = None) -> Interval:
    """The median and its 95 % percentile bootstrap interval.

    ``processes`` says which process each value comes from: values of one process share its memory
    layout and are no independent evidence, so whole processes are drawn, not values.

    >>> found = interval([10.0, 11.0, 12.0, 13.0], processes=["a", "a", "b", "b"])
    >>> found.median, found.samples, found.processes, found.carries_a_verdict
    (11.5, 4, 2, False)
    """
    return _interval(tuple(map(float, values)), tuple(processes) if processes is not None else None)


@cache
def _interval(values: tuple[float, ...], processes: tuple | None) -> Interval:
    data = np.asarray(values)
    if data.size == 0 or not np.isfinite(data).all():
        raise ValueError(
            f"{data.size} values, finite: {np.isfinite(data).all()}; an interval needs finite values"
        )
    median, count = float(np.median(data)), len(set(processes)) if processes else 1
    if data.size == 1 or np.ptp(data) == 0:
        return Interval(median, median, median, data.size, count)
    result = stats.bootstrap(
        tuple(_by_process(data, processes)),
        lambda *rows, axis: np.median(np.stack(rows), axis=(0, axis)),
        paired=True,
        vectorized=True,
        confidence_level=0.95,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    found = result.confidence_interval
    # Of few processes the resampled medians may all lie on one side of the median of all values.
    low, high = min(float(found.low), median), max(float(found.high), median)
    return Interval(median, low, high, data.size, count)


def _by_process(data: np.ndarray, processes: tuple | None) -> np.ndarray:
    """Rows of one value per process, which scipy then draws together as pairs."""
    groups = (
        [data[[other == process for other in processes]] for process in dict.fromkeys(processes)]
        if processes
        else []
    )
    if len(groups) < 2:
        return data[np.newaxis, :]
    rounds = min(map(len, groups))  # equal, unless a part of the run was cut short
    return np.stack([group[:rounds] for group in groups], axis=1)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], processes: Sequence[object] | None = None
) -> Interval:
    """The median of the paired ratios, batch by batch of the same round, with its interval.

    Pairing takes out whatever slowed a whole round down.

    >>> ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]).median
    2.0
    """
    if len(numerators) != len(denominators):
        raise ValueError(
            f"{len(numerators)} numerators, {len(denominators)} denominators; they come in pairs"
        )
    return interval(np.asarray(numerators, dtype=float) / np.asarray(denominators, dtype=float), processes)


def spread_percent(values: Sequence[float]) -> float:
    """Half of the interquartile range, as a percentage of the median.

    >>> spread_percent([90, 100, 100, 100, 110])
    0.0
    """
    low, median, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return float(100 * (high - low) / 2 / median) if median else 0.0


def instability(name: str, series: Mapping[str, Sequence[float]]) -> str | None:
    """In words, which series are a weak basis and why, with the worst figure and the remedy; None if none."""
    few = [label for label, values in series.items() if len(values) < MIN_SAMPLES]
    if few:
        return f"{name}: {len(few)} of {len(series)} series have fewer than {MIN_SAMPLES} samples; measure with --profile full."
    spreads = {label: spread_percent(values) for label, values in series.items()}
    wide = [label for label, spread in spreads.items() if spread > SPREAD_LIMIT_PERCENT]
    if not wide:
        return None
    worst = max(wide, key=lambda label: spreads[label])
    return (
        f"{name}: in {len(wide)} of {len(series)} series the middle half of the samples reaches further than "
        f"±{SPREAD_LIMIT_PERCENT} % around the median, furthest in {worst} (±{spreads[worst]:.0f} %); "
        "stop other load and measure again."
    )


def null_verdict(name: str, null: Interval) -> str | None:
    """In words, that the same thing measured twice differs (an A/A comparison); None where it does not."""
    deviation = 100 * (null.median - 1)
    if abs(deviation) > NULL_LIMIT_PERCENT and not null.low <= 1 <= null.high:
        return (
            f"{name}: the same thing measured twice differs by {deviation:+.1f} %; effects of that size "
            "are not to be believed here."
        )
    return None


def steal_verdict(name: str, steal_percent: float | None) -> str | None:
    """In words, that the hypervisor took time away; None where it did not or does not say."""
    if steal_percent is not None and steal_percent > STEAL_LIMIT_PERCENT:
        return f"{name}: the hypervisor took {steal_percent:.1f} % of the time away while it was measured."
    return None
