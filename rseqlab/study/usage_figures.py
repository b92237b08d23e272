"""Figures of who uses rseq: cited rows against the releases, and the claims by verdict."""

from datetime import date
from functools import lru_cache

import matplotlib as mpl
import matplotlib.dates
import pandas as pd
from matplotlib.figure import Figure as Canvas

from rseqlab.study.claims import VERDICTS, Verdicts, judge
from rseqlab.study.figures import _INK, BLUE, GREEN, ORANGE, PINK, SKY, STYLE, Figure, _finish, _shows_missing
from rseqlab.study.run import StudyRun
from rseqlab.study.sources import PURPOSES, ROLES, TIMELINE, USAGE, read, summary

ROLE_LOOKS = {
    "uses": (BLUE, "o"),
    "registers": (ORANGE, "D"),
    "tolerates": (GREEN, "s"),
    "conflicts": (PINK, "X"),
    "disables": (SKY, "v"),
    "considered": (_INK, "+"),
}
AREA_LOOKS = {"own": (ORANGE, "-"), "libc": (BLUE, "--"), "librseq": (GREEN, ":")}
COORDINATED = "glibc 2.35: registers"
"""The mark in the timeline before and after which users are counted."""
USERS = ("uses", "registers")


def first_day(text: str) -> date:
    """A date of any precision as the day in its middle, where it is drawn: 2026 is 2026-07-01."""
    year, month, day = [*map(int, text.split("-")), 0, 0][:3]
    return date(year, month or 7, day or (15 if month else 1))


def marks() -> dict[str, date]:
    """The releases that stand in the figures."""
    return {row["mark"]: first_day(row["date"]) for row in read(TIMELINE) if row["mark"]}


def _releases(axes) -> None:
    for label, when in marks().items():
        axes.axvline(when, color=_INK, alpha=0.45, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            label,
            (when, 1.01),
            xycoords=("data", "axes fraction"),
            rotation=40,
            ha="left",
            va="bottom",
            fontsize=8,
        )
    axes.xaxis.set_major_locator(mpl.dates.YearLocator())
    axes.xaxis.set_major_formatter(mpl.dates.DateFormatter("%Y"))


def over_time() -> Figure:
    """Every cited row by its date, its purpose and its role, with the releases."""
    rows = sorted(read(USAGE), key=lambda row: first_day(row["date"]))
    purposes, last, drawn = list(PURPOSES), {}, []
    for row in rows:
        when, purpose = first_day(row["date"]), row["purpose"]
        before, level = last.get(purpose, (date.min, 0))
        level = (level + 1) % 7 if (when - before).days < 75 else 0
        last[purpose] = when, level
        height = len(purposes) - 1 - purposes.index(purpose) + 0.36 - 0.12 * level
        drawn.append((when, height, row["role"]))
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, 5.2))
        axes = canvas.subplots()
        for role, (colour, marker) in ROLE_LOOKS.items():
            points = [(when, height) for when, height, found in drawn if found == role]
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker, color=colour, label=role, markersize=5.5, linestyle="none", alpha=0.9)
        for place in range(1, len(purposes)):
            axes.axhline(place - 0.5, color=_INK, alpha=0.2, linewidth=0.6)
        axes.set_yticks(range(len(purposes)), list(reversed(purposes)))
        axes.set_ylim(-0.5, len(purposes) - 0.5)
        axes.set_xlabel("date of the evidence")
        _releases(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=6, fontsize=9)
        numbers = (
            pd.DataFrame(rows)
            .groupby(["purpose", "role"])["project"]
            .nunique()
            .unstack(fill_value=0)
            .reindex(index=purposes, columns=list(ROLES), fill_value=0)
            .reset_index()
            .rename_axis(columns=None)
        )
        return _finish(
            canvas,
            "Dots on a time axis: each cited row by purpose (rows) and role (colour and marker), with the releases "
            "as lines. Projects by purpose: "
            + "; ".join(
                f"{row.pop('purpose')}: "
                + ", ".join(f"{role} {count}" for role, count in row.items() if count)
                for row in numbers.to_dict("records")
            ),
            "Who uses rseq, for what, and since when; a date that is known by its year alone stands in its middle. "
            "Evidence: cited, not measured. " + summary(rows),
            numbers,
        )


