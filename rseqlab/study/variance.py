"""How much of each result is code layout, process and round, and this machine's worst cases."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from rseqlab.lab import stats, verdict
from rseqlab.lab.variance import Parts, parts
from rseqlab.study.claims import Claim, claims
from rseqlab.study.levels import origins
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.samples import MEASURES, pairs, samples, slow_empty_loop
from rseqlab.study.tables import Sentences, Table

RATIOS = ("ratio_at_least", "ratio_at_most", "ratio_within")
"""The rules of claims about two ways under one condition."""
MANY = 12
"""So many of the widest loops are shown."""


def of_claim(run: StudyRun, claim: Claim) -> Parts | None:
    """The parts of the variance of a claim's log ratio; None where its rows are of one build or process.

    Raises NotMeasured.
    """
    name, *arguments = claim.rule.split(":")
    if name not in RATIOS:
        return None
    ways, condition, start = arguments
    above, below, both = pairs(
        *(samples(run, claim.experiment, way, condition, start) for way in ways.split("|"))
    )
    processes, builds = origins(both)
    return parts(np.log(above / below).tolist(), builds, processes) if builds else None


def _parts(run: StudyRun) -> Iterator[tuple[Claim, Parts]]:
    for claim in claims():
        try:
            found = of_claim(run, claim) if claim.rule and claim.experiment in MEASURES else None
        except NotMeasured:
            continue
        if found:
            yield claim, found


def table(run: StudyRun) -> Table | NotMeasured:
    """Each ratio's share of variance by level, largest layout first."""
    rows = [
        {
            "claim": claim.id,
            "of": claim.rule.split(":")[1].replace("|", " against "),
            "layout_percent": found.share_percent("build"),
            "process_percent": found.share_percent("process"),
            "round_percent": found.share_percent("round"),
            "layout_deviation_percent": found.deviation_percent("build"),
            "builds": found.builds,
            "processes_each": found.processes,
            "rounds_each": found.rounds,
        }
        for claim, found in _parts(run)
    ]
    if not rows:
        return NotMeasured("no ratio of this run was measured in several builds")
    frame = pd.DataFrame(rows).sort_values("layout_deviation_percent", ascending=False, ignore_index=True)
    for name, digits in (
        ("layout_percent", 0),
        ("process_percent", 0),
        ("round_percent", 0),
        ("layout_deviation_percent", 2),
    ):
        frame[name] = [f"{value:.{digits}f}" for value in frame[name]]
    return Table(
        frame,
        "Where the variance of each ratio comes from: code layout, process, round (nested analysis of variance of its "
        "logarithm, after Kalibera and Jones 2013); layout_deviation_percent is the standard deviation between builds",
    )


def loops(run: StudyRun) -> pd.DataFrame:
    """Each timed loop's fastest and slowest build, by what layout alone makes out, largest first.

    Raises NotMeasured where none was measured in several builds.
    """
    rows = []
    for experiment, measure in MEASURES.items():
        try:
            table_ = run.table(experiment)
        except NotMeasured:
            continue
        if "build" not in table_ or table_["build"].isna().all():
            continue
        timed = table_.dropna(subset=[measure.value, "build"])
        keys = [measure.way, measure.condition, "start"]
        logs = timed[[*keys, "build", "process"]].assign(log=np.log(timed[measure.value].astype(float)))
        middles = logs.groupby([*keys, "build"], sort=False)["log"].median().reset_index()
        for (way, condition, start), group in middles.groupby(keys, sort=False):
            if group["build"].nunique() < 2:
                continue
            of = logs[
                (logs[measure.way] == way) & (logs[measure.condition] == condition) & (logs["start"] == start)
            ]
            spread = parts(of["log"].tolist(), of["build"].tolist(), of["process"].tolist())
            if spread is None:
                continue
            fastest, slowest = (group.loc[end] for end in (group["log"].idxmin(), group["log"].idxmax()))
            rows.append(
                {
                    "experiment": experiment,
                    "loop": f"{way}, {condition}, {start}",
                    "fastest_ns": math.exp(fastest["log"]),
                    "slowest_ns": math.exp(slowest["log"]),
                    "ratio": math.exp(slowest["log"] - fastest["log"]),
                    "layout_deviation_percent": spread.deviation_percent("build"),
                    "fastest_build": int(fastest["build"]),
                    "slowest_build": int(slowest["build"]),
                    "builds": group["build"].nunique(),
                }
            )
    if not rows:
        raise NotMeasured("no loop of this run was measured in several builds")
    return pd.DataFrame(rows).sort_values("layout_deviation_percent", ascending=False, ignore_index=True)


def worst(run: StudyRun) -> Table | NotMeasured:
    """The loops whose time differs most between builds of the same source, with the two builds' records."""
    try:
        frame = loops(run)
    except NotMeasured as missing:
        return missing
    shown = frame.head(MANY).copy()
    for end in ("fastest", "slowest"):
        shown[f"{end}_build"] = [
            f"{number}: {record(run, row.experiment, number)}"
            for row, number in zip(shown.itertuples(), shown[f"{end}_build"], strict=True)
        ]
    for name in ("fastest_ns", "slowest_ns", "ratio"):
        shown[name] = shown[name].map(verdict.number)
    shown["layout_deviation_percent"] = shown["layout_deviation_percent"].map("{:.1f}".format)
    return Table(
        shown,
        f"Of {len(frame)} timed loops those that code layout moves most: the standard deviation between builds of the same "
        "source, beyond what processes and rounds make out, and the fastest and the slowest build",
    )


def record(run: StudyRun, experiment: str, number: int) -> str:
    """What run.json says of a build, in short; that it says nothing where it does not."""
    found = (run.source(experiment).bundle.run.get("builds") or {}).get(str(number))
    if not found:
        return "no record"
    return ", ".join(f"{name} {_value(value)}" for name, value in found.items() if name in SHOWN)


SHOWN = ("align_loops", "stack_offset_bytes", "environment_bytes", "shuffled")
"""What is told of a build; run.json has all of it."""


def _value(value: object) -> str:
    return (
        "by the compiler" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def in_a_sentence(run: StudyRun) -> str:
    """How much layout makes out, and the widest loop."""
    found = [one for _, one in _parts(run)]
    try:
        frame = loops(run)
    except NotMeasured as missing:
        return str(missing)
    widest = frame.iloc[0]
    told = ""
    if found:
        shares = stats.medians(
            np.asarray([one.share_percent("build") for one in found if one.total]),
            np.zeros(sum(bool(one.total) for one in found), dtype=int),
        )
        told = (
            f"Of the variance of {len(found)} ratios code layout makes out {shares[0]:.0f} % in the median. "
        )
    return (
        f"{told}Of the loops code layout moves most that of {widest['experiment']}, {widest['loop']}: "
        f"{verdict.number(widest['fastest_ns'])} to {verdict.number(widest['slowest_ns'])} ns over {widest['builds']} "
        f"builds."
    )


def empty_loops(run: StudyRun) -> Sentences:
    """Which empty loops are slower than a full one, by experiment, condition and start."""
    lines = []
    for experiment, measure in MEASURES.items():
        if measure.empty is None:
            continue
        try:
            rows = run.table(experiment)
        except NotMeasured:
            continue
        empty = rows[rows[measure.way] == measure.empty]
        for condition, start in empty[[measure.condition, "start"]].drop_duplicates().to_numpy():
            slow = slow_empty_loop(run, experiment, str(condition), start)
            if slow:
                lines.append(f"{experiment}, {measure.condition} {condition}, start {start}: {slow}.")
    return Sentences(tuple(lines or ["No empty loop is slower than a full one."]))
