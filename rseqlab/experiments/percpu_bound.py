"""percpu-bound: how far is each per-CPU operation from what a CPU can do at best, by compiler and by CPU?

No CPU is timed. Each loop around an operation (those of percpu-instructions) is compiled by every compiler that is
installed; an emulator says which instructions one turn executes; and LLVM's model of a CPU's ports says how many cycles such
turns take one after another (``cycles``, the loop included). Beside it stand the bounds:

* ``stores_cycles``: the stores of the operation alone. A section cannot do without two: the announcement in the rseq
  area, and the commit. The CPU writes one or two of them a cycle.
* ``memory_cycles``: its loads and stores alone, which share the CPU's ways to memory.
* ``issue_cycles``: the micro-operations, over how many the CPU takes in a cycle. Fewer instructions lower it.
* ``waiting_cycles`` is no bound but the other end: as if every load waited until all stores before it are done. A CPU
  forwards a store to a load of the same address, so that turns on one word, as here, lie between the two. How fast it does
  is in no model; percpu-ops times it.

``bound_cycles`` is the largest of the first three, and ``cycles / bound_cycles`` is the distance: 1 is at the limit. Where
the issue width is the bound, only fewer instructions help; where memory is, only what is kept in registers; where the stores are, nothing does. ``ours`` has the offset of
the area in a register, ``ours-offset-loaded`` loads it each turn as librseq (``theirs``) does. Copies are left out: their
inner loops depend on the length.
"""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rseqlab.lab import compile, counted, librseq, port_model
from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task

HERE = Path(__file__).parent / "c"
BOUNDS = ("stores", "memory", "issue")
"""Where two are the same, the first of them."""

WHO = ("ours", "ours-offset-loaded", "theirs")
NEWEST = {"gcc": 20, "clang": 30}
OLDEST = {"gcc": 11, "clang": 14}
"""Older ones cannot hand a register out of a section (`asm goto` with outputs)."""


@dataclass(frozen=True)
class Compiler:
    """A command that compiles for an architecture, with what it must be told; ``name`` is short: "gcc 14.2.0"."""

    command: str
    flags: tuple[str, ...]
    name: str


def compilers(arch: str) -> list[Compiler]:
    """Every C compiler of the architecture that is installed, each version once."""
    native = arch == counted.host.arch()
    prefix = "" if native else f"{arch}-linux-gnu-"
    candidates: list[tuple[str, tuple[str, ...]]] = [(counted.compiler(arch), ())]
    candidates += [(f"{prefix}gcc-{version}", ()) for version in range(OLDEST["gcc"], NEWEST["gcc"] + 1)]
    target = () if native else (f"--target={arch}-linux-gnu",)
    candidates += [("clang", target)]
    candidates += [(f"clang-{version}", target) for version in range(OLDEST["clang"], NEWEST["clang"] + 1)]
    found: dict[str, Compiler] = {}
    for command, flags in candidates:
        if shutil.which(command) and (name := _short_name(command)) not in found:
            found[name] = Compiler(command, flags, name)
    return list(found.values())


def _short_name(command: str) -> str:
    said = compile.compiler_id(command)
    version = re.search(r"\d+\.\d+\.\d+", said)
    return f"{'clang' if 'clang' in said else 'gcc'} {version[0] if version else said}"


def program(arch: str, compiler: Compiler, peers: bool) -> Path:
    """The built program with every loop, librseq's among them or not. Raises CompileError."""
    headers = librseq.find() if peers else None
    return counted.build(
        arch,
        "count-sections",
        [HERE / "count_sections.c", counted.NATIVE / "percpu.c", counted.NATIVE / "rseq.c"],
        (*compiler.flags, *(headers.flags if headers else ())),
        [*sorted(HERE.glob("*.h")), *(headers.files if headers else ())],
        compiler.command,
    )


def refusal(arch: str, compiler: Compiler, peers: bool) -> str | None:
    """Why nothing can be said of what this compiler makes for the architecture, or None."""
    if reason := counted.missing(arch) or (librseq.missing() if peers else None):
        return reason
    if not port_model.models(arch):
        return f"{port_model.version()} knows none of {', '.join(port_model.MODELS[arch])}."
    if compile.attempt(lambda: program(arch, compiler, peers))[1] is None:
        return None
    if peers and compile.attempt(lambda: program(arch, compiler, False))[1] is None:
        return f"{compiler.name} does not compile what was found of librseq for {arch}."
    return (
        f"{compiler.name} builds no static program for {arch} here: it lacks that architecture's C library."
    )


@cache
def _loops(arch: str, built: Path, peers: bool) -> tuple[counted.Loop, ...]:
    return tuple(loop for loop in counted.loops(arch, built)[0] if _is_wanted(loop, peers))


