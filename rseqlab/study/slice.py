"""The slice extension: what it does to a lock's threads, who counted what, and which registration may use it."""

import errno
import math

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from rseqlab.experiments.slice_extension import SECTIONS
from rseqlab.lab import stats, verdict
from rseqlab.study import figures
from rseqlab.study.counts import no_verdict
from rseqlab.study.figures import BLUE, ORANGE, Figure, _finish
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Table, _shows_missing

EXPERIMENT, REGISTRATION = "slice-extension", "slice-registration"

TIMES = {
    "hold_max_instructions": "longest hold of the lock",
    "wait_mean_instructions": "mean wait for the lock",
    "late_p50_instructions": "third thread late, median",
}
"""What is compared of each batch, and what a reader calls it: the holder, who wants the lock, and who pays."""

STYLES = {"without": ("no extension", ORANGE, "D"), "with": ("slice extension", BLUE, "o")}
ENOTSUPP = 524


def _batches(run: StudyRun) -> pd.DataFrame:
    """The batches of kernels that do not check rseq as they go: those are the ones to time."""
    rows = run.table(EXPERIMENT)
    return rows[rows["checked"] == 0]


def _label(section: str, rows: pd.DataFrame) -> str:
    """The section in numbers: what it does and what a grant was worth."""
    first = rows[rows["section"] == section].iloc[0]
    call = " and a system call" if section == "with a system call" else ""
    return f"{first['section_instructions']:,} instructions{call}, slice {first['slice_ns'] / 1000:g} µs"


def effects(run: StudyRun) -> pd.DataFrame:
    """Each time with and without the extension, their ratio with its interval, and the A/A control of the same batches."""
    rows = _batches(run)
    found = []
    for section in SECTIONS:
        for column, what in TIMES.items():
            wide = rows[rows["section"] == section].pivot_table(
                index=["part", "round"], columns="way", values=column
            )
            wide = wide.dropna().reset_index()
            if wide.empty:
                continue
            parts = wide["part"].tolist()
            control = stats.ratio(wide["without-again"], wide["without"], parts)
            judged = verdict.side(stats.ratio(wide["with"], wide["without"], parts), control, verdict.UNTIMED)
            ratio = judged.effect
            times = {way: stats.interval(wide[way], parts, log=True) for way in STYLES}
            found.append(
                {
                    "section": _label(section, rows),
                    "what": what,
                    **{f"{way}_instructions": one.median for way, one in times.items()},
                    **{f"{way}_low_instructions": one.low for way, one in times.items()},
                    **{f"{way}_high_instructions": one.high for way, one in times.items()},
                    "ratio": ratio.median,
                    "low": ratio.low,
                    "high": ratio.high,
                    "control": control.median,
                    "batches": ratio.samples,
                    "verdict": OUTCOME[judged.verdict],
                    "lacks": judged.lacks,
                }
            )
    return pd.DataFrame(found)


OUTCOME = {
    verdict.ABOVE: "longer",
    verdict.BELOW: "shorter",
    verdict.NEITHER: verdict.NEITHER,
    verdict.NO_VERDICT: verdict.NO_VERDICT,
}


@_shows_missing
def effects_table(run: StudyRun) -> Table:
    """The times of a lock's threads, in executed instructions of the guest."""
    frame = effects(run)
    frame = frame.drop(
        columns=[name for name in frame if name.endswith(("low_instructions", "high_instructions"))]
    )
    for name in ("without_instructions", "with_instructions"):
        frame[name] = frame[name].map("{:,.0f}".format)
    for name in ("ratio", "low", "high", "control"):
        frame[name] = frame[name].map(verdict.number)
    lacks = no_verdict(frame.pop("lacks"))
    first = _batches(run).iloc[0]
    return Table(
        frame,
        f"Linux {first['kernel']} for {first['arch']}, one CPU: executed instructions of a batch, and the "
        "ratio with its 95 % interval over boots, widened by the A/A control. Ratios are taken within a boot and round, so "
        f"two printed counts need not divide to them.{lacks}",
    )


@_shows_missing
def disturbance_table(run: StudyRun) -> Table:
    """How often another thread ran inside a section, and how often the waiter found the lock taken."""
    rows = _batches(run)
    found = []
    for section in SECTIONS:
        for way in ("without", "asked-only", "with"):
            part = rows[(rows["section"] == section) & (rows["way"] == way)]
            if part.empty:
                continue
            found.append(
                {
                    "section": _label(section, rows),
                    "way": way,
                    "sections": int(part["sections"].sum()),
                    "another_thread_ran_inside": int(part["disturbed"].sum()),
                    "waits": int(part["waits"].sum()),
                    "found_it_taken": int(part["contended"].sum()),
                    "found_it_taken_percent": f"{100 * part['contended'].sum() / part['waits'].sum():.1f}",
                }
            )
    return Table(
        pd.DataFrame(found), "Sections in which another thread ran, and waiters that found the lock taken"
    )


@_shows_missing
def accounts_table(run: StudyRun) -> Table:
    """What became of the requests by the threads' own count, and by the kernel's."""
    rows = run.table(EXPERIMENT)
    rows = rows[rows["way"].isin(["asked-only", "with"])]
    names = ["requests", "kept", "yielded", "late_yields", "taken_back"]
    names += ["kernel_granted", "kernel_yielded", "kernel_revoked", "kernel_expired", "kernel_aborted"]
    found = []
    for (section, way), part in rows.groupby(["section", "way"], sort=False):
        agree = (part["accounts"] == "agree").sum()
        found.append(
            {"section": _label(section, rows), "way": way}
            | {name: int(part[name].sum()) for name in names}
            | {"batches_in_which_both_agree": f"{agree} of {len(part)}"}
        )
    return Table(
        pd.DataFrame(found),
        "Requests, and what became of them: the threads' own count, and the kernel's (debugfs rseq/stats). A thread "
        "that only asked counts requests that are gone as grants that were revoked; the kernel never granted them",
    )


