"""Runs to be damaged, changed or cut: copies of shipped ones, as folders."""

import json
from pathlib import Path

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
