"""One function per table: a run in, a table with units in its column names out."""

import html
import re
from dataclasses import dataclass

import pandas as pd

from rseqlab import doctor
from rseqlab import layout as structs
from rseqlab.experiments import catalogue
from rseqlab.experiments.percpu_ops import TECHNIQUES
from rseqlab.experiments.signal_storm import STORMS
from rseqlab.lab import stats, verdict
from rseqlab.study import citations, figures
from rseqlab.study.claims import ABORTS, judge, linked, weaknesses
from rseqlab.study.hardware import hardware
from rseqlab.study.levels import levels
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.samples import MEASURES, alone, control, location, paired_ratio, samples
from rseqlab.study.sentences import Sentences as Sentences


@dataclass(frozen=True)
class Table:
    """Rows for people, escaped as HTML, or as text where there is no browser."""

    frame: pd.DataFrame
    caption: str

    @property
    def shown(self) -> pd.DataFrame:
        """The rows with nothing where nothing is known: pandas writes <NA> for that in columns of integers."""
        frame = self.frame.rename_axis(columns=None).copy()
        for name in frame.columns[frame.isna().any()]:
            if pd.api.types.is_extension_array_dtype(frame[name].dtype):
                frame[name] = frame[name].astype(object).where(frame[name].notna(), "")
        return frame

    def _repr_html_(self) -> str:
        text = self.shown.to_html(
            classes="rl-table", border=0, index=False, escape=True, na_rep="", justify="left"
        )
        return text.replace("<thead>", f"<caption>{html.escape(self.caption)}</caption><thead>", 1)

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.shown.to_string(index=False, na_rep='')}"


class Listing(Table):
    """A table of code: where the paper is narrow, it may break anywhere."""

    def _repr_html_(self) -> str:
        return super()._repr_html_().replace("rl-table", "rl-table rl-listing", 1)


class Cited(Table):
    """A table with columns of sources, which are links."""

    def _repr_html_(self) -> str:
        shown = self.frame.fillna("").astype(str).rename_axis(columns=None)
        for name in shown:
            shown[name] = shown[name].map(citations.linked if "source" in name else html.escape)
        text = shown.to_html(classes="rl-table rl-cited", border=0, index=False, escape=False, justify="left")
        return text.replace("<thead>", f"<caption>{html.escape(self.caption)}</caption><thead>", 1)


def _shows_missing(function):
    def table(run: StudyRun, *arguments) -> Table | NotMeasured:
        try:
            return function(run, *arguments)
        except NotMeasured as missing:
            return missing

    table.__doc__ = function.__doc__
    return table


@_shows_missing
def answers(run: StudyRun, *questions: str) -> Table:
    """The kernel's answer to each attempt, where libc owned the thread and where nobody did."""
    rows = run.table("registration-rules")
    rows = rows[rows["question"].isin(questions)]
    wide = rows.pivot_table(
        index=["question", "attempt"], columns="start", values="answer", aggfunc="first", sort=False
    )
    frame = wide.reindex(columns=["libc", "none"]).fillna("not tried").reset_index()
    frame = frame.rename(columns={"libc": "libc owns the thread", "none": "nobody owns the thread"})
    return Table(frame, "The kernel's answer to each attempt")


@_shows_missing
def surprises(run: StudyRun) -> Table:
    """The attempts that were answered otherwise than documented."""
    rows = run.table("registration-rules")
    tried = rows[rows["predicted"].notna()]
    odd = tried[tried["predicted"] != tried["answer"]]
    return Table(
        odd[["start", "question", "attempt", "answer", "predicted"]],
        f"{len(odd)} of {len(tried)} attempts with a documented answer got another one",
    )


