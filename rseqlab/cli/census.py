"""census: who uses rseq, in files, in running processes, in packages."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rseqlab.cli.base import Json, app, err, out, print_json
from rseqlab.errors import LabError, UsageError


@app.command()
def census(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATH]...", help="Files, directories, packages, archives, images."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Every thread of every process that you may inspect.")
    ] = False,
    trace: Annotated[
        float | None,
        typer.Option("--trace", metavar="SECONDS", help="What the kernel does for rseq, by process."),
    ] = None,
    pid: Annotated[
        list[int] | None,
        typer.Option("--pid", metavar="PID", min=1, help="With --live, only this process; can be repeated."),
    ] = None,
    packages: Annotated[bool, typer.Option("--packages", help="The installed packages.")] = False,
    archive: Annotated[
        Path | None,
        typer.Option("--archive", metavar="LIST", help="A file that names package files, one a line."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", metavar="ADDRESS", help="Scan the packages on this Dask cluster."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where the packages' bundle goes; a new folder by default."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with --out DIR.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", metavar="N", min=1, help="Processes that read; one for each CPU by default."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Who uses rseq. Nothing that is scanned is executed or unpacked to disk."""
    asked = {
        "PATH": bool(paths),
        "--live": live,
        "--trace": trace is not None,
        "--packages": packages,
        "--archive": archive is not None,
    }
    chosen = [name for name, given in asked.items() if given]
    if len(chosen) != 1:
        raise UsageError(
            f"A census is of one kind at a time: {', '.join(asked)} (given: {', '.join(chosen) or 'none'})."
        )
    for_packages = {"--cluster": cluster is not None, "--out": folder is not None, "--resume": resume}
    stray = [name for name, given in for_packages.items() if given]
    if stray and chosen[0] not in ("--packages", "--archive"):
        raise UsageError(f"{', '.join(stray)}: for --packages and --archive (given: {chosen[0]}).")
    if pid and chosen[0] != "--live":
        raise UsageError(f"--pid: for --live (given: {chosen[0]}).")
    if trace is not None and not 0 < trace <= 3600:
        raise UsageError(f"--trace is a time from above 0 to 3600 seconds (given: {trace:g}).")
    if paths:
        _files(paths, workers, as_json)
    elif live:
        _live(pid, workers, as_json)
    elif trace is not None:
        _trace(trace, as_json)
    else:
        _packages(archive, cluster, folder, resume, workers, as_json)


def _files(paths: list[str], workers: int | None, as_json: bool) -> None:
    raise LabError("The census of files is not built yet.")


def _live(pids: list[int] | None, workers: int | None, as_json: bool) -> None:
    from rseqlab.census import process

    with err.status("Asking every thread"):
        document = process.census(pids=pids or None)
    if as_json:
        print_json(document)
        return
    for line in process.sentences(document):
        out.print(escape(line), highlight=False, soft_wrap=True)
    table = Table("process", "threads", "owner", "bytes", "libc says", "cgroup", "files with evidence")
    for row in process.lines(document):
        table.add_row(*map(escape, row))
    out.print(table)


def _trace(seconds: float, as_json: bool) -> None:
    from rseqlab.census import trace

    with err.status("Attaching to the kernel's tracepoints") as status:
        document, interrupted = trace.census(seconds, status.update)
    if as_json:
        print_json(document)
    else:
        for line in trace.sentences(document):
            out.print(escape(line), highlight=False, soft_wrap=True)
        table = Table("process", "pid", "updates", "aborts", "calls")
        for row in document["processes"]:
            counts = (str(row[key]) for key in ("updates", "aborts", "calls"))
            table.add_row(escape(row["name"]), str(row["pid"]), *counts)
        out.print(table)
    if interrupted:  # what was counted is there, and must stay the only document
        err.print("rseqlab: Interrupted. What was counted until then is above.", highlight=False)
        sys.exit(130)


def _packages(
    archive: Path | None,
    cluster: str | None,
    folder: Path | None,
    resume: bool,
    workers: int | None,
    as_json: bool,
) -> None:
    """``archive`` lists package files; without it the installed packages are meant."""
    raise LabError("The census of packages is not built yet.")
