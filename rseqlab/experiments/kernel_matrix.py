"""kernel-matrix: what does each kernel answer to rseq, under each libc, on both architectures?

One guest for each kernel and architecture. In it one small program, which needs no libc itself, is started by each
libc's own loader, four times: with libc's registration, with one of 32 bytes or an extended one of its own, and with
none. It is the same program everywhere, so what differs is the kernel or what that libc did before it.
"""

from collections.abc import Iterator

from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task
from rseqlab.vm import boot, guests, libcs, matrix

TIMEOUT_S = 1800


def plan(_: str) -> list[Part]:
    """One child boots every guest, as many at once as fit; what is not here is a skipped part. Both profiles ask the same."""
    usable, skipped = guests.usable("matrix")
    of_arch = {arch: libcs.chosen_libcs(arch) for arch in guests.ARCHS}
    skipped += [
        Part(
            guests.part_id(name, arch),
            0,
            1,
            skip=f"{name} for {arch} is not here; get it with: rseqlab kernels fetch",
        )
        for name, arch in libcs.not_here()
    ]
    usable = [kernel for kernel in usable if of_arch[kernel.arch]]
    if not usable:
        return skipped
    return [
        Part(
            "guests",
            sum(matrix.expected(kernel, of_arch[kernel.arch]) for kernel in usable),
            TIMEOUT_S,
            arguments={
                "kernels": [guests.argument(kernel) for kernel in usable],
                "libcs": {
                    arch: [matrix.libc_argument(one) for one in found] for arch, found in of_arch.items()
                },
            },
        ),
        *skipped,
    ]


def measure(task: Task) -> Iterator[dict]:
    """Rows of every guest that a resumed run does not have yet."""
    kernels = [guests.kernel(values) for values in task.arguments["kernels"]]
    of_arch = {
        arch: [matrix.libc_of(values) for values in found] for arch, found in task.arguments["libcs"].items()
    }
    finished = 0
    for row in matrix.rows(kernels, of_arch):
        finished += row["attempt"] != "the guest's end"
        last = row
        if task.pending(*(row[name] for name in KEY)):
            yield row
    if not finished:
        raise Failed(f"no guest finished; the last one: {last['answer']}")


KEY = ("release", "arch", "libc", "mode", "question", "attempt")

EXPERIMENT = Experiment(
    name="kernel-matrix",
    question="What does each kernel answer to rseq, under each libc, on both architectures?",
    serves="which sizes, fields and rules a program may count on, from 5.10 to today",
    columns=(
        *guests.COLUMNS,
        Column("libc", "text", "under whose loader the program ran; none where the guest did not finish"),
        Column("libc_version", "text", "that libc's version", nullable=True),
        Column("mode", "text", "who registered the thread before the attempt", choices=tuple(matrix.MODES)),
        Column("question", "text", "what the attempt varies", choices=matrix.QUESTIONS),
        Column("attempt", "text", "the attempt, unique within its question"),
        Column(
            "answer", "text", "accepted, the errno, a state, a value, or the signal that killed the attempt"
        ),
        Column(
            "predicted",
            "text",
            "what the documented rule says, where there is one for the whole answer",
            nullable=True,
        ),
        Column("qemu", "text", "what ran the guest"),
        Column("accel", "text", "how: kvm or tcg"),
    ),
    key=KEY,
    needs=(LINUX, Need("QEMU", boot.missing)),
    seconds={"quick": 90, "full": 90},
    plan=plan,
    measure=measure,
    group="kernels",
)
