"""One function per figure: a run in, a figure with units on its axes and a text twin out.

Palette: Okabe and Ito's, told apart by colour-blind readers; every series has its own marker too.
"""

import functools
import html
import io
import itertools
import re
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.patches
import pandas as pd
from matplotlib.figure import Figure as Canvas

from rseqlab import layout
from rseqlab.experiments.false_sharing import STRIDES
from rseqlab.host import parse_cpu_list
from rseqlab.lab import verdict
from rseqlab.study import claims
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.samples import MEASURES, control, location, paired_difference, paired_ratio, samples

BLUE, ORANGE, GREEN, PINK, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
_INK = "#010203"
"""Stands for the reader's own text colour: it becomes ``currentColor``, so light and dark both read."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "rseqlab",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


@dataclass(frozen=True)
class Figure:
    """An SVG that follows the reader's colours, with its description and the numbers that it shows."""

    svg: str
    description: str
    caption: str
    numbers: pd.DataFrame

    def _repr_html_(self) -> str:
        return f"<figure class='rl-figure'>{self.svg}<figcaption>{html.escape(self.caption)}</figcaption></figure>"

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.numbers.to_string(index=False)}"


def _shows_missing(function):
    """A figure of something that was not measured is its reason, not an error."""

    @functools.wraps(function)
    def figure(run: StudyRun, *arguments) -> Figure | NotMeasured:
        try:
            with mpl.rc_context(STYLE):
                return function(run, *arguments)
        except NotMeasured as missing:
            return missing

    return figure


def _finish(canvas: Canvas, description: str, caption: str, numbers: pd.DataFrame) -> Figure:
    text = io.StringIO()
    canvas.savefig(
        text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None}
    )
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(description, quote=True)}"', 1)
    return Figure(svg, description, caption, numbers)


def _intervals(
    run: StudyRun, experiment: str, ways: list[str], conditions: list[str], start: str
) -> pd.DataFrame:
    run.table(experiment)  # where nothing was measured, its reason is the figure
    rows = []
    for condition in conditions:
        for way in ways:
            try:
                values = samples(run, experiment, way, condition, start)
            except NotMeasured:
                continue
            found = location(values)
            rows.append(
                {
                    MEASURES[experiment].way: way,
                    MEASURES[experiment].condition: condition,
                    "start": start,
                    "median_ns": found.median,
                    "low_ns": found.low,
                    "high_ns": found.high,
                    "samples": found.samples,
                }
            )
    return pd.DataFrame(rows)


def _dots(
    axes, numbers: pd.DataFrame, way: str, ways: list[str], series: str, styles: dict, apart: float = 0.18
) -> None:
    """One row per way, one marker per series with its interval, on a log axis; the medians of a few series at the right."""
    for place, (name, (label, colour, marker)) in enumerate(styles.items()):
        part = numbers[numbers[series] == name]
        y = [
            len(ways) - 1 - ways.index(found) + apart * ((len(styles) - 1) / 2 - place) for found in part[way]
        ]
        reach = [part["median_ns"] - part["low_ns"], part["high_ns"] - part["median_ns"]]
        axes.errorbar(
            part["median_ns"],
            y,
            xerr=reach,
            fmt=marker,
            color=colour,
            label=label,
            markersize=6,
            linewidth=1.4,
        )
    for place, name in enumerate(reversed(ways) if len(styles) <= 5 else ()):
        medians = [
            f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
            for value in numbers.loc[numbers[way] == name, "median_ns"]
        ]
        axes.text(
            1.02, place, " · ".join(medians), transform=axes.get_yaxis_transform(), va="center", fontsize=9
        )
    axes.set_xscale("log")
    axes.set_yticks(range(len(ways)), list(reversed(ways)))
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", which="major")
    axes.set_ylim(-0.6, len(ways) - 0.4)


READ_WAYS = {
    "nothing": "empty loop",
    "libc-offset-hoisted": "area, offset in a register",
    "libc-offset": "area, own copy of libc's offset",
    "libc-offset-exported": "area, libc's __rseq_offset",
    "own-tls": "area, own initial-exec TLS",
    "vdso": "vDSO getcpu, called directly",
    "sched_getcpu": "sched_getcpu()",
    "syscall": "getcpu system call",
}


