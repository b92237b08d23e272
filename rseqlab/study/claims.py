"""What people said, tested on a run: each claim with its verdict, the effect and its interval."""

import csv
import html
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase as fnmatch
from functools import cache, cached_property

import pandas as pd

from rseqlab import abi
from rseqlab.errors import UsageError
from rseqlab.lab import stats, verdict
from rseqlab.lab.stats import Interval
from rseqlab.lab.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_MEASURED, VERDICTS, Allowed, Judgement
from rseqlab.options.criteria import CRITERION, outcome
from rseqlab.options.matrix import WORKS, Cell
from rseqlab.paths import project_root
from rseqlab.study import citations, kernel_counts, rates, redefinition
from rseqlab.study.levels import LEVELS, levels
from rseqlab.study.matrix import matrix_of
from rseqlab.study.reading import NOTHING, Reading, WatchedRun, plain, reading
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.samples import (
    MEASURES,
    alone,
    control,
    control_difference,
    location,
    paired_difference,
    paired_ratio,
    samples,
    slow_empty_loop,
)

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
            "processes": effect and effect.processes,
            "builds": effect and effect.builds,
            "widened": effect and effect.widened,
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
class Compared:
    """Two ways' judged ratio, and the words that its numbers make."""

    judged: Judgement
    words: str

    def finding(self, allowed: str) -> Finding:
        """The finding of a claim that allows so much."""
        return Finding(
            self.judged.verdict, f"Here {self.words}; {allowed}.{self.judged.note}", self.judged.effect
        )


def _compare(
    run: StudyRun, claim: Claim, ways: str, condition: str, start: str, allowed: Allowed
) -> Compared:
    above, below = ways.split("|")
    effect = paired_ratio(
        *(samples(run, claim.experiment, name, condition, start) for name in (above, below)),
        alone=alone(claim.experiment, condition),
    )
    judged = verdict.judge(effect, control(run, claim.experiment, condition, start), allowed)
    if below == MEASURES[claim.experiment].empty:
        slow = slow_empty_loop(run, claim.experiment, condition, start)
        judged = replace(judged, verdict=INCONCLUSIVE, lacks=slow) if slow else judged
    effect = judged.effect
    return Compared(
        judged, f"{above} costs {verdict.number(effect.median)} times {below} {verdict.words(effect)}"
    )


@_rule
def ratio_at_least(run, claim, ways, condition, start):
    """Holds where the whole interval reaches the threshold, fails where none of it does."""
    found = _compare(run, claim, ways, condition, start, Allowed(low=claim.threshold))
    return found.finding(f"the claim needs at least {claim.threshold:g}")


@_rule
def ratio_at_most(run, claim, ways, condition, start):
    """As :func:`ratio_at_least`, from above."""
    found = _compare(run, claim, ways, condition, start, Allowed(high=claim.threshold))
    return found.finding(f"the claim allows at most {claim.threshold:g}")


@_rule
def ratio_within(run, claim, ways, condition, start):
    """Holds where the interval lies between 1/threshold and threshold: an equivalence."""
    allowed = Allowed.within(claim.threshold)
    found = _compare(run, claim, ways, condition, start, allowed)
    return found.finding(_within(allowed))


def _within(allowed: Allowed) -> str:
    return f"the claim allows {verdict.number(allowed.low)} to {verdict.number(allowed.high)}"


def _starts(run: StudyRun, claim: Claim, way: str, condition: str, over: str, allowed: Allowed) -> Compared:
    """One way in processes that libc registered and that it did not, run in turns; ``over`` is the numerator's start."""
    found = {start: samples(run, claim.experiment, way, condition, start) for start in ("libc", "none")}
    under = "none" if over == "libc" else "libc"
    effect = paired_ratio(found[over], found[under], alone=alone(claim.experiment, condition))
    judged = verdict.judge(effect, control(run, claim.experiment, condition, "libc"), allowed)
    times = {start: location(values).median for start, values in found.items()}
    return Compared(
        judged,
        f"{way} costs {verdict.number(times['libc'])} ns where libc registers and {verdict.number(times['none'])} ns "
        f"where it does not: {verdict.number(judged.effect.median)} times {verdict.words(judged.effect)}",
    )


