"""usage-files: which executable files that run here right now have evidence of rseq, by class and likely origin?

Only counts leave the machine: no path, no name of a file, process or package. `rseqlab census PATH` shows names.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rseqlab.census import evidence, files
from rseqlab.lab.experiment import LINUX, Column, Experiment, Part, Task

SECONDS = {"quick": 4, "full": 20}
TIMEOUT_S = 60
NO_EVIDENCE, REFUSED, NOT_REACHED = "no evidence", "refused", "not reached"
OUTCOMES = (*evidence.CLASSES, NO_EVIDENCE, REFUSED, NOT_REACHED)
UNMARKED = "no mark of origin"


def mapped() -> dict[tuple[str, str], tuple[int, str]]:
    """(device, inode) to (bytes, a path that opens it), of every file with executable parts in a process."""
    found: dict[tuple[str, str], tuple[int, str]] = {}
    for process in sorted(Path("/proc").glob("[0-9]*")):
        with suppress(OSError):
            for line in (process / "maps").read_bytes().splitlines():
                piece, rights, _, device, inode, *path = line.split(maxsplit=5)
                if b"x" not in rights or inode == b"0" or not path:
                    continue
                key = device.decode(), inode.decode()
                if key in found:
                    continue
                with suppress(OSError):
                    opened = f"{process}/map_files/{piece.decode()}"
                    if not os.access(opened, os.R_OK):  # root alone may; the name is nearly as good
                        opened = os.fsdecode(path[0])
                    found[key] = os.stat(opened).st_size, opened
    return found


def plan(profile: str) -> list[Part]:
    return [Part("files", 8, TIMEOUT_S, arguments={"seconds": SECONDS[profile]})]


def measure(task: Task) -> Iterator[dict]:
    """One row for each class and origin that there is; the smallest files first, as far as the time goes."""
    counts: Counter[tuple[str, str, str]] = Counter()
    seen = sorted(mapped().values())
    started = time.monotonic()
    for _, path in seen:
        if time.monotonic() - started > task.arguments["seconds"]:
            counts[NOT_REACHED, "", ""] += 1
            continue
        report = files.Report()
        files.examine(path, True, report)
        for row in report.rows:
            origins = sorted(one["origin"] for one in row["origins"])
            counts[row["class"], ", ".join(origins) or UNMARKED, row["confidence"]] += 1
        if not report.rows:
            counts[REFUSED if report.refused else NO_EVIDENCE, "", ""] += 1
    elapsed_ns = round(1e9 * (time.monotonic() - started))
    for (outcome, origin, confidence), count in sorted(counts.items()):
        if task.pending(outcome, origin or "none", confidence or "none"):
            yield {
                "outcome": outcome,
                "origin": origin or "none",
                "confidence": confidence or "none",
                "files": count,
                "elapsed_ns": elapsed_ns,
            }


EXPERIMENT = Experiment(
    name="usage-files",
    question="Which executable files in use have evidence of rseq, by class and likely origin?",
    serves="usage: the census of the reader's own machine",
    columns=(
        Column(
            "outcome", "text", "the class of the strongest evidence, or why there is none", choices=OUTCOMES
        ),
        Column("origin", "text", "likely origin, by stated marks; none: there is no evidence"),
        Column(
            "confidence", "text", "of the rule that gave the class", choices=("high", "medium", "low", "none")
        ),
        Column("files", "int", "so many files, each counted once however many processes run it", minimum=1),
        Column("elapsed_ns", "int", "what reading all of them took"),
    ),
    key=("outcome", "origin", "confidence"),
    needs=(LINUX,),
    seconds={"quick": 5, "full": 21},
    plan=plan,
    measure=measure,
)
