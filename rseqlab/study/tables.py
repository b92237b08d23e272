"""One function per table: a run in, a table with units in its column names out."""

import html
from dataclasses import dataclass

import pandas as pd

from rseqlab import doctor
from rseqlab.experiments import catalogue
from rseqlab.lab import stats
from rseqlab.study.claims import MEASURES, judge, weaknesses
from rseqlab.study.run import NotMeasured, StudyRun


@dataclass(frozen=True)
class Table:
    """Rows for people, escaped as HTML, or as text where there is no browser."""

    frame: pd.DataFrame
    caption: str

    def _repr_html_(self) -> str:
        shown = self.frame.rename_axis(columns=None)
        text = shown.to_html(
            classes="rl-table", border=0, index=False, escape=True, na_rep="", justify="left"
        )
        return text.replace("<thead>", f"<caption>{html.escape(self.caption)}</caption><thead>", 1)

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string(index=False, na_rep='')}"


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
    """Median and 95 % interval of every way under every condition."""
    measure, rows = MEASURES[experiment], run.table(experiment)
    found = []
    for key, group in rows.dropna(subset=[measure.value]).groupby(
        [measure.condition, measure.way, "start"], sort=True
    ):
        seen = stats.interval(group[measure.value], group["part"])
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
    return Table(pd.DataFrame(found), f"{experiment}: {measure.value}, median with its 95 % interval")


@_shows_missing
def aborts(run: StudyRun) -> Table:
    """How often an rseq increment did not commit, beside the context switches of the same batches."""
    rows = run.table("percpu-counter")
    rows = rows[rows["technique"].isin(["rseq", "rseq-again"])]
    total = (
        rows.groupby(["threads", "start"])[["increments", "aborts", "context_switches"]].sum().reset_index()
    )
    total["aborts_per_million"] = (1e6 * total["aborts"] / total["increments"]).map("{:.3f}".format)
    total["increments"] = total["increments"].map("{:,}".format)
    return Table(total, "Attempts of the rseq increment that did not commit, all batches added up")


def claims(run: StudyRun) -> Table:
    """Every claim with its verdict on this run."""
    return Table(
        pd.DataFrame(
            [
                {
                    "id": one.claim.id,
                    "verdict": one.finding.verdict,
                    "claim": one.claim.sentence,
                    "on this run": one.finding.measured,
                }
                for one in judge(run)
            ]
        ),
        "What people said, tested on this run",
    )


def weak_points(run: StudyRun) -> Table:
    """What speaks against leaning on this run, in words."""
    found = weaknesses(run) or ["Nothing was left out, and no comparison of a thing with itself differed."]
    return Table(pd.DataFrame({"what": found}), "What speaks against leaning on this run")


def facts(run: StudyRun) -> Table:
    """The machine that the run was measured on."""
    return Table(pd.DataFrame(run.machine().items(), columns=["fact", "value"]), "The machine of this run")


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
    rows += [
        {
            "what": f"experiment {one['name']}",
            "value": "can run" if one["can_run"] else "; ".join(one["reasons"]),
        }
        for one in document["experiments"]
    ]
    rows += [
        {"what": f"optional {tool['name']}", "value": tool["found"] or f"not found; {tool['remedy']}"}
        for tool in document["tools"]
    ]
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
