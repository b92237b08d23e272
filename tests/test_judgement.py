"""From samples to words: timing order, intervals, verdicts."""

import random

import numpy as np
import pandas as pd
import pytest
from built_runs import Rows

from rseqlab.errors import UsageError
from rseqlab.experiments import catalogue
from rseqlab.lab import stats, verdict
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.timing import ROUND_TO, Variant, calibrate, interleaved
from rseqlab.study import citations, claims, figures, tables
from rseqlab.study.claims import FAILS, HOLDS, INCONCLUSIVE, NOT_MEASURED, RULES, VERDICTS
from rseqlab.study.reading import MOST_ROWS, WatchedRun
from rseqlab.study.run import CHOSEN, SHIPPED, NotMeasured, StudyRun, open_run, reference_runs
from rseqlab.study.samples import location


@pytest.fixture(scope="module")
def run():
    return open_run(SHIPPED)


def steady(ns_per_iteration):
    return lambda iterations: {"elapsed_ns": int(iterations * ns_per_iteration)}


def test_batches_are_calibrated_to_the_asked_length():
    for cost in (0.2, 7, 130, 3e6):
        iterations = calibrate(Variant(("v",), steady(cost)), 1_000_000)
        assert iterations * cost >= 1_000_000 and iterations % ROUND_TO == 0
        assert iterations * cost < 2_000_000 or iterations == ROUND_TO, "longer than asked is time wasted"


def test_one_interrupted_trial_does_not_make_batches_short_or_long():
    """Whichever trial it is, for as long as fifty batches."""
    for interrupted in range(6):
        taken = iter([50_000_000 * (number == interrupted) for number in range(40)])
        variant = Variant(("v",), lambda n, taken=taken: {"elapsed_ns": int(7 * n) + next(taken)})
        assert 1_000_000 <= 7 * calibrate(variant, 1_000_000) < 2_000_000


def test_contention_that_short_trials_did_not_meet_is_taken_back():
    """Threads that overlap only in longer batches: what comes after the first 100,000 costs fifty times as much."""
    variant = Variant(("v",), lambda n: {"elapsed_ns": n + 49 * max(0, n - 100_000)})
    assert 1_000_000 <= variant.batch(calibrate(variant, 1_000_000))["elapsed_ns"] < 10_000_000


def test_each_round_has_every_variant_once_in_a_drawn_order():
    variants = [Variant((name,), lambda n, name=name: {"elapsed_ns": n, "name": name}) for name in "abcd"]
    rows = list(interleaved(variants, 20, 1_000_000, 7, lambda *key: True))
    rounds = [[row["name"] for row in rows if row["round"] == number] for number in range(20)]
    assert all(sorted(order) == list("abcd") for order in rounds)
    assert len({tuple(order) for order in rounds}) > 5
    again = list(interleaved(variants, 20, 1_000_000, 7, lambda *key: True))
    assert [row["name"] for row in again] == [row["name"] for row in rows]


def test_a_resumed_part_measures_exactly_what_is_missing():
    variants = [Variant((name,), lambda n, name=name: {"elapsed_ns": n, "name": name}) for name in "abcd"]
    done = {(0, "a"), (0, "b"), (1, "c")}
    rows = list(interleaved(variants, 2, 1_000_000, 7, lambda *key: key not in done))
    assert {(row["round"], row["name"]) for row in rows} == {(n, v) for n in (0, 1) for v in "abcd"} - done


def test_batches_below_a_millisecond_are_refused():
    with pytest.raises(ValueError, match="1000000"):
        list(interleaved([], 1, 999, 0, lambda *key: True))


def test_intervals_cover_the_median_about_as_often_as_they_say():
    """A property of the method over seeded draws, not of this machine."""
    draw = np.random.default_rng(1)
    covered = sum(
        found.low <= 1 <= found.high
        for found in (stats.interval(np.exp(draw.normal(0, 0.1, 40))) for _ in range(200))
    )
    assert covered >= 180


def test_the_same_samples_give_the_same_interval():
    values = [random.Random(3).random() for _ in range(30)]
    assert stats.interval(values) == stats.interval(values)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_an_interval_of_nothing_is_an_error(values):
    with pytest.raises(ValueError):
        stats.interval(values)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="pairs"):
        stats.ratio([1, 2], [1])


