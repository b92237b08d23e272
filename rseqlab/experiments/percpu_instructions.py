"""percpu-instructions: how many instructions is every per-CPU operation, on both architectures?

A user-mode emulator executes the operations one instruction at a time and writes each down, so the counts are
exact and the same on every host. It has no rseq system call: the program sets the fields of an area of its own
so that every compare succeeds. What is counted is the fast path in user space, no kernel and no abort, as a
user pays it: the read of the index from the area and the way to the data of that index included, the operands
in registers already. The offset of the area is in a register (``ours``) or in a variable that is loaded each
time (``ours-offset-loaded``); librseq (``theirs``) always loads it. The loops are those that percpu-peers times.
Whole structures are counted as their users run them, with what leads to the data loaded each time; operations
that undo each other are counted together.
"""

from collections.abc import Iterator
from pathlib import Path

from rseqlab.lab import counted, librseq
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import CompileError
from rseqlab.lab.experiment import LINUX, Column, Experiment, Part, Task

HERE = Path(__file__).parent / "c"
REPEATS = 2

WHO = ("ours", "ours-offset-loaded", "theirs")


def program(arch: str, peers: bool) -> Path:
    """The built program with every loop, librseq's among them or not. Raises CompileError."""
    headers = librseq.find() if peers else None
    return counted.build(
        arch,
        "count-sections",
        [HERE / "count_sections.c", counted.NATIVE / "percpu.c", counted.NATIVE / "rseq.c"],
        headers.flags if headers else (),
        [*sorted(HERE.glob("*.h")), *(headers.files if headers else ())],
    )


def refusal(arch: str, peers: bool = False) -> str | None:
    """Why nothing can be counted for this architecture on this machine, or None."""
    if reason := counted.missing(arch) or (librseq.missing() if peers else None):
        return reason
    try:
        program(arch, peers)
    except CompileError as error:
        if peers and refusal(arch) is None:
            return f"What was found of librseq does not compile for {arch}. {error}"
        return f"{error} A static program needs the static C library of {arch}; `make deps` installs it."
    return None


def plan(profile: str) -> list[Part]:
    """Each architecture, without librseq and with it; both profiles count the same, as counts do not vary."""
    parts = []
    for arch in counted.ARCHITECTURES:
        for peers in (False, True):
            skip = refusal(arch, peers)
            parts.append(
                Part(
                    id=arch.replace("_", "-") + ("-librseq" if peers else ""),
                    rows=0 if skip else len(_wanted(counted.loops(arch, program(arch, peers))[0], peers)),
                    timeout_s=300,
                    arguments={"arch": arch, "peers": peers},
                    skip=skip,
                )
            )
    return parts


def _wanted(loops: list[counted.Loop], peers: bool) -> list[counted.Loop]:
    """With librseq only its own, and without it all: no loop is counted twice."""
    return [loop for loop in loops if not peers or loop.who == "theirs"]


def counts_of(arch: str, built: Path) -> Iterator[tuple[counted.Count, float]]:
    """(count, instructions of its empty loop), counted twice. Raises Failed where the two differ."""
    first, *others = (counted.count(arch, built) for _ in range(REPEATS))
    for other in others:
        for before, after in zip(first, other, strict=True):
            if before != after:
                raise Failed(
                    f"{arch}, {before.loop.operation}: counted {before.instructions:g} instructions, then "
                    f"{after.instructions:g}; the same program must execute the same"
                )
    empty = {one.loop.operation: one.instructions for one in first if one.loop.by == "none"}
    for one in first:
        yield one, empty[one.loop.empty]


def why_not_whole(instructions: float) -> str | None:
    """In words, that turns differ from each other; None where each is the same."""
    if instructions == int(instructions):
        return None
    return f"not every turn takes the same way; the mean over {counted.MANY - counted.FEW} turns"


def measure(task: Task) -> Iterator[dict]:
    """Rows of one architecture, ours or librseq's."""
    arch, peers = task.arguments["arch"], task.arguments["peers"]
    for one, loop_instructions in counts_of(arch, program(arch, peers)):
        loop, who = one.loop, one.loop.who.replace("_", "-")
        key = (arch, who, loop.operation, loop.by, "" if loop.bytes_copied is None else loop.bytes_copied)
        if _wanted([loop], peers) and task.pending(*key):
            yield {
                "arch": arch,
                "who": who,
                "operation": loop.operation,
                "by": loop.by,
                "bytes_copied": loop.bytes_copied,
                "instructions_per_operation": one.instructions,
                "loop_instructions": loop_instructions,
                "repeats": REPEATS,
                "emulator": counted.emulator_version(arch),
                "compiler": counted.compile.compiler_id(counted.compiler(arch)),
                "peer": librseq.find().title if peers else None,
                "code": None if peers else one.code,
                "reason": why_not_whole(one.instructions),
            }


EXPERIMENT = Experiment(
    name="percpu-instructions",
    question="How many instructions is every per-CPU operation, and what a program would use instead?",
    serves="cost of the fast path without the noise of a machine, on both architectures",
    columns=(
        Column("arch", "text", "the architecture of the counted program", choices=counted.ARCHITECTURES),
        Column("who", "text", "whose section, and where the area's offset comes from", choices=WHO),
        Column(
            "operation", "text", "a section, a structure, what a program would use instead, or the loop alone"
        ),
        Column(
            "by",
            "text",
            "the field of the area that data is indexed by",
            choices=("cpu_id", "mm_cid", "none"),
        ),
        Column(
            "bytes_copied", "int", "by the operation; none where it copies nothing", nullable=True, minimum=1
        ),
        Column("instructions_per_operation", "float", "executed in one turn, the loop included", minimum=1),
        Column("loop_instructions", "float", "of a turn of the same loop without the operation", minimum=1),
        Column("repeats", "int", "times that it was counted, each with the same result", minimum=2),
        Column("emulator", "text", "what executed the program"),
        Column("compiler", "text", "what compiled it"),
        Column("peer", "text", "which headers of librseq, where it is theirs", nullable=True),
        Column(
            "code",
            "text",
            "the instructions of one turn by address, with how often where not once; of ours only",
            nullable=True,
        ),
        Column("reason", "text", "why the count is not a whole number", nullable=True),
    ),
    key=("arch", "who", "operation", "by", "bytes_copied"),
    needs=(LINUX,),
    seconds={"quick": 6, "full": 6},
    plan=plan,
    measure=measure,
)
