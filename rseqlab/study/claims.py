"""What people said, tested on a run: each claim with its verdict, the effect and its interval."""

import csv
import html
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase as fnmatch
from functools import cache, cached_property

import pandas as pd

from rseqlab import abi
from rseqlab.errors import UsageError
from rseqlab.lab import stats
from rseqlab.lab.runner import project_root
from rseqlab.lab.stats import Interval
from rseqlab.options.criteria import CRITERION, outcome
from rseqlab.options.matrix import WORKS, Cell
from rseqlab.study import citations, kernel_counts
from rseqlab.study.matrix import matrix_of
from rseqlab.study.reading import NOTHING, Reading, WatchedRun, plain, reading
from rseqlab.study.run import NotMeasured, StudyRun

VERDICTS = HOLDS, FAILS, INCONCLUSIVE, NOT_MEASURED = "holds", "fails", "inconclusive", "not measured"

WHY_NOT = {
    "report": "It tells what was said or done; no machine can test it",
    "opinion": "It is a demand or an opinion; no machine can test it",
    "nobody": "Nobody outside can repeat it",
    "hardware": "It needs other hardware",
    "software": "It needs software that is not to be had",
    "kernels": "It needs other kernels",
    "no experiment": "No experiment of this release tests it",
}
"""Kinds of reasons why a claim has no rule, and how a reader is told."""


@dataclass(frozen=True)
class Claim:
    """One row of data/claims.csv."""

    id: str
    source: str
    sentence: str
    kind: str
    experiment: str
    rule: str
    threshold: float | None
    why_not: str = ""
    """Where there is no rule: one of WHY_NOT, a colon, and the reason."""

    @property
    def reason(self) -> str:
        """Why nothing tests it, as a sentence."""
        kind, _, text = (self.why_not or "no experiment").partition(": ")
        return f"{WHY_NOT[kind]}{': ' if text else ''}{text}."


@dataclass(frozen=True)
class Finding:
    """What a rule found: a verdict and the words that its numbers make."""

    verdict: str
    measured: str
    effect: Interval | None = None


@dataclass(frozen=True)
class Judged:
    """A claim with what the run says of it. Its text is computed; no number in it is typed."""

    claim: Claim
    finding: Finding
    run: StudyRun | None = field(default=None, compare=False, repr=False)

    @cached_property
    def reading(self) -> Reading:
        """What the rule read: it judges once more, and the run is watched."""
        if self.run is None or not self.claim.rule:
            return NOTHING
        watched = WatchedRun.of(self.run)
        _find(watched, self.claim)
        return reading(watched, self.claim.id, self.claim.experiment)

    def __str__(self) -> str:
        return f"[{self.finding.verdict}] {self.claim.sentence}. {self.finding.measured} ({self.claim.id}; {self.claim.source})"

    def badge(self) -> str:
        """The verdict as HTML."""
        kind = self.finding.verdict.replace(" ", "-")
        return f"<span class='rl-verdict rl-{kind}'>{self.finding.verdict}</span>"

    def document(self) -> dict:
        """The claim as JSON."""
        effect = self.finding.effect
        return {
            "id": self.claim.id,
            "sentence": self.claim.sentence,
            "source": self.claim.source,
            "kind": self.claim.kind,
            "experiment": self.claim.experiment or None,
            "threshold": self.claim.threshold,
            "verdict": self.finding.verdict,
            "why_not": self.claim.why_not.partition(": ")[0] or None,
            "measured": self.finding.measured,
            "effect": effect and effect.median,
            "low": effect and effect.low,
            "high": effect and effect.high,
            "samples": effect and effect.samples,
            "addresses": self.addresses,
            **self.reading.document(),
        }

    @property
    def addresses(self) -> list[str]:
        """Where the source can be read."""
        found = citations.pieces(self.claim.source, _before().get(self.claim.id, ""))
        return list(dict.fromkeys(address for _, address in found if address))

    def evidence(self) -> str:
        """How to measure it again, and the rows behind it, as text."""
        read = self.reading
        told = [f"  $ {command}" for command in read.commands]
        told += [str(one) for one in read.rows] + ([read.facts_sentence] if read.facts else [])
        return "\n".join(
            [f"{self.claim.id}: {self.finding.verdict}", *(told or [f"  {self.finding.measured}"])]
        )

    def _repr_html_(self) -> str:
        source = citations.linked(self.claim.source, _before().get(self.claim.id, ""))
        return (
            f"<div class='rl-claim' id='claim-{html.escape(self.claim.id)}'><p>{self.badge()} "
            f"{html.escape(self.claim.sentence)}. {html.escape(self.finding.measured)} "
            f"<span class='rl-source'>{html.escape(self.claim.id)}: {source}</span></p>{self._folds()}</div>"
        )

    def _folds(self) -> str:
        """The commands and the rows, folded; nothing where no rule looked at any."""
        read, name = self.reading, html.escape(self.claim.id)
        folds = []
        if read.commands:
            lines = html.escape("\n".join(read.commands))
            folds.append(
                f"<details class='rl-command'><summary>show the command<span class='rl-of'> for {name}</span></summary>"
                f"<pre><code>{lines}</code></pre></details>"
            )
        if read.rows or read.facts:
            facts = f"<p>{html.escape(read.facts_sentence)}</p>" if read.facts else ""
            tables = "".join(one._repr_html_() for one in read.rows)
            folds.append(
                f"<details class='rl-evidence'><summary>show the rows<span class='rl-of'> for {name}</span>: "
                f"<span class='rl-where'>{html.escape(read.title)}</span></summary>{facts}{tables}</details>"
            )
        return f"<div class='rl-folds'>{''.join(folds)}</div>" if folds else ""


