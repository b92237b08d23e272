"""What the per-CPU operations cost without the noise of a machine, and beside librseq's: tables and a sentence."""

import pandas as pd

from rseqlab.lab import stats
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Table, _shows_missing

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


def _ratios(run: StudyRun) -> pd.DataFrame:
    """Each operation's ratio to librseq's, with its interval and the A/A null of the same batches."""
    rows = run.table("percpu-peers")
    keys = ["operation", "bytes_copied"]
    wide = rows.pivot_table(
        index=[*keys, "part", "round"], columns="who", values="ns_per_operation", dropna=False
    )
    found = []
    for (operation, copied), group in wide.dropna().reset_index().groupby(keys, sort=False, dropna=False):
        parts = group["part"].tolist()
        for who in ("ours", "ours-offset-loaded"):
            ratio = stats.ratio(group[who], group["theirs"], parts)
            found.append(
                {
                    "operation": operation,
                    "bytes_copied": copied,
                    "whose": who,
                    "ns": group[who].median(),
                    "librseq_ns": group["theirs"].median(),
                    "ratio": ratio.median,
                    "low": ratio.low,
                    "high": ratio.high,
                    "null_ratio": stats.ratio(group["ours-again"], group["ours"], parts).median,
                    "verdict": _verdict(ratio),
                }
            )
    return pd.DataFrame(found)


def _verdict(ratio: stats.Interval) -> str:
    if not ratio.carries_a_verdict:
        return "too few samples"
    if ratio.high <= LIMIT:
        return "as fast"
    return "slower" if ratio.low > LIMIT else "undecided"


@_shows_missing
def peers(run: StudyRun) -> Table:
    """Every operation beside librseq's: nanoseconds, ratio with its 95 % interval, and the A/A null."""
    frame = _ratios(run)
    frame["whose"] = frame["whose"].map(OFFSET)
    for name in ("ns", "librseq_ns", "ratio", "low", "high", "null_ratio"):
        frame[name] = frame[name].map("{:.3f}".format)
    frame["bytes_copied"] = frame["bytes_copied"].map(lambda number: "" if pd.isna(number) else f"{number:g}")
    peer = run.table("percpu-peers")["peer"].iloc[0]
    return Table(frame, f"Our sections and those of {peer}; as fast: the whole interval is at most {LIMIT:g}")


def peers_in_a_sentence(run: StudyRun) -> str:
    """How many operations are as fast as librseq's, and which is furthest from it."""
    try:
        frame = _ratios(run)
    except NotMeasured as missing:
        return str(missing)
    held = frame[frame["whose"] == "ours-offset-loaded"]  # both load the offset: the same conditions
    worst = held.loc[held["ratio"].idxmax()]
    copied = "" if pd.isna(worst["bytes_copied"]) else f" of {worst['bytes_copied']:g} bytes"
    return (
        f"Of {len(held)} operations {(held['verdict'] == 'as fast').sum()} are at most {100 * (LIMIT - 1):.0f} % "
        f"slower than librseq's, both loading the area's offset each time; the largest ratio is that of "
        f"{worst['operation']}{copied}, {worst['ratio']:.2f} [{worst['low']:.2f}, {worst['high']:.2f}]."
    )
