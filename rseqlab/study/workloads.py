"""Real programs with rseq on and off: the ratios, their A/A controls, and what may be said of them.

A ratio is operations per second with rseq on over off, pair by pair: above 1 the program gains. Beside it stands
the control, on over on again. The rule is :mod:`rseqlab.lab.verdict`'s for whole programs: the exact signed-rank
interval over the pairs, widened by what the control differs from itself; a gain or a loss has the whole interval on
one side of 1, everything else is a null result and is said as such. How often this rule speaks of nothing is computed
from the same rows (:func:`control_rate`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rseqlab.census.workload import COUNTED
from rseqlab.experiments import catalogue
from rseqlab.lab import stats, verdict
from rseqlab.lab.stats import Interval
from rseqlab.study import tables
from rseqlab.study.figures import _INK, BLUE, ORANGE, Figure, _finish, _shows_missing
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.samples import samples
from rseqlab.study.tables import Sentences, Table

GROUP = "workloads"
GAINS, LOSES, NULL, FEW = "gains", "loses", "no difference shown", "no verdict"
OUTCOME = {verdict.ABOVE: GAINS, verdict.BELOW: LOSES, verdict.NEITHER: NULL, verdict.NO_VERDICT: FEW}
ENVOY = "workload-envoy"


@dataclass(frozen=True)
class Effect:
    """One program under one load: what rseq does to its speed, and how far to believe it."""

    experiment: str
    workload: str
    on_per_second: float
    off_per_second: float
    judged: verdict.Judgement
    control: Interval
    resident: Interval | None
    """Resident set with rseq on, as a ratio to off."""
    calls_per_operation: float | None
    """Of sched_getcpu(); None where they were not counted."""

    @property
    def ratio(self) -> Interval:
        """On over off: the interval that was judged, widened by the control."""
        return self.judged.effect

    @property
    def verdict(self) -> str:
        """``gains``, ``loses``, ``no difference shown`` or ``no verdict``."""
        return OUTCOME[self.judged.verdict]

    def sentence(self) -> str:
        """The result in words, with the numbers that carry it."""
        change = f"{_percent(self.ratio.median)} ({_percent(self.ratio.low)} to {_percent(self.ratio.high)})"
        same = f"{_percent(self.control.low)} to {_percent(self.control.high)}"
        calls = (
            ""
            if self.calls_per_operation is None
            else f" It asked libc for the CPU {self.calls_per_operation:.2g} times an operation."
        )
        words = {
            GAINS: f"gains by rseq: {change} operations per second",
            LOSES: f"loses by rseq: {change} operations per second",
            NULL: f"shows no difference between rseq on and off: {change} operations per second",
            FEW: f"carries no verdict ({self.judged.lacks}): {change} operations per second",
        }[self.verdict]
        return f"{self.workload} {words}; its A/A control differs by {same}.{calls}"


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %"


def experiments() -> list[str]:
    """The names of the experiments on real programs."""
    return [name for name, one in catalogue().items() if one.group == GROUP]


def _wide(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column, a row for each pair and a column for each mode; pairs that are not whole are left out."""
    paired = rows[rows["mode"] != COUNTED]
    paired = paired[["part", "round", "mode", column]]
    return paired.pivot(index=["part", "round"], columns="mode", values=column).dropna()


def _ratio(wide: pd.DataFrame, above: str, below: str) -> Interval:
    # Every run is a process of its own.
    return stats.ratio(wide[above].to_numpy(), wide[below].to_numpy(), range(len(wide)))


def effect(rows: pd.DataFrame, experiment: str, workload: str) -> Effect:
    """What the rows of one load say. Raises NotMeasured where there is no whole pair."""
    rows = rows[rows["workload"] == workload]
    speed = _wide(rows, "operations_per_second")
    if speed.empty or not {"on", "on-again", "off"} <= set(speed):
        raise NotMeasured(f"{workload} has no whole round of on, off and on again")
    resident = _wide(rows, "resident_kib")
    control = _ratio(speed, "on", "on-again")
    counted = rows[rows["mode"] == COUNTED]
    calls = (counted["getcpu_calls"] / counted["operations"]).median() if len(counted) else None
    return Effect(
        experiment,
        workload,
        float(speed["on"].median()),
        float(speed["off"].median()),
        verdict.side(_ratio(speed, "on", "off"), control, verdict.PROGRAMS),
        verdict.rounded(control),
        _ratio(resident, "on", "off") if len(resident) else None,
        calls,
    )


def effects(run: StudyRun) -> list[Effect]:
    """Every program and load that was measured, in the order of the experiments. Raises NotMeasured for none."""
    run.of_group(GROUP)
    found = []
    for name in experiments():
        try:
            rows = run.table(name)
        except NotMeasured:
            continue  # `missing` says so
        for workload in rows["workload"].unique():
            try:
                found.append(effect(rows, name, workload))
            except NotMeasured:
                continue
    if not found:
        raise NotMeasured(" ".join(str(one) for one in missing(run)))
    return found


