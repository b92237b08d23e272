"""Where the variance of a result comes from: the build's code layout, the process, or the round. Needs numpy."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parts:
    """The variances of one log value that each level adds, and over how much they were computed."""

    build: float
    process: float
    round: float
    builds: int
    processes: int
    """Of each build."""
    rounds: int
    """Of each process."""

    @property
    def total(self) -> float:
        return self.build + self.process + self.round

    def share_percent(self, level: str) -> float:
        """The share of ``build``, ``process`` or ``round``; nan where nothing varies at all."""
        return 100 * getattr(self, level) / self.total if self.total else math.nan

    def deviation_percent(self, level: str) -> float:
        """The standard deviation that a level adds, per cent of the value."""
        return 100 * math.sqrt(getattr(self, level))


def parts(logs: Sequence[float], builds: Sequence[Hashable], processes: Sequence[Hashable]) -> Parts | None:
    """Nested analysis of variance of values that are logarithms; None with fewer than two of a level.

    Kalibera and Jones, "Rigorous benchmarking in reasonable time" (ISMM 2013), section 6: from the mean squares of
    each level, what it adds beyond the one below; what comes out negative is 0. ``processes`` name a process within its
    build or everywhere. Levels are cut to what the least one has, so that they are balanced.
    """
    by_build: dict[Hashable, dict[Hashable, list[float]]] = {}
    for value, build, process in zip(logs, builds, processes, strict=True):
        by_build.setdefault(build, {}).setdefault(process, []).append(value)
    some = min(map(len, by_build.values()), default=0)
    rounds = min((len(values) for one in by_build.values() for values in one.values()), default=0)
    if len(by_build) < 2 or some < 2 or rounds < 2:
        return None
    cube = np.asarray(
        [[values[:rounds] for values in list(one.values())[:some]] for one in by_build.values()]
    )
    of_processes = cube.mean(axis=2)
    within = float(cube.var(axis=2, ddof=1).mean())
    between_processes = float(of_processes.var(axis=1, ddof=1).mean())
    between_builds = float(of_processes.mean(axis=1).var(ddof=1))
    return Parts(
        build=max(0.0, between_builds - between_processes / some),
        process=max(0.0, between_processes - within / rounds),
        round=within,
        builds=len(by_build),
        processes=some,
        rounds=rounds,
    )
