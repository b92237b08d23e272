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
    return [Part("files", len(OUTCOMES), TIMEOUT_S, arguments={"seconds": SECONDS[profile]})]


def measure(task: Task) -> Iterator[dict]:
    """One row for each outcome; the smallest files first, as far as the time goes."""
    counts: Counter[str] = Counter()
    origins: dict[str, Counter[str]] = {name: Counter() for name in OUTCOMES}
    sure: dict[str, Counter[str]] = {name: Counter() for name in OUTCOMES}
    seen = sorted(mapped().values())
    started = time.monotonic()
    for _, path in seen:
        if time.monotonic() - started > task.arguments["seconds"]:
            counts[NOT_REACHED] += 1
            continue
        report = files.Report()
        files.examine(path, True, report)
        for row in report.rows:
            counts[row["class"]] += 1
            sure[row["class"]][row["confidence"]] += 1
            marked = sorted(one["origin"] for one in row["origins"])
            origins[row["class"]][" and ".join(marked) or UNMARKED] += 1
        if not report.rows:
            counts[REFUSED if report.refused else NO_EVIDENCE] += 1
    elapsed_ns = round(1e9 * (time.monotonic() - started))
    for outcome in OUTCOMES:
        if task.pending(outcome):
            yield {
                "outcome": outcome,
                "files": counts[outcome],
                "confidence": _told(sure[outcome]),
                "origins": _told(origins[outcome]),
                "elapsed_ns": elapsed_ns,
            }


def _told(counts: Counter[str]) -> str | None:
    """As text, most frequent first: ``glibc 2; tcmalloc 1``."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return "; ".join(f"{name} {count}" for name, count in ordered) or None


EXPERIMENT = Experiment(
    name="usage-files",
    question="Which executable files in use have evidence of rseq, by class and likely origin?",
    serves="usage: the census of the reader's own machine",
    columns=(
        Column(
            "outcome", "text", "the class of the strongest evidence, or why there is none", choices=OUTCOMES
        ),
        Column("files", "int", "so many files, each counted once however many processes run it"),
        Column("confidence", "text", "how many by which confidence of the rule", nullable=True),
        Column("origins", "text", "how many of which likely origin, by stated marks", nullable=True),
        Column("elapsed_ns", "int", "what reading all of them took"),
    ),
    key=("outcome",),
    needs=(LINUX,),
    seconds={"quick": 5, "full": 21},
    plan=plan,
    measure=measure,
)
