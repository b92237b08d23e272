"""Instructions instead of nanoseconds: a user-mode emulator writes down every instruction that a program executes.

Counts are exact, the same on every host, and need no hardware of the architecture. What they are not: cycles.
The emulator has no rseq system call, so programs run their sections on an area that nobody registered, whose
fields they set themselves: what is counted is the fast path in user space, no kernel and no abort.
"""

import re
import shutil
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rseqlab import host, native
from rseqlab.errors import LabError
from rseqlab.lab import compile

ARCHITECTURES = ("x86_64", "aarch64")
FEW, MANY = 3, 11
"""Turns of the two runs: their difference holds whole turns only, nothing of what is before and after the loop."""

TIMEOUT_S = 60
NATIVE = Path(native.__file__).parent

FLAGS = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-fno-strict-aliasing",
    "-fno-unroll-loops",
    "-static",
    "-no-pie",
)
FLAGS_OF_ARCH = {"x86_64": (), "aarch64": ("-mno-outline-atomics",)}
"""Without outlining, an atomic of aarch64 is counted where it stands instead of in a function of the compiler's."""

_EXECUTED = re.compile(rb"^Trace [^\[]*\[[0-9a-f]+/([0-9a-f]+)/")
_TAKEN_BACK = re.compile(rb"^Stopped execution of TB chain before [^\[]*\[([0-9a-f]+)\]")
_DISASSEMBLED = re.compile(r"^\s*([0-9a-f]+):\t(.*)$")


class CountError(LabError):
    """The emulator could not run the program, or what it wrote down does not make sense."""


@dataclass(frozen=True)
class Loop:
    """One counted function: ``address`` is where its code begins, ``empty`` names the loop without the operation."""

    who: str
    operation: str
    by: str
    bytes_copied: int | None
    empty: str
    address: int


@dataclass(frozen=True)
class Count:
    """Instructions of one turn of a loop, and what they are, in the order of their addresses."""

    loop: Loop
    instructions: float
    code: str


def compiler(arch: str) -> str:
    """The C compiler whose output is for ``arch``."""
    return "cc" if arch == host.arch() else f"{arch}-linux-gnu-gcc"


def disassembler(arch: str) -> str:
    return "objdump" if arch == host.arch() else f"{arch}-linux-gnu-objdump"


def emulator(arch: str) -> str | None:
    """The user-mode emulator of ``arch``; the static one is preferred, as it needs no libraries."""
    return next(filter(None, map(shutil.which, (f"qemu-{arch}-static", f"qemu-{arch}"))), None)


def missing(arch: str) -> str | None:
    """Why nothing can be counted for this architecture here, with the remedy; None where it can."""
    if emulator(arch) is None:
        return f"No qemu-{arch}-static and no qemu-{arch} was found, which executes {arch} programs; `make deps` installs one."
    if reason := compile.missing(compiler(arch)):
        return reason
    if shutil.which(disassembler(arch)) is None:
        return f"No {disassembler(arch)} was found, which names the counted instructions; `make deps` installs it."
    return None


def _required(arch: str) -> str:
    """The emulator where there must be one. Raises CountError."""
    if (found := emulator(arch)) is None:
        raise CountError(missing(arch) or f"no emulator of {arch}")
    return found


@cache
def emulator_version(arch: str) -> str:
    said = subprocess.run(
        [_required(arch), "--version"], capture_output=True, text=True, timeout=TIMEOUT_S
    ).stdout
    return said.partition("\n")[0]


@cache
def _one_instruction_a_block(arch: str) -> str:
    """The option by which every block of translated code is one instruction; QEMU 8.1 renamed it."""
    said = subprocess.run([_required(arch), "-help"], capture_output=True, text=True, timeout=TIMEOUT_S)
    for option in ("-one-insn-per-tb", "-singlestep"):
        if option in said.stdout + said.stderr:
            return option
    raise CountError(
        f"{emulator(arch)} has neither -one-insn-per-tb nor -singlestep ({emulator_version(arch)}); "
        "it cannot execute one instruction at a time. Any QEMU since 2.0 can."
    )


def build(
    arch: str,
    name: str,
    sources: Sequence[Path],
    flags: Sequence[str] = (),
    depends: Iterable[Path] = (),
    built_by: str | None = None,
) -> Path:
    """A static program at fixed addresses, by :func:`compiler` or another. Raises CompileError."""
    headers = tuple(sorted(NATIVE.rglob("*.h")))
    return compile.build(
        compile.Target(
            f"{name}-{arch}",
            tuple(sources),
            (*FLAGS, f"-I{NATIVE}", *FLAGS_OF_ARCH[arch], *flags),
            built_by or compiler(arch),
            (*headers, *depends),
        )
    )