@_shows_missing
def cpu_id_read(run: StudyRun) -> Figure:
    """ns per read of the CPU number, by way and by whether libc had registered the thread."""
    experiment, ways = "cpu-id-read", list(READ_WAYS)
    numbers = pd.concat(
        [_intervals(run, experiment, ways, ["throughput"], start) for start in ("libc", "none")]
    )
    if numbers.empty:
        raise NotMeasured(f"{experiment} has no timed row")
    shown = numbers.assign(reader=numbers["reader"].map(READ_WAYS))
    canvas = Canvas(figsize=(7.2, 4.0))
    axes = canvas.subplots()
    _dots(
        axes,
        shown,
        "reader",
        list(READ_WAYS.values()),
        "start",
        {"libc": ("libc registered the thread", BLUE, "o"), "none": ("libc's registration off", ORANGE, "D")},
    )
    axes.set_xlabel("ns per read, loop included (log; bars: 95 % interval of the median)")
    canvas.legend(loc="outside upper left", ncols=2)
    best = numbers.sort_values("median_ns").iloc[0]
    return _finish(
        canvas,
        "Dot plot on a log axis: ns per read of the CPU number for each way of reading it, with and without libc's "
        "registration. "
        + "; ".join(
            f"{READ_WAYS[row.reader]}, start {row.start}: {row.median_ns:.2f} ns"
            for row in numbers.itertuples()
        ),
        f"What it costs to learn the CPU number. Overlapping reads, one pinned thread; {best['samples']} batches or more a dot.",
        numbers,
    )


@_shows_missing
def counter(run: StudyRun) -> Figure:
    """CPU ns per increment, by technique and thread count. The headline figure."""
    experiment = "percpu-counter"
    table = run.table(experiment)
    threads = [str(count) for count in sorted(table["threads"].unique())]
    ways = ["thread-local", "rseq", "sched_getcpu-atomic", "atomic-own-line", "atomic-shared-line", "mutex"]
    start = _start(table)
    numbers = _intervals(run, experiment, ways, threads, start)
    canvas = Canvas(figsize=(7.2, 3.6))
    axes = canvas.subplots()
    _dots(axes, numbers, "technique", ways, "threads", _looks(threads, "thread"))
    axes.set_xlabel("ns of CPU time per increment (log; bars: 95 % interval of the median)")
    canvas.legend(loc="outside upper left", ncols=len(threads))
    return _finish(
        canvas,
        "Dot plot on a log axis: ns of CPU time per increment for each technique and number of threads. "
        + "; ".join(
            f"{row.technique}, {row.threads} threads: {row.median_ns:.2f} ns" for row in numbers.itertuples()
        ),
        f"What a shared counter costs on {len(parse_cpu_list(run.facts_of(experiment)['cpus_allowed']))} CPUs. CPU time: waiting for a lock does not show. Every batch's sum was checked; "
        f"registered by {start}.",
        numbers,
    )


def _start(table: pd.DataFrame) -> str:
    """The processes in which libc registered the threads, where there are some."""
    return "libc" if (table["start"] == "libc").any() else "self"


def _looks(conditions: list[str], word: str) -> dict:
    colours, markers = (BLUE, ORANGE, GREEN, PINK, SKY), "oDs^v"
    return {
        condition: (f"{condition} {word}{'s' if condition != '1' else ''}", colour, marker)
        for condition, colour, marker in zip(conditions, colours, markers, strict=False)
    }


STRUCTURES = ("counter", "lock", "list", "ring", "bytes", "pool")


