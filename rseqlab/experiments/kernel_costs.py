"""kernel-costs: how many instructions does registration add to what the kernel does, by release and registration size?

Counted, not timed: under ``-icount`` a guest's clock goes on by one nanosecond for each instruction, the kernel's
included. One virtual CPU, one thread of the emulator, nothing randomised, no scalable vectors, and the guest settles
before it counts. A calibration loop of six instructions stands beside every count. Not cycles: there are no caches and
no branch prediction.

Each measure is taken by a thread that has no area, one of 32 bytes, or an extended one; with rseq_cs NULL, pointing to a
section that lies elsewhere, and to one around the very instruction that enters the kernel. The program's own
instructions are the same throughout, so differences are the kernel's.
"""

from collections.abc import Iterator

from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task
from rseqlab.vm import boot, guests, image, programs
from rseqlab.vm.guests import GuestError
from rseqlab.vm.kernels import Kernel

BOOTS = {"quick": 1, "full": 2}
TIMEOUT_S = 900
LARGEST_BYTES = 1 << 20
MEASURES = ("calibration", "system-call", "context-switch", "signal", "page-fault", "operation")
REGISTRATIONS = ("none", "32 bytes", "extended")
SECTIONS = ("null", "elsewhere", "inside")
CALIBRATION_INSTRUCTIONS = 6

NO_VECTORS = {"x86_64": (), "aarch64": ("arm64.nosve", "arm64.nosme")}
"""Linux flushes live vectors as a program that used them, as libc's memcpy does, enters it: up to 66 instructions
more in some calls than in others, which have nothing to do with rseq. Kernels before 6.1 do not know the words."""
REPEATS = 3
ROWS = {
    arch: REPEATS * (1 + 4 * (1 + 3 + 3) + operations)
    for arch, operations in {"x86_64": 23, "aarch64": 25}.items()
}
"""Rows of a boot: the calibration, each measure by registration and section, the operations."""


def guest(kernel: Kernel) -> boot.Guest:
    """The guest that counts."""
    root = image.root(kernel.arch, {"/costs": programs.init("costs", kernel.arch)}, "/costs")
    return boot.Guest(
        kernel,
        root,
        icount=True,
        append=(programs.RSEQ_OFF, *NO_VECTORS[kernel.arch]),
        timeout_s=TIMEOUT_S,
        results_limit_bytes=LARGEST_BYTES,
    )


def plan(profile: str) -> list[Part]:
    """One child for each boot of all kernels; as many guests run at once as there are cores."""
    usable, skipped = guests.usable("costs")
    return [
        Part(
            f"boot-{number}",
            sum(ROWS[kernel.arch] for kernel in usable),
            2 * TIMEOUT_S,
            arguments={"boot": number, "kernels": [guests.argument(kernel) for kernel in usable]},
        )
        for number in range(1, (BOOTS[profile] if usable else 0) + 1)
    ] + skipped


def measure(task: Task) -> Iterator[dict]:
    """Rows of every guest; one that did not finish is a row that says so."""
    kernels = [guests.kernel(values) for values in task.arguments["kernels"]]
    finished, last = 0, None
    for one, outcome in guests.boot_all([guest(kernel) for kernel in kernels]):
        try:
            found = list(checked(outcome)) if outcome.status == "done" else []
            last = guests.why(outcome)
        except (GuestError, boot.RowsError) as error:
            found, last = [], guests.printable(f"bad results: {error}", 300)
        finished += bool(found)
        same = guests.about(one.kernel) | {
            "boot": task.arguments["boot"],
            "qemu": guests.printable(outcome.qemu),
        }
        for row in found or [blank("calibration", "none", "null", 0, last)]:
            if task.pending(*((same | row)[name] for name in KEY)):
                yield same | row
    if not finished:
        raise Failed(f"no guest finished; the last one: {last}")


