"""kernels list, fetch, run, clean: kernels and C libraries in guests."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rseqlab.cli.base import Json, app, err, out, print_json
from rseqlab.errors import LabError, UsageError

kernels_app = typer.Typer(help="Boot kernels with real C libraries in QEMU.", no_args_is_help=True)
app.add_typer(kernels_app, name="kernels")

Images = Annotated[
    list[Path] | None,
    typer.Option("--kernel", metavar="PATH", help="Your own bzImage or Image; may be repeated."),
]
Libcs = Annotated[
    list[str] | None,
    typer.Option(
        "--libc",
        metavar="PATH|PACKAGE",
        help="A folder that holds a libc, a .deb, or a package; may be repeated.",
    ),
]
Archs = Annotated[list[str] | None, typer.Option("--arch", help="x86_64 or aarch64; both by default.")]
Series = Annotated[
    list[str] | None,
    typer.Option("--series", metavar="6.12", help="A series of kernels, or newest; may be repeated."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Only what is cached; ask no package source.")]
MATRIX = "kernel-matrix"


@kernels_app.command("list")
def list_(
    images: Images = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask the package source again.")] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """What is cached, what the package source offers, and what you gave."""
    from rseqlab.vm import cache, packages

    trouble = None
    if not offline and (refresh or packages.offer() is None):
        try:
            with _progress([("package lists", 30.0)]) as show:
                show("package lists", 0, 1)
                packages.refresh()
        except LabError as error:
            trouble = str(error)
    document = {
        "schema": "rseqlab/kernels",
        "version": 1,
        "cache": {"folder": str(cache.top()), "bytes": cache.size_bytes()},
        "source": _source(trouble),
        "kernels": _kernels(images or []),
        "libcs": _libcs(),
    }
    if as_json:
        print_json(document)
        return
    table = Table("", "what", "release", "arch", box=None, header_style="bold")
    for one in document["kernels"]:
        shown = ("kernel " + one["series"], one["image"] if one["state"] == "given" else one["release"])
        table.add_row(one["state"], *map(escape, shown), one["arch"])
    for one in document["libcs"]:
        table.add_row(
            one["state"], escape(one["name"]), escape(one["package"].partition(" ")[2]), one["arch"]
        )
    out.print(table)
    out.print(
        f"Cache: {escape(document['cache']['folder'])}, {_mib(document['cache']['bytes'])}", soft_wrap=True
    )
    source = document["source"]
    if trouble := source["trouble"]:
        err.print(escape(trouble), soft_wrap=True, highlight=False)
    if source["unreachable"]:
        err.print(f"Not at the package source: {', '.join(source['unreachable'])}.", soft_wrap=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"


def _source(trouble: str | None) -> dict:
    from rseqlab.vm import packages

    known = packages.offer() or {"mirror": None, "asked_unix_s": None, "unreachable": [], "trouble": None}
    about = {name: known[name] for name in ("mirror", "asked_unix_s", "unreachable", "trouble")}
    return about | {"trouble": trouble or known["trouble"]}


def _kernels(images: list[Path]) -> list[dict]:
    from rseqlab.vm import kernels, own_kernel, packages

    rows = []
    for path in images:
        one = kernels.of_image(path)
        rows.append(("given", one.series, one.release, one.arch, None, str(one.image)))
    for one in (built.kernel for built in own_kernel.built()):
        rows.append(("built", one.series, one.release, one.arch, one.package, str(one.image)))
    there = {one.package for one in kernels.cached()}
    for one in kernels.cached():
        rows.append(("cached", one.series, one.release, one.arch, one.package, str(one.image)))
    for one in kernels.offered() if packages.offer() else []:
        known = f"{one.name} {one.version}"
        if known not in there:
            release = kernels.NAME.match(one.name)["release"]
            rows.append(("offered", kernels.series_of(one), release, one.arch, known, None))
    names = ("state", "series", "release", "arch", "package", "image")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _libcs() -> list[dict]:
    from rseqlab.vm import libcs, packages

    here = libcs.cached()
    rows = [{"state": "cached", "name": one.name, "arch": one.arch, "package": one.package} for one in here]
    there = {(one.package, one.arch) for one in here}
    for one in libcs.offered() if packages.offer() else []:
        known = f"{one.name} {one.version}"
        if (known, one.arch) not in there:
            rows.append({"state": "offered", "name": libcs.name_of(one), "arch": one.arch, "package": known})
    return rows


def _progress(steps):
    from rseqlab.progress import progress

    return progress(steps)


@kernels_app.command()
def fetch(
    series: Series = None,
    archs: Archs = None,
    fresh: Annotated[bool, typer.Option("--refresh", help="Ask the package source for newer ones.")] = False,
    as_json: Json = False,
) -> None:
    """Download the default kernels and C libraries, or the kernels of one series, into the cache."""
    from rseqlab.vm import cache, kernels, libcs, stock

    kernels.choose([], series or [], archs or [])
    wanted = [(one, arch) for one in kernels.chosen_series() for arch in kernels.chosen_archs()]
    others = [] if series else [(name, arch) for name in libcs.VERSIONS for arch in kernels.chosen_archs()]
    with _progress(stock.STEPS) as show:
        fetched = stock.fetch(wanted, others, show, fresh)
    document = {
        "schema": "rseqlab/kernels-fetch",
        "version": 1,
        "new": fetched.new,
        "kernels": [
            {
                "series": one.series,
                "release": one.release,
                "arch": one.arch,
                "package": one.package,
                "sha256": one.sha256,
            }
            for one in fetched.kernels
        ],
        "libcs": [{"name": one.name, "arch": one.arch, "package": one.package} for one in fetched.libcs],
        "cache": {"folder": str(cache.top()), "bytes": cache.size_bytes()},
    }
    if as_json:
        print_json(document)
        return
    for one in document["kernels"]:
        out.print(f"kernel {escape(one['release'])} {one['arch']}", highlight=False)
    for one in document["libcs"]:
        out.print(f"libc {escape(one['name'])} {one['arch']}", highlight=False)
    out.print(f"{fetched.new} new; cache {_mib(document['cache']['bytes'])}", highlight=False)


@kernels_app.command()
def clean(as_json: Json = False) -> None:
    """Remove everything that was fetched and made for guests; says what that freed."""
    from rseqlab.vm import cache

    freed = cache.clean()
    document = {
        "schema": "rseqlab/kernels-clean",
        "version": 1,
        "folder": str(cache.top()),
        "freed": [{"part": name, "bytes": size} for name, size in freed.items()],
        "freed_bytes": sum(freed.values()),
    }
    if as_json:
        print_json(document)
        return
    for one in document["freed"]:
        out.print(f"{_mib(one['bytes']):>12}  {escape(one['part'])}", highlight=False)
    out.print(f"Freed {_mib(document['freed_bytes'])} in {escape(document['folder'])}.", soft_wrap=True)


@kernels_app.command()
def run(
    profile: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    images: Images = None,
    libcs: Libcs = None,
    archs: Archs = None,
    series: Series = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="EXPERIMENT", help="Only this one; may be repeated.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where the bundle goes; a new folder in runs/ by default."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with --out DIR, or with this machine's newest run.")
    ] = False,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Run the experiments of guests into a bundle; with --kernel a look at that kernel and its row of the matrix."""
    from rseqlab.lab import runner
    from rseqlab.lab.experiment import PROFILES
    from rseqlab.vm import boot, first, kernels

    if profile not in PROFILES:
        raise UsageError(f"No profile is called {profile!r}. The profiles are: {', '.join(PROFILES)}.")
    if images and series:
        raise UsageError("--kernel names images and --series those of the package source; give one of them.")
    experiments = _experiments(only or [], bool(images))
    kernels.choose(images or [], series or [], archs or [])
    one_arch = archs[0] if archs and len(set(archs)) == 1 else None
    chosen = [kernels.of_image(path, one_arch) for path in images or []]
    wanted_archs = {one.arch for one in chosen} or set(kernels.chosen_archs())
    for arch in sorted(wanted_archs):
        if reason := boot.missing(arch):
            raise LabError(f"No guest can be booted: {reason}.")
    verdicts = first.look(chosen)
    for verdict in verdicts:
        err.print(escape(str(verdict)), highlight=False, soft_wrap=True)
    _gather(libcs or [], sorted(wanted_archs), offline)
    if folder is None:
        folder = runner.go_on(profile, experiments) if resume else runner.new_folder(profile, "kernels")
    err.print(f"Run: {escape(str(folder))}", highlight=False, soft_wrap=True)
    with _progress([(one.name, one.seconds[profile]) for one in experiments]) as show:
        document = runner.run(experiments, profile, folder, resume, show)
    results = {one.name: document["experiments"][one.name] for one in experiments}
    failed = [name for name, record in results.items() if record["status"] in ("fail", "crash", "timeout")]
    if as_json:
        print_json(
            {
                "schema": "rseqlab/kernels-run",
                "version": 1,
                "folder": str(folder),
                "run_id": document["run_id"],
                "verdicts": [verdict.document() for verdict in verdicts],
                "experiments": [
                    {
                        "name": name,
                        "status": record["status"],
                        "reason": record["reason"],
                        "rows": record["rows"],
                    }
                    for name, record in results.items()
                ],
            }
        )
    else:
        for name, record in results.items():
            reason = f": {record['reason']}" if record["reason"] else ""
            text = f"{record['status']:<8}{name}, {record['rows']} rows{reason}"
            out.print(escape(text), highlight=False, soft_wrap=True)
    if failed:
        place = escape(str(folder / "run.json"))
        err.print(f"Not every experiment passed; the reasons are in {place}.", soft_wrap=True)
        raise typer.Exit(1)