@_shows_missing
def costs(run: StudyRun, experiment: str) -> Table:
    """Location and 95 % interval of every way under every condition."""
    measure, rows = MEASURES[experiment], run.table(experiment)
    found = []
    for key, group in rows.dropna(subset=[measure.value]).groupby(
        [measure.condition, measure.way, "start"], sort=True
    ):
        seen = location(pd.Series(group[measure.value].to_numpy(), index=levels(group)))
        found.append(
            dict(zip((measure.condition, measure.way, "start"), key, strict=True))
            | {
                "median_ns": f"{seen.median:.3f}",
                "low_ns": f"{seen.low:.3f}",
                "high_ns": f"{seen.high:.3f}",
                "spread_percent": f"{stats.spread_percent(group[measure.value]):.1f}",
                "samples": seen.samples,
            }
            | ({"elapsed_median_ns": f"{group[measure.elapsed].median():.3f}"} if measure.elapsed else {})
        )
    return Table(
        pd.DataFrame(found), f"{experiment}: {measure.value}, location over builds with its 95 % interval"
    )


@_shows_missing
def access_cost(run: StudyRun, order: str = "throughput") -> Table:
    """Median ns per read of one field: options down, ways to find the area across."""
    costs = figures.access_costs(run)
    shown = costs[
        (costs["order"] == order) & (costs["check"] == "none") & ~costs["access"].str.endswith("again")
    ]
    if shown.empty:
        raise NotMeasured(f"option-access-cost has no rows for {order}")
    shown = shown.assign(
        way=shown["tls_model"].where(
            shown["loaded"] == "at-start", shown["tls_model"] + ", " + shown["loaded"]
        )
    )
    wide = shown.pivot(index="option", columns="way", values="median_ns")
    ways = [*figures.TLS_LOOKS, *sorted(set(wide) - set(figures.TLS_LOOKS))]
    wide = wide.reindex(index=structs.OPTIONS, columns=[way for way in ways if way in wide])
    empty = costs[(costs["access"] == "nothing") & (costs["order"] == order)]["median_ns"].iloc[0]
    frame = wide.map(lambda value: "" if pd.isna(value) else f"{value:.3f}").reset_index()
    return Table(frame, f"Median ns per read of one field, {order}; the loop alone takes {empty:.3f} ns")


@_shows_missing
def size_checks(run: StudyRun) -> Table:
    """What looking at the size at each read adds, as a ratio to the same read without; hoisted beside it."""
    table = run.table("option-access-cost")
    ways = table[["option", "tls_model", "check"]].drop_duplicates().dropna()
    found = []
    for order in figures.ACCESS_ORDERS:
        for option, model, check in (
            ways[ways["check"] != "none"].sort_values(["option", "tls_model"]).to_numpy()
        ):
            try:
                checked, plain = (
                    samples(run, "option-access-cost", f"{option} {model} at-start {which}", order, "none")
                    for which in (check, "none")
                )
            except NotMeasured:
                continue
            itself = control(run, "option-access-cost", order, "none")
            effect = verdict.widened(
                paired_ratio(checked, plain, alone=alone("option-access-cost", order)), itself
            )
            found.append(
                {
                    "order": order,
                    "option": option,
                    "area found by": model,
                    "check": check,
                    "median_ns": f"{location(checked).median:.3f}",
                    "without_ns": f"{location(plain).median:.3f}",
                    "ratio": verdict.number(effect.median),
                    "low": verdict.number(effect.low),
                    "high": verdict.number(effect.high),
                    "pairs": effect.samples,
                }
            )
    return Table(
        pd.DataFrame(found),
        f"The size check before the loop and at each read, against none. {WIDENED} {PAIRWISE}",
    )


WIDENED = "Intervals are 95 %, widened by the A/A control."
PAIRWISE = "Ratios are taken within each build, so two printed times need not divide to them."


@_shows_missing
def access_code(run: StudyRun, option: str, arch: str = "x86_64", check: str = "none") -> Table:
    """The instructions that read one field under an option, one column per way to find the area."""
    rows = run.table("option-access-code")
    rows = rows[(rows["option"] == option) & (rows["arch"] == arch) & (rows["check"] == check)]
    if rows.empty:
        reason = run.bundle.run["experiments"]["option-access-code"]["reason"]
        raise NotMeasured(reason or f"option-access-code has no rows for {option}, {arch}, check {check}")
    text = rows["text"].where(
        rows["relocation"].isna(), rows["text"] + "  {" + rows["relocation"].fillna("") + "}"
    )
    wide = rows.assign(text=text).pivot(index="number", columns="tls_model", values="text")
    columns = [name for name in figures.TLS_LOOKS if name in wide]
    compiler = rows["compiler"].iloc[0]
    return Listing(
        wide[columns].fillna("").reset_index(),
        f"{option}, check {check}, {arch}: the instructions of {compiler}; in braces what the linker fills in",
    )