def _is_wanted(loop: counted.Loop, peers: bool) -> bool:
    """One index, no copies, ours or librseq's; the loops alone are in percpu-instructions."""
    return loop.by == "cpu_id" and loop.bytes_copied is None and (loop.who == "theirs") == peers


def plan(profile: str) -> list[Part]:
    """Each architecture and compiler, without librseq and with it; quick takes the system's compiler only."""
    parts = []
    for arch in counted.ARCHITECTURES:
        for compiler in compilers(arch)[: 1 if profile == "quick" else None]:
            for peers in (False, True):
                skip, rows = refusal(arch, compiler, peers), 0
                if not skip:
                    wanted = _loops(arch, program(arch, compiler, peers), peers)
                    rows = len(wanted) * len(port_model.models(arch))
                parts.append(
                    Part(
                        id=f"{arch.replace('_', '-')}-{re.sub(r'[ .]', '-', compiler.name)}"
                        + "-librseq" * peers,
                        rows=rows,
                        timeout_s=300,
                        arguments={"arch": arch, "compiler": compiler.name, "peers": peers},
                        skip=skip,
                    )
                )
    return parts


def measure(task: Task) -> Iterator[dict]:
    """Rows of one architecture and compiler, ours or librseq's."""
    arch, peers = task.arguments["arch"], task.arguments["peers"]
    compiler = next(one for one in compilers(arch) if one.name == task.arguments["compiler"])
    built = program(arch, compiler, peers)
    executed = counted.turns(arch, built)
    turns = {loop: executed[loop] for loop in _loops(arch, built, peers)}
    for model in port_model.models(arch):
        for loop, one in zip(turns, port_model.modelled(arch, model, list(turns.values())), strict=True):
            who = loop.who.replace("_", "-")
            if not task.pending(who, loop.operation, model):
                continue
            bounds = {"stores": one.stores_cycles, "memory": one.memory_cycles, "issue": one.issue_cycles}
            bound_by = max(bounds, key=lambda name: bounds[name])
            yield {
                "arch": arch,
                "compiler": compiler.name,
                "who": who,
                "operation": loop.operation,
                "cpu_model": model,
                "instructions": one.instructions,
                "loads": one.loads,
                "stores": one.stores,
                "uops": one.uops,
                "cycles": one.cycles,
                "stores_cycles": one.stores_cycles,
                "memory_cycles": one.memory_cycles,
                "issue_cycles": one.issue_cycles,
                "bound_cycles": bounds[bound_by],
                "waiting_cycles": one.waiting_cycles,
                "bound_by": bound_by,
                "models_of": port_model.version(),
                "peer": librseq.find().title if peers else None,
            }


EXPERIMENT = Experiment(
    name="percpu-bound",
    question="How far is each per-CPU operation from what a CPU can do at best, by compiler and by CPU?",
    serves="what can still be gained, and what cannot, without owning the CPUs",
    columns=(
        Column("arch", "text", "the architecture", choices=counted.ARCHITECTURES),
        Column("compiler", "text", "what compiled it"),
        Column("who", "text", "whose section, and where the area's offset comes from", choices=WHO),
        Column("operation", "text", "a section or a structure; those that undo each other together"),
        Column("cpu_model", "text", "LLVM's name of the modelled CPU"),
        Column("instructions", "int", "executed in one turn, the loop included", minimum=1),
        Column("loads", "int", "instructions that read memory"),
        Column("stores", "int", "instructions that write memory", minimum=1),
        Column("uops", "float", "micro-operations of a turn", minimum=1),
        Column("cycles", "float", "of a turn among many, no load waiting for a store", minimum=0.1),
        Column("stores_cycles", "float", "what its stores alone take", minimum=0.1),
        Column("memory_cycles", "float", "what its loads and stores alone take", minimum=0.1),
        Column("issue_cycles", "float", "uops over how many the CPU takes in a cycle", minimum=0.1),
        Column("bound_cycles", "float", "the largest of the three", minimum=0.1),
        Column("waiting_cycles", "float", "as if every load waited for all stores before it", minimum=0.1),
        Column("bound_by", "text", "which of the three it is", choices=BOUNDS),
        Column("models_of", "text", "whose models"),
        Column("peer", "text", "which headers of librseq, where it is theirs", nullable=True),
    ),
    key=("who", "operation", "cpu_model"),
    needs=(
        LINUX,
        Need("models of CPUs", port_model.missing),
        Need("a C compiler", compile.missing),
    ),
    seconds={"quick": 12, "full": 60},
    plan=plan,
    measure=measure,
)