@_shows_missing
def operations(run: StudyRun) -> Figure:
    """CPU ns per operation of every structure, by technique and number of threads."""
    experiment = "percpu-ops"
    table = run.table(experiment)
    threads = [str(count) for count in sorted(table["threads"].unique())]
    left_out = ("again", "nothing", "two-stores", "node_id", "mm_cid")
    ways = [
        technique
        for structure in STRUCTURES
        for technique in dict.fromkeys(sorted(table["technique"], key=_rank))
        if technique.startswith(f"{structure}/") and not any(word in technique for word in left_out)
    ]
    numbers = _intervals(run, experiment, ways, threads, _start(table))
    canvas = Canvas(figsize=(7.6, 0.29 * len(ways) + 1.4))
    axes = canvas.subplots()
    _dots(axes, numbers, "technique", ways, "threads", _looks(threads, "thread"))
    for place, (above, below) in enumerate(itertools.pairwise(ways)):
        if above.split("/")[0] != below.split("/")[0]:
            axes.axhline(len(ways) - 1.5 - place, color=_INK, alpha=0.4, linewidth=0.6)
    axes.set_xlabel("ns of CPU time per operation (log; bars: 95 % interval of the median)")
    canvas.legend(loc="outside upper left", ncols=len(threads))
    return _finish(
        canvas,
        "Dot plot on a log axis: ns of CPU time per operation for each structure, technique and number of threads. "
        + "; ".join(
            f"{row.technique}, {row.threads}: {row.median_ns:.2f} ns" for row in numbers.itertuples()
        ),
        f"What an operation costs on {len(parse_cpu_list(run.facts_of(experiment)['cpus_allowed']))} CPUs. Of a list, ring or pool it is "
        "to take something out and to put it back. CPU time: waiting for a lock does not show.",
        numbers,
    )


def _rank(technique: str) -> int:
    """The order of a structure's techniques: rseq, then what is not shared, then what is."""
    order = ("/rseq", "thread-local", "own-line", "getcpu", "malloc", "shared", "cas", "spinlock", "mutex")
    return next((place for place, word in enumerate(order) if word in technique), len(order))


@_shows_missing
def memory(run: StudyRun) -> Figure:
    """Memory that counters of a page each take, by cpu_id and by mm_cid, as threads and CPUs grow."""
    table = run.table("mm-cid")
    table = table[table["way"] != "cpu_id-again"]
    order = table.drop_duplicates("load").sort_values(["cpus", "moves", "threads"])["load"].tolist()
    numbers = (
        table.groupby(["load", "way"])[["slots_used", "resident_bytes"]]
        .median()
        .reset_index()
        .sort_values(
            ["load", "way"], key=lambda column: column.map(order.index) if column.name == "load" else column
        )
    )
    canvas = Canvas(figsize=(7.2, 0.42 * len(order) + 1.3))
    axes = canvas.subplots()
    for shift, (way, colour) in enumerate((("cpu_id", BLUE), ("mm_cid", ORANGE))):
        part = numbers[numbers["way"] == way]
        heights = [len(order) - 1 - order.index(load) + 0.19 - 0.38 * shift for load in part["load"]]
        axes.barh(heights, part["resident_bytes"] / 1024, height=0.36, color=colour, label=f"by {way}")
    axes.set_yticks(range(len(order)), list(reversed(order)))
    axes.set_xlabel("KiB of memory, one page for each index that was ever used (median)")
    axes.set_ylabel("threads on so many CPUs")
    axes.grid(axis="x")
    canvas.legend(loc="outside upper left", ncols=2)
    return _finish(
        canvas,
        "Bars: memory of a counter with a page for each index, by cpu_id and by mm_cid. "
        + "; ".join(
            f"{row.load}, {row.way}: {row.resident_bytes / 1024:g} KiB" for row in numbers.itertuples()
        ),
        "What data by index takes. A process's ids are as many as its threads, its creator included, and never more "
        "than its CPUs; CPU numbers are as many as the CPUs that it ever ran on.",
        numbers,
    )


@_shows_missing
def layout_mistakes(run: StudyRun) -> Figure:
    """CPU ns per increment by the distance between the slots of two CPUs that count at the same time."""
    experiment = "false-sharing"
    table = run.table(experiment)
    ways = [way for way in STRIDES if not way.endswith("-again")]
    techniques = sorted(table["technique"].unique())
    numbers = _intervals(run, experiment, ways, techniques, _start(table))
    canvas = Canvas(figsize=(7.2, 3.2))
    axes = canvas.subplots()
    styles = {
        name: (name, colour, marker)
        for name, colour, marker in zip(techniques, (BLUE, ORANGE), "oD", strict=False)
    }
    _dots(axes, numbers, "distance", ways, "technique", styles)
    axes.set_xlabel("ns of CPU time per increment (log; bars: 95 % interval of the median)")
    axes.set_ylabel("distance between two CPUs' slots")
    canvas.legend(loc="outside upper left", ncols=2)
    return _finish(
        canvas,
        "Dot plot on a log axis: ns per increment by the distance between the slots of two CPUs. "
        + "; ".join(
            f"{row.distance}, {row.technique}: {row.median_ns:.2f} ns" for row in numbers.itertuples()
        ),
        "What it costs to put per-CPU counters too close together: two threads on two CPUs, each in its own slot.",
        numbers,
    )