@_rule
def start_ratio_at_least(run, claim, way, condition):
    """One way, in processes that libc did not register against processes that it did, run in turns."""
    found = _starts(run, claim, way, condition, "none", Allowed(low=claim.threshold))
    return found.finding(f"the claim needs at least {claim.threshold:g}")


@_rule
def start_ratio_within(run, claim, way, condition):
    """The same as an equivalence, from processes that libc registered to those that it did not."""
    allowed = Allowed.within(claim.threshold)
    return _starts(run, claim, way, condition, "libc", allowed).finding(_within(allowed))


@_rule
def adds_at_most(run, claim, ways, condition, start):
    """What the first way costs more than the second, as a share of one rseq increment on one thread."""
    costs = [samples(run, claim.experiment, name, condition, start) for name in ways.split("|")]
    counted = location(samples(run, "percpu-counter", "rseq", "1", "libc")).median
    added, itself = (
        paired_difference(*costs, alone=alone(claim.experiment, condition)),
        control_difference(run, claim.experiment, condition, start),
    )
    judged = verdict.judge(
        stats.scaled(added, 1 / counted),
        itself and stats.scaled(itself, 1 / counted),
        Allowed(high=claim.threshold),
        difference=True,
    )
    effect = judged.effect
    return Finding(
        judged.verdict,
        f"Here the first costs {added.median:.2f} ns more, which is {verdict.number(100 * effect.median)} % of an rseq "
        f"increment of {counted:.2f} ns {verdict.words(effect, scale=100)}; the claim allows "
        f"{100 * claim.threshold:.0f} %.{judged.note}",
        effect,
    )


# ---- how far to believe the rule of verdicts itself ----


@_rule
def nulls_without_verdict(run, claim):
    """The share of comparisons of a loop with itself that get no verdict, over sets of builds."""
    found = _rates(run)
    if len(found.alike) < rates.LEAST_COMPARISONS:
        raise NotMeasured(
            f"{found.alike_sentence()[:-1]}; the claim needs {rates.LEAST_COMPARISONS} comparisons, which the full "
            "profile measures"
        )
    silent = len(found.alike) - len(found.wrong)
    return Finding(HOLDS if silent >= claim.threshold * len(found.alike) else FAILS, found.alike_sentence())


@_rule
def differences_found(run, claim):
    """The share of comparisons of two loops, one of which is known to take 5 % longer, in which that is found."""
    found = _rates(run)
    if len(found.different) < rates.LEAST_DIFFERENCES:
        raise NotMeasured(
            f"{found.different_sentence()[:-1]}; the claim needs {rates.LEAST_DIFFERENCES} comparisons, which the full "
            "profile measures"
        )
    good = len(found.found) >= claim.threshold * len(found.different)
    return Finding(HOLDS if good else FAILS, found.different_sentence())


def _rates(run: StudyRun) -> rates.Rates:
    """The rates, computed once for each run; a watched one sees the rows that they are of."""
    if run is not plain(run):
        rows = run.table(rates.EXPERIMENT)
        rows[[name for name in ("loop", "ns_per_iteration") if name in rows]]
    return rates.rates(plain(run))


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
    return (
        measured[["layout", "bytes_per_thread"]]
        .set_index(levels(measured))
        .pivot_table(index=LEVELS, columns="layout", values="bytes_per_thread")
    )


NO_AREA = ("none again", "none")
"""The A/A control: threads without an area, twice."""


