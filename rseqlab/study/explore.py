"""What a reader may pick, without widgets: the per-CPU figure of chosen techniques, the answers of chosen kernels.

:func:`designer`, :func:`pick_percpu` and :func:`pick_kernels` are the same with controls, in JupyterLab; on a page
they are a sentence that says how to call what is behind them.
"""

import os
from collections.abc import Callable, Iterable

from matplotlib.figure import Figure as Canvas

from rseqlab.errors import UsageError
from rseqlab.study import figures
from rseqlab.study.figures import Figure
from rseqlab.study.kernel_counts import all_series, by_release
from rseqlab.study.kernels import _answers, agreed
from rseqlab.study.playground import OnAPage
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Table, _shows_missing
from rseqlab.vm.matrix import MODES

PERCPU = "percpu-ops"
MOST_THREAD_COUNTS = 5
"""As many as there are colours and markers to tell them apart."""


# ---- the per-CPU figure ----


def techniques(run: StudyRun) -> dict[str, list[str]]:
    """Structure to the techniques that were measured of it, rseq first. Raises NotMeasured."""
    found: dict[str, list[str]] = {}
    for name in sorted(run.table(PERCPU)["technique"].unique(), key=lambda name: (figures._rank(name), name)):
        structure, technique = name.split("/", 1)
        found.setdefault(structure, []).append(technique)
    return dict(sorted(found.items(), key=lambda one: (one[0] not in figures.STRUCTURES, one[0])))


def threads(run: StudyRun) -> list[int]:
    """The numbers of threads that were measured. Raises NotMeasured."""
    return sorted(int(count) for count in run.table(PERCPU)["threads"].unique())


def percpu(
    run: StudyRun, structure: str = "counter", names: Iterable[str] = (), counts: Iterable[int] = ()
) -> Figure | NotMeasured:
    """CPU ns per operation of one structure, by the chosen techniques and numbers of threads; all by default."""
    return _percpu(run, structure, tuple(names), tuple(counts))


@figures._shows_missing
def _percpu(run: StudyRun, structure: str, names: tuple[str, ...], counts: tuple[int, ...]) -> Figure:
    known = techniques(run)
    _check("structure", [structure], known)
    _check(f"technique of {structure}", names, known[structure])
    measured = threads(run)
    shown = [str(count) for count in (counts or measured) if count in measured]
    shown, left_out = shown[:MOST_THREAD_COUNTS], shown[MOST_THREAD_COUNTS:]
    lacking = [f"{count} threads" for count in counts if count not in measured]
    if not shown:
        raise NotMeasured(f"{PERCPU} has no rows with {', '.join(lacking)}; it has {_listed(measured)}.")
    ways = [f"{structure}/{name}" for name in (names or known[structure])]
    start = figures._start(run.table(PERCPU))
    numbers = figures._intervals(run, PERCPU, ways, shown, start)
    if numbers.empty:
        raise NotMeasured(f"{PERCPU} has no rows of {_listed(ways)} with {_listed(shown)} threads.")
    ways = [way for way in ways if way in set(numbers["technique"])]
    canvas = Canvas(figsize=(7.6, 0.34 * len(ways) + 1.4))
    axes = canvas.subplots()
    figures._dots(axes, numbers, "technique", ways, "threads", figures._looks(shown, "thread"))
    axes.set_xlabel("ns of CPU time per operation (log; bars: 95 % interval of the median)")
    canvas.legend(loc="outside upper left", ncols=len(shown))
    said = f" Not measured: {_listed(lacking)}." if lacking else ""
    if left_out:
        said += f" Measured, but more than can be told apart here: {_listed(left_out)} threads."
    return figures._finish(
        canvas,
        f"Dot plot on a log axis: ns of CPU time per operation of {structure}. "
        + "; ".join(
            f"{row.technique}, {row.threads}: {row.median_ns:.2f} ns" for row in numbers.itertuples()
        ),
        f"What an operation of {structure} costs, as chosen; registered by {start}. CPU time: waiting for a lock does "
        f"not show.{said}",
        numbers,
    )


