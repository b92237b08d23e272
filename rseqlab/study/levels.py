"""At which level a row was repeated: in which build, process and round it was measured."""

from collections.abc import Hashable

import numpy as np
import pandas as pd

LEVELS = ["build", "process", "round"]
UNKNOWN_BUILD = -1
"""Of rows of before there were builds: they were all measured in one."""


def levels(rows: pd.DataFrame) -> pd.MultiIndex:
    """(build, process, round) of each row; of rows without builds the process is the part's place among the parts."""
    rows = pd.DataFrame(rows)  # where it is watched: which build it was says nothing of the rule
    processes, _ = pd.factorize(rows["part"])
    if "process" in rows and rows["process"].notna().all():
        processes = rows["process"].to_numpy()
    builds = np.full(len(rows), UNKNOWN_BUILD)
    if "build" in rows and rows["build"].notna().all():
        builds = rows["build"].to_numpy()
    return pd.MultiIndex.from_arrays([builds, processes, rows["round"].to_numpy()], names=LEVELS)


def origins(index: pd.MultiIndex) -> tuple[list[Hashable], list[Hashable] | None]:
    """(process, build) of each value, for stats.interval; the builds are None where the rows name none."""
    builds = index.get_level_values(0).tolist()
    processes: list[Hashable] = list(zip(builds, index.get_level_values(1).tolist(), strict=True))
    return processes, None if UNKNOWN_BUILD in builds else builds
