"""Runs to be damaged, changed or cut: copies of shipped ones, as folders."""

import csv
import json
from pathlib import Path

from rseqlab.experiments import catalogue
from rseqlab.lab import archive, bundle


def copy_of(run: Path, folder: Path) -> Path:
    """The run at ``run``, packed or not, as a new folder; returns that folder."""
    archive.unpack(archive.files_of(run), folder)
    return folder


def cut(run: Path, folder: Path, *names: str) -> Path:
    """The same with these experiments only, sealed anew."""
    copy_of(run, folder)
    document = json.loads((folder / "run.json").read_text())
    document["experiments"] = {name: document["experiments"][name] for name in names}
    (folder / "run.json").write_text(json.dumps(document))
    for path in folder.glob("*.csv"):
        if path.stem not in names:
            path.unlink()
    bundle.seal(folder)
    return folder


def renewed(folder: Path) -> Path:
    """A run of an earlier schema as one of the newest, which is held to the strictest rules; sealed anew.

    Columns that it lacks are empty, and tables that do not fit their experiment any more are left out.
    """
    document = json.loads((folder / "run.json").read_text()) | {"version": bundle.VERSION}
    for path in folder.glob("*.csv"):
        columns = catalogue()[path.stem].all_columns()
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        if any(not column.nullable and column.name not in rows[0] for column in columns):
            path.unlink()
            del document["experiments"][path.stem]
        elif list(rows[0]) != [column.name for column in columns]:
            with open(path, "w", newline="") as file:
                writer = csv.DictWriter(file, [column.name for column in columns], "", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    (folder / "run.json").write_text(json.dumps(document))
    bundle.seal(folder)
    return folder