def test_instability_is_said_in_words_with_the_figure_and_the_remedy():
    steady_values, wild = [1.0] * 40, [1.0, 2.0] * 20
    assert verdict.instability("x", {"a": steady_values}) is None
    said = verdict.instability("x", {"a": steady_values, "b": wild})
    assert "1 of 2" in said and "b" in said and "measure again" in said
    assert "fewer than 30" in verdict.instability("x", {"a": steady_values[:5]})
    assert "differs from itself by +5.0 %" in verdict.control_note("x", stats.Interval(1.05, 1.04, 1.06, 40))
    assert verdict.control_note("x", stats.Interval(1.05, 0.9, 1.2, 40)) is None
    assert "3.0 %" in verdict.steal_note("x", 3.0) and verdict.steal_note("x", None) is None


def test_every_claim_names_a_rule_and_an_experiment_that_exist():
    for claim in claims.claims():
        assert claim.source and claim.sentence and not claim.sentence.endswith(".")
        if claim.rule:
            assert claim.rule.split(":")[0] in RULES and claim.experiment in catalogue()
            assert claim.threshold is not None


def test_every_claim_is_judged_none_is_dropped(run):
    judged = claims.judge(run)
    assert [one.claim.id for one in judged] == [claim.id for claim in claims.claims()]
    assert {one.finding.verdict for one in judged} <= set(VERDICTS)
    untestable = {one.claim.id for one in judged if not one.claim.rule}
    assert {one.claim.id for one in judged if one.finding.verdict == NOT_MEASURED} >= untestable


def test_an_unknown_claim_is_answered_with_the_known_ones(run):
    with pytest.raises(UsageError, match="C16"):
        claims.judge(run, "C999")


@pytest.mark.parametrize(
    ("rule", "effect", "threshold", "expected"),
    [
        ("ratio_at_least", 3.0, 2.0, HOLDS),
        ("ratio_at_least", 1.5, 2.0, FAILS),
        ("ratio_at_least", 2.0, 2.0, INCONCLUSIVE),
        ("ratio_at_most", 1.0, 1.1, HOLDS),
        ("ratio_at_most", 1.5, 1.1, FAILS),
        ("ratio_at_most", 1.1, 1.1, INCONCLUSIVE),
        ("ratio_within", 1.0, 1.05, HOLDS),
        ("ratio_within", 2.0, 1.05, FAILS),
        ("ratio_within", 0.5, 1.05, FAILS),
        ("ratio_within", 1.05, 1.05, INCONCLUSIVE),
    ],
)
def test_verdicts_need_the_whole_interval(rule, effect, threshold, expected):
    """Rows of eight builds whose ratio lies within ±1 %, placed by hand around the threshold."""
    assert finding_of(rule, effect, threshold).verdict == expected


def finding_of(rule, effect, threshold, builds=8, control=True):
    """A rule's finding on rows of two processes of three rounds of so many builds."""
    rows = [
        {"part": f"{build}-{process}", "build": build, "process": process, "round": number, "reader": reader,
         "order": "o", "start": "s", "reason": None,
         "ns_per_read": (effect * (1 + 0.01 * (build - 3.5) / 3.5) if reader == "a" else 1.0)}
        for reader in ("a", "b", *(("libc-offset", "libc-offset-again") if control else ()))
        for build in range(builds)
        for process in range(2)
        for number in range(3)
    ]  # fmt: skip
    claim = claims.Claim("X", "s", "t", "performance", "cpu-id-read", rule, threshold)
    return RULES[rule](Rows(cpu_id_read=rows), claim, "a|b", "o", "s")


def test_too_few_builds_and_no_control_give_no_verdict_and_say_so():
    assert finding_of("ratio_at_least", 3.0, 2.0).verdict == HOLDS
    for few, reason in (
        ({"builds": 7}, "measured in 7 builds; a verdict needs 8"),
        ({"control": False}, "there is no A/A control"),
    ):
        found = finding_of("ratio_at_least", 3.0, 2.0, **few)
        assert found.verdict == INCONCLUSIVE and found.measured.endswith(f"No verdict: {reason}.")


def test_what_a_run_lacks_is_shown_as_not_measured(run):
    bundle = run.source("cpu-id-read").bundle
    record = bundle.run["experiments"]["cpu-id-read"]
    bundle.run["experiments"]["cpu-id-read"] = record | {"status": "skip", "reason": "no <rseq> here"}
    try:
        figure = figures.cpu_id_read(run)
        assert isinstance(figure, NotMeasured) and "no <rseq> here" in str(figure)
        assert "no &lt;rseq&gt; here" in figure._repr_html_()
        assert claims.judge(run, "C63")[0].finding.verdict == NOT_MEASURED
        assert isinstance(tables.costs(run, "cpu-id-read"), NotMeasured)
    finally:
        bundle.run["experiments"]["cpu-id-read"] = record