def _run(arch: str, program: Path, options: Sequence[str], arguments: Sequence[str]) -> str:
    command = [_required(arch), *options, str(program), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise CountError(
            f"{program.name} still ran under {Path(command[0]).name} after {TIMEOUT_S} s"
        ) from None
    if result.returncode:
        raise CountError(
            f"{program.name} under {Path(command[0]).name} ended with {result.returncode}: {result.stderr.strip()[:500]}"
        )
    return result.stdout


def loops(arch: str, program: Path) -> tuple[list[Loop], tuple[int, int]]:
    """What the program has to count, in its own order, and the range of addresses in which all of it lies."""
    *lines, last = _run(arch, program, (), ()).splitlines()
    found = []
    for line in lines:
        who, operation, by, bytes_copied, empty, address = line.split()
        copied = int(bytes_copied)
        found.append(Loop(who, operation, by, copied if copied >= 0 else None, empty, int(address, 16)))
    start, end = (int(word, 16) for word in last.split())
    return found, (start, end)


def executed(arch: str, program: Path, turns: int, within: tuple[int, int]) -> list[int]:
    """The address of every instruction that was executed in the range, in order. Each loop does ``turns`` turns."""
    with tempfile.NamedTemporaryFile() as log:
        options = [_one_instruction_a_block(arch), "-d", "exec,nochain", "-D", log.name]
        options += ["-dfilter", f"{within[0]:#x}..{within[1] - 1:#x}"]
        _run(arch, program, options, [str(turns)])
        addresses: list[int] = []
        for line in Path(log.name).read_bytes().splitlines():
            if match := _EXECUTED.match(line):
                addresses.append(int(match[1], 16))
            elif (match := _TAKEN_BACK.match(line)) and addresses and addresses[-1] == int(match[1], 16):
                addresses.pop()  # an interrupt came first: it was announced, not executed
    return addresses


def disassembly(arch: str, program: Path, within: tuple[int, int]) -> dict[int, str]:
    """Address to instruction; addresses of targets stay, names and comments go."""
    command = [disassembler(arch), "-d", "-z", "--no-show-raw-insn"]
    command += [f"--start-address={within[0]:#x}", f"--stop-address={within[1]:#x}", str(program)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    found = {}
    for line in said.splitlines():
        if match := _DISASSEMBLED.match(line):
            # x86 comments begin with "# ", those of aarch64 with "//"; "#9" is a number of aarch64.
            text = re.sub(r"\s*(# |//).*$|\s*<[^>]*>", "", match[2])
            found[int(match[1], 16)] = " ".join(text.split())
    return found


def count(arch: str, program: Path) -> list[Count]:
    """Every loop of the program. A string instruction that repeats itself is one instruction, as on hardware."""
    found, within = loops(arch, program)
    names = disassembly(arch, program, within)
    few, many = (_by_loop(executed(arch, program, turns, within), found, names) for turns in (FEW, MANY))
    return [
        Count(loop, (len(many[loop]) - len(few[loop])) / (MANY - FEW), _code(few[loop], many[loop], names))
        for loop in found
    ]


def turns(arch: str, program: Path) -> dict[Loop, list[str]]:
    """The instructions of one turn of every loop, in the order in which they were executed: that of the last turn."""
    found, within = loops(arch, program)
    names = disassembly(arch, program, within)
    return {
        loop: [names[address] for address in _last_turn(addresses)]
        for loop, addresses in _by_loop(executed(arch, program, FEW, within), found, names).items()
    }


def _last_turn(addresses: list[int]) -> list[int]:
    """From the last but one to the last time at the first address that every turn comes to once."""
    times = Counter(addresses)
    once_a_turn = next(address for address in addresses if times[address] == FEW)
    *_, start, end = (place for place, address in enumerate(addresses) if address == once_a_turn)
    return addresses[start:end]


def _by_loop(addresses: list[int], found: list[Loop], names: dict[int, str]) -> dict[Loop, list[int]]:
    """The instructions of each loop; those of a repeated string instruction become one."""
    ordered = sorted(found, key=lambda loop: loop.address)
    starts = [loop.address for loop in ordered]
    result: dict[Loop, list[int]] = {loop: [] for loop in found}
    last = None
    for address in addresses:
        if address not in names:
            raise CountError(
                f"an instruction was executed at {address:#x}, where the disassembler sees none begin"
            )
        if not (address == last and names[address].startswith("rep")):
            result[ordered[bisect_right(starts, address) - 1]].append(address)
        last = address
    return result


def _code(few: list[int], many: list[int], names: dict[int, str]) -> str:
    """The instructions of one turn, those that are executed more than once with how often."""
    parts = []
    for address in sorted(set(many)):
        times = (many.count(address) - few.count(address)) / (MANY - FEW)
        if times:
            parts.append(names[address] + (f" (x{times:g})" if times != 1 else ""))
    return "; ".join(parts)
