"""report, claims, options: what a run says."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Column, Table

from rseqlab.cli.base import Json, Run, app, err, out, print_json
from rseqlab.cli.remembered import remembered
from rseqlab.errors import UsageError

if TYPE_CHECKING:
    from rseqlab.study.run import StudyRun


@app.command()
def report(
    run_folder: Run = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where index.html goes; report/ by default (installed: in the data folder).",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write it even where nothing changed.")] = False,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare", metavar="DIR", help="Several times: runs, or a study of runs, side by side."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Execute the notebooks on a run and write one self-contained HTML file."""
    if compare:
        if run_folder is not None or force:
            raise UsageError(
                "--compare names the runs itself and is always written; leave out --run and --force."
            )
        _compare(compare, folder, as_json)
        return
    from rseqlab.lab.runner import work_folder
    from rseqlab.progress import progress
    from rseqlab.study import notebook, publish
    from rseqlab.study.run import open_run

    found = open_run(run_folder)
    with progress([(path.stem, 5.0) for path in notebook.notebooks()]) as show:
        path, anew = publish.publish(found, folder or work_folder() / "report", force, show)
    if as_json:
        print_json(
            {
                "schema": "rseqlab/report",
                "version": 1,
                "path": str(path),
                "written": anew,
                "run_id": found.id,
                "origin": found.origin,
                "digest": found.digest,
                "runs": found.documents(),
            }
        )
        return
    for line in _notes(found):
        err.print(escape(line), highlight=False, soft_wrap=True)
    state = "written" if anew else "up to date"
    out.print(
        f"{escape(str(path))}: {state}, from {found.origin} {found.id}", highlight=False, soft_wrap=True
    )


@app.command()
def claims(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="These claims; all by default.")
    ] = None,
    verdict: Annotated[
        list[str] | None,
        typer.Option("--verdict", metavar="VERDICT", help="Only those that came out so; may be given again."),
    ] = None,
    run_folder: Run = None,
    as_json: Json = False,
) -> None:
    """What people said, tested on a run: verdict, effect with its interval, source."""
    asked = {"ids": ids or [], "verdicts": verdict or [], "run": str(run_folder) if run_folder else None}
    with err.status("Judging the claims"):
        answer = remembered(
            "claims", asked, lambda: _judged(ids or [], verdict or [], run_folder), run_folder
        )
    if as_json:
        print_json(answer["document"])
        return
    for line in answer["head"]:
        err.print(escape(line), highlight=False, soft_wrap=True)
    table = Table("id", "verdict", "claim", "on this run", Column("source", overflow="fold"))
    for one in answer["document"]["claims"]:
        table.add_row(
            *(escape(one[name]) for name in ("id", "verdict", "sentence", "measured", "source")),
        )
    out.print(table)
    for text in answer["evidence"]:
        out.print(escape(text), highlight=False, soft_wrap=True)
    out.print(escape(answer["sentence"]), highlight=False, soft_wrap=True)


def _judged(ids: list[str], verdicts: list[str], run_folder: Path | None) -> dict:
    """What `claims` prints: its JSON document, the lines above the table, and the rows behind each claim."""
    from rseqlab.lab.verdict import VERDICTS
    from rseqlab.study.claims import Tally, Verdicts, judge
    from rseqlab.study.run import open_run

    if unknown := set(verdicts) - set(VERDICTS):
        raise UsageError(
            f"No verdict is called {', '.join(sorted(unknown))}. The verdicts are: {', '.join(VERDICTS)}."
        )
    found = open_run(run_folder)
    judged = judge(found, *ids)
    shown = Verdicts(one for one in judged if not verdicts or one.finding.verdict in verdicts)
    totals = Tally(judged)
    return {
        "document": {
            "schema": "rseqlab/claims",
            "version": 1,
            "run_id": found.id,
            "origin": found.origin,
            "digest": found.digest,
            "runs": found.documents(),
            "totals": totals.counts,
            "claims": [one.document() for one in shown],
        },
        "head": [repr(found), *_notes(found)],
        "evidence": [one.evidence() for one in shown] if ids else [],  # of all at once nobody could read it
        "sentence": totals.sentence,
    }


@app.command()
def options(
    cell: Annotated[
        str | None, typer.Argument(metavar="[OPTION/CRITERION]", help="One cell, with the rows behind it.")
    ] = None,
    run_folder: Run = None,
    as_html: Annotated[bool, typer.Option("--html", help="The table as HTML on standard output.")] = False,
    as_json: Json = False,
) -> None:
    """The ways to extend struct rseq against what each must survive, and what it costs, on a run."""
    asked = {"cell": cell, "html": as_html, "run": str(run_folder) if run_folder else None}
    answer = remembered("options", asked, lambda: _matrix(cell, as_html, run_folder), run_folder)
    if as_json:
        print_json(answer["document"])
    elif answer["text"] is not None:
        print(answer["text"])
    else:
        for line in answer["head"]:
            err.print(escape(line), highlight=False, soft_wrap=True)
        document = answer["document"]
        table = Table("", *(option["id"] for option in document["options"]), padding=(0, 0), pad_edge=False)
        for label, cells in answer["grid"]:
            table.add_row(escape(label), *map(escape, cells))
        out.print(table, escape(document["legend"]))
    if answer["note"]:
        err.print(escape(answer["note"]), highlight=False, soft_wrap=True)


