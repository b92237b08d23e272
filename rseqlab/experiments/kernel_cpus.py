"""kernel-cpus: how far does cpu_id spread on machines with many CPUs, and how dense does mm_cid stay?

Guests with 2, 8 and 32 virtual CPUs (64 as well in the full profile), on kernels that have mm_cid. In each, processes
of 1 to 128 threads that sleep and wake for a while; every thread has an area of its own and notes what it reads there.
A guest with more CPUs than the host is slow, not wrong: who runs where is the guest's kernel's choice.
"""

from collections.abc import Iterator

from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task
from rseqlab.vm import boot, guests, image, kernels, programs
from rseqlab.vm.guests import GuestError
from rseqlab.vm.kernels import Kernel

CPUS = {"quick": (2, 8, 32), "full": (2, 8, 32, 64)}
THREADS = (1, 2, 4, 8, 16, 32, 64, 128)
TIMEOUT_S = {2: 120, 8: 180, 32: 300, 64: 600}
LARGEST_BYTES = 1 << 16


def with_mm_cid() -> tuple[str, ...]:
    """The chosen series that have mm_cid (since 6.3); of images that the user gives, all are tried."""
    return tuple(
        dict.fromkeys(
            kernel.series
            for kernel in kernels.chosen_kernels()
            if tuple(int(part) for part in kernel.series.split(".")) >= (6, 3)
        )
    )


def guest(kernel: Kernel, cpus: int) -> boot.Guest:
    """One guest with so many CPUs."""
    root = image.root(kernel.arch, {"/cpus": programs.init("cpus", kernel.arch)}, "/cpus")
    return boot.Guest(
        kernel,
        root,
        cpus=cpus,
        append=(programs.RSEQ_OFF, *guests.STEADY_CLOCK[kernel.arch]),
        timeout_s=TIMEOUT_S[cpus],
        results_limit_bytes=LARGEST_BYTES,
    )


def plan(profile: str) -> list[Part]:
    """One child for each guest, the small ones first, so that what takes long cannot take the rest along."""
    usable, skipped = guests.usable("cpus", series=with_mm_cid())
    return [
        Part(
            guests.part_id(cpus, "cpus", kernel.release, kernel.arch),
            len(THREADS),
            2 * TIMEOUT_S[cpus] + 60,
            arguments={"cpus": cpus, "kernel": guests.argument(kernel)},
        )
        for cpus in CPUS[profile]
        for kernel in usable
    ] + skipped


def measure(task: Task) -> Iterator[dict]:
    """A row for each number of threads; where the guest did not finish, rows that say so."""
    kernel, cpus = guests.kernel(task.arguments["kernel"]), task.arguments["cpus"]
    ((_, outcome),) = guests.boot_all([guest(kernel, cpus)])
    same = guests.about(kernel) | {"cpus": cpus, "qemu": guests.printable(outcome.qemu)}
    reason, found = None, {}
    if outcome.status == "done":
        try:
            found = checked(outcome, cpus)
        except (GuestError, boot.RowsError) as error:
            reason = guests.printable(f"bad results: {error}", 300)
    else:
        reason = guests.why(outcome)
    if reason and cpus == CPUS["quick"][0]:
        raise Failed(reason)
    for threads in THREADS:
        if task.pending(kernel.release, kernel.arch, cpus, threads):
            yield same | found.get(threads, blank(threads, reason or "the guest has no row of it"))


def blank(threads: int, reason: str | None) -> dict:
    """A row of something that was not measured."""
    names = ("wakes", "most_cpu_id", "cpu_ids", "most_mm_cid", "mm_cids")
    return {"threads": threads} | dict.fromkeys(names) | {"reason": reason}


def checked(outcome: boot.Outcome, cpus: int) -> dict[int, dict]:
    """Threads to row. Raises GuestError or RowsError."""
    head, *rows = boot.rows(outcome)
    online = guests.whole(head, "cpus", 1, 4096)
    feature = guests.whole(head, "feature_size", 0, 4096)
    found = {}
    for row in rows:
        threads = guests.whole(row, "threads", 1, max(THREADS))
        if "refused" in row:
            found[threads] = blank(
                threads, f"a thread could not start: errno {guests.whole(row, 'refused', 0, 4095)}"
            )
            continue
        values = {
            name: guests.whole(row, name, -1, 1 << 40)
            for name in blank(0, None)
            if name not in ("threads", "reason")
        }
        reason = None if online == cpus else f"the guest brought up {online} of {cpus} CPUs"
        if feature < 28:
            values |= {"most_mm_cid": None, "mm_cids": None}
            reason = f"the kernel has no mm_cid: its feature size is {feature}"
        elif values["mm_cids"] == 0 or values["wakes"] == 0:
            values, reason = {}, "no thread woke in time"
        found[threads] = blank(threads, reason) | values
    return found


EXPERIMENT = Experiment(
    name="kernel-cpus",
    question="How far does cpu_id spread on machines with many CPUs, and how dense does mm_cid stay?",
    serves="memory of per-CPU data by cpu_id and by mm_cid on machines that nobody has at hand",
    columns=(
        *guests.COLUMNS,
        Column("cpus", "int", "the guest's virtual CPUs", minimum=1),
        Column("threads", "int", "of the process, beside the one that started them", minimum=1),
        Column("wakes", "int", "sleeps that ended, of all threads", nullable=True),
        Column("most_cpu_id", "int", "the largest cpu_id that a thread read", nullable=True),
        Column("cpu_ids", "int", "different values of cpu_id that were read", nullable=True),
        Column("most_mm_cid", "int", "the largest mm_cid that a thread read", nullable=True),
        Column("mm_cids", "int", "different values of mm_cid that were read", nullable=True),
        Column("reason", "text", "why it was not measured, or what to know about it", nullable=True),
        Column("qemu", "text", "what ran the guest"),
    ),
    key=("release", "arch", "cpus", "threads"),
    needs=(LINUX, Need("QEMU", boot.missing)),
    seconds={"quick": 240, "full": 1200},
    plan=plan,
    measure=measure,
    group="kernels",
)
