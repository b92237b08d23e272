"""Runs the slice extension's program in a guest on the kernel that was built here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import rseqlab
from rseqlab.lab import compile, counted
from rseqlab.lab.child import Failed
from rseqlab.vm import boot, image, own_kernel

PROGRAM = Path(rseqlab.__file__).parent / "vm" / "c" / "slice.c"
GUEST = PROGRAM.with_name("guest.h")
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-static", "-pthread")

KERNEL = {
    "kernel_granted": "slices granted",
    "kernel_expired": "grants whose timer ran out",
    "kernel_revoked": "grants taken back, those that ran out among them",
    "kernel_yielded": "grants given back by rseq_slice_yield(2)",
    "kernel_aborted": "grants ended by another system call",
}
"""The kernel's counts (debugfs rseq/stats) by the name of their columns."""

LIBC_LEAVES = "GLIBC_TUNABLES=glibc.pthread.rseq=0"
"""Each thread has one area; the program registers its own."""


def missing(arch: str) -> str | None:
    """Why no guest of this architecture can be given the program, or None."""
    return boot.missing(arch) or compile.missing(counted.compiler(arch))


def program(arch: str) -> Path:
    """The guest's program, a static one. Raises CompileError."""
    target = compile.Target(f"slice-{arch}", (PROGRAM,), FLAGS, counted.compiler(arch), (GUEST,))
    return compile.build(target)


def run(
    arch: str,
    words: Sequence[object],
    append: Sequence[str] = (),
    checked: bool = False,
    icount: bool = False,
    timeout_s: float = 600,
) -> tuple[own_kernel.Built, list[dict]]:
    """Boot the newest kernel with slice extension and have the program do what ``words`` say. Raises Failed."""
    built = own_kernel.newest(arch, own_kernel.SLICE)
    if built is None:
        raise Failed(own_kernel.no_slices(arch))
    guest = boot.Guest(
        kernel=built.kernel,
        initrd=image.root(arch, {"init": program(arch)}, "init"),
        icount=icount,
        append=(
            f"RSEQLAB_SLICE={','.join(map(str, words))}",
            f"RSEQLAB_CHECKED={int(checked)}",
            LIBC_LEAVES,
            *append,
        ),
        timeout_s=timeout_s,
    )
    outcome = boot.boot(guest)
    expect(outcome.status == "done", f"the guest ended with {outcome.status}: {outcome.reason}")
    rows = boot.rows(outcome)
    for row in rows:
        expect(row["row"] != "failed", f"the guest's program gave up: {row.get('reason')}")
    return built, rows


def expect(fine: bool, otherwise: str) -> None:
    """Raises Failed where the experiment's own check does not hold."""
    if not fine:
        raise Failed(otherwise)


def accounts(row: Mapping) -> str:
    """Whether the threads' own count of a batch agrees with the kernel's: "agree", or what does not.

    A thread that finds neither its request nor a grant cannot tell why. By the documented protocol a grant was
    revoked, and so it is counted here; the kernel counts a grant revoked, or one that another system call ended.
    A thread that never enabled slices loses requests, too: then the counts do not agree, and the row says so.
    """
    if not row["kernel_counts"]:
        return "the kernel has no rseq/stats with counts of slices"
    lost = row["late_yields"] + row["taken_back"]
    pairs = {
        "requests": (row["requests"], row["kept"] + row["yielded"] + lost, "ends of requests"),
        "granted": (row["yielded"] + lost, row["kernel_granted"], "by the kernel"),
        "yielded": (row["yielded"], row["kernel_yielded"], "by the kernel"),
        "taken back": (
            lost,
            row["kernel_revoked"] + row["kernel_aborted"],
            "revoked or aborted by the kernel",
        ),
    }
    apart = [
        f"{name}: {own} here, {other} {whose}" for name, (own, other, whose) in pairs.items() if own != other
    ]
    return "; ".join(apart) or "agree"