@_shows_missing
def accepted_lengths(run: StudyRun) -> Figure:
    """Which lengths and alignments the kernel took from a thread that libc had left alone."""
    table = run.table("registration-rules")
    free = table[table["start"] == "none"]
    lengths = free[free["question"] == "length"]
    aligned = free[free["question"] == "alignment"]
    rows = [("length, aligned to 256", lengths["length_bytes"], lengths["answer"] == "accepted", BLUE)]
    for (length, found), colour in zip(aligned.groupby("length_bytes"), (GREEN, ORANGE), strict=False):
        place = found["attempt"].str.extract(r", (\d+) past")[0].astype(int)
        rows.append(
            (f"address past a page, length {int(length)}", place, found["answer"] == "accepted", colour)
        )
    canvas = Canvas(figsize=(7.2, 2.1))
    axes = canvas.subplots()
    for height, (_, x, accepted, colour) in enumerate(reversed(rows)):
        axes.vlines(x[~accepted], height - 0.06, height + 0.06, color=_INK, alpha=0.35, linewidth=0.7)
        axes.vlines(x[accepted], height - 0.34, height + 0.34, color=colour, linewidth=1.6)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.set_xticks(range(0, 257, 32))
    axes.set_xlim(-3, 259)
    axes.set_xlabel("bytes (tall: accepted; short: refused)")
    numbers = pd.DataFrame(
        {
            "varied": [name for name, *_ in rows],
            "tried": [len(x) for _, x, *_ in rows],
            "accepted": [int(accepted.sum()) for _, _, accepted, _ in rows],
        }
    )
    return _finish(
        canvas,
        "Strips of accepted and refused registrations by length and by address. "
        + "; ".join(f"{row.varied}: {row.accepted} of {row.tried} accepted" for row in numbers.itertuples()),
        "What this kernel accepts from a thread that has no area yet.",
        numbers,
    )


# ---- what the options cost ----

TLS_LOOKS = {
    "local-exec": ("local-exec", GREEN, "s"),
    "initial-exec": ("initial-exec", BLUE, "o"),
    "descriptor": ("TLS descriptor", PINK, "^"),
    "global-dynamic": ("global-dynamic", ORANGE, "D"),
    "offset-kept": ("libc's offset, kept", SKY, "v"),
    "offset-exported": ("libc's offset, exported", _INK, "x"),
}
"""How an area is found, from the cheapest to the dearest way of an ordinary TLS symbol, then libc's offset."""

ACCESS_ORDERS = {
    "throughput": "reads overlap",
    "dependent": "each read waits for the last one",
    "fenced": "a barrier after each read",
}


def access_costs(run: StudyRun) -> pd.DataFrame:
    """Median and interval of every way to read the field, one row each and order; the figures' text twin."""
    experiment = "option-access-cost"
    table = run.table(experiment)
    ways = table[["access", "option", "tls_model", "loaded", "check"]].drop_duplicates().sort_values("access")
    orders = [order for order in (*ACCESS_ORDERS, "first-use") if (table["order"] == order).any()]
    numbers = _intervals(run, experiment, list(ways["access"]), orders, "none")
    if numbers.empty:
        raise NotMeasured(f"{experiment} has no timed row")
    return ways.merge(numbers.drop(columns="start"), on="access")


