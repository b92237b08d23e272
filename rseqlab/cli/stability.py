"""stability: every claim's verdict over several runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rseqlab.cli.base import Json, app, err, out, print_json


@app.command()
def stability(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Run bundles: folders, packed files, or studies of runs."),
    ],
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the table there, too, as CSV.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every claim's verdict over several runs, and the cause where it holds in one and fails in another.

    Exit code 1 where a contrary verdict has no named cause.
    """
    from rseqlab.study import stability as study

    with err.status("Judging the claims on each run"):
        found = study.stability(study.open_runs(runs))
    if file:
        found.write(file)
        err.print(f"Table: {escape(str(file))}", highlight=False, soft_wrap=True)
    if as_json:
        print_json(found.document())
    else:
        for shown in (found.machines(), found.table()):
            table = Table(*(escape(str(name)) for name in shown.frame), title=escape(shown.caption))
            for row in shown.frame.itertuples(index=False):
                table.add_row(*(escape(str(cell)) for cell in row))
            Console(width=max(out.width, 60 + 24 * len(found.runs))).print(table)
        for line in found.lines().lines:
            out.print(escape(line), highlight=False, soft_wrap=True)
    if found.unexplained:
        raise typer.Exit(1)
