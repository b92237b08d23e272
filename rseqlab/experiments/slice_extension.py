"""slice-extension: what does a lock cost whose holder is preempted, with and without rseq's slice extension?

A guest of one CPU runs a kernel that was built with the extension. One thread takes a lock over and over, a
second wakes and wants it, a third wakes and only computes. The emulator counts instructions and the guest's clock
shows nothing else, so every time here is a number of executed instructions of the guest, its kernel's included:
exact, whatever the host's load, and no cycles. Undisturbed work takes the same number each time; when a wake-up
meets a section depends on the boot, so boots are samples like any others.

Who counts what: the threads count how each of their requests ended as they see it, the kernel counts in debugfs
``rseq/stats``. Both are in each row, and ``accounts`` says where they do not agree.
"""

from collections.abc import Iterator, Mapping

from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task
from rseqlab.vm import own_kernel, slices

WAYS = ("without", "without-again", "asked-only", "with")
"""asked-only: requests are made, but no prctl enabled them; a control. without-again is the A/A null."""

SECTIONS = ("fits", "too long", "long, longer slice", "with a system call")
FIGURES = ("mean", "p50", "p90", "p99", "max")
"""Of the samples of a batch."""

MEASURED = {
    "hold": "from having the lock to giving it back",
    "wait": "from wanting the lock to having it, of the second thread",
    "late": "from when the third thread should run to when it does",
}

ALONE_EXTRA_INSTRUCTIONS_MAX = 50
"""Two readings of the clock around a loop of known length: where it does not count instructions, the loop says so."""

PROFILE = {"quick": {"boots": 8, "rounds": 4}, "full": {"boots": 10, "rounds": 10}}


def plan(profile: str) -> list[Part]:
    """Several boots, each with other pseudo-random naps, and one whose kernel checks rseq as it goes."""
    size, parts = PROFILE[profile], []
    for arch in own_kernel.ARCHITECTURES:
        refusal = own_kernel.no_slices(arch) or slices.missing(arch)
        boots = [(f"{arch}-{number}", number + 1, 0) for number in range(size["boots"])]
        for name, seed, checked in (*boots, (f"{arch}-checked", 1, 1)) if not refusal else boots[:1]:
            arguments = {"arch": arch, "seed": seed, "checked": checked, "rounds": size["rounds"]}
            rows = size["rounds"] * len(WAYS) * len(SECTIONS)
            parts.append(Part(name, rows, 900, arguments=arguments, skip=refusal))
    return parts


def measure(task: Task) -> Iterator[dict]:
    """The rows of one boot."""
    arch, rounds = task.arguments["arch"], task.arguments["rounds"]
    words = ("lock", task.arguments["seed"], rounds)
    built, lines = slices.run(arch, words, checked=bool(task.arguments["checked"]), icount=True)
    rows = [row for row in lines if row["row"] == "lock"]
    slices.expect(len(rows) == rounds * len(WAYS) * len(SECTIONS), f"{len(rows)} rows came from the guest")
    for row in rows:
        extra = row["alone"] - row["section_instructions"]
        slices.expect(
            0 <= extra <= ALONE_EXTRA_INSTRUCTIONS_MAX,
            f"a loop of {row['section_instructions']} instructions took {row['alone']} ticks of the guest's clock, "
            "which does not count instructions",
        )
        if task.pending(row["round"], row["section"], row["way"]):
            yield _row(built, task.arguments["checked"], row)


def _row(built: own_kernel.Built, checked: int, row: Mapping) -> dict:
    counted = {
        f"{name}_{figure}_instructions": row[f"{name}_{figure}"] for name in MEASURED for figure in FIGURES
    }
    same = (
        "round",
        "position",
        "section",
        "way",
        "section_instructions",
        "slice_ns",
        "sections",
        "disturbed",
        "waits",
        "contended",
        "requests",
        "kept",
        "yielded",
        "late_yields",
        "taken_back",
        *slices.KERNEL,
    )
    return {
        "arch": built.kernel.arch,
        "kernel": built.kernel.release,
        "checked": checked,
        **{name: row[name] for name in same},
        "alone_instructions": row["alone"],
        **counted,
        "accounts": slices.accounts(row),
    }


def _none_built() -> str | None:
    reasons = [own_kernel.no_slices(arch) or slices.missing(arch) for arch in own_kernel.ARCHITECTURES]
    return None if None in reasons else reasons[0]


SLICE_KERNEL = Need("a kernel with slice extension", _none_built)

EXPERIMENT = Experiment(
    name="slice-extension",
    question="What does a lock cost whose holder is preempted, with and without rseq's slice extension?",
    serves="the newest feature of an extended registration: what it gives, and who counts what",
    columns=(
        Column("arch", "text", "of the guest", choices=own_kernel.ARCHITECTURES),
        Column("kernel", "text", "its release, as it says it"),
        Column("checked", "int", "whether the kernel checks rseq as it goes (debugfs rseq/debug)"),
        Column("round", "int", "every way is taken once a round"),
        Column("section", "text", "what is done under the lock", choices=SECTIONS),
        Column("way", "text", "whether a slice is requested and enabled", choices=WAYS),
        Column("position", "int", "place within the round's order"),
        Column("section_instructions", "int", "of the work under the lock, as asked for"),
        Column("slice_ns", "int", "what a grant is worth, debugfs rseq/slice_ext_nsec"),
        Column(
            "alone_instructions", "int", "the same work by the guest's clock, nobody else running", minimum=1
        ),
        Column("sections", "int", "of the holder", minimum=1),
        Column("disturbed", "int", "sections of any thread's in which another thread ran"),
        Column("waits", "int", "how often the second thread wanted the lock", minimum=1),
        Column("contended", "int", "how often it found it taken"),
        *(
            Column(f"{name}_{figure}_instructions", "int", f"{about}; {figure}")
            for name, about in MEASURED.items()
            for figure in FIGURES
        ),
        Column("requests", "int", "by the threads' own count; the next four are what became of them"),
        Column("kept", "int", "nobody interrupted: the thread took the request back itself"),
        Column("yielded", "int", "granted, and given back in time"),
        Column("late_yields", "int", "granted as it looked, and gone by the time of the yield"),
        Column("taken_back", "int", "neither request nor grant was there any more"),
        *(
            Column(name, "int", f"by the kernel's count: {about}", nullable=True)
            for name, about in slices.KERNEL.items()
        ),
        Column("accounts", "text", "whether both counts agree, and where not"),
    ),
    key=("round", "section", "way"),
    needs=(LINUX, SLICE_KERNEL),
    seconds={"quick": 60, "full": 180},
    plan=plan,
    measure=measure,
    group="kernels",
)
