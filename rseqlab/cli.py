"""The command line. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import rseqlab
from rseqlab.errors import LabError, UsageError

app = typer.Typer(
    help="Restartable sequences, answered by experiments on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bundles = typer.Typer(help="Check run bundles.", no_args_is_help=True)
app.add_typer(bundles, name="bundle")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Run = Annotated[
    Path | None, typer.Option("--run", help="The run to read; the newest local one, else the shipped one.")
]

out = Console()
err = Console(stderr=True)


def main() -> None:
    """Run the command line; every way to fail ends in one of the documented exit codes."""
    as_json = "--json" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except UsageError as error:
        _fail(as_json, "usage", str(error), 2)
    except LabError as error:
        _fail(as_json, "failed", str(error), 1)
    except BrokenPipeError:
        # The reader of our output left; nothing remains to be said, also not by Python as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        place = f" {error.filename}" if error.filename else ""
        _fail(as_json, "failed", f"Could not use{place}: {error.strerror}.", 1)
    except Exception as error:
        if hasattr(error, "format_message"):  # how typer reports wrong options
            _fail(as_json, "usage", error.format_message(), 2)
        if os.environ.get("RSEQLAB_DEBUG"):
            raise
        known = f"{type(error).__name__}: {error}"
        _fail(as_json, "failed", f"A fault of rseqlab itself: {known}. RSEQLAB_DEBUG=1 shows where.", 1)
    if code == 130:
        kept = " What was measured is kept; `rseqlab run --resume` goes on." if "run" in sys.argv[1:2] else ""
        _fail(as_json, "interrupted", f"Interrupted.{kept}", code)
    sys.exit(code)


def _fail(as_json: bool, kind: str, message: str, code: int) -> None:
    try:
        if as_json:
            _print_json({"schema": "rseqlab/error", "version": 1, "kind": kind, "message": message})
        sys.stdout.flush()
    except OSError:  # what it still holds must not be tried again by Python as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:  # none where a bare `rseqlab` has printed its help
        err.print(f"rseqlab: {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _print_json(document: dict) -> None:
    from rseqlab.lab.bundle import validate

    validate(document, document["schema"].removeprefix("rseqlab/"), "this command's own output")
    print(json.dumps(document, indent=1, allow_nan=False))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"rseqlab {rseqlab.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
):
    pass


@app.command()
def doctor(as_json: Json = False) -> None:
    """This machine: kernel, libc, whose the rseq area is, and which experiments can run."""
    from rseqlab import doctor as examination

    document = examination.examine()
    if as_json:
        _print_json(document)
        return
    rseq, reasons = document["rseq"], document["rseq"]["reasons"]
    table = Table("rseq", "value", box=None, header_style="bold")
    for name in examination.RSEQ_VALUES:
        table.add_row(
            name, escape(str(rseq[name]) if rseq[name] is not None else f"unknown: {reasons.get(name, '')}")
        )
    table.add_row(
        "registration", "works" if rseq["registration_works"] else escape(f"refused: {rseq['refusal']}")
    )
    facts = Table("machine", "value", box=None, header_style="bold")
    for name, value in document["facts"].items():
        text = ", ".join(value) if isinstance(value, list) else str(value)
        facts.add_row(name, escape(text if value is not None else f"unknown: {document['reasons'][name]}"))
    out.print(facts, table)
    for experiment in document["experiments"]:
        state = (
            "can run" if experiment["can_run"] else escape(f"cannot run: {'; '.join(experiment['reasons'])}")
        )
        out.print(f"experiment {experiment['name']}: {state}", highlight=False)
    for tool in document["tools"]:
        out.print(
            f"optional {tool['name']}: {tool['found'] or 'not found; install it with: ' + tool['remedy']}",
            highlight=False,
        )


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every experiment: its question, what it serves, what it needs, how long it takes."""
    from rseqlab.experiments import catalogue

    rows = [
        {
            "name": one.name,
            "question": one.question,
            "serves": one.serves,
            "needs": [need.name for need in one.needs],
            "seconds": dict(one.seconds),
        }
        for one in catalogue().values()
    ]
    if as_json:
        _print_json({"schema": "rseqlab/list", "version": 1, "experiments": rows})
        return
    for row in rows:
        seconds = ", ".join(f"{profile} {value:g} s" for profile, value in row["seconds"].items())
        out.print(
            f"[bold]{row['name']}[/bold]\n  question  {escape(row['question'])}\n  serves    {escape(row['serves'])}\n"
            f"  needs     {escape(', '.join(row['needs']))}\n  takes     {seconds}",
            highlight=False,
        )


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Experiments; all of them by default.")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the bundle goes; a new folder in runs/ by default."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out DIR, or with this machine's newest run.")
    ] = False,
    libc: Annotated[
        Path | None,
        typer.Option(
            "--libc",
            metavar="DIR",
            help="Folder of ld.so and libc.so.6: the option experiments run their programs under this libc.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run experiments into a bundle. A killed run loses nothing that was measured: --resume goes on."""
    from rseqlab.experiments import select
    from rseqlab.lab import runner
    from rseqlab.lab.experiment import PROFILES
    from rseqlab.progress import progress

    if profile not in PROFILES:
        raise UsageError(f"No profile is called {profile!r}. The profiles are: {', '.join(PROFILES)}.")
    experiments = select(names or [])
    if libc is not None:
        _use_libc(libc, names or [])
    if folder is None:
        folder = runner.go_on(profile, experiments) if resume else runner.new_folder(profile)
    err.print(f"Run: {escape(str(folder))}", highlight=False, soft_wrap=True)
    with progress([(one.name, one.seconds[profile]) for one in experiments]) as show:
        document = runner.run(experiments, profile, folder, resume, show)
    chosen = {one.name: document["experiments"][one.name] for one in experiments}
    if as_json:
        _print_json(document)
    else:
        for name, record in chosen.items():
            reason = f": {record['reason']}" if record["reason"] else ""
            out.print(
                f"{record['status']:<8}{name}, {record['rows']} rows{escape(reason)}",
                highlight=False,
                soft_wrap=True,
            )
    if any(record["status"] in ("fail", "crash", "timeout") for record in chosen.values()):
        err.print(
            f"Not every experiment passed; the reasons are in {escape(str(folder / 'run.json'))}.",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _use_libc(folder: Path, names: list[str]) -> None:
    """Have the option experiments run their programs by this libc's loader. Raises UsageError."""
    from rseqlab.options import parties, scenes

    others = [name for name in names if not name.startswith("option-")]
    if others or not names:
        raise UsageError(
            f"--libc is for experiments whose programs another libc can run; name some whose name begins with "
            f"option- (given: {', '.join(others) or 'none'})."
        )
    parties.loader(folder.resolve())
    os.environ[scenes.GIVEN_LIBC] = str(folder.resolve())


@app.command()
def bench(
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the JSON goes; a new file in runs/ by default."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="An earlier one to compare with.")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    as_json: Json = False,
) -> None:
    """Time every operation on one thread; --against compares with an earlier time. No verdict is a failure."""
    from rseqlab.lab.experiment import PROFILES

    if profile not in PROFILES:
        raise UsageError(f"No profile is called {profile!r}. The profiles are: {', '.join(PROFILES)}.")
    from rseqlab.progress import progress
    from rseqlab.study import bench as benchmark

    earlier = benchmark.read(against) if against else None
    if earlier:  # before a minute of measuring
        benchmark.check_comparable(earlier, profile, benchmark.machine())
    file = file or benchmark.new_file(profile)
    with progress([(one.name, one.seconds[profile]) for one in benchmark.experiments()]) as show:
        document = benchmark.measure(profile, show)
    if earlier:
        rows = benchmark.compare(document, earlier)
        document["comparison"] = {"earlier_started": earlier["started"], "rows": rows}
    benchmark.write(file, document)
    err.print(f"Benchmark: {escape(str(file))}", highlight=False, soft_wrap=True)
    if as_json:
        _print_json(document)
        return
    table = Table("operation", "ns", "95 %", box=None, header_style="bold")
    for row in document["variants"]:
        interval = f"{row['low_ns']:.3f} to {row['high_ns']:.3f}"
        table.add_row(escape(", ".join(row["variant"].values())), f"{row['median_ns']:.3f}", interval)
    out.print(table)
    if earlier:
        columns = ("operation", "whose", "before ns", "now ns", "ratio", "95 %", "verdict")
        table = Table(*columns, box=None, header_style="bold")
        for row in document["comparison"]["rows"]:
            name, whose = (
                escape(", ".join(row["variant"].values())),
                "a control" if row["control"] else "ours",
            )
            numbers = (f"{row[name]:.3f}" for name in ("before_ns", "now_ns", "ratio"))
            table.add_row(name, whose, *numbers, f"{row['low']:.3f} to {row['high']:.3f}", row["verdict"])
        Console(width=max(out.width, 116)).print(table)  # a cut name would not say which operation it is


@app.command()
def report(
    run_folder: Run = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where index.html goes; report/ by default.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write it even where nothing changed.")] = False,
    as_json: Json = False,
) -> None:
    """Execute the notebooks on a run and write one self-contained HTML file."""
    from rseqlab.lab.runner import project_root
    from rseqlab.progress import progress
    from rseqlab.study import notebook, publish
    from rseqlab.study.run import open_run

    found = open_run(run_folder)
    with progress([(path.stem, 5.0) for path in notebook.notebooks()]) as show:
        path, anew = publish.publish(found, folder or project_root() / "report", force, show)
    if as_json:
        _print_json(
            {
                "schema": "rseqlab/report",
                "version": 1,
                "path": str(path),
                "written": anew,
                "run_id": found.id,
                "origin": found.origin,
                "digest": found.bundle.digest,
            }
        )
        return
    if found.note:
        err.print(escape(found.note), highlight=False, soft_wrap=True)
    state = "written" if anew else "up to date"
    out.print(
        f"{escape(str(path))}: {state}, from {found.origin} {found.id}", highlight=False, soft_wrap=True
    )


@app.command()
def claims(run_folder: Run = None, as_json: Json = False) -> None:
    """What people said, tested on a run: verdict, effect with its interval, source."""
    from rseqlab.study.claims import judge
    from rseqlab.study.run import open_run

    with err.status("Judging the claims"):
        found = open_run(run_folder)
        judged = judge(found)
    if as_json:
        _print_json(
            {
                "schema": "rseqlab/claims",
                "version": 1,
                "run_id": found.id,
                "origin": found.origin,
                "digest": found.bundle.digest,
                "claims": [one.document() for one in judged],
            }
        )
        return
    err.print(escape(repr(found)), highlight=False, soft_wrap=True)
    table = Table("id", "verdict", "claim", "on this run")
    for one in judged:
        table.add_row(
            one.claim.id, one.finding.verdict, escape(one.claim.sentence), escape(one.finding.measured)
        )
    out.print(table)


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
    from rseqlab.study.matrix import open_matrix

    found = open_matrix(run_folder)
    if cell is not None:
        one = found.cell(*(cell.split("/") if cell.count("/") == 1 else (cell, "")))
    if as_json:
        _print_json(found.document())
    elif as_html:
        print(found._repr_html_())
    elif cell is not None:
        from rseqlab.study.options import scenes

        rows = scenes(found.run, one.option, one.criterion)
        said = f"{one.label}. {one.sentence}"
        print(f"{one.option}, {one.criterion}: {said}\nexperiment {one.experiment}\n{rows}")
    else:
        err.print(escape(repr(found.run)), highlight=False, soft_wrap=True)
        document = found.document()
        table = Table("", *(option["id"] for option in document["options"]), padding=(0, 0), pad_edge=False)
        for label, cells in found.grid():
            table.add_row(escape(label), *(escape(one.short) for one in cells))
        out.print(table, escape(document["legend"]))
    if found.note:
        err.print(escape(found.note), highlight=False, soft_wrap=True)


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
        _print_json({"schema": "rseqlab/verify", "version": 1, "bundles": rows})
        return
    for row in rows:
        out.print(
            f"{escape(row['folder'])}: sound, {row['rows']} rows, digest {row['digest'][:12]}",
            highlight=False,
            soft_wrap=True,
        )


if __name__ == "__main__":
    main()