@_shows_missing
def access_cost(run: StudyRun) -> Figure:
    """ns per read of one field, by option and by how the area is found, overlapping and dependent."""
    costs = access_costs(run)
    orders = [order for order in ("throughput", "dependent") if (costs["order"] == order).any()]
    plain = costs[(costs["check"] == "none") & (costs["loaded"] == "at-start") & costs["order"].isin(orders)]
    plain = plain[~plain["access"].str.endswith("again")]
    options = [option for option in layout.OPTIONS if (plain["option"] == option).any()]
    canvas = Canvas(figsize=(7.2, 3.1 * len(orders)), layout="constrained")
    for axes, order in zip(canvas.subplots(len(orders), squeeze=False)[:, 0], orders, strict=True):
        _dots(axes, plain[plain["order"] == order], "option", options, "tls_model", TLS_LOOKS, apart=0.11)
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(mpl.ticker.NullLocator())
        empty = costs[(costs["access"] == "nothing") & (costs["order"] == order)]
        axes.axvline(float(empty["median_ns"].iloc[0]), color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
        axes.set_title(ACCESS_ORDERS[order])
        axes.set_xlabel("ns per read, loop included (log; dotted: the loop alone)")
    canvas.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return _finish(
        canvas,
        "Dot plots on log axes: ns per read of a field for each option and way to find its area. "
        + "; ".join(
            f"{row.option} by {row.tls_model}, {ACCESS_ORDERS[row.order]}: {row.median_ns:.2f} ns"
            for row in plain.itertuples()
        ),
        f"What reading one field costs, by option and by how a program finds the area; {plain['samples'].min()} "
        "batches or more a dot.",
        plain.drop(columns=["access", "check", "loaded"]),
    )


@_shows_missing
def first_use(run: StudyRun) -> Figure:
    """ns of the only read in a fresh thread, the clock included, by how and when the area's library came."""
    costs = access_costs(run)
    first = costs[(costs["order"] == "first-use") & (costs["check"].isna() | (costs["check"] == "none"))]
    first = first[first["option"].isna() | first["option"].isin(["private", "pointer", "offset-size"])]
    first = first[~first["access"].str.endswith("again")]
    names = (
        first["access"].str.removesuffix(" none").where(first["option"].notna(), "nothing: the clock alone")
    )
    first = first.assign(access=names).sort_values("median_ns")
    canvas = Canvas(figsize=(7.2, 0.6 + 0.26 * len(first)))
    axes = canvas.subplots()
    looks = {"first-use": ("the only read of a fresh thread", BLUE, "o")}
    _dots(axes, first, "access", list(first["access"]), "order", looks)
    axes.set_xlabel("ns, reading the clock included (log; bars: 95 % interval of the median)")
    return _finish(
        canvas,
        "Dot plot on a log axis: ns of the only read in a fresh thread. "
        + "; ".join(f"{row.access}: {row.median_ns:.0f} ns" for row in first.itertuples()),
        f"What the first read in a thread costs; {first['samples'].min()} threads or more a dot. The clock's "
        f"resolution is {run.facts_of('option-access-cost').get('clock_resolution_ns')} ns by its own account.",
        first.drop(columns=["option", "tls_model", "loaded", "check", "order"]),
    )


PAIR_LOOKS = {
    "processes": ("two processes, two pipes", BLUE, "o"),
    "threads": ("two threads, a futex", ORANGE, "D"),
}
PAIR_NAMES = {
    "none-none-again": "neither, once more (A/A control)",
    "32-none": "one 32 bytes, one none",
    "64-none": "one 64 bytes, one none",
    "32-32": "both 32 bytes",
    "64-64": "both 64 bytes",
}


def switch_ratios(run: StudyRun) -> pd.DataFrame:
    """A round trip's cost with registered areas, as a ratio to the same without any; intervals as they are judged."""
    rows = []
    for between in PAIR_LOOKS:
        for pair in PAIR_NAMES:
            try:
                with_area, without = (
                    samples(run, "context-switch-cost", name, between, "none") for name in (pair, "none-none")
                )
            except NotMeasured:
                if pair == "none-none-again":
                    raise
                continue
            itself = control(run, "context-switch-cost", between, "none")
            found = verdict.widened(paired_ratio(with_area, without), itself)
            rows.append(
                {
                    "pair": pair,
                    "between": between,
                    "median_ns": location(with_area).median,
                    "without_ns": location(without).median,
                    "ratio": found.median,
                    "low": found.low,
                    "high": found.high,
                    "samples": found.samples,
                }
            )
    return pd.DataFrame(rows)


@_shows_missing
def context_switch(run: StudyRun) -> Figure:
    """A round trip of two switches, as a ratio to the same where neither side registered."""
    numbers = switch_ratios(run)
    pairs = [pair for pair in PAIR_NAMES if (numbers["pair"] == pair).any()]
    canvas = Canvas(figsize=(7.2, 2.8), layout="constrained")
    axes = canvas.subplots()
    for place, (between, (label, colour, marker)) in enumerate(PAIR_LOOKS.items()):
        part = numbers[numbers["between"] == between]
        y = [len(pairs) - 1 - pairs.index(pair) + 0.16 * (0.5 - place) * 2 for pair in part["pair"]]
        reach = [part["ratio"] - part["low"], part["high"] - part["ratio"]]
        axes.errorbar(part["ratio"], y, xerr=reach, fmt=marker, color=colour, label=label, linewidth=1.4)
    axes.axvline(1, color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(pairs)), [PAIR_NAMES[pair] for pair in reversed(pairs)])
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    axes.grid(axis="x")
    axes.set_xlabel("ratio to neither side registered (bars: 95 % interval, widened by the A/A control)")
    canvas.legend(loc="outside upper left", ncols=2)
    return _finish(
        canvas,
        "Dot plot: cost of a round trip of two context switches as a ratio to the same without registration. "
        + "; ".join(
            f"{PAIR_NAMES[row.pair]}, {row.between}: {row.ratio:.3f}" for row in numbers.itertuples()
        ),
        "What registered areas add to a round trip of two context switches on one CPU; every switch was counted. "
        f"{numbers['samples'].min()} pairs or more a dot.",
        numbers,
    )