def control_rate(found: list[Effect]) -> str:
    """How often the rule finds a difference where there is none: by enumeration, and on these programs' controls."""
    pairs = min(one.control.samples for one in found)
    differ = [one.workload for one in found if not one.control.low <= 1 <= one.control.high]
    named = f" ({', '.join(differ)})" if differ else ""
    return (
        f"The interval is Wilcoxon's exact one over the pairs: of all {2**pairs:,} ways in which the signs of {pairs} "
        f"pairs may fall it leaves 1 out in {100 * stats.false_share(pairs):.1f} %, before the A/A control widens it. Of "
        f"the {len(found)} programs' own controls, on against on again, {len(differ)} leave 1 out{named}."
    )


def missing(run: StudyRun) -> list[NotMeasured]:
    """The experiments on real programs that this run has no rows of, each with its reason."""
    found = []
    for name in experiments():
        try:
            run.table(name)
        except NotMeasured as reason:
            found.append(reason)
    return found


def _interval(found: Interval) -> str:
    return f"{verdict.number(found.median)} {verdict.ends(found)}"


@tables._shows_missing
def table(run: StudyRun) -> Table:
    """Speed with rseq on and off, the ratio, the control, memory, and how often libc was asked for the CPU."""
    found = effects(run)
    frame = pd.DataFrame(
        [
            {
                "program and load": one.workload,
                "on_per_second": f"{one.on_per_second:,.0f}",
                "off_per_second": f"{one.off_per_second:,.0f}",
                "on/off": _interval(one.ratio),
                "control on/on": _interval(one.control),
                "pairs": one.ratio.samples,
                "resident on/off": _interval(one.resident) if one.resident else "",
                "sched_getcpu calls per operation": "not counted"
                if one.calls_per_operation is None
                else f"{one.calls_per_operation:.2g}",
                "verdict": one.verdict,
            }
            for one in found
        ]
    )
    return Table(
        frame,
        "Operations per second with rseq on and off by libc's tunable. on/off: location of the ratios, pair by pair, so "
        "the two medians need not divide to it; its 95 % interval is widened by the A/A control. Above 1: faster with "
        "rseq",
    )


@_shows_missing
def forest(run: StudyRun) -> Figure:
    """Every program's ratio with its interval, and the control beside it."""
    found = effects(run)
    numbers = pd.DataFrame(
        [
            {
                "workload": one.workload,
                "ratio": one.ratio.median,
                "low": one.ratio.low,
                "high": one.ratio.high,
                "control": one.control.median,
                "control_low": one.control.low,
                "control_high": one.control.high,
                "pairs": one.ratio.samples,
                "verdict": one.verdict,
            }
            for one in found
        ]
    )
    canvas = Canvas(figsize=(7.2, 1.1 + 0.36 * len(numbers)), layout="constrained")
    axes = canvas.subplots()
    y = numbers.index[::-1]
    looks = (
        ("ratio", "low", "high", "rseq on / off", BLUE, "o", 0.13),
        ("control", "control_low", "control_high", "on / on again (control)", ORANGE, "D", -0.13),
    )
    for middle, low, high, label, colour, marker, shift in looks:
        axes.errorbar(
            numbers[middle],
            y + shift,
            xerr=[numbers[middle] - numbers[low], numbers[high] - numbers[middle]],
            fmt=marker,
            color=colour,
            fillstyle="full" if middle == "ratio" else "none",
            label=label,
            linewidth=1.4,
            markersize=5,
        )
    for place, outcome in zip(y, numbers["verdict"], strict=True):
        axes.text(1.02, place, outcome, transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.axvline(1, color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(numbers)), list(reversed(numbers["workload"])))
    axes.set_ylim(-0.6, len(numbers) - 0.4)
    axes.grid(axis="x")
    axes.set_xlabel("operations per second, rseq on as a ratio to off (bars: 95 % interval)")
    canvas.legend(loc="outside upper left", ncols=2)
    return _finish(
        canvas,
        "Forest plot: operations per second of real programs with rseq on as a ratio to off. "
        + "; ".join(
            f"{row.workload}: {row.ratio:.3f} ({row.low:.3f} to {row.high:.3f}), {row.verdict}"
            for row in numbers.itertuples()
        ),
        "Right of the line a program is faster where libc registers rseq. The ratio's interval is widened by the A/A "
        f"control. {numbers['pairs'].min()} pairs or more a row.",
        numbers,
    )