@_shows_missing
def instruction_counts(run: StudyRun) -> Table:
    """Instructions per read, by option and check; a call adds what the called function executes."""
    rows = run.table("option-access-code")
    rows = rows.assign(
        shown=rows["function_instructions"].astype(str) + rows["function_calls"].map({0: "", 1: " + call"})
    )
    wide = rows.pivot_table(
        index=["arch", "option", "check"], columns="tls_model", values="shown", aggfunc="first", sort=False
    )
    columns = [name for name in figures.TLS_LOOKS if name in wide]
    return Table(wide[columns].fillna("").reset_index(), "Instructions of each read, the return not counted")


@_shows_missing
def executed_instructions(run: StudyRun) -> Table:
    """Instructions that a thread executes for one read, calls included: the later ones, and the first."""
    rows = run.table("option-access-count")
    counted = rows.dropna(subset=["executed_instructions"])
    if counted.empty:
        raise NotMeasured("; ".join(rows["reason"].dropna().unique()) or "option-access-count has no rows")
    way = counted["tls_model"].where(
        counted["loaded"] == "at-start", counted["tls_model"] + ", " + counted["loaded"].fillna("")
    )
    groups = counted.assign(way=way).groupby(["option", "check", "way", "read"], sort=False)
    seen = groups["executed_instructions"].agg(["min", "max"]).astype(int)
    shown = (
        seen["min"]
        .astype(str)
        .where(seen["min"] == seen["max"], seen["min"].astype(str) + " to " + seen["max"].astype(str))
    )
    wide = shown.unstack().rename(columns={"first": "first read", "second": "later reads"})
    empty = counted.loc[counted["access"] == "nothing", "executed_instructions"].max()
    return Table(
        wide.reset_index(),
        f"Instructions that a thread executes for one read, the calls included; reading nothing takes {empty:.0f}",
    )


@_shows_missing
def context_switch(run: StudyRun) -> Table:
    """A round trip of two switches by who registered what, with the switches that were counted."""
    table = run.table("context-switch-cost").dropna(subset=["elapsed_ns"])
    switches = table["voluntary_switches"] + table["involuntary_switches"]
    each = table.assign(each=switches / table["iterations"]).groupby(["between", "pair"])["each"].min()
    numbers = figures.switch_ratios(run)
    frame = pd.DataFrame(
        {
            "between": numbers["between"],
            "pair": numbers["pair"],
            "median_ns": numbers["median_ns"].map("{:.0f}".format),
            "none-none_ns": numbers["without_ns"].map("{:.0f}".format),
            "ratio": numbers["ratio"].map(verdict.number),
            "low": numbers["low"].map(verdict.number),
            "high": numbers["high"].map(verdict.number),
            "pairs": numbers["samples"],
            "least_switches_per_round_trip": [
                f"{each[row.between, row.pair]:.3f}" for row in numbers.itertuples()
            ],
        }
    )
    return Table(
        frame,
        "A round trip of two context switches, against the same where neither side registered. "
        f"{WIDENED} {PAIRWISE}",
    )