def thread_bytes(run: StudyRun) -> pd.DataFrame:
    """Bytes per thread: computed, and measured as the difference to threads without an area, by rounds."""
    table = run.table("thread-memory")
    computed = table[(table["kind"] == "computed") & (table["threads"] == 1)].set_index("layout")
    try:
        by_round = claims.thread_bytes(run)
    except NotMeasured:  # no such file in /proc: what was computed is still there
        by_round = pd.DataFrame()
    rows = []
    for name, row in computed.iterrows():
        found = None
        if name != "none" and {name, "none"} <= set(by_round):
            found = paired_difference(by_round[name], by_round["none"])
        rows.append(
            {
                "layout": name,
                "computed_bytes": row["bytes_per_thread"],
                "measured_bytes": found and found.median,
                "low_bytes": found and found.low,
                "high_bytes": found and found.high,
                "samples": found.samples if found else 0,
            }
        )
    return pd.DataFrame(rows)


@_shows_missing
def thread_memory(run: StudyRun) -> Figure:
    """Bytes that each thread pays for its area: computed, and what a process really held more."""
    numbers = thread_bytes(run)
    numbers = numbers[numbers["layout"] != "none"].reset_index(drop=True)
    canvas = Canvas(figsize=(7.2, 0.9 + 0.28 * len(numbers)), layout="constrained")
    axes = canvas.subplots()
    y = numbers.index[::-1]
    axes.plot(numbers["computed_bytes"], y + 0.12, "o", color=BLUE, label="computed")
    seen = numbers.dropna(subset=["measured_bytes"])
    middle = seen["measured_bytes"].astype(float)
    reach = [middle - seen["low_bytes"].astype(float), seen["high_bytes"].astype(float) - middle]
    places = len(numbers) - 1 - seen.index
    axes.errorbar(middle, places - 0.12, xerr=reach, fmt="D", color=ORANGE, label="measured", linewidth=1.4)
    axes.axvline(0, color=_INK, alpha=0.5, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(numbers)), list(reversed(numbers["layout"])))
    axes.grid(axis="x")
    axes.set_xlabel("bytes per thread, more than a thread without an area (bars: 95 % interval)")
    canvas.legend(loc="outside upper left", ncols=2)
    return _finish(
        canvas,
        "Dot plot: bytes per thread by layout, computed and measured. "
        + "; ".join(
            f"{row.layout}: computed {row.computed_bytes:.0f}"
            + (f", measured {row.measured_bytes:.0f}" if pd.notna(row.measured_bytes) else "")
            for row in numbers.itertuples()
        ),
        "What each thread pays for its area. Measured: the proportional set of a process with waiting threads; "
        "an area that fits into a page that the thread holds anyway does not show.",
        numbers,
    )


