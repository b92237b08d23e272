"""The timed rows of a run as samples: which way, under which condition, in which build, process and round."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rseqlab.lab import stats
from rseqlab.lab.stats import Interval
from rseqlab.options.costs import CONTROLS
from rseqlab.study.levels import levels, origins
from rseqlab.study.reading import plain
from rseqlab.study.run import NotMeasured, StudyRun


@dataclass(frozen=True)
class Measure:
    """Where an experiment keeps its variants, and its A/A control."""

    way: str
    condition: str
    value: str
    null: tuple[str, str]
    """(a second instantiation of a way, that way)."""
    elapsed: str | None = None
    """Where ``value`` is CPU time: the column of wall time, in which waiting shows."""
    empty: str | None = None
    """The way that does nothing: the loop alone."""
    alone: tuple[str, ...] = ()
    """The conditions under which one pinned thread works and waits for nobody; ``*``: all of them."""


MEASURES = {
    "cpu-id-read": Measure(
        "reader", "order", "ns_per_read", ("libc-offset-again", "libc-offset"), empty="nothing", alone=("*",)
    ),
    "percpu-counter": Measure(
        "technique",
        "threads",
        "cpu_ns_per_increment",
        ("rseq-again", "rseq"),
        "elapsed_ns_per_increment",
        alone=("1",),
    ),
    "option-access-cost": Measure(
        "access",
        "order",
        "ns_per_read",
        CONTROLS["option-access-cost"],
        empty="nothing",
        alone=("throughput", "dependent", "fenced"),
    ),
    "registration-cost": Measure("way", "turn", "ns_per_turn", CONTROLS["registration-cost"]),
    "context-switch-cost": Measure("pair", "between", "ns_per_round_trip", CONTROLS["context-switch-cost"]),
    "percpu-ops": Measure(
        "technique",
        "threads",
        "cpu_ns_per_operation",
        ("counter/rseq-again", "counter/rseq"),
        "elapsed_ns_per_operation",
        empty="counter/nothing",
        alone=("1",),
    ),
    "mm-cid": Measure("way", "load", "cpu_ns_per_operation", ("cpu_id-again", "cpu_id")),
    "false-sharing": Measure(
        "distance", "technique", "cpu_ns_per_operation", ("128 bytes-again", "128 bytes")
    ),
    "abort-cost": Measure("event", "order", "ns_per_event", ("signal-again", "signal")),
    "signal-storm": Measure("storm", "load", "cpu_ns_per_operation", ("none-again", "none")),
    "takeover": Measure("way", "owner", "ns_per_takeover", ("fence-cpu-again", "fence-cpu")),
}


def samples(run: StudyRun, experiment: str, way: str, condition: str, start: str) -> pd.Series:
    """The raw values of one way, indexed by (build, process, round). Raises NotMeasured.

    The build is UNKNOWN_BUILD where the rows name none. ``condition`` may be ``most``: of the most threads.
    """
    measure, table = MEASURES[experiment], run.table(experiment)
    if condition == "most":
        condition = str(table[measure.condition].max())
    wanted = f"{way}, {condition}, {start}"
    if run is not plain(run):  # it is watched: the same rows, chosen in the way that it can see
        same_condition = table[measure.condition].astype(str) == condition
        chosen = table[(table[measure.way] == way) & same_condition & (table["start"] == start)]
        return _values(run, experiment, chosen, wanted)
    key = ("samples", experiment, way, condition, start)
    if key not in run.kept:
        places = _places(run, experiment).get((way, condition, start), [])
        run.kept[key] = _values(run, experiment, table.take(places), wanted)
    return run.kept[key]


def _values(run: StudyRun, experiment: str, chosen: pd.DataFrame, wanted: str) -> pd.Series:
    values = chosen.dropna(subset=[MEASURES[experiment].value])
    if values.empty:
        reasons = chosen["reason"].dropna().unique() if "reason" in chosen else []
        recorded = run.source(experiment).bundle.run["experiments"][experiment]["reason"]
        raise NotMeasured("; ".join(reasons) or recorded or f"{experiment} has no rows for {wanted}")
    return pd.Series(values[MEASURES[experiment].value].to_numpy(), index=levels(values))


def _places(run: StudyRun, experiment: str) -> dict[tuple[str, str, str], list[int]]:
    """(way, condition, start) to the numbers of its rows: each claim and figure asks for a few of thousands."""
    key = ("places", experiment)
    if key not in run.kept:
        measure, table = MEASURES[experiment], run.table(experiment)
        found: dict[tuple[str, str, str], list[int]] = {}
        conditions = table[measure.condition].astype(str)
        for place, name in enumerate(zip(table[measure.way], conditions, table["start"], strict=True)):
            found.setdefault(name, []).append(place)
        run.kept[key] = found
    return run.kept[key]


def location(values: pd.Series) -> Interval:
    """Where the times lie, with their interval; not widened."""
    return stats.interval(values.to_numpy(), *origins(values.index), log=True)


def pairs(above: pd.Series, below: pd.Series) -> tuple[np.ndarray, np.ndarray, pd.MultiIndex]:
    """The values of the builds, processes and rounds that both have."""
    both = above.index.intersection(below.index)
    return above.loc[both].to_numpy(), below.loc[both].to_numpy(), both


def alone(experiment: str, condition: str) -> bool:
    """Whether one pinned thread works there and waits for nobody, so that others can only slow it down."""
    conditions = MEASURES[experiment].alone
    return condition in conditions or "*" in conditions


def paired_ratio(numerator: pd.Series, denominator: pd.Series, *, alone: bool = False) -> Interval:
    """The ratio's interval over the builds, processes and rounds that both have; not widened. Raises NotMeasured."""
    above, below, both = pairs(numerator, denominator)
    if not len(both):
        raise NotMeasured("no build, process and round has both")
    return stats.ratio(above, below, *origins(both), alone=alone)


