"""The one rule: what carries a verdict, that the judged interval is the printed one, everywhere."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from built_runs import Rows, in_builds

from rseqlab.experiments import catalogue
from rseqlab.lab import stats, verdict
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.stats import Interval
from rseqlab.lab.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_MEASURED, Allowed
from rseqlab.study import claims, counts, evidence, tables, variance, workloads
from rseqlab.study.compare import Comparison
from rseqlab.study.matrix import Matrix
from rseqlab.study.run import CHOSEN, NotMeasured, StudyRun, reference_runs

ENOUGH = Interval(1.0, 1.0, 1.0, samples=64, processes=16, builds=8, unit="build")


def interval(low: float, high: float, **others) -> Interval:
    return Interval((low + high) / 2, low, high, **({"samples": 64, "processes": 16, "builds": 8} | others))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A full run of 8 builds."""
    folder = in_builds(tmp_path_factory.mktemp("built") / "run")
    return StudyRun(Bundle(folder, catalogue()), CHOSEN)


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A run of before there were builds."""
    folder = in_builds(tmp_path_factory.mktemp("old") / "run", None)
    return StudyRun(Bundle(folder, catalogue()), CHOSEN)


# ---- the rule ----


@pytest.mark.parametrize(
    ("low", "high", "allowed", "expected"),
    [
        (1.0, 1.1, Allowed(high=1.1), HOLDS),
        (1.0, 1.101, Allowed(high=1.1), INCONCLUSIVE),
        (1.101, 1.2, Allowed(high=1.1), FAILS),
        (2.0, 3.0, Allowed(low=2.0), HOLDS),
        (1.0, 1.999, Allowed(low=2.0), FAILS),
        (0.953, 1.05, Allowed.within(1.05), HOLDS),
        (0.951, 1.05, Allowed.within(1.05), INCONCLUSIVE),
        (0.5, 0.951, Allowed.within(1.05), FAILS),
    ],
)
def test_the_whole_interval_must_lie_on_one_side(low, high, allowed, expected):
    assert verdict.judge(interval(low, high), ENOUGH, allowed).verdict == expected


@pytest.mark.parametrize(
    ("effect", "control", "needs", "lacks"),
    [
        ({}, None, verdict.TIMED, "there is no A/A control"),
        ({"builds": 7}, ENOUGH, verdict.TIMED, "measured in 7 builds; a verdict needs 8"),
        ({"builds": 0}, ENOUGH, verdict.TIMED, "measured in one build; a verdict needs 8"),
        ({"processes": 7}, ENOUGH, verdict.UNTIMED, "measured in 7 processes; a verdict needs 8"),
        ({"samples": 29}, ENOUGH, verdict.TIMED, "measured in 29 pairs; a verdict needs 30"),
        ({"samples": 11, "builds": 0}, ENOUGH, verdict.PROGRAMS, "measured in 11 pairs; a verdict needs 12"),
        ({"builds": 0}, ENOUGH, verdict.UNTIMED, None),
        ({"samples": 12, "builds": 0, "processes": 1}, ENOUGH, verdict.PROGRAMS, None),
        ({}, interval(1, 1, builds=3), verdict.TIMED, "measured in 3 builds; a verdict needs 8"),
    ],
)
def test_what_was_repeated_too_seldom_carries_no_verdict_and_says_so(effect, control, needs, lacks):
    for judged in (
        verdict.judge(interval(3.0, 3.1, **effect), control, Allowed(low=2.0), needs),
        verdict.side(interval(3.0, 3.1, **effect), control, needs),
    ):
        assert judged.lacks == lacks
        assert (judged.verdict in (INCONCLUSIVE, verdict.NO_VERDICT)) == (lacks is not None)
        assert lacks is None or lacks in judged.note


def test_the_control_widens_what_is_judged_and_printed():
    control = interval(1.02, 1.06)
    judged = verdict.judge(interval(1.0, 1.08), control, Allowed(high=1.1))
    assert judged.verdict == INCONCLUSIVE and judged.effect.high == pytest.approx(1.08 * 1.04, abs=0.001)
    assert "widened by the A/A control" in verdict.words(judged.effect)
    assert verdict.judge(interval(1.0, 1.08), ENOUGH, Allowed(high=1.1)).verdict == HOLDS
    slower = verdict.judge(interval(5.0, 6.0), interval(-0.5, -0.1), Allowed(high=6.2), difference=True)
    assert (slower.effect.low, slower.effect.high) == (4.7, 6.3) and slower.verdict == INCONCLUSIVE


def test_ends_are_rounded_outwards_before_they_are_judged():
    """What is printed as 1.050 must not be judged as 1.0501, nor the other way round."""
    judged = verdict.judge(interval(1.0, 1.0501), ENOUGH, Allowed.within(1.05))
    assert judged.verdict == INCONCLUSIVE and verdict.number(judged.effect.high) == "1.051"
    draw = np.random.default_rng(7)
    for low, high, threshold in zip(*draw.uniform(0.5, 30, (3, 2000)), strict=True):
        low, high, threshold = min(low, high), max(low, high), round(threshold, 1)
        judged = verdict.judge(interval(low, high), ENOUGH, Allowed(low=threshold))
        shown_low, shown_high = (
            float(verdict.number(end)) for end in (judged.effect.low, judged.effect.high)
        )
        assert shown_low <= low and high <= shown_high
        assert judged.verdict == (
            HOLDS if shown_low >= threshold else FAILS if shown_high < threshold else INCONCLUSIVE
        )


def test_counts_are_judged_by_the_spread_of_their_repeats():
    allowed = Allowed(high=0.1)
    assert verdict.counted(0.01, 0.1, allowed) == HOLDS
    assert verdict.counted(0.01, 0.11, allowed) == INCONCLUSIVE
    assert verdict.counted(0.11, 0.11, allowed) == FAILS
    assert verdict.all_of([HOLDS, INCONCLUSIVE]) == INCONCLUSIVE and verdict.all_of([HOLDS, FAILS]) == FAILS


# ---- the interval ----


def test_whole_builds_are_repeated_not_their_rounds():
    """Two builds that differ: a thousand rounds of each say nothing of the next one."""
    draw = np.random.default_rng(3)
    values, builds = [], []
    for build in range(8):
        middle = draw.normal(0, 0.2)
        values += np.exp(middle + draw.normal(0, 0.001, 100)).tolist()
        builds += [build] * 100
    over_builds = stats.interval(values, list(range(800)), builds, log=True)
    over_rounds = stats.interval(values, log=True)
    assert over_builds.unit == "build" and over_builds.units == 8
    assert (over_builds.high - over_builds.low) > 5 * (over_rounds.high - over_rounds.low)


def test_a_thing_and_itself_differ_in_one_of_twenty_at_most():
    """A property of the method over seeded draws: builds that are normal, heavy-tailed, or of two kinds."""
    draw = np.random.default_rng(11)
    kinds = {
        "normal": lambda: draw.normal(0, 1, 8),
        "heavy": lambda: draw.standard_t(2, 8),
        "two kinds": lambda: (
            draw.normal(0, 0.01, 8) + 0.3 * (draw.integers(0, 2, 8) - draw.integers(0, 2, 8))
        ),
    }
    for name, drawn in kinds.items():
        missed = sum(not low <= 0 <= high for _, low, high in (stats.location(drawn()) for _ in range(1000)))
        assert missed <= 60, name


# ---- the same numbers wherever they are shown ----

ALLOWED = {
    "ratio_at_least": lambda threshold: Allowed(low=threshold),
    "start_ratio_at_least": lambda threshold: Allowed(low=threshold),
    "ratio_at_most": lambda threshold: Allowed(high=threshold),
    "adds_at_most": lambda threshold: Allowed(high=threshold),
    "ratio_within": Allowed.within,
    "start_ratio_within": Allowed.within,
    "more_bytes": lambda threshold: Allowed(low=math.nextafter(threshold, math.inf)),
}


def expected(one) -> str:
    """What the printed interval and the printed threshold allow to say."""
    allowed = ALLOWED[one.claim.rule.split(":")[0]](one.claim.threshold)
    low, high = one.finding.effect.low, one.finding.effect.high
    if allowed.low <= low and high <= allowed.high:
        return HOLDS
    return FAILS if high < allowed.low or low > allowed.high else INCONCLUSIVE


def timed(run: StudyRun) -> list:
    return [
        one for one in claims.judge(run) if one.finding.effect and one.claim.rule.split(":")[0] in ALLOWED
    ]


def test_no_verdict_contradicts_its_printed_interval(built):
    judged = timed(built)
    assert len(judged) > 30
    given = [one for one in judged if "No verdict: " not in one.finding.measured]
    assert len(given) > 10 and {one.finding.verdict for one in given} == {HOLDS, FAILS}
    for one in judged:
        effect, scale = one.finding.effect, 100 if one.claim.rule.startswith("adds_at_most") else 1
        low, high = (verdict.number(scale * end) for end in (effect.low, effect.high))
        assert f"[95 % {low} to {high}" in one.finding.measured, one.claim.id
        if one.finding.verdict == INCONCLUSIVE:
            reason = one.finding.measured.rpartition("No verdict: ")[2]
            assert (
                reason == "the interval reaches over a limit."
                or " needs " in reason
                or "bounds nothing" in reason
            )
            assert (expected(one) == INCONCLUSIVE) == (reason == "the interval reaches over a limit."), (
                one.claim.id
            )
        else:
            assert one.finding.verdict == expected(one), one.claim.id


def test_every_view_has_the_numbers_that_were_judged(built):
    compared = Comparison([built, built]).effects.set_index("claim")
    text = " ".join(evidence.text(built, ["claims"]).split())
    for one in timed(built):
        effect, document = one.finding.effect, one.document()
        assert (document["low"], document["high"], document["effect"]) == (
            effect.low,
            effect.high,
            effect.median,
        )
        assert (document["builds"], document["processes"]) == (effect.builds, effect.processes)
        shown = (
            f"{verdict.number(effect.median)} [{verdict.number(effect.low)}, {verdict.number(effect.high)}]"
        )
        assert compared.loc[one.claim.id, "effect A"] == shown
        assert compared.loc[one.claim.id, "verdict A"] == document["verdict"] == one.finding.verdict
        assert one.finding.measured in one._repr_html_().replace(
            "&#x27;", "'"
        ) and one.finding.measured in str(one)
        if "%" not in one.finding.measured.partition("[")[0]:
            assert re.sub(r"\s+", " ", evidence.plain(one.finding.measured)) in text, one.claim.id


def test_rows_of_one_build_carry_no_verdict_on_any_time(old):
    for one in timed(old):
        if one.claim.rule.startswith("more_bytes"):
            continue  # no code layout moves a byte
        assert one.finding.verdict == INCONCLUSIVE, one.claim.id
        assert one.finding.measured.endswith("No verdict: measured in one build; a verdict needs 8."), (
            one.claim.id
        )
    cells = [cell for cell in Matrix(old).cells.values() if cell.judged]
    assert cells and all(cell.side == verdict.NO_VERDICT and "one build" in cell.sentence for cell in cells)
    assert set(counts.ratios(old)["verdict"]) == {"undecided"}
    assert "No verdict: measured in one build" in counts.peers(old).caption
    assert isinstance(variance.table(old), NotMeasured) and isinstance(variance.worst(old), NotMeasured)
    assert claims.judge(old, "L50")[0].finding.verdict == NOT_MEASURED


def test_the_matrix_says_its_factor_with_the_interval_that_was_judged(built):
    judged = [cell for cell in Matrix(built).cells.values() if cell.judged]
    assert len(judged) > 5 and {cell.side for cell in judged} <= {
        verdict.ABOVE,
        verdict.BELOW,
        verdict.NEITHER,
    }
    for cell in judged:
        effect = cell.judged.effect
        assert verdict.words(effect) in cell.sentence and cell.factor == effect.median
        assert cell.side == (
            verdict.ABOVE if effect.low > 1 else verdict.BELOW if effect.high < 1 else verdict.NEITHER
        )
        assert (cell.document()["low"], cell.document()["high"]) == (effect.low, effect.high)
        assert cell.short.endswith("=") == (cell.side == verdict.NEITHER)


def test_peers_and_programs_say_what_their_intervals_say(built):
    for row in counts.ratios(built).itertuples():
        says = "as fast" if row.high <= counts.LIMIT else "slower" if row.low > counts.LIMIT else "undecided"
        assert row.verdict == says
    programs = StudyRun(Bundle(reference_runs("workloads")[-1], catalogue()), CHOSEN)
    found = workloads.effects(programs)
    assert len(found) > 10
    for one in found:
        assert one.ratio.samples >= verdict.MIN_PROGRAM_PAIRS
        assert one.verdict == (
            workloads.GAINS
            if one.ratio.low > 1
            else workloads.LOSES
            if one.ratio.high < 1
            else workloads.NULL
        )
    shown = workloads.table(programs).frame.set_index("program and load")
    for one in found:
        assert (
            shown.loc[one.workload, "on/off"]
            == f"{verdict.number(one.ratio.median)} {verdict.ends(one.ratio)}"
        )
    rate = workloads.control_rate(found)
    assert "4,096 ways" in rate and "4.2 %" in rate and f"{len(found)} programs' own controls" in rate
    assert rate in str(workloads.sentences(programs))


def test_tables_whose_medians_need_not_divide_say_so(built):
    for shown in (tables.context_switch(built), tables.size_checks(built), counts.peers(built)):
        assert tables.PAIRWISE in shown.caption


# ---- empty loops, and where variance comes from ----


def loops(**times_ns):
    """Rows of cpu-id-read: 8 builds of two processes of two rounds; each reader's time, moved by its build."""
    return [
        {"part": f"libc-{build}-{process}", "build": build, "process": process, "round": number, "reader": reader,
         "order": "throughput", "start": "libc", "ns_per_read": time * (1 + 0.01 * build * number), "reason": None}
        for reader, time in times_ns.items()
        for build in range(8)
        for process in range(2)
        for number in range(2)
    ]  # fmt: skip