def first_use() -> pd.DataFrame:
    """The users and those who register, each project once for each kind of area, at its first date."""
    rows = pd.DataFrame([row for row in read(USAGE) if row["role"] in USERS and row["purpose"] != "test"])
    rows["day"] = rows["date"].map(first_day)
    first = rows.sort_values("day").drop_duplicates(["project", "area"])
    return first[first["area"].isin(AREA_LOOKS)].reset_index(drop=True)


def before_and_after() -> dict[str, tuple[int, int]]:
    """Area to the number of projects whose first date lies before and after libc's release."""
    first, released = first_use(), marks()[COORDINATED]
    return {
        area: (int((found["day"] < released).sum()), int((found["day"] >= released).sum()))
        for area, found in ((area, first[first["area"] == area]) for area in AREA_LOOKS)
    }


def growth() -> Figure:
    """How many projects use or register an area, by whose area it is, over time."""
    first = first_use()
    end = max(first["day"])
    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(7.6, 3.4))
        axes = canvas.subplots()
        for area, (colour, line) in AREA_LOOKS.items():
            days = sorted(first.loc[first["area"] == area, "day"])
            x, y = [*days, end], [*range(1, len(days) + 1), len(days)]
            axes.step(x, y, where="post", color=colour, linestyle=line, linewidth=1.8, label=f"{area} area")
            axes.annotate(
                f"{area}: {len(days)}", (end, len(days)), xytext=(5, -3), textcoords="offset points"
            )
        axes.set_ylabel("projects, cumulated")
        axes.set_xlabel("date of the first evidence")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        _releases(axes)
        counted = before_and_after()
        numbers = pd.DataFrame(
            [
                {"area": area, "before glibc 2.35 registered": before, "after": after}
                for area, (before, after) in counted.items()
            ]
        )
        told = "; ".join(
            f"{area}: {before} before, {after} after" for area, (before, after) in counted.items()
        )
        return _finish(
            canvas,
            f"Steps over time: projects that use or register rseq, by whose area. Before and after glibc 2.35: {told}.",
            f"Users and those who register, by whose area they use; {told} glibc 2.35. Evidence: cited, not measured; "
            "found by searching in 2026, so that what came and went before is missing. That one came after the other "
            "does not say that it came because of it.",
            numbers,
        )


VERDICT_LOOKS = {"holds": BLUE, "fails": ORANGE, "inconclusive": PINK, "not measured": SKY}


@lru_cache(maxsize=1)
def judged(run: StudyRun) -> Verdicts:
    """Every claim on this run; one page asks for them several times."""
    return judge(run)


@_shows_missing
def ledger(run: StudyRun) -> Figure:
    """How many claims came out how, by what kind of claim they are."""
    rows = pd.DataFrame([{"kind": one.claim.kind, "verdict": one.finding.verdict} for one in judged(run)])
    numbers = (
        rows.groupby(["kind", "verdict"]).size().unstack(fill_value=0).reindex(columns=VERDICTS, fill_value=0)
    )
    numbers = numbers.loc[numbers.sum(axis=1).sort_values().index]
    canvas = Canvas(figsize=(7.2, 0.42 * len(numbers) + 1.2))
    axes = canvas.subplots()
    left = pd.Series(0, index=numbers.index)
    for verdict, colour in VERDICT_LOOKS.items():
        axes.barh(numbers.index, numbers[verdict], left=left, color=colour, label=verdict, height=0.7)
        for kind, count in numbers[verdict].items():
            if count:
                axes.text(
                    left[kind] + count / 2,
                    kind,
                    str(count),
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="#000",
                )
        left = left + numbers[verdict]
    axes.set_xlabel("claims")
    canvas.legend(loc="outside upper left", ncols=4)
    return _finish(
        canvas,
        "Bars: claims by kind and verdict. "
        + "; ".join(
            f"{kind}: " + ", ".join(f"{verdict} {count}" for verdict, count in row.items() if count)
            for kind, row in numbers.iterrows()
        ),
        f"The ledger of claims. Evidence: the verdicts are of the {run.origin}; what is not measured says why in the "
        "table.",
        numbers.reset_index().rename_axis(columns=None),
    )
