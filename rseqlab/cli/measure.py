"""doctor, list, run, bench: this machine and what is measured on it."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rseqlab.cli.base import Json, app, err, out, print_json
from rseqlab.errors import UsageError


@app.command()
def doctor(as_json: Json = False) -> None:
    """This machine: kernel, libc, whose the rseq area is, and which experiments can run."""
    from rseqlab import doctor as examination
    from rseqlab.facts import in_words
    from rseqlab.host import cpu_title

    document = examination.examine()
    if as_json:
        print_json(document)
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
    facts.add_row("CPU", escape(cpu_title(document["facts"])))
    for name, value in document["facts"].items():
        unknown = f"unknown: {document['reasons'].get(name)}"
        facts.add_row(name, escape(in_words(value) if value is not None else unknown))
    out.print(facts, table)
    for line in (*examination.what_can_run(document), *examination.optional_tools(document)):
        out.print(escape(line), highlight=False, soft_wrap=True)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Every experiment: its question, what it serves, what it needs, how long it takes."""
    from rseqlab.experiments import catalogue

    rows = [
        {
            "name": one.name,
            "question": one.question,
            "serves": one.serves,
            "group": one.group,
            "needs": [need.name for need in one.needs],
            "seconds": dict(one.seconds),
        }
        for one in catalogue().values()
    ]
    if as_json:
        print_json({"schema": "rseqlab/list", "version": 1, "experiments": rows})
        return
    for row in rows:
        seconds = ", ".join(f"{profile} {value:g} s" for profile, value in row["seconds"].items())
        out.print(
            f"[bold]{row['name']}[/bold]\n  question  {escape(row['question'])}\n  serves    {escape(row['serves'])}\n"
            f"  group     {row['group']}\n"
            f"  needs     {escape(', '.join(row['needs']))}\n  takes     {seconds}",
            highlight=False,
        )


@app.command()
def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Experiments; all of the group machine by default."),
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
    address: Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="ADDRESS",
            help="Measure on every host of this Dask cluster, into a study: a bundle for each host.",
        ),
    ] = None,
    deadline_s: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            metavar="SECONDS",
            help="With --on: hosts that are not done by then are given up; ten times the expected time by default.",
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
    if address is not None:
        if libc is not None:
            raise UsageError("--libc is for this machine and --on for others; leave one of them out.")
        return _on_fleet(address, experiments, profile, folder, resume, deadline_s, as_json)
    if deadline_s is not None:
        raise UsageError(
            "--deadline is for the hosts of --on ADDRESS; here each part has a deadline of its own."
        )
    if libc is not None:
        _use_libc(libc, names or [])
    if folder is None:
        folder = (
            runner.go_on(profile, experiments)
            if resume
            else runner.new_folder(profile, runner.group_of(experiments))
        )
    err.print(f"Run: {escape(str(folder))}", highlight=False, soft_wrap=True)
    with progress([(one.name, one.seconds[profile]) for one in experiments]) as show:
        document = runner.run(experiments, profile, folder, resume, show)
    chosen = {one.name: document["experiments"][one.name] for one in experiments}
    if as_json:
        print_json(document)
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


def _on_fleet(address, experiments, profile, folder, resume, deadline_s, as_json) -> None:
    """The same on the hosts of a cluster; fails where a host or an experiment on it does."""
    from rseqlab.lab import cluster, fleet, runner
    from rseqlab.progress import progress

    if resume and folder is None:
        raise UsageError("--resume with --on needs --out DIR: the study that it goes on with.")
    if deadline_s is not None and not 0 < deadline_s < float("inf"):
        raise UsageError(f"--deadline is {deadline_s:g}; it must be a number of seconds above 0.")
    folder = folder or runner.new_folder(profile, "fleet")
    expected_s = sum(one.seconds[profile] for one in experiments)

    def say(text: str) -> None:
        err.print(escape(text), highlight=False, soft_wrap=True)

    with cluster.connect(address, "--on") as client:
        study = fleet.Fleet(client, experiments, profile, folder, say)
        hosts = study.gather(resume)
        say(f"Study: {folder}, {len(hosts)} hosts")
        for host in study.refused:
            say(f"A host of {len(host.workers)} workers cannot take part: {host.reason}")
        try:
            with progress([(host.label, expected_s) for host in hosts]) as show:
                document = study.run(show, deadline_s or max(fleet.LEAST_DEADLINE_S, 10 * expected_s))
        except KeyboardInterrupt:
            say(f"What was measured is in {folder}; with --out {folder} --resume it goes on.")
            raise
    if as_json:
        print_json(document)
    for host in document["hosts"]:
        passed = sum(one["status"] == "pass" for one in host["experiments"].values())
        rows = sum(one["rows"] for one in host["experiments"].values())
        late = ", behind the others" if host["straggled"] else ""
        reason = f": {host['reason']}" if host["reason"] else ""
        if not as_json:
            text = f"{host['state']:<9}{host['label'] or 'no bundle'}, {passed} of {len(host['experiments'])} passed, {rows} rows"
            out.print(escape(f"{text}{late}{reason}"), highlight=False, soft_wrap=True)
    sound = all(
        host["state"] == "done"
        and all(one["status"] in ("pass", "skip") for one in host["experiments"].values())
        for host in document["hosts"]
    )
    if not sound:
        say(
            f"Not everything passed on every host; the reasons are above and in the run.json of each host in {folder}."
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
        print_json(document)
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
        rows = document["comparison"]["rows"]
        for lacks in dict.fromkeys(row["lacks"] for row in rows if row["lacks"]):
            out.print(f"No verdict: {escape(lacks)}.", highlight=False, soft_wrap=True)