def test_an_empty_loop_that_is_slower_than_a_full_one_bounds_nothing():
    (claim,) = (one for one in claims.claims() if one.id == "C38a")
    times = {"libc_offset": 1.0, "libc_offset_again": 1.0, "libc_offset_hoisted": 0.8}
    named = {name.replace("_", "-"): time for name, time in times.items()}
    slow = claims._find(Rows(cpu_id_read=loops(nothing=1.2, **named)), claim)
    assert slow.verdict == INCONCLUSIVE and "is slower than a full one" in slow.measured
    assert "bounds nothing" in slow.measured and "libc-offset-hoisted takes 0.667" in slow.measured
    bounded = claims._find(Rows(cpu_id_read=loops(nothing=0.8, **named)), claim)
    assert bounded.verdict == HOLDS
    said = str(variance.empty_loops(Rows(cpu_id_read=loops(nothing=1.2, **named))))
    assert said.startswith("cpu-id-read, order throughput, start libc: the empty loop (nothing) is slower")


def test_variance_is_told_apart_by_level():
    from rseqlab.lab.variance import parts

    draw = np.random.default_rng(5)
    size = (40, 4, 6)
    levels = {
        "build": draw.normal(0, 0.3, (40, 1, 1)),
        "process": draw.normal(0, 0.1, (40, 4, 1)),
        "round": draw.normal(0, 0.05, size),
    }
    values = sum(np.broadcast_to(level, size) for level in levels.values()).ravel()
    builds, processes, _ = (grid.ravel().tolist() for grid in np.indices(size))
    found = parts(values.tolist(), builds, processes)
    for name, deviation in {"build": 0.3, "process": 0.1, "round": 0.05}.items():
        assert math.sqrt(getattr(found, name)) == pytest.approx(deviation, rel=0.35)
    assert sum(found.share_percent(level) for level in levels) == pytest.approx(100)
    assert parts([1.0, 2.0], [0, 0], [0, 1]) is None


