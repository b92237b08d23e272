"""How many cycles a loop takes on a CPU that is not there: LLVM's model of its ports, asked through ``llvm-mca``.

The models are those of the compiler's scheduler. They know how many instructions a CPU takes in a cycle, which ports
execute what, and how long a result takes. They do not know caches, branch prediction or how fast a store reaches a load of
the same address; see :class:`Modelled` for what is made of that.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rseqlab.errors import LabError

MODELS = {
    "x86_64": ("znver1", "znver2", "znver3", "znver4", "znver5", "skylake-avx512", "icelake-server", "sapphirerapids"),
    "aarch64": ("cortex-a72", "neoverse-n1", "neoverse-n2", "neoverse-v1", "neoverse-v2"),
}  # fmt: skip
"""What LLVM calls the CPUs of servers. A version of LLVM knows those of its time, the newest of them often with the ports of
the CPU before: LLVM 21 gives Zen 5 (znver5) those of Zen 4, and a real one can be faster than that model's bound."""

FEW, MANY = 50, 150
"""Turns of the two simulations: their difference holds no filling and no draining of the CPU."""

TIMEOUT_S = 120
NEWEST = 40
_UNKNOWN = re.compile(r"'([^']+)' is not a recognized processor")
_JUMPS_X86 = re.compile(r"^(j\w+) (?:\*?[0-9a-f]+)$")
_PLACES_AARCH64 = re.compile(r"^((?:b|b\.\w+|adrp \w+,|cbn?z \w+,|tbn?z \w+, #\w+,)) [0-9a-f]+$")


class ModelError(LabError):
    """``llvm-mca`` could not be run, or did not understand an instruction."""


@dataclass(frozen=True)
class Modelled:
    """One turn of one loop on one CPU. Cycles are a mean over turns that follow each other at once.

    ``cycles`` is where no load waits for an earlier store; ``waiting_cycles`` where each waits for all earlier stores, which
    is more than a CPU that forwards a store to a load of the same address takes. ``stores_cycles`` is what the stores alone
    take, ``memory_cycles`` the instructions that load or store, and ``issue_cycles`` the micro-operations over how many
    the CPU takes in a cycle: nobody is below any of them.
    """

    instructions: int
    loads: int
    stores: int
    uops: float
    cycles: float
    waiting_cycles: float
    stores_cycles: float
    memory_cycles: float
    issue_cycles: float


@cache
def tool() -> str | None:
    """The newest ``llvm-mca`` that is installed, as a command; None where there is none."""
    names = [f"llvm-mca-{version}" for version in range(NEWEST, 13, -1)]
    return next((name for name in (*names, "llvm-mca") if shutil.which(name)), None)


def missing() -> str | None:
    """Why there is no model, with the remedy, or None."""
    if tool():
        return None
    return "No llvm-mca was found, which models the ports of CPUs; the package `llvm` has it (`make deps` installs it)."


@cache
def version() -> str:
    """Which LLVM the models are of, as "LLVM 14.0.6". Raises ModelError."""
    said = _said([_tool(), "--version"], "")
    found = re.search(r"LLVM version (\S+)", said)
    return f"LLVM {found[1]}" if found else "LLVM of unknown version"


@cache
def models(arch: str) -> tuple[str, ...]:
    """Those of :data:`MODELS` that the tool knows. Raises ModelError."""
    return tuple(model for model in MODELS[arch] if _knows(arch, model))


def modelled(arch: str, model: str, turns: Sequence[Sequence[str]]) -> list[Modelled]:
    """What each turn, a list of instructions, takes on a CPU. Raises ModelError."""
    texts = [[_portable(arch, instruction) for instruction in turn] for turn in turns]
    some = _regions(arch, model, texts)
    infos = [region["InstructionInfoView"]["InstructionList"] for region in some]
    uops = [region["SummaryView"]["TotaluOps"] / FEW for region in some]
    return [
        Modelled(
            instructions=len(turn),
            loads=sum(one["mayLoad"] for one in infos[number]),
            stores=sum(one["mayStore"] for one in infos[number]),
            uops=uops[number],
            cycles=cycles,
            waiting_cycles=waiting,
            stores_cycles=stores,
            memory_cycles=memory,
            issue_cycles=uops[number] / some[number]["SummaryView"]["DispatchWidth"],
        )
        for number, (turn, cycles, waiting, stores, memory) in enumerate(
            zip(
                texts,
                _cycles(some, _regions(arch, model, texts, count=MANY)),
                _cycles(*(_regions(arch, model, texts, "--noalias=false", count=n) for n in (FEW, MANY))),
                _alone(arch, model, texts, infos, "mayStore"),
                _alone(arch, model, texts, infos, "mayStore", "mayLoad"),
                strict=True,
            )
        )
    ]


def _cycles(few: list[dict], many: list[dict]) -> list[float]:
    """Of one turn, out of two simulations."""
    return [
        (long["SummaryView"]["TotalCycles"] - short["SummaryView"]["TotalCycles"]) / (MANY - FEW)
        for short, long in zip(few, many, strict=True)
    ]


def _alone(arch: str, model: str, turns: list[list[str]], infos: list[list[dict]], *does: str) -> list[float]:
    """Cycles of each turn's instructions that do one of these, as if there were no others and none waited."""
    kept = [
        [text for text, info in zip(turn, of, strict=True) if any(info[one] for one in does)]
        for turn, of in zip(turns, infos, strict=True)
    ]
    some = [number for number, texts in enumerate(kept) if texts]
    regions = dict(zip(some, _regions(arch, model, [kept[number] for number in some]), strict=True))
    return [
        regions[number]["SummaryView"]["BlockRThroughput"] if number in regions else 0.0
        for number in range(len(turns))
    ]


def _portable(arch: str, instruction: str) -> str:
    """As an assembler takes it: an address becomes a name."""
    if arch == "aarch64":
        return _PLACES_AARCH64.sub(r"\1 somewhere", instruction)
    if "nop" in instruction:
        return "nop"
    return _JUMPS_X86.sub(r"\1 somewhere", instruction)


def _tool() -> str:
    if (found := tool()) is None:
        raise ModelError(str(missing()))
    return found


def _said(command: list[str], source: str) -> str:
    try:
        result = subprocess.run(command, input=source, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{command[0]} still ran after {TIMEOUT_S} s") from None
    if result.returncode:
        raise ModelError(f"{' '.join(command)} ended with {result.returncode}: {result.stderr.strip()[:500]}")
    return result.stdout


def _command(arch: str, model: str, *options: str) -> list[str]:
    return [_tool(), f"--mtriple={arch}-linux-gnu", f"--mcpu={model}", *options]


def _knows(arch: str, model: str) -> bool:
    """An unknown CPU is ignored with a warning, or refused; both are a no."""
    result = subprocess.run(
        _command(arch, model), input="nop\n", capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return not result.returncode and not _UNKNOWN.search(result.stderr)


def _regions(arch: str, model: str, turns: list[list[str]], *options: str, count: int = FEW) -> list[dict]:
    """What the tool says of each turn, ``count`` of them one after another."""
    if not turns:
        return []
    lines: list[str] = []
    for number, turn in enumerate(turns):
        lines += [f"# LLVM-MCA-BEGIN {number}", *turn, f"# LLVM-MCA-END {number}"]
    said = _said(
        _command(arch, model, "--json", f"--iterations={count}", "--resource-pressure=false", *options),
        "\n".join(lines) + "\n",
    )
    found = {region["Name"]: region for region in json.loads(said)["CodeRegions"]}
    return [found[str(number)] for number in range(len(turns))]
