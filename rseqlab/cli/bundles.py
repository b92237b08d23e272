"""bundle: runs as files, on their way between machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from rseqlab.cli.base import Json, app, out, print_json

if TYPE_CHECKING:
    from rseqlab.lab.bundle import Bundle

bundles = typer.Typer(help="Check runs, and exchange them between machines.", no_args_is_help=True)
app.add_typer(bundles, name="bundle")


Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or packed runs.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a packed run.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="PATH", help="Where it goes.")]


def _row(one: "Bundle") -> dict:
    return {
        "folder": str(one.directory),
        "run_id": one.run["run_id"],
        "digest": one.digest,
        "rows": one.rows,
    }


@bundles.command()
def verify(folders: Runs, as_json: Json = False) -> None:
    """Check runs in full: schema, checksums, every row. Readers check what they read."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.bundle import Bundle

    rows = [_row(Bundle(folder, catalogue()).check()) for folder in folders]
    if as_json:
        print_json({"schema": "rseqlab/verify", "version": 1, "bundles": rows})
        return
    for row in rows:
        _say(f"{row['folder']}: sound, {row['rows']} rows, digest {row['digest'][:12]}")


@bundles.command()
def pack(folder: Run, file: Out = None, as_json: Json = False) -> None:
    """Check a run and write it as one compressed file, which every command reads in place; nothing in it changes."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.exchange import pack as write

    _made("pack", write(folder, file, catalogue()), as_json)


@bundles.command()
def unpack(folder: Run, file: Out = None, as_json: Json = False) -> None:
    """Check a packed run and write its files into a folder."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.exchange import unpack as write

    _made("unpack", write(folder, file, catalogue()), as_json)


def _made(what: str, run: "Bundle", as_json: bool) -> None:
    if as_json:
        print_json({"schema": f"rseqlab/{what}", "version": 1, **_row(run)})
        return
    _say(f"{run.directory}: {run.rows} rows, digest {run.digest[:12]}")


@bundles.command()
def export(folder: Run, file: Out = None, as_json: Json = False) -> None:
    """Check a run, take private words out, and write it as one file; the same run gives the same bytes."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.exchange import export as write

    made = write(folder, file, catalogue())
    if as_json:
        document = {"path": str(made.path), "digest": made.digest, "redacted": list(made.redacted)}
        print_json({"schema": "rseqlab/export", "version": 1, **document})
        return
    changed = f"; private words replaced in {', '.join(made.redacted)}" if made.redacted else ""
    _say(f"{made.path}: digest {made.digest[:12]}{changed}")


@bundles.command("import")
def import_(
    archives: Annotated[list[Path], typer.Argument(metavar="ARCHIVE...")], as_json: Json = False
) -> None:
    """Check archives as what a stranger made, and put their runs among the local ones."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.exchange import import_ as unpack
    from rseqlab.lab.runner import runs_folder

    found = [unpack(archive, runs_folder(), catalogue()) for archive in archives]
    if as_json:
        rows = [{**_row(run), "new": new} for _, run, new in found]
        print_json({"schema": "rseqlab/import", "version": 1, "bundles": rows})
        return
    for place, run, new in found:
        _say(f"{place}: {'imported' if new else 'was here already'}, digest {run.digest[:12]}")


@bundles.command()
def merge(
    folders: Runs,
    study: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The study; it may exist and takes more.")
    ],
    as_json: Json = False,
) -> None:
    """Put runs, and those of other studies, into one study; `report --compare` shows its machines side by side."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.exchange import merge as join

    rows = [_row(run) for run in join(folders, study, catalogue())]
    if as_json:
        print_json({"schema": "rseqlab/merge", "version": 1, "folder": str(study), "bundles": rows})
        return
    _say(f"{study}: a study of {len(rows)} runs")
    for row in rows:
        _say(f"  {row['folder']}: {row['rows']} rows, digest {row['digest'][:12]}")


def _say(text: str) -> None:
    out.print(escape(text), highlight=False, soft_wrap=True)
