"""The figures of kernels: what registration adds to a context switch, how ids spread, and what that means in memory."""

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from rseqlab.study import kernel_counts
from rseqlab.study.figures import BLUE, GREEN, ORANGE, PINK, SKY, Figure, _finish, _shows_missing
from rseqlab.study.run import NotMeasured, StudyRun

KIB = 1024
SIZES_BYTES = (4 * KIB, 64 * KIB, 1024 * KIB)
"""Per-CPU data: a counter's page, a cache, an allocator's slab."""

DRAWN_CPUS = 1024
LOOKS = {
    "32 bytes, null": (BLUE, "o"),
    "32 bytes, elsewhere": (SKY, "s"),
    "extended, null": (ORANGE, "D"),
    "extended, elsewhere": (PINK, "^"),
}


@_shows_missing
def switch_cost(run: StudyRun) -> Figure:
    """Instructions that a registration adds to a round trip of two context switches, by kernel, size and section."""
    found = kernel_counts.added(run)
    found = found[(found["measure"] == "context-switch") & (found["section"] != "inside")].copy()
    found["what"] = found["registration"] + ", " + found["section"]
    found = found.sort_values(
        "series", key=lambda column: column.map(kernel_counts.by_release), kind="stable"
    )
    places = list(dict.fromkeys(zip(found["series"], found["arch"], strict=True)))
    numbers = found[
        ["series", "arch", "registration", "section", "unregistered", "added_instructions", "spread_percent"]
    ]
    canvas = Canvas(figsize=(7.2, 0.42 * len(places) + 1.4))
    axes = canvas.subplots()
    for shift, (what, (colour, marker)) in enumerate(LOOKS.items()):
        part = found[found["what"] == what]
        y = [
            len(places) - 1 - places.index(key) + 0.27 - 0.18 * shift
            for key in zip(part["series"], part["arch"], strict=True)
        ]
        reach = [part["median"] - part["min"], part["max"] - part["median"]]
        axes.errorbar(
            part["added_instructions"],
            y,
            xerr=reach,
            fmt=marker,
            color=colour,
            label=what,
            markersize=6,
            linewidth=1.2,
        )
    axes.set_yticks(range(len(places)), [f"{series} {arch}" for series, arch in reversed(places)])
    axes.axvline(0, color=mpl.rcParams["text.color"], linewidth=0.8, alpha=0.5)
    axes.set_xlabel(
        "instructions more than unregistered, per round trip (bars: least to most of all repeats)"
    )
    axes.grid(axis="x")
    canvas.legend(loc="outside upper left", ncols=4, fontsize=8)
    return _finish(
        canvas,
        "Dot plot: instructions that a registration adds to a round trip of two context switches. "
        + "; ".join(
            f"{row.series} {row.arch}, {row.what}: {row.added_instructions:+.0f}"
            for row in found.itertuples()
        ),
        "What a registration adds to a round trip of two context switches and four system calls, counted. null: no "
        "section is announced; elsewhere: rseq_cs still points to a section that was left. A kernel that refuses "
        "extended areas has no such mark.",
        numbers,
    )


@_shows_missing
def ids(run: StudyRun) -> Figure:
    """How many different cpu_ids and mm_cids a process sees, by its threads, in guests with so many CPUs."""
    found = kernel_counts.spread(run)
    sizes = sorted(found["cpus"].unique())
    canvas = Canvas(figsize=(7.2, 3.4))
    panels = canvas.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    guests = list(dict.fromkeys(zip(found["series"], found["arch"], strict=True)))
    markers = dict(zip(guests, "oDs^vP", strict=False))
    for axes, cpus in zip(panels, sizes, strict=True):
        for series, arch in guests:
            part = found[
                (found["cpus"] == cpus) & (found["series"] == series) & (found["arch"] == arch)
            ].sort_values("threads")
            marker = markers.get((series, arch), "x")
            axes.plot(
                part["threads"], part["most_cpu_id"], marker, color=BLUE, fillstyle="none", markersize=6
            )
            axes.plot(part["threads"], part["most_mm_cid"], marker, color=ORANGE, markersize=5)
        axes.set_xscale("log", base=2)
        axes.set_title(f"{cpus} CPUs")
        axes.set_xlabel("threads")
        axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(alpha=0.15)
    panels[0].set_ylabel("largest id that was read")
    ink = mpl.rcParams["text.color"]
    keys = [
        Line2D([], [], color=BLUE, marker="o", fillstyle="none", linestyle="none", label="cpu_id"),
        Line2D([], [], color=ORANGE, marker="o", linestyle="none", label="mm_cid"),
        *(
            Line2D([], [], color=ink, marker=markers.get(guest, "x"), linestyle="none", label=" ".join(guest))
            for guest in guests
        ),
    ]
    canvas.legend(handles=keys, loc="outside upper left", ncols=len(keys), fontsize=8)
    numbers = found[["series", "arch", "cpus", "threads", "most_cpu_id", "cpu_ids", "most_mm_cid", "mm_cids"]]
    return _finish(
        canvas,
        "Scatter by number of CPUs: the largest cpu_id and the largest mm_cid that the threads of a process read. "
        + "; ".join(
            f"{row.series} {row.arch}, {row.cpus} CPUs, {row.threads} threads: cpu_id {row.most_cpu_id:.0f}, "
            f"mm_cid {row.most_mm_cid:.0f}"
            for row in numbers.itertuples()
        ),
        "How far ids spread. Threads that sleep and wake; the process's creator is a thread more.",
        numbers,
    )