@_rule
def more_bytes(run, claim, layouts):
    """Threads with the first layout hold more than those with the second, by more than ``threshold`` bytes."""
    more, less = layouts.split("|")
    held = thread_bytes(run, more, less, *NO_AREA)
    if not {more, less} <= set(held):
        raise NotMeasured(f"thread-memory has no measured row for {more} or for {less}")
    effect = paired_difference(held[more], held[less])
    judged = verdict.judge(
        effect,
        paired_difference(*(held[name] for name in NO_AREA)) if set(NO_AREA) <= set(held) else None,
        Allowed(low=math.nextafter(claim.threshold, math.inf)),
        verdict.UNTIMED,
        difference=True,
    )
    return Finding(
        judged.verdict,
        f"Here a thread with {more} holds {verdict.number(judged.effect.median)} bytes more than one with {less} "
        f"{verdict.words(judged.effect)}; the claim needs more than {claim.threshold:g}.{judged.note}",
        judged.effect,
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
    allowed = Allowed(high=claim.threshold)
    judged = [verdict.counted(row.low_percent, row.high_percent, allowed) for row in rows.itertuples()]
    words = "; ".join(
        f"{row.series} {row.arch}: {row.added_instructions:+,.1f} of {row.unregistered:,.1f} ({row.added_percent:+.3f} "
        f"%, repeats {row.low_percent:+.3f} to {row.high_percent:+.3f})"
        for row in rows.itertuples()
    )
    return _each(judged, f"guests stay within {claim.threshold:g} %: {words}")


@_rule
def registration_adds_more(run, claim, measure, registrations, release):
    """On each such kernel and architecture the first registration adds more than the second, by ``threshold`` instructions."""
    more, less = registrations.split("|")
    rows = _added(run, release, measure, more, less)
    allowed, judged, words = Allowed(low=math.nextafter(claim.threshold, math.inf)), [], []
    for guest, both in rows.groupby(["series", "arch"], sort=False):
        of = both.set_index("registration")
        if not {more, less} <= set(of.index):
            continue
        low, high = of["min"][more] - of["max"][less], of["max"][more] - of["min"][less]
        judged.append(verdict.counted(low, high, allowed))
        added = of["added_instructions"]
        words.append(
            f"{' '.join(guest)}: {added[more]:+,.1f} against {added[less]:+,.1f} (difference {low:+,.1f} to {high:+,.1f})"
        )
    return _each(judged, f"guests count more for {more} than for {less}: {'; '.join(words)}")


def _each(judged: list[str], what: str) -> Finding:
    """A claim about several counts: what holds for each of them."""
    if not judged:
        raise NotMeasured("the run has no such count")
    return Finding(verdict.all_of(judged), f"Here {judged.count(HOLDS)} of {len(judged)} {what}.")


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
    return Finding(
        HOLDS if verdicts == {wanted} else FAILS if opposite in verdicts else INCONCLUSIVE,
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


# ---- who else defines what libc exports ----


@_rule
def names_taken_over(run, claim, fate):
    """Every test case of that kind ends in this fate: a function of redefinition, which says what it counts."""
    kinds = {
        "redirected": (redefinition.redirected, "new threads are registered where the definition says"),
        "left_alone": (redefinition.left_alone, "new threads are registered where libc says"),
        "killed": (redefinition.killed, "programs are ended by a signal"),
        "resized": (redefinition.resized, "new threads get the defined length, or die of it"),
    }
    count, what = kinds[fate]
    found = count(run)
    return _share(found.good, found.all, f"{what}, under {found.where}: {found.how}")


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
        found.append(verdict.steal_note(name, record["steal_percent"]))
        if record["status"] == "pass" and name in MEASURES:
            found.extend([*_controls(run, name), _spread(run, name)])
    return [sentence for sentence in found if sentence]


def _controls(run: StudyRun, experiment: str) -> Iterable[str | None]:
    """The A/A controls that came out as if the two were different things."""
    measure, table = MEASURES[experiment], run.table(experiment)
    again = table[table[measure.way] == measure.null[0]]
    for condition, start in again[[measure.condition, "start"]].drop_duplicates().to_numpy():
        found = control(run, experiment, str(condition), start)
        if found:
            yield verdict.control_note(f"{experiment}, {measure.condition} {condition}, start {start}", found)


def _spread(run: StudyRun, experiment: str) -> str | None:
    """One sentence for all series of an experiment; the table of its costs has each one's figure."""
    measure = MEASURES[experiment]
    table = run.table(experiment).dropna(subset=[measure.value])
    series = {
        key: group[measure.value]
        for key, group in table.groupby([measure.way, measure.condition, "start"], sort=True)
    }
    return verdict.instability(
        experiment, {", ".join(map(str, key)): values for key, values in series.items()}
    )
