"""How right the census is, on files that were checked by hand with other tools (data/census/known.csv)."""

import csv
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.paths import project_root

NONE = "none"


def known(path: Path | None = None) -> list[dict]:
    path = path or project_root() / "data" / "census" / "known.csv"
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def compare(document: dict, expected: list[dict]) -> dict:
    """Precision and recall of each class over the expected files; a class that nothing has, has neither (None)."""
    found = {}
    for row in document["files"]:
        name = (row["member"] or row["path"]).rpartition("/")[2]
        found[Path(row["path"]).name, name] = row["class"]
    read = {Path(path).name for path in document["paths"]}
    missing = sorted({row["package"] for row in expected} - read)
    if missing:
        raise LabError(
            f"The census did not read {', '.join(missing)}; scan every package of known.csv by its name."
        )
    rows = [{**row, "found": found.get((row["package"], row["file"]), NONE)} for row in expected]
    classes = {}
    for name in sorted({row["expected"] for row in rows} | {row["found"] for row in rows}):
        right = sum(row["expected"] == row["found"] == name for row in rows)
        claimed, true = (sum(row[side] == name for row in rows) for side in ("found", "expected"))
        classes[name] = {
            "expected": true,
            "found": claimed,
            "right": right,
            "precision": right / claimed if claimed else None,
            "recall": right / true if true else None,
        }
    return {
        "classes": classes,
        "files": [{k: row[k] for k in ("package", "file", "expected", "found")} for row in rows],
    }