@pytest.mark.parametrize("figure", [figures.cpu_id_read, figures.counter, figures.accepted_lengths])
def test_figures_have_a_description_a_text_twin_and_no_date(run, figure):
    shown = figure(run)
    assert 'role="img"' in shown.svg and "aria-label=" in shown.svg and len(shown.description) > 80
    assert shown.caption in repr(shown)
    assert figure(run).svg == shown.svg, "the same run must give the same figure"
    assert "#010203" not in shown.svg and "<script" not in shown.svg


def test_a_table_shows_nothing_where_nothing_is_known():
    frame = pd.DataFrame({"way": ["one", "two"], "bytes": pd.array([32, None], "Int64")})
    shown = tables.Table(frame, "sizes")
    assert "NA" not in repr(shown) + shown._repr_html_() and "<td>32</td>" in shown._repr_html_()


# ---- what a rule reads ----


@pytest.fixture(scope="module")
def judged(run):
    return claims.judge(run)


def test_a_watched_run_gives_the_same_findings(run, judged):
    for one in judged:
        if one.claim.rule:
            assert claims._find(WatchedRun.of(run), one.claim) == one.finding, one.claim.id


def test_every_rule_says_what_it_read_and_how_to_measure_it_again(judged):
    for one in judged:
        read = one.reading
        if not one.claim.rule:
            assert not read.commands and not read.rows, one.claim.id
            continue
        assert read.commands[-1] == f"rseqlab claims {one.claim.id}"
        measuring = " ".join(read.commands[:-1]).split()
        assert [name for name in measuring if name in catalogue()], one.claim.id
        if one.finding.verdict != NOT_MEASURED:
            assert read.rows or read.facts, one.claim.id
        for rows in read.rows:
            assert rows.experiment in measuring and rows.file == f"{rows.experiment}.csv"
            assert 0 <= rows.chosen <= rows.of and len(rows.lines) <= MOST_ROWS
            if not rows.left_out:
                place = rows.columns.index("rows")
                assert sum(int(line[place].replace(",", "")) for line in rows.lines) == rows.chosen


def test_the_rows_of_a_ratio_are_those_of_its_two_ways_and_of_the_null(run, judged):
    one = next(one for one in judged if one.claim.id == "C38b")
    (rows,) = one.reading.rows
    ways = ["syscall", "libc-offset"]
    values = [claims.samples(run, "cpu-id-read", way, "throughput", "libc") for way in ways]
    assert [line[0] for line in rows.lines] == [*ways, "libc-offset-again"]
    for line, expected in zip(rows.lines, values, strict=False):
        assert int(line[1]) == len(expected) and float(line[2].split()[0]) == pytest.approx(
            location(expected).median, rel=0.01
        )
    assert rows.where == {"order": "throughput", "start": "libc"}


def test_a_claim_that_could_not_be_measured_says_what_would_measure_it():
    without = StudyRun(Bundle(reference_runs("workloads")[-1], catalogue()), CHOSEN)
    (one,) = claims.judge(without, "L50")
    assert one.finding.verdict == NOT_MEASURED
    assert "null-repeats" in one.reading.commands[0]


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("A, 2020, https://lore.kernel.org/r/1@x (1 ns)", "https://lore.kernel.org/r/1@x"),
        ("A, http://lists.infradead.org/a.html (b)", "https://lists.infradead.org/a.html"),
        ("this lab, from d7822b1e24f2 (0.8 ns)", "https://git.kernel.org/torvalds/c/d7822b1e24f2"),
        ("a/b-c:x/y.c@0123abc (d)", "https://github.com/a/b-c/blob/0123abc/x/y.c"),
        ("aaa4fbf6fcdc of TCMalloc", "https://github.com/google/tcmalloc/commit/aaa4fbf6fcdc"),
        ("this lab, from the same mail", "https://before"),
        ("this lab", None),
    ],
)
def test_a_source_is_a_link(source, address):
    found = [link for _, link in citations.pieces(source, "https://before") if link]
    assert found == ([address] if address else [])
    assert "".join(text for text, _ in citations.pieces(source)) == source


def test_a_source_cannot_become_html():
    assert "<b" not in citations.linked("<b>x</b> https://x/'onclick='y <i>")
