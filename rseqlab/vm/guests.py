"""What the experiments with guests share: a kernel as a part's argument, what is not here, what a guest may say."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab import bundle
from rseqlab.lab.compile import CompileError
from rseqlab.lab.experiment import Column, Part
from rseqlab.vm import boot, kernels, programs
from rseqlab.vm.kernels import Kernel

ARCHS = kernels.ARCHS

COLUMNS = (
    Column("series", "text", "the kernel's release up to its second number"),
    Column("release", "text", "the kernel's whole release"),
    Column("arch", "text", "the guest's architecture", choices=ARCHS),
)
"""Which guest a row is of."""


STEADY_CLOCK = {"x86_64": ("tsc=reliable", "clocksource=tsc"), "aarch64": ()}
"""On the command line of guests with several CPUs: on a busy host their clocks look apart, Linux then rewrites its own
code while it runs, and the emulator's threads can stumble over that (an int3 that nobody set, seen with QEMU 7.2)."""

TRIED_AGAIN = ("panic", "no boot", "bad results")


class GuestError(LabError):
    """What a guest handed over is not what its program says; nothing of it is kept."""


def argument(kernel: Kernel) -> dict:
    """The kernel, as JSON, for a part's arguments."""
    return asdict(kernel) | {"image": str(kernel.image)}


def kernel(values: Mapping) -> Kernel:
    """The same back again."""
    return Kernel(**(dict(values) | {"image": Path(values["image"])}))


def about(one: Kernel) -> dict:
    """The columns that say which guest."""
    return {"series": one.series, "release": printable(one.release), "arch": one.arch}


def refusal(arch: str, *names: str) -> str | None:
    """Why no guest of this architecture can run these programs here, or None."""
    if reason := boot.missing(arch) or programs.missing(arch):
        return reason
    try:
        for name in names:
            programs.init(name, arch)
        programs.probe(arch)
    except CompileError as error:
        return f"{error} A static program needs the static C library of {arch}; `make deps` installs it."
    return None


def usable(*names: str, series: Sequence[str] = ()) -> tuple[list[Kernel], list[Part]]:
    """The chosen kernels (of these series, where some are named) that can be booted, and a skipped part for each other."""
    reasons = {arch: refusal(arch, *names) for arch in kernels.chosen_archs()}
    wanted = [
        one for one in kernels.chosen_kernels() if not series or one.series in series or one.origin == "user"
    ]
    skipped = [
        _skipped(one.series, one.arch, reasons[one.arch]) for one in wanted if reasons.get(one.arch)
    ] + [
        _skipped(name, arch, f"the kernel {name} for {arch} is not here; get it with: rseqlab kernels fetch")
        for name, arch in kernels.not_here()
        if not series or name in series or name == "newest"
    ]
    return [one for one in wanted if not reasons.get(one.arch)], skipped


def _skipped(series: str, arch: str, reason: str | None) -> Part:
    return Part(part_id(series, arch), 0, 1, skip=reason)


def part_id(*words: object) -> str:
    """A part's id as a bundle allows it."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(map(str, words)).lower()).strip("-")[:60]


def boot_all(wanted: Sequence[boot.Guest]) -> Iterator[tuple[boot.Guest, boot.Outcome]]:
    """As boot.boot_all; a guest that broke off is booted once more, and what breaks twice is the outcome."""
    again = []
    for guest, outcome in boot.boot_all(wanted):
        if outcome.status in TRIED_AGAIN:
            again.append(guest)
        else:
            yield guest, outcome
    yield from boot.boot_all(again)


def printable(text: str, most: int = 200) -> str:
    """A guest's words as a cell may hold them."""
    return bundle.printable(text)[:most].strip() or "nothing"


def why(outcome: boot.Outcome) -> str:
    """How a guest that did not finish ended, without where this machine keeps its console."""
    return printable(f"{outcome.status}: {outcome.reason or 'no reason'}".partition("; console:")[0], 300)


def whole(row: Mapping, name: str, least: int = 0, most: int = 1 << 60) -> int:
    """A whole number of a guest's row within bounds. Raises GuestError."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise GuestError(
            f"A guest's {name} is {value!r:.40}; allowed is a whole number from {least} to {most}."
        )
    return value


def word(row: Mapping, name: str, choices: Sequence[str]) -> str:
    """A word of a guest's row that is among the choices. Raises GuestError."""
    value = row.get(name)
    if value not in choices:
        raise GuestError(f"A guest's {name} is {value!r:.60}; allowed are {', '.join(choices)}.")
    return value