@_shows_missing
def memory(run: StudyRun, threads: int = 4) -> Figure:
    """Bytes of per-CPU data that so many threads touch, by cpu_id and by mm_cid, up to 1,024 CPUs."""
    found = kernel_counts.spread(run)
    found = found[found["threads"] == threads]
    if found.empty:
        raise NotMeasured(f"kernel-cpus has no rows of {threads} threads")
    measured = [
        {
            "kind": "measured",
            "series": row.series,
            "arch": row.arch,
            "cpus": row.cpus,
            "size_bytes": size,
            "by_cpu_id_bytes": int(row.cpu_ids * size),
            "by_mm_cid_bytes": int(row.mm_cids * size),
        }
        for row in found.itertuples()
        for size in SIZES_BYTES
    ]
    drawn = [2**power for power in range(1, DRAWN_CPUS.bit_length())]
    computed = [
        {
            "kind": "computed",
            "series": "",
            "arch": "",
            "cpus": cpus,
            "size_bytes": size,
            "by_cpu_id_bytes": cpus * size,
            "by_mm_cid_bytes": min(threads + 1, cpus) * size,
        }
        for cpus in drawn
        for size in SIZES_BYTES
    ]
    numbers = pd.DataFrame(measured + computed)
    canvas = Canvas(figsize=(7.2, 3.8))
    axes = canvas.subplots()
    for size, colour in zip(SIZES_BYTES, (BLUE, GREEN, ORANGE), strict=True):
        lines = numbers[(numbers["kind"] == "computed") & (numbers["size_bytes"] == size)]
        dots = numbers[(numbers["kind"] == "measured") & (numbers["size_bytes"] == size)]
        axes.plot(lines["cpus"], lines["by_cpu_id_bytes"], color=colour, linestyle="--", linewidth=1.2)
        axes.plot(lines["cpus"], lines["by_mm_cid_bytes"], color=colour, linewidth=1.2)
        axes.plot(dots["cpus"], dots["by_cpu_id_bytes"], "o", color=colour, fillstyle="none", markersize=7)
        axes.plot(dots["cpus"], dots["by_mm_cid_bytes"], "D", color=colour, markersize=5)
        axes.annotate(
            f"{size // KIB:,} KiB each",
            (drawn[-1], lines["by_mm_cid_bytes"].iloc[-1]),
            xytext=(6, -3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(mpl.ticker.FuncFormatter(_bytes))
    axes.set_xlabel("CPUs")
    axes.set_ylabel(f"touched by {threads} threads")
    axes.grid(alpha=0.15)
    ink = mpl.rcParams["text.color"]
    keys = [
        Line2D([], [], color=ink, linestyle="--", label="by cpu_id, computed: all CPUs"),
        Line2D([], [], color=ink, label="by mm_cid, computed: threads and their creator"),
        Line2D(
            [], [], color=ink, marker="o", fillstyle="none", linestyle="none", label="by cpu_id, measured"
        ),
        Line2D([], [], color=ink, marker="D", linestyle="none", label="by mm_cid, measured"),
    ]
    canvas.legend(handles=keys, loc="outside upper left", ncols=2, fontsize=8)
    last = {
        size: numbers[(numbers["cpus"] == DRAWN_CPUS) & (numbers["size_bytes"] == size)].iloc[-1]
        for size in SIZES_BYTES
    }
    return _finish(
        canvas,
        f"Lines and marks on log axes: bytes of per-CPU data that {threads} threads touch, by CPUs. Computed at "
        f"{DRAWN_CPUS} CPUs: "
        + "; ".join(
            f"{size // KIB} KiB each: {_bytes(row['by_cpu_id_bytes'])} by cpu_id, {_bytes(row['by_mm_cid_bytes'])} by mm_cid"
            for size, row in last.items()
        )
        + ". Measured: "
        + "; ".join(
            f"{row.series} {row.arch}, {row.cpus} CPUs: {row.cpu_ids:.0f} cpu_ids, {row.mm_cids:.0f} mm_cids"
            for row in found.itertuples()
        ),
        f"Memory of per-CPU data that a process of {threads} threads touches as they wander. Marks are the ids that guests "
        "showed in about a second each; lines are computed: in time a thread runs everywhere, and ids stay below the "
        "number of threads.",
        numbers,
    )


def _bytes(value: float, _: int = 0) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < KIB or unit == "GiB":
            return f"{value:g} {unit}"
        value /= KIB
    return ""
