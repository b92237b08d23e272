"""How far the per-CPU operations are from what a CPU can do at best: a table and a sentence out of percpu-bound."""

import pandas as pd

from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Table, _shows_missing

SAME = ["arch", "compiler", "operation", "cpu_model"]
"""What two rows share that are compared: everything but whose section it is."""

SAME_CYCLES = 0.01
"""What a model's rounding of fractions of cycles over some hundred turns makes."""

LIKE_FOR_LIKE = "ours-offset-loaded"
"""librseq loads the offset of the area each time, so ours is compared that loads it as well."""


def beside_librseq(run: StudyRun) -> pd.DataFrame:
    """Our rows that load the offset, those of librseq's same operation beside them (``_theirs``; empty where none)."""
    rows = run.table("percpu-bound")
    ours, theirs = rows[rows["who"] == LIKE_FOR_LIKE], rows[rows["who"] == "theirs"]
    return ours.merge(theirs, on=SAME, how="left", suffixes=("", "_theirs"))


def _furthest(group: pd.DataFrame) -> pd.Series:
    """One operation by one compiler, over the modelled CPUs."""
    distance = group["cycles"] / group["bound_cycles"]
    first, worst = group.iloc[0], group.loc[distance.idxmax()]
    by = group["bound_by"].value_counts(sort=False)
    peer = (group["cycles"] / group["cycles_theirs"]).dropna()
    theirs = first["instructions_theirs"]
    return pd.Series(
        {
            "instructions": f"{first['instructions']:g}",
            "librseq_instructions": "" if pd.isna(theirs) else f"{theirs:g}",
            "loads": f"{first['loads']:g}",
            "stores": f"{first['stores']:g}",
            "cycles": f"{group['cycles'].min():.1f} to {group['cycles'].max():.1f}",
            "over_its_bound": f"{distance.min():.2f} to {distance.max():.2f}",
            "furthest_on": worst["cpu_model"],
            "bound_by": ", ".join(f"{name} on {count}" for name, count in by.items()),
            "over_librseq": "" if peer.empty else f"{peer.min():.2f} to {peer.max():.2f}",
        }
    )


@_shows_missing
def bounds(run: StudyRun) -> Table:
    """Every operation by architecture and compiler: instructions, cycles over their bound, and over librseq's cycles."""
    frame = beside_librseq(run)
    keys = ["arch", "operation", "compiler"]
    found = [
        {**dict(zip(keys, names, strict=True)), **_furthest(group)}
        for names, group in frame.groupby(keys, sort=False)
    ]
    models = ", ".join(sorted(frame["models_of"].unique()))
    return Table(
        pd.DataFrame(found).sort_values(keys, ignore_index=True),
        f"Executed instructions and modelled cycles of one turn, the loop included ({models}); from the least to the most "
        "over the modelled CPUs. The bound is the largest of what the stores alone take, what loads and stores take, "
        "and the micro-operations over how many the CPU takes in a cycle",
    )


def _how_many(frame: pd.DataFrame, column: str) -> str:
    number, name = frame[column].nunique(), {"compiler": "compiler", "cpu_model": "CPU"}[column]
    return f"{number} {name}{'' if number == 1 else 's'}"


def alike(rows: pd.DataFrame) -> list[tuple[str, ...]]:
    """The CPUs that have the same bound in every row: the same ports, and for the newer ones perhaps not their own."""
    wide = rows.pivot_table(
        index=["arch", "compiler", "who", "operation"], columns="cpu_model", values="bound_cycles"
    )
    groups: dict[tuple, list[str]] = {}
    for model in wide:
        groups.setdefault(tuple(wide[model].dropna().round(3).items()), []).append(model)
    return [tuple(models) for models in groups.values() if len(models) > 1]


def bounds_in_a_sentence(run: StudyRun) -> str:
    """How far the operations are from their bounds, what bounds them, and how they stand to librseq's."""
    try:
        frame = beside_librseq(run)
    except NotMeasured as missing:
        return str(missing)
    distance = frame["cycles"] / frame["bound_cycles"]
    share = 100 * frame["bound_by"].value_counts(normalize=True).reindex(
        ["issue", "memory", "stores"], fill_value=0
    )
    said = (
        f"By {_how_many(frame, 'compiler')} and on {_how_many(frame, 'cpu_model')} that LLVM models, half of the "
        f"operations take at most {distance.median():.2f} times their bound, and none more than {distance.max():.2f} "
        f"times. The bound is how many instructions a CPU takes in a cycle for {share['issue']:.0f} % of them, its ways to "
        f"memory for {share['memory']:.0f} %, and the stores alone for {share['stores']:.0f} %."
    )
    for models in alike(run.table("percpu-bound")):
        said += f" {frame['models_of'].iloc[0]} gives {', '.join(models)} the same bounds: not each has ports of its own there."
    peer = frame.dropna(subset=["cycles_theirs"])
    if peer.empty:
        return f"{said} Not compared with librseq: its headers were not there."
    more = int((peer["instructions"] > peer["instructions_theirs"]).sum())
    ratio = peer["cycles"] / peer["cycles_theirs"]
    return (
        f"{said} Of {len(peer)} comparisons with librseq's operations {more} execute more instructions than librseq, and "
        f"{int((ratio > 1 + SAME_CYCLES).sum())} take over {100 * SAME_CYCLES:g} % more modelled cycles (they take "
        f"{ratio.min():.2f} to {ratio.max():.2f} times librseq's)."
    )
