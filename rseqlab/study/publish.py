"""From a run to report/index.html: execute the notebooks on it, render, write. Again only where needed."""

import hashlib
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from rseqlab.lab.runner import PACKAGE, project_root
from rseqlab.study import notebook, report
from rseqlab.study.claims import weaknesses
from rseqlab.study.run import LOCAL, StudyRun

STAMP = "inputs.sha256"


def inputs_digest(run: StudyRun) -> str:
    """Names everything that the report is made from: the run, the notebooks, the code, the libraries."""
    total = hashlib.sha256(f"{run.digest} {run.origin} {run.note}".encode())
    files = [*notebook.notebooks(), *sorted((project_root() / "data").glob("*.csv"))]
    files += sorted(path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2", ".css", ".js"))
    for path in files:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    for name in sorted(f"{found.name} {found.version}" for found in distributions()):
        total.update(name.encode())
    return total.hexdigest()


def identity(run: StudyRun) -> report.Identity:
    """What stands at the top of the report."""
    document = run.bundle.run
    kind = "this machine" if run.origin == LOCAL else "the machine described here"
    return report.Identity(
        title=f"rseqlab: restartable sequences on {kind}",
        run_id=run.id,
        digest=run.bundle.digest,
        origin=run.origin,
        profile=document["profile"],
        started_utc=document["started"],
        ended_utc=document["ended"],
        machine=run.machine(),
        experiments=[
            {
                "name": name,
                "status": record["status"] or "not measured",
                "reason": record["reason"] or "",
                "rows": str(record["rows"]),
            }
            for name, record in document["experiments"].items()
        ],
        notes=[*filter(None, [run.note]), *weaknesses(run)],
    )


def publish(
    run: StudyRun, folder: Path, force: bool, progress: Callable[[str, int, int], None]
) -> tuple[Path, bool]:
    """(path of the report, whether it was written anew)."""
    path, stamp = folder / "index.html", folder / STAMP
    digest = inputs_digest(run)
    if not force and path.exists() and stamp.exists() and stamp.read_text().strip() == digest:
        return path, False
    executed = list(notebook.execute(notebook.notebooks(), run.bundle.directory.resolve(), progress))
    report.write(report.render(executed, identity(run)), path)
    report.write(digest + "\n", stamp)
    return path, True
