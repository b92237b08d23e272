"""Runs for tests of judgement: the shipped rows as they are, and as if they had been measured in several builds."""

import csv
import json
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from runs import copy_of

from rseqlab.experiments import catalogue
from rseqlab.lab import bundle
from rseqlab.study.run import NotMeasured

BUILDS = 8
SHIPPED = Path(__file__).parent / "data" / "one-build.zip"
"""A run of all experiments that was shipped once: measured before there were builds."""


class Rows:
    """A run with these tables and no others."""

    def __init__(self, **tables):
        self.tables = {name.replace("_", "-"): pd.DataFrame(rows) for name, rows in tables.items()}
        self.kept: dict = {}
        self.bundle = SimpleNamespace(run={"experiments": {name: {"reason": None} for name in self.tables}})

    def source(self, name):
        return self

    def table(self, name):
        if name not in self.tables:
            raise NotMeasured(f"{name} is not part of this run.")
        return self.tables[name]


def in_builds(folder: Path, builds: int | None = BUILDS, only: Collection[str] = ()) -> Path:
    """The shipped run with a build and a process in each row, or with neither; what has other columns is left out.

    ``only``: no other experiments than these.
    """
    copy_of(SHIPPED, folder)
    record = json.loads((folder / "run.json").read_text()) | {"version": bundle.VERSION}
    for name in list(record["experiments"]):
        path, columns = folder / f"{name}.csv", catalogue()[name].all_columns()
        if not path.exists():
            continue
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        lacking = {column.name for column in columns} - set(rows[0] if rows else ()) - {"build", "process"}
        if lacking or (only and name not in only):
            path.unlink()
            del record["experiments"][name]
            continue
        numbers = _numbers(rows)
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, [column.name for column in columns], lineterminator="\n")
            writer.writeheader()
            for row in rows:
                number = numbers[row["part"]]
                where = {"build": number % builds, "process": number // builds} if builds else {}
                kept = {column.name for column in columns}
                writer.writerow({name: (row | where).get(name, "") for name in kept})
    (folder / "run.json").write_text(json.dumps(record))
    bundle.seal(folder)
    return folder


def _numbers(rows: list[dict]) -> dict[str, int]:
    """Each part's place among the parts of its start."""
    starts: dict[str, dict[str, None]] = {}
    for row in rows:
        starts.setdefault(row.get("start", ""), {})[row["part"]] = None
    return {part: number for parts in starts.values() for number, part in enumerate(parts)}