@_shows_missing
def thread_memory(run: StudyRun) -> Table:
    """Bytes for areas by number of threads, computed, and what a process really held more per thread."""
    table = run.table("thread-memory")
    computed = table[table["kind"] == "computed"]
    wide = computed.pivot(index="layout", columns="threads", values="total_bytes")
    numbers = figures.thread_bytes(run)
    frame = pd.DataFrame(
        {"layout": numbers["layout"], "bytes_per_thread": numbers["computed_bytes"].round(1)}
    )
    for threads in sorted(wide):
        frame[f"{threads:,} threads, bytes"] = [
            f"{int(wide.loc[name, threads]):,}" for name in frame["layout"]
        ]
    for name in ("measured_bytes", "low_bytes", "high_bytes"):
        frame[f"{name}_per_thread"] = [
            "" if value is None or pd.isna(value) else f"{value:.0f}" for value in numbers[name]
        ]
    stack = computed.drop_duplicates("layout").set_index("layout")["least_stack_bytes"]
    frame["tls_block_grew_bytes"] = [
        "" if pd.isna(stack[name]) else f"{int(stack[name] - stack['none'])}" for name in frame["layout"]
    ]
    return Table(frame, "Bytes for areas, by number of threads; measured: more than threads without an area")


def layouts() -> Table:
    """Every option at every feature size: what each thread pays, and where the last field lies."""
    rows = []
    for option in structs.OPTIONS:
        for feature_bytes in structs.SIZES_BYTES:
            try:
                found = structs.of_option(option, feature_bytes)
            except structs.UsageError as error:
                rows.append({"option": option, "feature_size": feature_bytes, "structs": str(error)})
                continue
            rows.append(
                {
                    "option": option,
                    "feature_size": feature_bytes,
                    "bytes_per_thread": str(found.thread_bytes),
                    "align_bytes": str(max(struct.align_bytes for struct in found.structs)),
                    "structs": "; ".join(struct.heading for struct in found.structs),
                }
            )
    return Table(pd.DataFrame(rows).fillna(""), "What each option puts into memory, by feature size")


@_shows_missing
def aborts(run: StudyRun) -> Table:
    """How often a section did not commit, and why, beside the context switches of the same batches."""
    rows = run.table("percpu-ops")
    rows = rows[rows["technique"].str.contains("rseq|section", regex=True)]
    rows = rows.assign(structure=rows["technique"].str.partition("/")[0])
    return _aborts(rows, ["structure", "threads"], "Attempts that did not commit, all batches added up")


@_shows_missing
def storm_aborts(run: StudyRun) -> Table:
    """The same under signals whose handlers run sections on the same data."""
    rows = run.table("signal-storm")
    rows = rows[rows["technique"] == "counter/rseq"]
    rows = rows.assign(storm=pd.Categorical(rows["storm"], list(dict.fromkeys(STORMS)), ordered=True))
    return _aborts(
        rows, ["storm", "threads"], "Attempts that did not commit in a storm of signals", "signals"
    )


def _aborts(rows: pd.DataFrame, by: list[str], caption: str, *more: str) -> Table:
    summed = ["operations", *more, *ABORTS, "context_switches"]
    total = rows.groupby(by, observed=True)[summed].sum().reset_index()
    total["aborts_per_million"] = (1e6 * total[ABORTS].sum(axis=1) / total["operations"]).map("{:.3f}".format)
    total["operations"] = total["operations"].map("{:,}".format)
    return Table(total, caption)


@_shows_missing
def operations(run: StudyRun) -> Table:
    """On one thread: what each operation costs, with the loop and without it."""
    rows = run.table("percpu-ops")
    alone = rows[rows["threads"] == 1]
    empty = alone[alone["technique"] == "counter/nothing"]
    loop = location(pd.Series(empty["cpu_ns_per_operation"].to_numpy(), index=levels(empty))).median
    found = []
    for technique, group in alone.groupby("technique", sort=False):
        seen = location(pd.Series(group["cpu_ns_per_operation"].to_numpy(), index=levels(group)))
        found.append(
            {
                "technique": technique,
                "median_ns": f"{seen.median:.3f}",
                "low_ns": f"{seen.low:.3f}",
                "high_ns": f"{seen.high:.3f}",
                "less_the_loop_ns": f"{seen.median - loop:.3f}",
                "samples": seen.samples,
            }
        )
    order = {name: place for place, name in enumerate(TECHNIQUES)}
    found.sort(key=lambda row: order[row["technique"]])
    return Table(
        pd.DataFrame(found),
        f"One thread, pinned: CPU time per operation. The loop alone costs {loop:.3f} ns; a list, ring or pool is used twice",
    )