def _matrix(cell: str | None, as_html: bool, run_folder: Path | None) -> dict:
    """What `options` prints: the JSON document, and the table's cells or another text in its place."""
    from rseqlab.study.matrix import open_matrix

    found, text = open_matrix(run_folder), None
    if as_html:
        text = found._repr_html_()
    if cell is not None:
        from rseqlab.study.options import scenes

        one = found.cell(*(cell.split("/") if cell.count("/") == 1 else (cell, "")))
        if not as_html:
            rows = scenes(found.run, one.option, one.criterion)
            said = f"{one.label}. {one.sentence}"
            text = f"{one.option}, {one.criterion}: {said}\nexperiment {one.experiment}\n{rows}"
    return {
        "document": found.document(),
        "head": [repr(found.run)],
        "grid": [(label, [one.short for one in cells]) for label, cells in found.grid()],
        "text": text,
        "note": found.note,
    }


@app.command()
def evidence(
    run_folder: Run = None,
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where it goes; standard output by default.")
    ] = None,
    with_costs: Annotated[bool, typer.Option("--costs", help="Only chosen sections: this one.")] = False,
    with_options: Annotated[bool, typer.Option("--options", help="Only chosen sections: this one.")] = False,
    with_kernels: Annotated[bool, typer.Option("--kernels", help="Only chosen sections: this one.")] = False,
    with_census: Annotated[bool, typer.Option("--census", help="Only chosen sections: this one.")] = False,
    with_claims: Annotated[bool, typer.Option("--claims", help="Only chosen sections: this one.")] = False,
    as_mbox: Annotated[
        bool, typer.Option("--mbox", help="A message in mbox format instead of bare text.")
    ] = False,
    sender: Annotated[str | None, typer.Option("--from", help="Name <user@domain>; --mbox needs it.")] = None,
    to: Annotated[list[str] | None, typer.Option("--to", help="Name <user@domain>; several times.")] = None,
    in_reply_to: Annotated[
        str | None, typer.Option("--in-reply-to", metavar="ID", help="The Message-ID that it answers.")
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Another subject.")] = None,
    as_json: Json = False,
) -> None:
    """The evidence as plain text for a mailing list: ASCII, 75 columns, the commands beside the numbers."""
    from datetime import UTC, datetime

    if not as_mbox and (sender or to or in_reply_to or subject):
        raise UsageError("--from, --to, --in-reply-to and --subject belong to a message; add --mbox.")
    if as_mbox and not sender:
        raise UsageError("A message needs its sender: --mbox --from 'Name <user@domain>'.")
    wanted = {
        "costs": with_costs,
        "options": with_options,
        "kernels": with_kernels,
        "census": with_census,
        "claims": with_claims,
    }
    headers = {"sender": sender, "to": to or [], "in_reply_to": in_reply_to, "subject": subject}
    if as_mbox:  # before the seconds of judging
        from rseqlab.study import evidence as writer

        writer.message("", datetime.now(UTC), **headers)
    chosen = [name for name, is_chosen in wanted.items() if is_chosen]
    asked = {"sections": chosen, "run": str(run_folder) if run_folder else None}
    with err.status("Writing the evidence"):
        answer = remembered("evidence", asked, lambda: _evidence(chosen, run_folder), run_folder)
    text = answer["text"]
    if as_mbox:
        text = writer.mbox(writer.message(text, datetime.now(UTC), **headers))
    if file is not None:
        from rseqlab.lab.bundle import write_text

        write_text(file, text)
    if as_json:
        document = {"path": str(file) if file else None, "text": text, **answer["study"]}
        print_json({"schema": "rseqlab/evidence", "version": 1, **document})
    elif file is not None:
        out.print(
            f"{escape(str(file))}: written, from {escape(answer['from'])}", highlight=False, soft_wrap=True
        )
    else:
        print(text, end="")


def _evidence(sections: list[str], run_folder: Path | None) -> dict:
    """What `evidence` prints: the text, and which study it is of."""
    from rseqlab.study import evidence as writer
    from rseqlab.study.run import open_run

    found = open_run(run_folder)
    return {
        "text": writer.text(found, sections),
        "study": {"run_id": found.id, "runs": found.documents(), "digest": found.digest},
        "from": f"{found.origin} {found.id}",
    }


def _notes(found: "StudyRun") -> list[str]:
    """What was passed over, and what is missing here: a line each, beside the answer."""
    return list(filter(None, [*found.notes, found.footnote.line]))


def _compare(folders: list[Path], folder: Path | None, as_json: bool) -> None:
    """`report --compare`: one page of runs side by side."""
    from rseqlab.lab.runner import work_folder
    from rseqlab.study import report as page
    from rseqlab.study.compare import Comparison, open_runs

    with err.status("Comparing"):
        found = Comparison(open_runs(folders))
        html = page.render([("side by side", found.notebook())], found.identity())
        path = page.write(html, (folder or work_folder() / "report") / "compare.html")
    if as_json:
        print_json({"schema": "rseqlab/compare", "version": 1, "path": str(path), **found.document()})
        return
    for name in found.names:
        out.print(escape(name), highlight=False, soft_wrap=True)
    out.print(f"{escape(found.sentence())}\n{escape(str(path))}: written", highlight=False, soft_wrap=True)
