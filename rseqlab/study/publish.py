"""From a run to report/index.html: execute the notebooks on it, render, write. Again only where needed."""

import hashlib
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

from rseqlab.paths import PACKAGE, project_root
from rseqlab.study import notebook, report
from rseqlab.study.claims import weaknesses
from rseqlab.study.run import LOCAL, MIXED, StudyRun

STAMP = "inputs.sha256"


def inputs_digest(run: StudyRun) -> str:
    """Names everything that the report is made from: the run, the notebooks, the code, the libraries."""
    total = hashlib.sha256(f"{run.digest} {run.origin} {run.note} {run.skipped}".encode())
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
    kind = "this machine" if run.origin in (LOCAL, MIXED) else "the machine described here"
    ends = [one.bundle.run["ended"] for one in run.runs]
    return report.Identity(
        title=f"rseqlab: restartable sequences on {kind}",
        run_id=run.id,
        digest=run.digest,
        origin=run.origin,
        profile=" and ".join(dict.fromkeys(one.bundle.run["profile"] for one in run.runs)),
        started_utc=min(one.bundle.run["started"] for one in run.runs),
        ended_utc=None if None in ends else max(ends),
        machine=run.machine(),
        experiments=[
            {
                "name": name,
                "status": record["status"] or "not measured",
                "reason": record["reason"] or "",
                "rows": str(record["rows"]),
                "run": run.source(name).id if run.sources else "",
            }
            for name, record in document["experiments"].items()
        ],
        notes=[*run.notes, *weaknesses(run)],
        runs=_runs(run),
        footnote=run.footnote.line,
        footnotes=run.footnote.lines,
    )


def _runs(run: StudyRun) -> list[dict[str, str]]:
    """The runs that rows are shown of, where there are several."""
    if not run.sources:
        return []
    return [
        {
            "origin": one.origin,
            "run": one.id,
            "digest": one.digest[:12],
            "profile": one.bundle.run["profile"],
            "ended, UTC": one.bundle.run["ended"] or "did not end",
            "CPU": one.machine()["CPU"],
            "experiments": str(len(run.shown_of(one))),
        }
        for one in run.runs
    ]


def publish(
    run: StudyRun, folder: Path, force: bool, progress: Callable[[str, int, int], None]
) -> tuple[Path, bool]:
    """(path of the report, whether it was written anew)."""
    path, stamp = folder / "index.html", folder / STAMP
    digest = inputs_digest(run)
    if not force and path.exists() and stamp.exists() and stamp.read_text().strip() == digest:
        return path, False
    executed = list(notebook.execute(notebook.notebooks(), run.opened, progress))
    report.write(report.render(executed, identity(run)), path)
    report.write(digest + "\n", stamp)
    return path, True