@cache
def _before() -> dict[str, str]:
    """Claim to what "the same mail" means in its source."""
    everything = claims()
    found = citations.addresses([claim.source for claim in everything])
    return {claim.id: address for claim, address in zip(everything, found, strict=True)}


_ID = re.compile(r"\b[A-Z]\d\d[a-z]?\b")


def linked(text: str) -> str:
    """Text as HTML; on a page, where each claim has its place, the claims that it names are links to them."""
    escaped = html.escape(text)
    if not os.environ.get("RSEQLAB_PAGE"):
        return escaped
    return _ID.sub(lambda found: _link(found[0]), escaped)


def linked_notebook(name: str) -> str:
    """A notebook's name as HTML; on a page it is a link to its section."""
    escaped = html.escape(name)
    return f"<a href='{escaped}.ipynb'>{escaped}</a>" if os.environ.get("RSEQLAB_PAGE") else escaped


def _link(name: str) -> str:
    return f"<a href='#claim-{name}'>{name}</a>" if name in _before() else name


class Verdicts(list):
    """Judged claims, shown one below the other."""

    def _repr_html_(self) -> str:
        return "".join(judged._repr_html_() for judged in self)

    def __repr__(self) -> str:
        return "\n".join(map(str, self))


Rule = Callable[..., Finding]
RULES: dict[str, Rule] = {}


def _rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def claims() -> list[Claim]:
    """Every claim of data/claims.csv."""
    with open(project_root() / "data" / "claims.csv", encoding="utf-8", newline="") as file:
        return [
            Claim(**row | {"threshold": float(row["threshold"]) if row["threshold"] else None})
            for row in csv.DictReader(file, restval="")  # most rows have a rule and end before why_not
        ]


def judge(run: StudyRun, *ids: str) -> Verdicts:
    """The named claims, or all, on this run. Raises UsageError that lists the valid ids."""
    known = {claim.id: claim for claim in claims()}
    if unknown := [name for name in ids if name not in known]:
        raise UsageError(f"No claim is called {', '.join(unknown)}. The claims are: {', '.join(known)}.")
    return Verdicts(Judged(known[name], _find(run, known[name]), run) for name in ids or known)


@dataclass(frozen=True)
class Tally:
    """How the claims that some experiments test came out, in short."""

    judged: Verdicts

    @property
    def counts(self) -> dict[str, int]:
        """Verdict to the number of claims, in the order of VERDICTS."""
        return {verdict: sum(one.finding.verdict == verdict for one in self.judged) for verdict in VERDICTS}

    @property
    def sentence(self) -> str:
        """The counts, computed."""
        counted = ", ".join(f"{verdict} {count}" for verdict, count in self.counts.items() if count)
        return f"Of {len(self.judged)} claims: {counted}."

    def __repr__(self) -> str:
        return "\n".join(
            [
                self.sentence,
                *(f"[{one.finding.verdict}] {one.claim.sentence} ({one.claim.id})" for one in self.judged),
            ]
        )

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li>{one.badge()} {html.escape(one.claim.sentence)} "
            f"<span class='rl-source'>{linked(one.claim.id)}</span></li>"
            for one in self.judged
        )
        return f"<p>{html.escape(self.sentence)}</p><ul class='rl-tally'>{items}</ul>"


def tally(run: StudyRun, *experiments: str) -> Tally:
    """The claims that the named experiments test, in short. The sections below give the figures."""
    tested = [claim.id for claim in claims() if claim.experiment in experiments]
    return Tally(judge(run, *tested) if tested else Verdicts())


def _find(run: StudyRun, claim: Claim) -> Finding:
    if not claim.rule:
        return Finding(NOT_MEASURED, claim.reason)
    name, *arguments = claim.rule.split(":")
    try:
        return RULES[name](run, claim, *arguments)
    except NotMeasured as missing:
        return Finding(NOT_MEASURED, missing.args[0])


# ---- ratios of what two ways cost ----


@dataclass(frozen=True)
class Measure:
    """Where an experiment keeps its variants, and its A/A null pair."""

    way: str
    condition: str
    value: str
    null: tuple[str, str]
    elapsed: str | None = None
    """Where ``value`` is CPU time: the column of wall time, in which waiting shows."""


