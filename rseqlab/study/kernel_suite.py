"""The package's own tests in guests: one line for each kernel, and what did not pass."""

import pandas as pd

from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Table

EXPERIMENT = "kernel-suite"
WHERE = ["series", "release", "arch", "libc", "python", "cpus", "accel"]


def summary(run: StudyRun) -> Table | NotMeasured:
    """Per kernel: how many tests passed, were skipped and failed, and the guest's time that they took."""
    try:
        rows = run.table(EXPERIMENT)
    except NotMeasured as missing:
        return missing
    found = []
    for where, group in rows.groupby(WHERE, sort=False):
        count = group["outcome"].value_counts()
        found.append(
            dict(zip(WHERE, where, strict=True))
            | {name: int(count.get(name, 0)) for name in ("passed", "skipped", "failed")}
            | {"tests_s": f"{group['seconds_s'].sum():.0f}"}
        )
    return Table(pd.DataFrame(found), "The package's own tests on a real kernel, in a guest")


def exceptions(run: StudyRun) -> Table | NotMeasured:
    """Every test that was skipped or failed, with its reason, and on which kernels."""
    try:
        rows = run.table(EXPERIMENT)
    except NotMeasured as missing:
        return missing
    rows = rows[rows["outcome"] != "passed"]
    together = rows.groupby(["outcome", "test", "reason"], sort=False)["series"].agg(", ".join).reset_index()
    return Table(
        together.rename(columns={"series": "kernels"}),
        "Tests that did not run in a guest, or failed there, and why",
    )


def sentence(run: StudyRun) -> str:
    """The summary in words: one sentence for each kernel."""
    table = summary(run)
    if isinstance(table, NotMeasured):
        return str(table)
    return " ".join(
        f"On Linux {row.release} ({row.arch}, {row.libc}, Python {row.python}) {row.passed} of the package's own "
        f"tests passed, {row.skipped} were skipped and {row.failed} failed."
        for row in table.frame.itertuples()
    )
