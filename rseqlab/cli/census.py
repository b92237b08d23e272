"""census: who uses rseq, in files, in running processes, in packages."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rseqlab.census.text import printable
from rseqlab.cli.base import Json, app, err, out, print_json
from rseqlab.errors import UsageError


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
    from rseqlab.census.scan import scan

    if absent := [path for path in paths if not os.path.lexists(path)]:
        names = ", ".join(map(printable, absent))
        raise UsageError(f"There is no {names}; nothing was scanned. Name files and folders that exist.")
    with err.status("Reading") as status:
        document = scan(paths, workers, lambda files: status.update(f"Reading: {files} files are done"))
    if as_json:
        print_json(document)
    else:
        _show_files(document)


def _show_files(document: dict) -> None:
    """A table of each class, then what was refused: every name without its controls."""
    totals = document["totals"]
    for kind in document["classes"]:
        rows = [row for row in document["files"] if row["class"] == kind["class"]]
        out.print(
            f"[bold]{kind['class']}[/bold]: {kind['words']}: {len(rows)} files",
            highlight=False,
            soft_wrap=True,
        )
        for row in rows:
            first = row["evidence"][0]
            place = first["places"][0]
            origins = ", ".join(one["origin"] for one in row["origins"]) or "origin unknown"
            _line(f"  {_name(row)}")
            _line(
                f"    {row['machine']}, {origins}; {first['rule']} ({row['confidence']}), {first['count']} x, "
                f"first at byte {place['offset_bytes']}: {place['detail']}"
            )
    if document["refused"]:
        out.print("[bold]refused[/bold]", highlight=False)
        for row in document["refused"]:
            _line(f"  {_name(row)}")
            _line(f"    {row['reason']}")
    machines = ", ".join(f"{count} {name}" for name, count in document["machines"].items()) or "none"
    _line(
        f"{totals['files']} files, {totals['archives']} archives, {totals['elf_files']} ELF files ({machines}), "
        f"{totals['refused']} refused."
    )


def _name(row: dict) -> str:
    return row["path"] if row["member"] is None else f"{row['path']}!{row['member']}"


def _line(text: str) -> None:
    out.print(escape(printable(text)), highlight=False, soft_wrap=True)


def _live(pids: list[int] | None, workers: int | None, as_json: bool) -> None:
    from rseqlab.census import process
    from rseqlab.census.scan import scan

    if absent := [str(one) for one in pids or () if not os.path.exists(f"/proc/{one}")]:
        raise UsageError(f"--pid {', '.join(absent)}: no such process; nothing was asked.")
    with err.status("Asking every thread") as status:

        def join(paths: list[str]) -> dict:
            status.update(f"Reading the {len(paths)} files that are mapped")
            return scan(paths, workers)

        document = process.census(join, pids or None)
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
    from rseqlab.census import package

    if archive is None:
        stray = {"--cluster": cluster is not None, "--out": folder is not None, "--resume": resume}
        if given := [name for name, there in stray.items() if there]:
            raise UsageError(
                f"{', '.join(given)}: for --archive; the installed packages are read here, at once."
            )
        with _progress("packages' files") as step:
            document = package.census_installed(workers, step)
    else:
        paths = package.read_list(archive)
        if resume and folder is None:
            raise UsageError("--resume goes on with --out DIR; name the folder.")
        folder = folder or package.new_folder()
        with _progress("packages") as step:
            document = package.census_archives(
                paths, folder, resume, cluster, workers, lambda done: step(done, len(paths))
            )
    if as_json:
        print_json(document)
        return
    for line in package.sentences(document):
        out.print(escape(line), highlight=False, soft_wrap=True)
    table = Table("package", "version", "files by class", "origin")
    for row in package.lines(document):
        table.add_row(*map(escape, row))
    out.print(table)


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    from rseqlab.progress import progress

    with progress([(name, 60.0)]) as show:
        yield lambda done, total: show(name, done, total)
