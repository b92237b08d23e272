"""What the per-CPU operations cost without the noise of a machine, and beside librseq's: tables and a sentence."""

import pandas as pd

from rseqlab.lab import verdict
from rseqlab.study.levels import levels
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.samples import location, paired_ratio
from rseqlab.study.tables import PAIRWISE, Table, _shows_missing

LIMIT = 1.05
"""An operation is as fast as a peer's where the whole interval of its ratio is at most this."""

OFFSET = {
    "ours": "ours, offset in a register",
    "ours-offset-loaded": "ours, offset loaded each time",
    "theirs": "librseq, offset loaded each time",
}


@_shows_missing
def instructions(run: StudyRun) -> Table:
    """Instructions of every operation on both architectures, the loop around it taken off and left on."""
    rows = run.table("percpu-instructions")
    rows = rows[(rows["by"] != "mm_cid") & ~rows["operation"].isin(["nothing", "turns"])].copy()
    rows["whose"] = rows["who"].map(OFFSET).where(rows["by"] != "none", "no section")
    rows["instructions"] = rows["instructions_per_operation"] - rows["loop_instructions"]
    rows["with_loop"] = rows["instructions_per_operation"]
    wide = rows.pivot_table(
        index=["operation", "bytes_copied", "whose"],
        columns="arch",
        values=["instructions", "with_loop"],
        sort=False,
        dropna=False,
        aggfunc="first",
    ).dropna(how="all")
    wide.columns = [f"{arch}_{value}" for value, arch in wide.columns]
    frame = wide.sort_index(
        axis=1, ascending=False, key=lambda names: names.str.contains("x86")
    ).reset_index()
    numbers = [name for name in frame if name not in ("operation", "whose")]
    frame[numbers] = frame[numbers].map(lambda number: "" if pd.isna(number) else f"{number:g}")
    return Table(
        frame,
        "Instructions of one operation, counted under an emulator: the fast path in user space, no kernel and no "
        "abort; the read of the index and the way to its data are included",
    )


OUTCOME = {verdict.HOLDS: "as fast", verdict.FAILS: "slower", verdict.INCONCLUSIVE: "undecided"}


def ratios(run: StudyRun) -> pd.DataFrame:
    """Each operation's ratio to librseq's, with the interval that was judged, and the A/A control. Raises NotMeasured."""
    rows = run.table("percpu-peers")
    found = []
    for (operation, copied), group in rows.groupby(["operation", "bytes_copied"], sort=False, dropna=False):
        series = {
            who: pd.Series(one["ns_per_operation"].to_numpy(), index=levels(one))
            for who, one in group.dropna(subset=["ns_per_operation"]).groupby("who")
        }
        if not {"ours", "ours-again", "theirs"} <= set(series):
            continue
        control = paired_ratio(series["ours-again"], series["ours"], alone=True)
        for who in ("ours", "ours-offset-loaded"):
            if who not in series:
                continue
            judged = verdict.judge(
                paired_ratio(series[who], series["theirs"], alone=True), control, verdict.Allowed(high=LIMIT)
            )
            found.append(
                {
                    "operation": operation,
                    "bytes_copied": copied,
                    "whose": who,
                    "ns": location(series[who]).median,
                    "librseq_ns": location(series["theirs"]).median,
                    "ratio": judged.effect.median,
                    "low": judged.effect.low,
                    "high": judged.effect.high,
                    "control": control.median,
                    "verdict": OUTCOME[judged.verdict],
                    "lacks": judged.lacks,
                }
            )
    if not found:
        raise NotMeasured("percpu-peers has no operation of both")
    return pd.DataFrame(found)


@_shows_missing
def peers(run: StudyRun) -> Table:
    """Every operation beside librseq's: nanoseconds, ratio with its 95 % interval, and the A/A control."""
    frame = ratios(run)
    lacks = no_verdict(frame["lacks"])
    frame = frame.drop(columns="lacks")
    frame["whose"] = frame["whose"].map(OFFSET)
    for name in ("ns", "librseq_ns", "ratio", "low", "high", "control"):
        frame[name] = frame[name].map(verdict.number)
    frame["bytes_copied"] = frame["bytes_copied"].map(lambda number: "" if pd.isna(number) else f"{number:g}")
    peer = run.table("percpu-peers")["peer"].iloc[0]
    return Table(
        frame,
        f"Our sections and those of {peer}; as fast: the whole interval, widened by the A/A control, is at most "
        f"{LIMIT:g}. {PAIRWISE}{lacks}",
    )


def no_verdict(lacks: pd.Series) -> str:
    """Why rows carry no verdict, for a caption; empty where only their intervals decide."""
    reasons = list(dict.fromkeys(lacks.dropna()))
    return f" No verdict: {'; '.join(reasons)}." if reasons else ""


def peers_in_a_sentence(run: StudyRun) -> str:
    """How many operations are as fast as librseq's, and which is furthest from it."""
    try:
        frame = ratios(run)
    except NotMeasured as missing:
        return str(missing)
    held = frame[frame["whose"] == "ours-offset-loaded"]  # both load the offset: the same conditions
    worst = held.loc[held["ratio"].idxmax()]
    copied = "" if pd.isna(worst["bytes_copied"]) else f" of {worst['bytes_copied']:g} bytes"
    return (
        f"Of {len(held)} operations {(held['verdict'] == 'as fast').sum()} are at most {100 * (LIMIT - 1):.0f} % "
        f"slower than librseq's, both loading the area's offset each time; the largest ratio is that of "
        f"{worst['operation']}{copied}, {verdict.number(worst['ratio'])} [{verdict.number(worst['low'])}, "
        f"{verdict.number(worst['high'])}].{no_verdict(held['lacks'])}"
    )
