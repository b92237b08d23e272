"""What the machine of a run says of its own use of rseq, by rows of experiments that name nobody."""

import pandas as pd
from matplotlib.figure import Figure as Canvas

from rseqlab.census.evidence import CLASSES
from rseqlab.census.process import OWNERS
from rseqlab.experiments.usage_aborts import LOAD, MACHINE
from rseqlab.experiments.usage_files import NOT_REACHED, REFUSED
from rseqlab.experiments.usage_live import NOT_ASKED
from rseqlab.study.figures import BLUE, Figure, _finish, _shows_missing
from rseqlab.study.run import StudyRun
from rseqlab.study.tables import Table
from rseqlab.study.tables import _shows_missing as _missing_table


def _evidence(run: StudyRun, name: str) -> str:
    return f"Evidence: measured, by the {run.source(name).origin}."


@_shows_missing
def files(run: StudyRun) -> Figure:
    """Executable files in use, by the class of their strongest evidence, with their likely origins."""
    rows = run.table("usage-files").set_index("outcome")
    numbers = rows.loc[list(CLASSES), ["files", "confidence", "origins"]].reset_index()
    labels = numbers["outcome"].tolist()
    canvas = Canvas(figsize=(7.2, 2.3))
    axes = canvas.subplots()
    axes.barh(list(reversed(labels)), list(reversed(numbers["files"].tolist())), color=BLUE, height=0.7)
    for place, row in enumerate(reversed(list(numbers.itertuples()))):
        said = f"{row.files}" + (f"  {row.origins}" if isinstance(row.origins, str) else "")
        axes.annotate(said, (row.files, place), xytext=(4, -3), textcoords="offset points", fontsize=8)
    axes.margins(x=0.6)
    axes.set_xlabel("files, each counted once; beside them their likely origins")
    all_, found = int(rows["files"].sum()), int(numbers["files"].sum())
    missed, refused = (int(rows.loc[name, "files"]) for name in (NOT_REACHED, REFUSED))
    told = "; ".join(f"{row.outcome}: {row.files}" for row in numbers.itertuples())
    return _finish(
        canvas,
        f"Bars: files in use with evidence of rseq, by class of the strongest evidence. {told}",
        f"Of {all_} executable files that ran there, {found} had evidence of rseq; {missed} were not reached in the "
        f"time, {refused} could not be read. {'; '.join(f'{name}: {words}' for name, words in CLASSES.items())}. "
        f"{_evidence(run, 'usage-files')}",
        numbers,
    )


@_missing_table
def live(run: StudyRun) -> Table:
    """Threads by whose area they have."""
    rows = run.table("usage-live")
    asked = rows[rows["outcome"] != NOT_ASKED]
    frame = rows[["outcome", "threads", "processes", "registrations", "longest_stop_ns"]]
    told = ", ".join(f"{row.outcome} {row.threads}" for row in asked.itertuples() if row.threads)
    meant = "; ".join(f"{name}: {words}" for name, words in OWNERS.items())
    return Table(
        frame.astype(object).where(frame.notna(), ""),
        f"{int(asked['threads'].sum())} threads of that machine were asked about: {told}. "
        f"{int(rows['threads'].sum() - asked['threads'].sum())} were not. {meant}. {_evidence(run, 'usage-live')}",
    )


@_missing_table
def aborts(run: StudyRun) -> Table:
    """How often the kernel updated areas and aborted sections, and whether its count can be believed."""
    rows = run.table("usage-aborts")
    frame = pd.DataFrame(
        {
            "who runs": row.what,
            "event": row.event,
            "count": "" if pd.isna(row.count_) else f"{int(row.count_):,}",
            "per second": "" if pd.isna(row.count_) else f"{1e9 * row.count_ / row.elapsed_ns:,.0f}",
            "by its own count": "" if pd.isna(row.by_itself) else f"{int(row.by_itself):,}",
            "not counted, because": row.reason if isinstance(row.reason, str) else "",
        }
        for row in rows.rename(columns={"count": "count_"}).itertuples()
    )
    machine = rows[(rows["what"] == MACHINE) & (rows["event"] == "aborts")]
    load = rows[(rows["what"] == LOAD) & (rows["event"] == "aborts")].dropna(subset=["count", "by_itself"])
    told = ""
    if len(machine.dropna(subset=["count"])):
        told = f"Whatever ran there had {int(machine['count'].iloc[0]):,} sections aborted. "
    if len(load):
        told += (
            f"Our own load counted {int(load['by_itself'].iloc[0]):,} aborts, the kernel "
            f"{int(load['count'].iloc[0]):,}. "
        )
    return Table(frame, f"{told}{_evidence(run, 'usage-aborts')}")