@_shows_missing
def layout(run: StudyRun) -> Table:
    """Memory that each structure maps and touches."""
    rows = run.table("percpu-ops")
    rows = rows[(rows["technique"].str.contains("rseq")) & (rows["resident_bytes"] > 0)]
    shown = rows.groupby("technique")[["slots_used", "resident_bytes"]].max().reset_index()
    return Table(shown, "Memory of the data by index, the most that any batch touched")


@_shows_missing
def takeovers(run: StudyRun) -> Table:
    """What a takeover costs the taker, and what each way costs the owner."""
    rows = run.table("takeover")
    found = []
    for (owner, way), group in rows.groupby(["owner", "way"], sort=False):
        if group["ns_per_takeover"].isna().all():
            found.append(
                {"owner": owner, "way": way, "not measured": "; ".join(group["reason"].dropna().unique())}
            )
            continue
        timed = group.dropna(subset=["ns_per_takeover"])
        seen = location(pd.Series(timed["ns_per_takeover"].to_numpy(), index=levels(timed)))
        pays = group["owner_cpu_ns_per_pair"].dropna()
        found.append(
            {
                "owner": owner,
                "way": way,
                "median_ns": f"{seen.median:,.0f}",
                "low_ns": f"{seen.low:,.0f}",
                "high_ns": f"{seen.high:,.0f}",
                "owner_cpu_ns_per_pair": f"{pays.median():.2f}" if len(pays) else "",
                "owner_aborts": int(group["owner_aborts"].sum()),
                "takeovers": int(group["takeovers"].sum()),
            }
        )
    return Table(pd.DataFrame(found), "Taking over the list of another CPU, and what its owner pays")


def claims(run: StudyRun) -> Table:
    """Every claim with its verdict on this run; what was measured stands with each claim and its rows."""
    return ClaimsTable(
        pd.DataFrame(
            [
                {
                    "id": one.claim.id,
                    "verdict": one.finding.verdict,
                    "kind": one.claim.kind,
                    "claim": one.claim.sentence,
                    "tested by": one.claim.experiment or "nothing",
                }
                for one in judge(run)
            ]
        ),
        "What people said, tested on this run",
    )


class ClaimsTable(Table):
    """A table whose first column names claims."""

    def _repr_html_(self) -> str:
        return re.sub(
            r"(<tr>\s*<td>)(\w+)(?=</td>)", lambda row: row[1] + linked(row[2]), super()._repr_html_()
        )


def weak_points(run: StudyRun) -> Table:
    """What speaks against leaning on this run, in words."""
    found = weaknesses(run) or ["Nothing was left out, and no comparison of a thing with itself differed."]
    return Table(pd.DataFrame({"what": found}), "What speaks against leaning on this run")


def facts(run: StudyRun) -> Table:
    """The machine that the run was measured on: what it is, then how it is set."""
    rows = (run.machine() | hardware(run)).items()
    return Table(pd.DataFrame(rows, columns=["fact", "value"]), "The machine of this run")


def here() -> Table:
    """The machine that this notebook runs on: what rseq is here, and which experiments can run."""
    document = doctor.examine()
    rseq = document["rseq"]
    rows = [
        {
            "what": f"rseq {name}",
            "value": rseq[name] if rseq[name] is not None else f"unknown: {rseq['reasons'].get(name, '')}",
        }
        for name in doctor.RSEQ_VALUES
    ]
    lines = [*doctor.what_can_run(document), *doctor.optional_tools(document)]
    rows += [dict(zip(("what", "value"), line.split(": ", 1), strict=True)) for line in lines]
    return Table(
        pd.DataFrame([{"what": "kernel", "value": document["kernel"]}, *rows]),
        "The machine that executes this notebook",
    )


def experiments() -> Table:
    """What can be measured, and how long it takes."""
    return Table(
        pd.DataFrame(
            [
                {
                    "name": one.name,
                    "question": one.question,
                    **{f"{name}_s": seconds for name, seconds in one.seconds.items()},
                }
                for one in catalogue().values()
            ]
        ),
        "Experiments",
    )
