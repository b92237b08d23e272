"""The rows of guests as tables and claims need them: counts by registration, and ids by number of CPUs."""

from collections.abc import Collection
from functools import cache

import pandas as pd

from rseqlab.study.run import NotMeasured, StudyRun


@cache
def by_release(series: str) -> tuple:
    """Sorts 6.12 behind 6.1."""
    return tuple(int(part) if part.isdigit() else 0 for part in series.split("."))


def all_series(table: pd.DataFrame) -> list[str]:
    """The kernels of a table, oldest first."""
    return sorted(table["series"].unique(), key=by_release)


def counts(run: StudyRun, **only: Collection[str]) -> pd.DataFrame:
    """One row per kernel, architecture, measure, registration and section: the median repeat and the exact spread.

    ``only`` says which values of a column are wanted, where not all are. Raises NotMeasured.
    """
    table = run.table("kernel-costs")
    for column, wanted in only.items():
        table = table[table[column].isin(wanted)]
    found = table.dropna(subset=["instructions_per_turn"])
    if found.empty:
        raise NotMeasured("; ".join(table["reason"].dropna().unique()) or "kernel-costs has no counts")
    keys = ["series", "arch", "measure", "operation", "registration", "section"]
    grouped = found.groupby(keys, dropna=False, sort=False)["instructions_per_turn"]
    numbers = grouped.agg(["median", "min", "max", "size"]).reset_index()
    numbers["spread_percent"] = 100 * (numbers["max"] - numbers["min"]) / numbers["min"]
    boots = found.groupby(keys, dropna=False, sort=False)["boot"].nunique().reset_index(drop=True)
    return numbers.assign(boots=boots)


def added(run: StudyRun, **only: Collection[str]) -> pd.DataFrame:
    """What a registration adds to each measure, against none on the same kernel; ``only`` as in counts().

    ``low_percent`` and ``high_percent`` are the exact spread over the repeats of both.
    Raises NotMeasured.
    """
    numbers = counts(run, **only)
    numbers = numbers[~numbers["measure"].isin(["operation", "calibration"])]
    base = numbers[numbers["registration"] == "none"].set_index(["series", "arch", "measure"])
    shown = numbers[numbers["registration"] != "none"].copy()
    places = pd.MultiIndex.from_frame(shown[["series", "arch", "measure"]])
    shown["unregistered"] = base["median"].reindex(places).to_numpy()
    shown["added_instructions"] = shown["median"] - shown["unregistered"]
    shown["added_percent"] = 100 * shown["added_instructions"] / shown["unregistered"]
    for end, of_more, of_none in (("low_percent", "min", "max"), ("high_percent", "max", "min")):
        least = base[of_none].reindex(places).to_numpy()
        shown[end] = 100 * (shown[of_more] - least) / shown["unregistered"]
    return shown


def spread(run: StudyRun) -> pd.DataFrame:
    """The measured rows of kernel-cpus. Raises NotMeasured."""
    table = run.table("kernel-cpus")
    found = table.dropna(subset=["most_cpu_id", "most_mm_cid"])
    if found.empty:
        raise NotMeasured("; ".join(table["reason"].dropna().unique()) or "kernel-cpus has no rows")
    return found
