"""bundle: runs as files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rseqlab.cli.base import Json, app, out, print_json

bundles = typer.Typer(help="Check run bundles.", no_args_is_help=True)
app.add_typer(bundles, name="bundle")


@bundles.command()
def verify(folders: Annotated[list[Path], typer.Argument(metavar="DIR...")], as_json: Json = False) -> None:
    """Check bundles as every reader does: schema, checksums, every row."""
    from rseqlab.experiments import catalogue
    from rseqlab.lab.bundle import Bundle

    checked = [Bundle(folder, catalogue()) for folder in folders]
    rows = [
        {
            "folder": str(one.directory),
            "run_id": one.run["run_id"],
            "digest": one.digest,
            "rows": sum(map(len, one.tables.values())),
        }
        for one in checked
    ]
    if as_json:
        print_json({"schema": "rseqlab/verify", "version": 1, "bundles": rows})
        return
    for row in rows:
        out.print(
            f"{escape(row['folder'])}: sound, {row['rows']} rows, digest {row['digest'][:12]}",
            highlight=False,
            soft_wrap=True,
        )