def _experiments(only: list[str], own_kernel: bool) -> list:
    """Those that were named; of an own kernel only the matrix by default; else all of the group."""
    from rseqlab.experiments import catalogue, select

    if not only and own_kernel and MATRIX in catalogue():
        only = [MATRIX]
    experiments = select(only, "kernels")
    if others := [one.name for one in experiments if one.group != "kernels"]:
        known = ", ".join(one.name for one in select([], "kernels"))
        raise UsageError(
            f"{', '.join(others)} is not measured in guests. The experiments in guests are: {known}."
        )
    return experiments


def _gather(chosen_libcs: list[str], archs: list[str], offline: bool) -> None:
    """Fetch what the run needs and is not cached, unless the user wants to stay offline."""
    from rseqlab.vm import kernels, libcs, stock

    libcs.choose(chosen_libcs, offline)  # first: a wrong one is said before anything is fetched
    if offline:
        absent = [f"{name} {arch}" for name, arch in (*kernels.not_here(), *libcs.not_here())]
        if absent:
            err.print(f"Not cached, so not measured: {escape(', '.join(absent))}.", soft_wrap=True)
    wanted = [] if offline else [one for one in kernels.not_here() if one[1] in archs]
    others = [] if offline else [one for one in libcs.not_here() if one[1] in archs]
    if wanted or others:
        with _progress(stock.STEPS) as show:
            stock.fetch(wanted, others, show)