MEASURES = {
    "cpu-id-read": Measure("reader", "order", "ns_per_read", ("libc-offset-again", "libc-offset")),
    "percpu-counter": Measure(
        "technique", "threads", "cpu_ns_per_increment", ("rseq-again", "rseq"), "elapsed_ns_per_increment"
    ),
    "option-access-cost": Measure(
        "access",
        "order",
        "ns_per_read",
        ("offset-size offset-kept at-start none again", "offset-size offset-kept at-start none"),
    ),
    "registration-cost": Measure("way", "turn", "ns_per_turn", ("nothing-more-again", "nothing-more")),
    "context-switch-cost": Measure("pair", "between", "ns_per_round_trip", ("none-none-again", "none-none")),
    "percpu-ops": Measure(
        "technique",
        "threads",
        "cpu_ns_per_operation",
        ("counter/rseq-again", "counter/rseq"),
        "elapsed_ns_per_operation",
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
    """The raw values of one way, indexed by (process number, round). Raises NotMeasured."""
    measure, table = MEASURES[experiment], run.table(experiment)
    if condition == "most":
        condition = str(table[measure.condition].max())
    if run is not plain(run):  # it is watched: the same rows, chosen in the way that it can see
        same_condition = table[measure.condition].astype(str) == condition
        chosen = table[(table[measure.way] == way) & same_condition & (table["start"] == start)]
        return _values(run, experiment, chosen, f"{way}, {condition}, {start}")
    key = ("samples", experiment, way, condition, start)
    if key not in run.kept:
        places = _places(run, experiment).get((way, condition, start), [])
        run.kept[key] = _values(run, experiment, table.take(places), f"{way}, {condition}, {start}")
    return run.kept[key]


def _values(run: StudyRun, experiment: str, chosen: pd.DataFrame, wanted: str) -> pd.Series:
    values = chosen.dropna(subset=[MEASURES[experiment].value])
    if values.empty:
        reasons = chosen["reason"].dropna().unique() if "reason" in chosen else []
        recorded = run.bundle.run["experiments"][experiment]["reason"]
        raise NotMeasured("; ".join(reasons) or recorded or f"{experiment} has no rows for {wanted}")
    index = pd.MultiIndex.from_arrays([values["part"].str.rpartition("-")[2], values["round"]])
    return pd.Series(values[MEASURES[experiment].value].to_numpy(), index=index)


def _places(run: StudyRun, experiment: str) -> dict[tuple[str, str, str], list[int]]:
    """(way, condition, start) to the numbers of its rows: each claim and figure asks for a few of thousands."""
    key = ("places", experiment)
    if key not in run.kept:
        measure, table, found = MEASURES[experiment], run.table(experiment), {}
        conditions = table[measure.condition].astype(str)
        for place, name in enumerate(zip(table[measure.way], conditions, table["start"], strict=True)):
            found.setdefault(name, []).append(place)
        run.kept[key] = found
    return run.kept[key]


def paired_ratio(numerator: pd.Series, denominator: pd.Series) -> Interval:
    """The ratio's interval over the rounds that both have."""
    both = numerator.index.intersection(denominator.index)
    return stats.ratio(numerator[both], denominator[both], both.get_level_values(0))


def _null_factor(run: StudyRun, experiment: str, condition: str, start: str) -> float:
    """How far the same thing measured twice differs, as a factor of at least 1."""
    again, first = MEASURES[experiment].null
    try:
        null = paired_ratio(*(samples(run, experiment, way, condition, start) for way in (again, first)))
    except NotMeasured:
        return 1.0
    return max(null.median, 1 / null.median)


def _compare(
    run: StudyRun, claim: Claim, ways: str, condition: str, start: str
) -> tuple[Interval, Interval, str]:
    """(effect, effect widened by the A/A null, its words)."""
    names = ways.split("|")
    effect = paired_ratio(*(samples(run, claim.experiment, name, condition, start) for name in names))
    factor = _null_factor(run, claim.experiment, condition, start)
    widened = replace(effect, low=effect.low / factor, high=effect.high * factor)
    return effect, widened, f"{names[0]} costs {_factor(effect.median)} times {names[1]} {_words(effect)}"


def _words(effect: Interval) -> str:
    return f"[95 % {_factor(effect.low)} to {_factor(effect.high)}, {effect.samples} pairs of {effect.processes} processes]"


def _factor(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _verdict(effect: Interval, good: bool, bad: bool) -> str:
    if not effect.carries_a_verdict:
        return INCONCLUSIVE
    return HOLDS if good else FAILS if bad else INCONCLUSIVE


@_rule
def ratio_at_least(run, claim, ways, condition, start):
    """Holds where the whole widened interval reaches the threshold, fails where none of it does."""
    effect, wide, words = _compare(run, claim, ways, condition, start)
    verdict = _verdict(wide, wide.low >= claim.threshold, wide.high < claim.threshold)
    return Finding(verdict, f"Here {words}; the claim needs at least {claim.threshold:g}.", effect)


@_rule
def ratio_at_most(run, claim, ways, condition, start):
    """As :func:`ratio_at_least`, from above."""
    effect, wide, words = _compare(run, claim, ways, condition, start)
    verdict = _verdict(wide, wide.high <= claim.threshold, wide.low > claim.threshold)
    return Finding(verdict, f"Here {words}; the claim allows at most {claim.threshold:g}.", effect)


@_rule
def ratio_within(run, claim, ways, condition, start):
    """Holds where the widened interval lies between 1/threshold and threshold: an equivalence."""
    effect, wide, words = _compare(run, claim, ways, condition, start)
    low, high = 1 / claim.threshold, claim.threshold
    verdict = _verdict(wide, low <= wide.low and wide.high <= high, wide.low > high or wide.high < low)
    return Finding(verdict, f"Here {words}; the claim allows {_factor(low)} to {_factor(high)}.", effect)


@_rule
def start_ratio_at_least(run, claim, way, condition):
    """One way, in processes that libc did not register against processes that it did, run in turns."""
    without, with_rseq = (samples(run, claim.experiment, way, condition, start) for start in ("none", "libc"))
    effect = paired_ratio(without, with_rseq)
    factor = _null_factor(run, claim.experiment, condition, "libc")
    verdict = _verdict(effect, effect.low / factor >= claim.threshold, effect.high * factor < claim.threshold)
    return Finding(
        verdict,
        f"Here {way} costs {with_rseq.median():.2f} ns with rseq and {without.median():.2f} ns without: "
        f"{_factor(effect.median)} times {_words(effect)}; the claim needs at least {claim.threshold:g}.",
        effect,
    )


@_rule
def start_ratio_within(run, claim, way, condition):
    """The same as an equivalence, from processes that libc registered to those that it did not."""
    without, with_rseq = (samples(run, claim.experiment, way, condition, start) for start in ("none", "libc"))
    effect = paired_ratio(with_rseq, without)
    factor = _null_factor(run, claim.experiment, condition, "libc")
    low, high = effect.low / factor, effect.high * factor
    verdict = _verdict(
        effect,
        1 / claim.threshold <= low and high <= claim.threshold,
        low > claim.threshold or high < 1 / claim.threshold,
    )
    return Finding(
        verdict,
        f"Here {way} costs {with_rseq.median():.0f} ns where libc registers and {without.median():.0f} ns where it "
        f"does not: {_factor(effect.median)} times {_words(effect)}; the claim allows "
        f"{_factor(1 / claim.threshold)} to {_factor(claim.threshold)}.",
        effect,
    )


@_rule
def adds_at_most(run, claim, ways, condition, start):
    """What the first way costs more than the second, as a share of one rseq increment on one thread; widened by the null."""
    costs = [samples(run, claim.experiment, name, condition, start) for name in ways.split("|")]
    counted = samples(run, "percpu-counter", "rseq", "1", "libc").median()
    added = paired_difference(*costs)
    effect = replace(added, median=added.median / counted, low=added.low / counted, high=added.high / counted)
    slack = (_null_factor(run, claim.experiment, condition, start) - 1) * costs[0].median() / counted
    verdict = _verdict(effect, effect.high + slack <= claim.threshold, effect.low - slack > claim.threshold)
    return Finding(
        verdict,
        f"Here the first costs {added.median:.2f} ns more, which is {100 * effect.median:.0f} % of an rseq increment "
        f"of {counted:.2f} ns [95 % {100 * effect.low:.0f} to {100 * effect.high:.0f}, {effect.samples} pairs of "
        f"{effect.processes} processes]; the claim allows {100 * claim.threshold:.0f} %.",
        effect,
    )


@_rule
def nulls_without_verdict(run, claim):
    """The share of comparisons of a thing with itself whose widened interval holds 1; needs 100 of them."""
    table = run.table(claim.experiment)
    values = table.pivot_table(index=["repeat", "part", "round"], columns="name", values="ns_per_read")
    silent = bare = 0
    repeats = [group for _, group in values.groupby(level="repeat")]
    for group in repeats:
        processes = group.index.get_level_values("part")
        effect = stats.ratio(group["one"], group["other"], processes)
        null = stats.ratio(group["again"], group["other"], processes).median
        factor = max(null, 1 / null)
        bare += effect.low <= 1 <= effect.high
        silent += effect.low / factor <= 1 <= effect.high * factor
    words = (
        f"Of {len(repeats)} comparisons of a loop with itself {silent} gave no verdict ({bare} before their intervals "
        "were widened by the null)"
    )
    if len(repeats) < 100:
        raise NotMeasured(f"{words}; the claim needs 100, which the full profile measures.")
    return Finding(HOLDS if silent >= claim.threshold * len(repeats) else FAILS, f"{words}.")


# ---- instructions ----


INSTRUCTIONS = {
    "option-access-code": ("function_instructions", ["arch", "tls_model"]),
    "option-access-count": ("executed_instructions", ["read", "tls_model"]),
}
"""Where an experiment keeps its counts, and what tells two reads of one option apart."""


@_rule
def instructions_more(run, claim, options):
    """The first option's read has ``threshold`` instructions more, by every way that both have."""
    value, apart = INSTRUCTIONS[claim.experiment]
    table = run.table(claim.experiment)
    plain = table[(table["check"] == "none") & (table.get("loaded", "at-start") == "at-start")]
    more, less = options.split("|")
    two = plain[plain["option"].isin([more, less])].dropna(subset=[value])
    counts = two.groupby([*apart, "option"])[value].median().unstack()
    both = counts.reindex(columns=[more, less]).dropna()
    return _share(
        int((both[more] - both[less] == claim.threshold).sum()),
        len(both),
        f"pairs of reads (by {' and '.join(apart)}) differ by {claim.threshold:g} instructions"
        + (f"; the differences are {_ranges(both[more] - both[less])}" if len(both) else ""),
    )


# ---- memory ----


def thread_bytes(run: StudyRun, *layouts: str) -> pd.DataFrame:
    """Measured bytes per thread: a row per process and round, a column per layout; all of them, or these."""
    table = run.table("thread-memory")
    measured = table[table["kind"] == "measured"].dropna(subset=["bytes_per_thread"])
    if layouts:
        measured = measured[measured["layout"].isin(layouts)]
    if measured.empty:
        raise NotMeasured("; ".join(table["reason"].dropna().unique()) or "thread-memory has no measured row")
    return measured.pivot_table(index=["part", "round"], columns="layout", values="bytes_per_thread")


def paired_difference(more: pd.Series, less: pd.Series) -> Interval:
    """The difference's interval over the rounds that both have."""
    found = (more - less).dropna()
    return stats.interval(found, list(found.index.get_level_values(0)))


@_rule
def more_bytes(run, claim, layouts):
    """Threads with the first layout hold more than those with the second, by more than ``threshold`` bytes."""
    more, less = layouts.split("|")
    held = thread_bytes(run, more, less)
    if not {more, less} <= set(held):
        raise NotMeasured(f"thread-memory has no measured row for {more} or for {less}")
    effect = paired_difference(held[more], held[less])
    verdict = _verdict(effect, effect.low > claim.threshold, effect.high <= claim.threshold)
    return Finding(
        verdict,
        f"Here a thread with {more} holds {effect.median:.0f} bytes more than one with {less} [95 % {effect.low:.0f} "
        f"to {effect.high:.0f}, {effect.samples} pairs of {effect.processes} processes]; the claim needs more "
        f"than {claim.threshold:g}.",
        effect,
    )


# ---- answers of the kernel ----


def _share(good: int, all_: int, what: str) -> Finding:
    if not all_:
        raise NotMeasured("the run has no such attempt")
    return Finding(HOLDS if good == all_ else FAILS, f"Here {good} of {all_} {what}.")


@_rule
def answers_as_documented(run, claim, question):
    """Every attempt of a thread that libc left alone got the answer that the documented rule predicts."""
    table = run.table(claim.experiment)
    tried = table[(table["question"] == question) & (table["start"] == "none") & table["predicted"].notna()]
    good = int((tried["answer"] == tried["predicted"]).sum())
    taken = tried["length_bytes"][tried["answer"] == "accepted"]
    range_ = f"accepted are {_ranges(taken)}" if len(taken) else "none was accepted"
    return _share(good, len(tried), f"lengths answered as documented; {range_}")


@_rule
def unknown_lengths_refused(run, claim):
    """No length beyond what the kernel allocates fields for was accepted."""
    feature, align = (
        run.facts_of(claim.experiment).get(f"at_rseq_{name}_bytes") or abi.ORIGINAL_SIZE_BYTES
        for name in ("feature_size", "align")
    )
    known = max(abi.ORIGINAL_SIZE_BYTES, -(-feature // align) * align)
    table = run.table(claim.experiment)
    tried = table[
        (table["question"] == "length") & (table["start"] == "none") & (table["length_bytes"] > known)
    ]
    return _share(
        int((tried["answer"] == "EINVAL").sum()),
        len(tried),
        f"lengths above {known}, the most that this kernel has fields for, were refused",
    )


@_rule
def second_owner_refused(run, claim):
    """No attempt to register an area of one's own got through where libc owned the thread."""
    table = run.table(claim.experiment)
    tried = table[
        (table["start"] == "libc") & table["question"].isin(["length", "alignment", "signature", "address"])
    ]
    return _share(int((tried["answer"] == "EINVAL").sum()), len(tried), "attempts were refused with EINVAL")


@_rule
def feature_size_is_not(run, claim):
    """The aux vector's feature size is another number."""
    seen = run.facts.get("at_rseq_feature_size_bytes")
    if seen is None:
        raise NotMeasured(run.bundle.machine["reasons"].get("at_rseq_feature_size_bytes", "not recorded"))
    return Finding(HOLDS if seen != claim.threshold else FAILS, f"This kernel advertises {seen}.")


@_rule
def fact_at_most(run, claim, name):
    """A fact of the machine is not above ``threshold``."""
    seen = run.facts.get(name)
    if seen is None:
        raise NotMeasured(run.bundle.machine["reasons"].get(name, "not recorded"))
    return Finding(
        HOLDS if seen <= claim.threshold else FAILS,
        f"This kernel says {seen}; the claim allows {claim.threshold:g}.",
    )


@_rule
def unknown_flags_refused(run, claim):
    """No registration with a flag beyond the two that are documented was accepted."""
    table = run.table(claim.experiment)
    known = [
        f"bit {number.bit_length() - 1}" for number in (abi.FLAG_UNREGISTER, abi.FLAG_SLICE_EXT_DEFAULT_ON)
    ]
    tried = table[(table["question"] == "flags") & (table["start"] == "none") & ~table["attempt"].isin(known)]
    refused = int((tried["answer"] == "EINVAL").sum())
    return _share(
        refused, len(tried), "registrations with a flag beyond the two documented ones were refused"
    )


@_rule
def libc_size_is_live_size(run, claim):
    """libc's number against the bytes of fields that the kernel keeps live."""
    said, live = (run.facts.get(f"rseq_{name}") for name in ("libc_size", "live_bytes"))
    if said is None or live is None:
        raise NotMeasured(
            run.bundle.machine["reasons"].get("rseq_live_bytes", "libc registered nothing here")
        )
    registered = run.facts.get("rseq_registered_size")
    return Finding(
        HOLDS if said == live else FAILS,
        f"libc says {said}, the kernel has {registered} registered and keeps {live} live.",
    )


@_rule
def sums_are_exact(run, claim):
    """Every batch of rseq increments added up."""
    table = run.table(claim.experiment)
    batches = table[table["technique"].isin(["rseq", "rseq-again"])]
    good = int((batches["sum"] == batches["increments"]).sum())
    return _share(
        good,
        len(batches),
        f"batches were exact, {int(batches['increments'].sum()):,} increments with "
        f"{int(batches['aborts'].sum()):,} attempts that did not commit",
    )


ABORTS = ["aborts_moved", "aborts_migrated", "aborts_interrupted"]
"""Attempts that did not commit, by cause."""


@_rule
def all_work_is_found(run, claim, part):
    """Every batch of the techniques that have ``part`` in their name left exactly its work in the data."""
    table = run.table(claim.experiment)
    batches = table[table["technique"].str.contains(part, regex=False)]
    good = int((batches["done"] == batches["operations"]).sum())
    aborts = int(batches[ABORTS].to_numpy().sum())
    return _share(
        good,
        len(batches),
        f"batches were exact, {int(batches['operations'].sum()):,} operations with {aborts:,} attempts that did "
        "not commit",
    )


@_rule
def aborts_per_million_at_most(run, claim, technique, threads):
    """Attempts that did not commit, of all batches added up."""
    table = run.table(claim.experiment)
    batches = table[(table["technique"] == technique) & (table["threads"].astype(str) == threads)]
    if batches.empty:
        raise NotMeasured(f"{claim.experiment} has no rows for {technique}, {threads} threads")
    aborts, operations = int(batches[ABORTS].to_numpy().sum()), int(batches["operations"].sum())
    rate = 1e6 * aborts / operations
    return Finding(
        HOLDS if rate <= claim.threshold else FAILS,
        f"Here {aborts:,} of {operations:,} attempts did not commit: {rate:.3f} in a million; "
        f"the claim allows {claim.threshold:g}.",
    )


@_rule
def fewer_slots(run, claim):
    """Indices that one thread touches as it is moved over all CPUs (``threshold`` and more), by mm_cid against cpu_id."""
    table = run.table(claim.experiment)
    cpus = int(table["cpus"].max())
    if cpus < claim.threshold:
        raise NotMeasured(
            f"The process may use {cpus} CPUs; a thread and its creator have 2 concurrency ids by themselves, "
            f"so at least {claim.threshold:g} are needed to tell"
        )
    moved = table[(table["cpus"] == cpus) & (table["threads"] == 1) & (table["moves"] > 0)]
    dense, sparse = (float(moved[moved["way"] == way]["slots_used"].median()) for way in ("mm_cid", "cpu_id"))
    return Finding(
        HOLDS if dense < sparse else FAILS,
        f"Here a thread that is moved over {cpus} CPUs touches {dense:g} slots by mm_cid and {sparse:g} by cpu_id.",
    )


# ---- kernels in guests ----


def _since(table: pd.DataFrame, release: str) -> pd.DataFrame:
    """The rows of kernels from this release on. Raises NotMeasured."""
    oldest = kernel_counts.by_release(release)
    found = table[table["series"].map(kernel_counts.by_release) >= oldest]
    if found.empty:
        raise NotMeasured(f"the run has no kernel of {release} or newer")
    return found


def _added(run: StudyRun, release: str, measure: str, *registrations: str) -> pd.DataFrame:
    """What these registrations without a section add, on each such kernel and architecture."""
    series = _since(plain(run).table("kernel-costs"), release)["series"].unique()
    return kernel_counts.added(
        run, series=series, measure=[measure], registration=["none", *registrations], section=["null"]
    )


@_rule
def registration_adds_at_most(run, claim, measure, registration, release):
    """On each such kernel and architecture a registration without a section adds at most ``threshold`` percent."""
    rows = _added(run, release, measure, registration)
    words = "; ".join(
        f"{row.series} {row.arch}: {row.added_instructions:+,.1f} of {row.unregistered:,.1f} ({row.added_percent:+.3f} %)"
        for row in rows.itertuples()
    )
    good = int((rows["added_percent"] <= claim.threshold).sum())
    return _share(good, len(rows), f"guests stay within {claim.threshold:g} %: {words}")


@_rule
def registration_adds_more(run, claim, measure, registrations, release):
    """On each such kernel and architecture the first registration adds more than the second, by ``threshold`` instructions."""
    more, less = registrations.split("|")
    rows = _added(run, release, measure, more, less)
    wide = rows.pivot_table(index=["series", "arch"], columns="registration", values="added_instructions")
    both = wide.reindex(columns=[more, less]).dropna()
    words = "; ".join(
        f"{' '.join(guest)}: {row[more]:+,.1f} against {row[less]:+,.1f}" for guest, row in both.iterrows()
    )
    good = int((both[more] - both[less] > claim.threshold).sum())
    return _share(good, len(both), f"guests count more for {more} than for {less}: {words}")


@_rule
def guests_answer(run, claim, release, libc, mode, attempt, answer):
    """Each such guest and libc gives this answer. Names may hold * and ?, as a rule's words may hold no colon."""
    table = _since(run.table(claim.experiment), release)
    rows = table[
        table["libc"].map(lambda name: fnmatch(name, libc))
        & (table["mode"] == mode)
        & table["attempt"].map(lambda name: fnmatch(name, attempt))
    ]
    good = int(rows["answer"].map(lambda said: fnmatch(said, answer)).sum())
    words = "; ".join(f"{said} ({count})" for said, count in rows["answer"].value_counts(sort=True).items())
    return _share(good, len(rows), f"guests answer so; the answers are {words}")


@_rule
def ids_are_dense(run, claim):
    """No mm_cid reached the number of threads, creator included, nor the number of CPUs; cpu_id is told beside it."""
    rows = kernel_counts.spread(run)
    bound = rows[["threads", "cpus"]].assign(threads=rows["threads"] + claim.threshold).min(axis=1)
    few = rows.loc[rows["threads"] + claim.threshold < rows["cpus"]]
    return _share(
        int((rows["most_mm_cid"] < bound).sum()),
        len(rows),
        "processes kept every mm_cid below their threads and the CPUs"
        + (
            f"; with fewer threads than CPUs, cpu_id reached {int(few['most_cpu_id'].max())} and mm_cid "
            f"{int(few['most_mm_cid'].max())}"
            if len(few)
            else ""
        ),
    )


# ---- real programs ----


@_rule
def caches_need_own_area(run, claim):
    """Whether the allocator has bytes in its per-CPU caches, in every run, by whose area the threads have."""
    rows = run.table(claim.experiment).dropna(subset=["cache_bytes"])
    has = rows["cache_bytes"] > 0
    good = int((has == (rows["rseq_owner"] == "program")).sum())
    counts = ", ".join(
        f"{owner} owns: {int((group['cache_bytes'] > 0).sum())} of {len(group)} have them"
        for owner, group in rows.groupby("rseq_owner")
    )
    return _share(
        good, len(rows), f"runs have caches per CPU exactly where the program owns the area; {counts}"
    )


@_rule
def program_verdict(run, claim, load, wanted):
    """Every load of this name must come out so; one that comes out the other way is enough to fail."""
    from rseqlab.study import workloads  # here: it builds on this module

    table = run.table(claim.experiment)
    names = [name for name in table["workload"].unique() if name.startswith(load)]
    if not names:
        raise NotMeasured(f"{claim.experiment} has no rows for {load}")
    found = [workloads.effect(table, claim.experiment, name) for name in names]
    opposite = workloads.LOSES if wanted == workloads.GAINS else workloads.GAINS
    verdicts = {one.verdict for one in found}
    verdict = HOLDS if verdicts == {wanted} else FAILS if opposite in verdicts else INCONCLUSIVE
    return Finding(
        verdict,
        "Here " + " ".join(one.sentence() for one in found),
        found[0].ratio if len(found) == 1 else None,
    )


# ---- the matrix of options ----


def _cells(run: StudyRun, option: str, criteria: str) -> list[Cell]:
    """The named cells. Raises NotMeasured where one of them is not measured."""
    found = [matrix_of(plain(run)).cell(option, criterion) for criterion in criteria.split("/")]
    for cell in found:
        _look_at(run, cell)
    for cell in found:
        if cell.outcome == "not measured":
            raise NotMeasured(cell.sentence)
    return found


def _look_at(run: StudyRun, cell: Cell) -> None:
    """Read the scenes of a cell. The matrix has done so for all cells at once, where a watched run cannot see it."""
    if run is not plain(run):
        table = run.table(cell.experiment)
        scenes = table[(table["option"] == cell.option) & (table["criterion"] == cell.criterion)]
        scenes[["case", "ended", "said", "wrong", "overwritten_bytes"]]


SPOKEN_CELLS = 2
"""Of more cells than this a claim says the outcome alone; the commands that list their scenes are named."""


def _told(cells: list[Cell]) -> str:
    outcomes = [f"{cell.option}, {CRITERION[cell.criterion].label}: {cell.label}" for cell in cells]
    if len(cells) > SPOKEN_CELLS:
        bad = [f"`rseqlab options {cell.option}/{cell.criterion}`" for cell in cells if cell.outcome != WORKS]
        return "; ".join(outcomes) + (f". Scene by scene: {', '.join(bad)}." if bad else ".")
    return " ".join(f"{told}. {cell.sentence}" for told, cell in zip(outcomes, cells, strict=True))


@_rule
def option_works(run, claim, option, criteria):
    """Every scene of these criteria ends well for the option."""
    cells = _cells(run, option, criteria)
    good = all(cell.outcome == WORKS for cell in cells)
    return Finding(HOLDS if good else FAILS, _told(cells))


@_rule
def option_breaks(run, claim, option, criteria):
    """At least one scene of each of these criteria ends badly for the option."""
    cells = _cells(run, option, criteria)
    bad = all(cell.outcome == "breaks" for cell in cells)
    return Finding(HOLDS if bad else FAILS, _told(cells))


@_rule
def scenes_end(run, claim, option, case, ended):
    """Every scene of the option whose name has these words ended so."""
    table = run.table(claim.experiment)
    tried = table[(table["option"] == option) & table["case"].str.contains(case, regex=False)]
    said = "; ".join(tried["said"].dropna().unique())
    good = int((tried["ended"] == ended).sum())
    return _share(good, len(tried), f"such scenes ended with {ended}" + (f", saying: {said}" if said else ""))


@_rule
def scenes_work(run, claim, option, case):
    """Every scene of the option whose name has these words ended well."""
    table = run.table(claim.experiment)
    tried = table[(table["option"] == option) & table["case"].str.contains(case, regex=False)]
    tried[["ended", "said"]]
    rows = run.source(claim.experiment).bundle.tables[claim.experiment]
    judged = [outcome(rows[place]) for place in tried.index]
    whys = "; ".join(dict.fromkeys(one.why for one in judged))
    return _share(sum(one.good is True for one in judged), len(judged), f"such scenes end well: {whys}")


@_rule
def loader_warns(run, claim, case):
    """The loader said something as a program met the grown object; of an ordinary object it does."""
    table = run.table(claim.experiment)
    rows = table[table["criterion"] == "loader-words"]
    told = dict(zip(rows["case"], rows["said"].fillna("nothing"), strict=True))
    if case not in told:
        raise NotMeasured(f"{claim.experiment} has no row for the {case}")
    words = "; ".join(f"of the {name}: {said}" for name, said in told.items())
    return Finding(HOLDS if told[case] != "nothing" else FAILS, f"The loader says {words}.")


def _ranges(numbers: Iterable[float]) -> str:
    """Consecutive whole numbers as ranges: 32, 40 to 42."""
    runs: list[list[int]] = []
    for number in sorted({int(number) for number in numbers}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def weaknesses(run: StudyRun) -> list[str]:
    """In words, what makes parts of this run a weak basis: null comparisons, spread, steal, what was left out."""
    found = []
    for name, record in run.bundle.run["experiments"].items():
        if record["status"] not in ("pass", "skip"):  # what is missing here is a footnote (study/missing.py)
            found.append(
                f"{name}: {record['status'] or 'not finished'}{': ' + record['reason'] if record['reason'] else ''}"
            )
        found.append(stats.steal_verdict(name, record["steal_percent"]))
        if record["status"] == "pass" and name in MEASURES:
            found.extend([*_nulls(run, name), _spread(run, name)])
    return [sentence for sentence in found if sentence]


def _nulls(run: StudyRun, experiment: str) -> Iterable[str | None]:
    """The A/A comparisons that came out as if the two were different things."""
    measure, table = MEASURES[experiment], run.table(experiment)
    again, first = measure.null
    for condition, start in (
        table[table[measure.way] == again][[measure.condition, "start"]].drop_duplicates().to_numpy()
    ):
        null = paired_ratio(*(samples(run, experiment, way, str(condition), start) for way in (again, first)))
        yield stats.null_verdict(f"{experiment}, {measure.condition} {condition}, start {start}", null)


def _spread(run: StudyRun, experiment: str) -> str | None:
    """One sentence for all series of an experiment; the table of its costs has each one's figure."""
    measure = MEASURES[experiment]
    table = run.table(experiment).dropna(subset=[measure.value])
    series = {
        key: group[measure.value]
        for key, group in table.groupby([measure.way, measure.condition, "start"], sort=True)
    }
    return stats.instability(experiment, {", ".join(map(str, key)): values for key, values in series.items()})