def blank(what: str, registration: str, section: str, repeat: int, reason: str) -> dict:
    """A row of something that was not counted."""
    return {
        "measure": what,
        "operation": None,
        "registration": registration,
        "length_bytes": None,
        "section": section,
        "repeat": repeat,
        "turns": None,
        "batches": None,
        "instructions_per_turn": None,
        "least_instructions_per_turn": None,
        "mean_instructions_per_turn": None,
        "aborted": None,
        "reason": reason,
    }


def checked(outcome: boot.Outcome) -> Iterator[dict]:
    """The guest's rows, checked. Raises GuestError or RowsError."""
    for row in boot.rows(outcome):
        repeat = guests.whole(row, "repeat", 0, REPEATS - 1)
        if "refused" in row:
            number = guests.whole(row, "refused", 1, 4095)
            for what in MEASURES[1:5]:
                for section in SECTIONS:
                    yield blank(
                        what,
                        "extended",
                        section,
                        repeat,
                        f"the kernel refuses the length {guests.whole(row, 'length', 0, 4096)} with errno {number}",
                    )
            continue
        operation = row.get("operation")
        if operation is None:
            length = guests.whole(row, "length", 0, 4096)
            what = guests.word(row, "measure", MEASURES[:5])
            registration = REGISTRATIONS[(length > 0) + (length > 32)]
            section = guests.word(row, "section", SECTIONS)
        else:
            size = guests.whole(row, "bytes", -1, 4096)
            what, length, registration, section = "operation", 32, "32 bytes", "null"
            operation = guests.printable(
                f"{operation} {row.get('by')}" + (f" {size}" if size > 0 else ""), 60
            )
        if guests.whole(row, "failed", 0, 1):
            yield blank(what, registration, section, repeat, "not every turn was done") | {
                "operation": operation
            }
            continue
        turns, batches = guests.whole(row, "turns", 1), guests.whole(row, "batches", 1)
        yield blank(what, registration, section, repeat, None) | {
            "operation": operation,
            "length_bytes": length,
            "turns": turns,
            "batches": batches,
            "instructions_per_turn": guests.whole(row, "median", 1) / turns,
            "least_instructions_per_turn": guests.whole(row, "least", 1) / turns,
            "mean_instructions_per_turn": guests.whole(row, "total", 1) / turns / batches,
            "aborted": guests.whole(row, "aborted"),
        }


KEY = ("release", "arch", "measure", "operation", "registration", "section", "repeat")

EXPERIMENT = Experiment(
    name="kernel-costs",
    question="How many instructions does registration add to what the kernel does, by release and registration size?",
    serves="cost to the context switch and to those who do not use an extension, on both architectures, exactly",
    columns=(
        *guests.COLUMNS,
        Column("boot", "int", "which boot of this kernel", minimum=1),
        Column("measure", "text", "what a turn does", choices=MEASURES),
        Column("operation", "text", "which per-CPU operation, by which field, bytes copied", nullable=True),
        Column("registration", "text", "the thread's area", choices=REGISTRATIONS),
        Column("length_bytes", "int", "the registered length; 0 where there is none", nullable=True),
        Column(
            "section",
            "text",
            "what rseq_cs holds as the kernel is entered: NULL, a section elsewhere, or the one that runs",
            choices=SECTIONS,
        ),
        Column("repeat", "int", "in this boot, from 0"),
        Column("turns", "int", "of each batch", nullable=True, minimum=1),
        Column("batches", "int", "of this repeat", nullable=True, minimum=1),
        Column("instructions_per_turn", "float", "kernel and program, of the median batch", nullable=True),
        Column("least_instructions_per_turn", "float", "of the least batch", nullable=True),
        Column("mean_instructions_per_turn", "float", "of all batches, clock ticks included", nullable=True),
        Column("aborted", "int", "sections that the kernel aborted, of all batches", nullable=True),
        Column("reason", "text", "why there is no count", nullable=True),
        Column("qemu", "text", "what ran the guest"),
    ),
    key=KEY,
    needs=(LINUX, Need("QEMU", boot.missing)),
    seconds={"quick": 80, "full": 160},
    plan=plan,
    measure=measure,
    group="kernels",
)
