"""The first look at a kernel: does it boot, does it know rseq, what does it say of its area. Seconds, one guest."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab import compile
from rseqlab.vm import boot, image
from rseqlab.vm.kernels import Kernel

COMPILERS = {"x86_64": "x86_64-linux-gnu-gcc", "aarch64": "aarch64-linux-gnu-gcc"}
SOURCE = boot.GUEST_H.with_name("first.c")
TIMEOUT_S = 30


class VerdictError(LabError):
    """The kernel does not boot here, or knows no rseq; the sentence names the console's file."""


@dataclass(frozen=True)
class Verdict:
    """What a kernel answered. The sizes are null where it says none."""

    image: str
    release: str
    arch: str
    feature_size_bytes: int | None
    align_bytes: int | None
    seconds: float
    accel: str

    def document(self) -> dict:
        """As JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        told = "says no size of it (before 6.3)"
        if self.feature_size_bytes:
            told = f"says {self.feature_size_bytes} bytes of it are in use, aligned to {self.align_bytes}"
        return f"{self.release} {self.arch}: boots, knows rseq, {told}"


def compiler(arch: str) -> str:
    """What builds programs for guests of this architecture: the system's, or a cross compiler."""
    return "cc" if arch == os.uname().machine else COMPILERS[arch]


def program(arch: str) -> Path:
    """The built program. Raises compile.CompileError."""
    flags = ("-static", "-O2", "-Wall", "-I", str(boot.GUEST_H.parent))
    return compile.build(compile.Target(f"first-{arch}", (SOURCE,), flags, compiler(arch), (boot.GUEST_H,)))


def look(kernels: list[Kernel]) -> list[Verdict]:
    """Boot each once. Raises VerdictError at the first that does not boot or knows no rseq."""
    guests = [
        boot.Guest(
            kernel, image.root(kernel.arch, {"/init": program(kernel.arch)}, "/init"), timeout_s=TIMEOUT_S
        )
        for kernel in kernels
    ]
    return [_verdict(guest.kernel, outcome) for guest, outcome in boot.boot_all(guests)]


def _verdict(kernel: Kernel, outcome: boot.Outcome) -> Verdict:
    about = f"{kernel.image} ({kernel.release}, {kernel.arch})"
    if outcome.rseq is False:
        raise VerdictError(
            f"{about} was built without rseq: the system call is not there (ENOSYS). Build it with CONFIG_RSEQ=y; "
            f"console: {outcome.console}"
        )
    if outcome.status != "done":
        raise VerdictError(f"{about} did not do: {outcome.status}: {outcome.reason}")
    (row,) = boot.rows(outcome)
    return Verdict(
        str(kernel.image),
        row["release"],
        kernel.arch,
        row["feature_size_bytes"] or None,
        row["align_bytes"] or None,
        round(outcome.seconds, 3),
        outcome.accel,
    )