def _errno(number: float) -> str:
    if pd.isna(number):
        return ""
    if int(number) == 0:
        return "0"
    return "ENOTSUPP" if int(number) == ENOTSUPP else errno.errorcode.get(int(number), str(int(number)))


@_shows_missing
def registration_table(run: StudyRun) -> Table:
    """Each length of registration: what flags say, and what the prctl answers."""
    rows = run.table(REGISTRATION).copy()
    for name in ("register_errno", "prctl_errno"):
        rows[name] = rows[name].map(_errno)
    for name in ("get_result", "yield_result"):
        rows[name] = [str(value) if value >= 0 else _errno(-value) for value in rows[name]]
    for name in ("available", "enabled_before", "enabled_after"):
        rows[name] = rows[name].map({0: "no", 1: "yes"})
    shown = [
        "boot",
        "how",
        "registered_bytes",
        "register_errno",
        "available",
        "enabled_before",
        "prctl_errno",
    ]
    first = rows.iloc[0]
    return Table(
        rows[[*shown, "enabled_after", "get_result", "yield_result"]],
        f"Linux {first['kernel']} for {first['arch']}, AT_RSEQ_FEATURE_SIZE {first['feature_bytes']}: who may use the "
        "slice extension",
    )


@figures._shows_missing
def effects_figure(run: StudyRun) -> Figure:
    """The three times, with and without the extension, for each kind of section."""
    numbers = effects(run)
    if numbers.empty:
        raise NotMeasured(f"{EXPERIMENT} has no complete round")
    labels = list(dict.fromkeys(numbers["section"]))
    canvas = Canvas(figsize=(9.6, 3.2))
    for axes, what in zip(canvas.subplots(1, len(TIMES), sharey=True), TIMES.values(), strict=True):
        part = numbers[numbers["what"] == what]
        for apart, (way, (label, colour, marker)) in zip((0.1, -0.1), STYLES.items(), strict=True):
            middle, low, high = (part[f"{way}_{end}instructions"] for end in ("", "low_", "high_"))
            places = [len(labels) - 1 - labels.index(section) + apart for section in part["section"]]
            reach = [middle - low, high - middle]
            axes.errorbar(middle, places, xerr=reach, fmt=marker, color=colour, label=label, linewidth=1.4)
        ends = part[[name for name in part if name.endswith("instructions")]].clip(lower=1).to_numpy()
        axes.set_xscale("log")
        axes.set_xlim(10 ** math.floor(math.log10(ends.min())), 10 ** math.ceil(math.log10(ends.max())))
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1,)))
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(what, fontsize=10)
        axes.set_yticks(range(len(labels)), list(reversed(labels)))
        axes.set_ylim(-0.6, len(labels) - 0.4)
        axes.grid(axis="x", which="major")
        axes.set_xlabel("instructions (log)")
    handles, names = axes.get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside lower left", ncols=2)
    return _finish(
        canvas,
        "Three dot plots on log axes, one row per kind of section. "
        + "; ".join(
            f"{row.what}, {row.section}: {row.without_instructions:,.0f} instructions without the extension, "
            f"{row.with_instructions:,.0f} with it"
            for row in numbers.itertuples()
        ),
        "A lock whose holder is preempted, in executed instructions of a guest of one CPU, its kernel's included; the "
        f"median of {numbers['batches'].min()} batches or more a dot, bars: its 95 % interval.",
        numbers,
    )


def in_a_sentence(run: StudyRun) -> str:
    """What the extension does where the section fits into a slice, what it costs others, and whether the counts agree."""
    try:
        frame, rows = effects(run), run.table(EXPERIMENT)
    except NotMeasured as missing:
        return str(missing)
    if frame.empty:
        return f"Not measured: {EXPERIMENT} has no complete round."
    fits = frame[frame["section"] == _label(SECTIONS[0], rows)].set_index("what")
    told = "; ".join(
        f"{what} {row['without_instructions']:,.0f} and {row['with_instructions']:,.0f} instructions, ratio "
        f"{verdict.number(row['ratio'])} [{verdict.number(row['low'])}, {verdict.number(row['high'])}]: {row['verdict']}"
        for what, row in fits.iterrows()
    )
    enabled, only_asked = (rows[rows["way"] == way] for way in ("with", "asked-only"))
    apart = enabled.loc[enabled["accounts"] != "agree", "accounts"]
    return (
        f"Where a section fits into a slice ({fits['section'].iloc[0]}), without and with the extension: {told}. "
        f"The kernel granted {enabled['kernel_granted'].sum():,.0f} slices; in {len(enabled) - len(apart)} of "
        f"{len(enabled)} batches the threads' own count agrees with the kernel's"
        f"{'' if apart.empty else f' (the first that does not: {apart.iloc[0]})'}. Threads that asked without having "
        f"enabled it got {only_asked['kernel_granted'].sum():,.0f} slices, and found {only_asked['taken_back'].sum():,.0f} "
        "of their requests taken back, which looks to them like a grant that was revoked."
    )