def test_the_machines_widest_loop_is_named_with_its_builds():
    rows = loops(nothing=1.0, fast=2.0)
    for row in rows:
        if row["reader"] == "fast" and row["build"] == 3:
            row["ns_per_read"] *= 2
    run = Rows(cpu_id_read=rows)
    frame = variance.loops(run)
    assert frame.iloc[0]["loop"] == "fast, throughput, libc" and frame.iloc[0]["slowest_build"] == 3
    assert frame.iloc[0]["ratio"] == pytest.approx(2.1, rel=0.1)


def test_the_command_prints_what_was_judged(built):
    command = [
        sys.executable,
        "-m",
        "rseqlab.cli",
        "claims",
        "C38b",
        "--json",
        "--run",
        str(built.bundle.directory),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    (said,) = json.loads(result.stdout)["claims"]
    (judged,) = claims.judge(built, "C38b")
    assert (said["low"], said["high"]) == (judged.finding.effect.low, judged.finding.effect.high)
    assert said["verdict"] == judged.finding.verdict and said["builds"] == 8


def test_a_build_of_one_undisturbed_thread_counts_with_its_least_times():
    """Half of the batches are slowed down by others: the medians of pairs lose a difference of 5 %, least times do not."""
    draw = np.random.default_rng(9)
    builds = [build for build in range(8) for _ in range(4)]
    above, below = (
        time * np.exp(draw.normal(0, 0.001, 32)) * np.where(draw.random(32) < 0.4, draw.uniform(1, 3, 32), 1)
        for time in (1.05, 1.0)
    )
    least = stats.ratio(above, below, range(32), builds, alone=True)
    middle = stats.ratio(above, below, range(32), builds)
    assert 1 < least.low <= 1.05 <= least.high < 1.2
    assert middle.high - middle.low > 3 * (least.high - least.low)
    assert stats.difference(above, below, range(32), builds, alone=True).median == pytest.approx(
        0.05, abs=0.01
    )