def paired_difference(more: pd.Series, less: pd.Series, *, alone: bool = False) -> Interval:
    """The difference's interval over the builds, processes and rounds that both have; not widened. Raises NotMeasured."""
    above, below, both = pairs(more.dropna(), less.dropna())
    if not len(both):
        raise NotMeasured("no build, process and round has both")
    return stats.difference(above, below, *origins(both), alone=alone)


def control(run: StudyRun, experiment: str, condition: str, start: str) -> Interval | None:
    """The A/A control's ratio under a condition; None where the run has none."""
    again, first = MEASURES[experiment].null
    try:
        found = (samples(run, experiment, way, condition, start) for way in (again, first))
        return paired_ratio(*found, alone=alone(experiment, condition))
    except NotMeasured:
        return None


def control_difference(run: StudyRun, experiment: str, condition: str, start: str) -> Interval | None:
    """The same as a difference."""
    again, first = MEASURES[experiment].null
    try:
        found = (samples(run, experiment, way, condition, start) for way in (again, first))
        return paired_difference(*found, alone=alone(experiment, condition))
    except NotMeasured:
        return None


def slow_empty_loop(run: StudyRun, experiment: str, condition: str, start: str) -> str | None:
    """In words, that the loop which does nothing is slower than one that does something; None where it is not.

    Slower: the whole interval of the full loop's ratio to it lies below 1. Such a loop bounds nothing.
    """
    run, measure = plain(run), MEASURES[experiment]
    if measure.empty is None:
        return None
    try:
        empty = samples(run, experiment, measure.empty, condition, start)
    except NotMeasured:
        return None
    table = run.table(experiment)
    found: list[tuple[float, str]] = []
    for way in table[measure.way].unique():
        if way == measure.empty:
            continue
        try:
            full = samples(run, experiment, way, condition, start)
            ratio = paired_ratio(full, empty, alone=alone(experiment, condition))
        except NotMeasured:
            continue
        if ratio.high < 1:
            found.append((ratio.median, way))
    if not found:
        return None
    least, way = min(found)
    return (
        f"the empty loop ({measure.empty}) is slower than a full one ({way} takes {least:.3f} times its time), so it "
        "bounds nothing"
    )
