"""census: who uses rseq, in files, in running processes, in packages."""

from pathlib import Path
from typing import Annotated

import typer

from rseqlab.cli.base import Json, app
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
    if trace is not None and not 0 < trace <= 3600:
        raise UsageError(f"--trace is a time from above 0 to 3600 seconds (given: {trace:g}).")
    if paths:
        _files(paths, workers, as_json)
    elif live:
        _live(workers, as_json)
    elif trace is not None:
        _trace(trace, as_json)
    else:
        _packages(archive, cluster, folder, resume, workers, as_json)


def _files(paths: list[str], workers: int | None, as_json: bool) -> None:
    raise LabError("The census of files is not built yet.")


def _live(workers: int | None, as_json: bool) -> None:
    raise LabError("The census of processes is not built yet.")


def _trace(seconds: float, as_json: bool) -> None:
    raise LabError("The trace is not built yet.")


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