KIND_LOOKS = {
    "original": ("in Linux 4.18", BLUE, ""),
    "added": ("added since", GREEN, ""),
    "control": ("what the option needs", ORANGE, "///"),
    "later": ("nobody knows yet", SKY, "..."),
    "spare": ("spare", "none", ""),
}


def layouts(feature_bytes: int = layout.RESERVED.end_bytes) -> Figure:
    """Every option's structs byte by byte, one cache line a row, for one feature size."""
    found = []
    for option in layout.OPTIONS:
        try:
            found.append(layout.of_option(option, feature_bytes))
        except layout.UsageError:
            found.append(layout.of_option(option, layout.abi.FIELD["mm_cid"].end_bytes))
    with mpl.rc_context(STYLE):
        return _byte_grid(found, f"The struct under each option, for a feature size of {feature_bytes}")


def release_layouts() -> Figure:
    """The struct of every release that changed it, byte by byte."""
    with mpl.rc_context(STYLE):
        found = [layout.of_release(release) for release in layout.RELEASES]
        return _byte_grid(found, "The struct by kernel release")


def bytes_of(found: list[layout.Layout], title: str) -> Figure:
    """Any layouts, byte by byte."""
    with mpl.rc_context(STYLE):
        return _byte_grid(found, title)


def _byte_grid(found: list[layout.Layout], title: str) -> Figure:
    line = layout.CACHE_LINE_BYTES
    strips = [(one, struct) for one in found for struct in one.structs]
    height = sum(struct.lines + 1 for _, struct in strips)
    canvas = Canvas(figsize=(7.2, 0.7 + 0.22 * height), layout="constrained")
    axes = canvas.subplots()
    top = 0
    for one, struct in strips:
        axes.text(0, -top - 0.5, f"{one.option or one.title}: {struct.heading}", fontsize=8, va="center")
        for member in struct.members:
            for start in range(member.offset_bytes - member.offset_bytes % line, member.end_bytes, line):
                left, right = max(member.offset_bytes, start), min(member.end_bytes, start + line)
                _bytes(axes, member, left - start, right - left, -top - 2 - start // line)
        top += struct.lines + 1
    axes.set_xlim(-0.2, line + 0.2)
    axes.set_ylim(-top - 0.2, 0.1)
    axes.set_xticks(range(0, line + 1, 8))
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"byte within the cache line of {line}")
    handles = [
        mpl.patches.Patch(facecolor=colour, edgecolor=_INK, hatch=hatch, alpha=0.6, label=label)
        for label, colour, hatch in KIND_LOOKS.values()
    ]
    canvas.legend(handles=handles, loc="outside upper left", ncols=5, fontsize=8)
    numbers = pd.DataFrame(
        [
            {"layout": one.title, "struct": struct.name} | row
            for one, struct in strips
            for row in struct.rows()
        ]
    ).drop(columns="about")
    return _finish(
        canvas,
        f"{title}, drawn byte by byte. "
        + "; ".join(
            f"{one.title}, {struct.heading}: "
            + ", ".join(f"{field.name} at {field.offset_bytes}" for field in struct.fields)
            for one, struct in strips
        ),
        f"{title}. One row is one cache line; a test holds every offset to the compiler's.",
        numbers,
    )


_BYTES_A_LETTER = 0.43
"""How wide a letter is in a grid of 64 bytes; a name that finds no place stands in the text twin alone."""


def _bytes(axes, member: layout.Member, left: float, width: float, bottom: float) -> None:
    _, colour, hatch = KIND_LOOKS[member.kind]
    box = mpl.patches.Rectangle(
        (left, bottom), width, 0.9, facecolor=colour, edgecolor=_INK, hatch=hatch, alpha=0.6, linewidth=0.6
    )
    axes.add_patch(box)
    name = (
        member.name if len(member.name) * _BYTES_A_LETTER <= width else "\n".join(member.name.rsplit("_", 1))
    )
    if member.kind != "spare" and max(map(len, name.split("\n"))) * _BYTES_A_LETTER <= width:
        axes.text(
            left + width / 2, bottom + 0.45, name, fontsize=5, ha="center", va="center", linespacing=0.9
        )