@tables._shows_missing
def collision(run: StudyRun) -> Table:
    """Envoy where libc owns the area and where it does not: by the kernel, and in the program's own words."""
    rows = run.table(ENVOY)
    found = [
        {
            "load": workload,
            "libc's registration": mode,
            "areas belong to": " or ".join(sorted(group["rseq_owner"].unique())),
            "threads with an area": _spans(group["registered_threads"], group["threads"]),
            "bytes in per-CPU caches": f"{group['cache_bytes'].median():,.0f}",
            "resident_kib": f"{group['resident_kib'].median():,.0f}",
            "operations_per_second": f"{group['operations_per_second'].median():,.0f}",
            "Envoy reports (last run)": group["reported"].iloc[-1],
        }
        for (workload, mode), group in rows.groupby(["workload", "mode"], sort=True)
        if mode in ("on", "off")
    ]
    return Table(
        pd.DataFrame(found),
        "Envoy and its TCMalloc, which registers the area itself where libc has not; medians over the rounds",
    )


def _spans(some: pd.Series, whole: pd.Series) -> str:
    pairs = sorted({f"{few} of {all_}" for few, all_ in zip(some, whole, strict=True)})
    return ", ".join(pairs)


@tables._shows_missing
def switches(run: StudyRun) -> Table:
    """That the switch did switch: whose the areas were in every run, as the kernel and libc answered."""
    run.of_group(GROUP)
    tables = []
    for name in experiments():
        try:
            tables.append(run.table(name))
        except NotMeasured:
            continue
    if not tables:
        raise NotMeasured(" ".join(str(one) for one in missing(run)))
    rows = pd.concat(tables)
    found = [
        {
            "program and load": workload,
            "started": mode,
            "areas belong to": " or ".join(sorted(group["rseq_owner"].unique())),
            "threads with an area": f"{group['registered_threads'].sum()} of {group['threads'].sum()}",
            "area_bytes": ", ".join(f"{size:.0f}" for size in sorted(group["area_bytes"].dropna().unique())),
            "runs": len(group),
        }
        for (workload, mode), group in rows.groupby(["workload", "mode"], sort=True)
    ]
    return Table(
        pd.DataFrame(found),
        "PTRACE_GET_RSEQ_CONFIGURATION of every thread, and __rseq_size in the process, while it ran",
    )


def sentences(run: StudyRun) -> Sentences | NotMeasured:
    """Gains, losses and null results alike, what they may rest on, and what was not measured."""
    try:
        return Sentences(tuple(_lines(run)))
    except NotMeasured as reason:
        return reason


def in_short(run: StudyRun) -> str:
    """How many programs gain, lose, or show no difference, in one sentence. Raises NotMeasured."""
    found = effects(run)
    counts = {name: sum(one.verdict == name for one in found) for name in (GAINS, LOSES, NULL, FEW)}
    return (
        f"{len(found)} programs and loads were run with rseq and without: gain by it {counts[GAINS]}, lose "
        f"{counts[LOSES]}, show no difference {counts[NULL]}, carry no verdict {counts[FEW]}."
    )


def _lines(run: StudyRun) -> Iterator[str]:
    found = effects(run)
    yield in_short(run)
    yield control_rate(found)
    for outcome in (GAINS, LOSES, NULL, FEW):
        for one in (one for one in found if one.verdict == outcome):
            yield one.sentence() + _saved(run, one)
    yield from _collision_lines(run)
    for reason in missing(run):
        yield str(reason)


def _saved(run: StudyRun, one: Effect) -> str:
    """How much the calls of sched_getcpu() can make out, by what one costs with rseq and without."""
    loops, programs = run.source("cpu-id-read"), run.source(one.experiment)
    if not one.calls_per_operation or loops.facts["cpu_model"] != programs.facts["cpu_model"]:
        return ""
    try:
        costs = {
            start: samples(run, "cpu-id-read", "sched_getcpu", "throughput", start).median()
            for start in ("libc", "none")
        }
    except NotMeasured:
        return ""
    saved_ns = one.calls_per_operation * (costs["none"] - costs["libc"])
    share = 100 * saved_ns * one.off_per_second / 1e9
    return (
        f" By the cost of one call (cpu-id-read: {costs['libc']:.1f} ns with rseq, {costs['none']:.1f} ns without) "
        f"that makes out {_share(share)} of one CPU's time."
    )


def _share(percent: float) -> str:
    return f"{percent:.2f} %" if percent >= 0.01 else "less than 0.01 %"


def _collision_lines(run: StudyRun) -> Iterator[str]:
    try:
        rows = run.table(ENVOY)
    except NotMeasured:
        return
    for mode, owner in (("on", "libc"), ("off", "Envoy itself")):
        part = rows[rows["mode"] == mode]
        active = int((part["cache_bytes"] > 0).sum())
        yield (
            f"In {len(part)} runs of Envoy where {owner} owns the area, its per-CPU caches were in use in {active}; "
            f"they held {part['cache_bytes'].median():,.0f} bytes at the median."
        )
    memory = [one for one in effects(run) if one.experiment == ENVOY and one.resident]
    for one in memory:
        yield (
            f"{one.workload}: with libc's registration the resident set is {_percent(one.resident.median)} "
            f"({_percent(one.resident.low)} to {_percent(one.resident.high)}) against that without."
        )
