"""usage: who uses rseq, as cited."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from rseqlab.cli.base import Json, app, out, print_json


@app.command()
def usage(
    project: Annotated[
        str | None, typer.Argument(metavar="[PROJECT]", help="Only projects whose name has this in it.")
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="Only rows of this role; may be given again."),
    ] = None,
    contradictions: Annotated[
        bool, typer.Option("--contradictions", help="What sources disagree about, instead.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Check the cited tables, show nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Who uses rseq, for what, and how that is known: the cited table, not a measurement."""
    from rseqlab.errors import UsageError
    from rseqlab.study import sources
    from rseqlab.study.sources import CONTRADICTIONS, ROLES, USAGE

    if unknown := set(role or ()) - set(ROLES):
        raise UsageError(
            f"No role is called {', '.join(sorted(unknown))}. The roles are: {', '.join(ROLES)}."
        )
    if check:
        _checked(as_json)
        return
    rows = [
        row
        for row in sources.read(USAGE)
        if (not role or row["role"] in role) and (project or "").lower() in row["project"].lower()
    ]
    if project and not rows:
        known = dict.fromkeys(row["project"] for row in sources.read(USAGE))
        raise UsageError(f"No row is of a project like {project!r}. The projects are: {'; '.join(known)}.")
    disputes = sources.read(CONTRADICTIONS)
    if as_json:
        print_json(
            {
                "schema": "rseqlab/usage",
                "version": 1,
                "checked_on": sources.CHECKED_ON,
                "usage": rows,
                "contradictions": list(disputes),
                "problems": [],
            }
        )
        return
    if contradictions:
        table = Table("about", "one source", "another", "how to settle it")
        for row in disputes:
            sides = (f"{row[side]} ({row[f'{side}_source']})" for side in ("one", "other"))
            table.add_row(*map(escape, (row["about"], *sides, row["how_it_could_be_settled"])))
    else:
        table = Table(
            "project", "role", "what for", "area", "date", "known by", Column("source", overflow="fold")
        )
        for row in rows:
            known = f"{row['strength']}; {sources.CHECKS[row['checked']]}"
            cells = (
                row["project"],
                row["role"],
                row["what_for"],
                row["area"],
                row["date"],
                known,
                row["source"],
            )
            table.add_row(*map(escape, cells))
    out.print(table)
    out.print(escape(sources.summary(rows)), highlight=False, soft_wrap=True)


def _checked(as_json: bool) -> None:
    """Every problem of the cited tables, and exit code 1 where there is one."""
    from rseqlab.study import sources

    found = sources.check()
    wrong = [problem for problems in found.values() for problem in problems]
    if as_json:
        print_json(
            {
                "schema": "rseqlab/usage",
                "version": 1,
                "checked_on": sources.CHECKED_ON,
                "usage": [],
                "contradictions": [],
                "problems": wrong,
            }
        )
    for name, problems in found.items() if not as_json else ():
        out.print(
            f"{name}: {'fits its schema' if not problems else f'{len(problems)} problems'}", highlight=False
        )
        for problem in problems:
            out.print(f"  {escape(problem)}", highlight=False, soft_wrap=True)
    if wrong:
        raise typer.Exit(1)