# ---- the kernel matrix ----


def choices(run: StudyRun) -> dict[str, list[str]]:
    """What may be chosen of the kernel matrix: kernels, architectures, libcs, modes, and each mode's questions.

    Raises NotMeasured where no such run is here.
    """
    table = _answers(run)
    return {
        "kernels": all_series(table),
        "archs": sorted(table["arch"].unique(), reverse=True),
        "libcs": sorted(table["libc"].unique()),
        "modes": [mode for mode in MODES if mode in set(table["mode"])],
    } | {
        f"questions of {mode}": list(dict.fromkeys(table[table["mode"] == mode]["question"]))
        for mode in MODES
    }


def kernel_answers(
    run: StudyRun,
    mode: str = "none",
    question: str = "length",
    kernels: Iterable[str] = (),
    archs: Iterable[str] = (),
    libc: str = "",
    only_differing: bool = False,
) -> Table | NotMeasured:
    """What the chosen kernels answered to every attempt of a question, under each libc alike where a cell has one answer."""
    return _kernel_answers(run, mode, question, tuple(kernels), tuple(archs), libc, only_differing)


@_shows_missing
def _kernel_answers(run, mode, question, series, archs, libc, only_differing) -> Table:
    known, table = choices(run), _answers(run)
    _check("mode", [mode], known["modes"])
    _check(f"question in the mode {mode}", [question], known[f"questions of {mode}"])
    chosen = table[(table["mode"] == mode) & (table["question"] == question)]
    wanted = {"series": series, "arch": archs, "libc": (libc,) if libc else ()}
    for (column, names), kind in zip(wanted.items(), ("kernels", "archs", "libcs"), strict=True):
        _check(kind.removesuffix("s"), names, known[kind])
        chosen = chosen[chosen[column].isin(names)] if names else chosen
    if chosen.empty:
        raise NotMeasured(
            f"no guest of {_listed([*series, *archs, *wanted['libc']])} was asked {question} where {MODES[mode]}."
        )
    chosen = chosen.assign(guest=chosen["series"] + " " + chosen["arch"])
    wide = chosen.groupby(["attempt", "guest"], sort=False)["answer"].agg(agreed).unstack("guest")
    guests = sorted(wide, key=lambda name: (by_release(name.split()[0]), name.split()[1] != "x86_64"))
    wide = wide.loc[list(dict.fromkeys(chosen["attempt"])), guests].fillna("not measured")
    under = libc or f"each of {chosen['libc'].nunique()} libcs alike where the cell has one answer"
    total, differ = len(wide), wide[wide.nunique(axis=1) > 1]
    return Table(
        (differ if only_differing else wide).rename_axis(columns=None).reset_index(),
        f"{question}, {MODES[mode]}: {len(differ)} of {total} answers differ between these kernels; "
        f"under {under}",
    )


# ---- with controls ----


def designer():
    """Controls to design a struct, see what it costs and who survives, and play its scenes."""
    return _live(
        "design.Design('7.0').add('hint', 8).play('grow-symbol')", lambda controls: controls.Designer()
    )


def pick_percpu(run: StudyRun):
    """Controls to choose structure, techniques and threads of the per-CPU figure."""
    return _live(
        "explore.percpu(run, 'list', ['rseq', 'mutex'], [1])", lambda controls: controls.PerCpuPicker(run)
    )


def pick_kernels(run: StudyRun):
    """Controls to ask the kernel matrix; its reason where no such run is here."""
    return _live("explore.kernel_answers(run, 'none', 'length')", lambda controls: controls.KernelPicker(run))


def _live(call: str, make: Callable):
    if os.environ.get("RSEQLAB_PAGE"):
        return OnAPage(call)
    try:
        from rseqlab.study import controls
    except ImportError:  # no ipywidgets
        return OnAPage(call)
    try:
        return make(controls)
    except NotMeasured as missing:
        return missing


def _check(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise UsageError(f"No {what} is called {name!r}. There are: {', '.join(map(str, known))}.")


def _listed(names: Iterable) -> str:
    return ", ".join(map(str, names)) or "these"
