"""option-ptrace: a debugger or checkpointer asks the kernel where a thread's area is: does it find all of it?"""

from collections.abc import Iterator, Mapping

from rseqlab.lab.experiment import Task
from rseqlab.options import parties, scenes
from rseqlab.options.parties import Consumer, Scene, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEME, SCHEMES, SLICE, SPARE_USED


def configuration(scene: Scene) -> Mapping[str, object]:
    """How many bytes PTRACE_GET_RSEQ_CONFIGURATION gave, at the right address."""
    for line in scene.of("ptrace"):
        if answer := line.number("answer"):
            return {"found_bytes": 0, "found": f"ptrace answers {parties.errno_name(answer)}"}
        right = line.facts["address_right"] == "1"
        return {
            "found_bytes": line.number("bytes") if right else 0,
            "found": f"{line.facts['bytes']} bytes at {'the' if right else 'another'} address",
        }
    return {}


def cases(_: str) -> list[Case]:
    """The real kernel for every option: a debugger asks no other."""
    found = []
    for scheme in SCHEMES:
        layout = SLICE if scheme.largest_bytes > ORIGINAL.bytes else SPARE_USED
        private = scheme.id == "private"
        consumer = Consumer("one", layout if private else ORIGINAL, "load" if private else "linked")
        setup = Setup(scheme, layout, (consumer,), "ptrace", kernel="real", program=layout)
        found.append(Case("ptrace", layout.name, setup, more=configuration))
    setup = Setup(SCHEME["offset-size"], ORIGINAL, (Consumer("one", ORIGINAL),), "ptrace")
    libc = scenes.libc_itself(setup)
    return [*found, Case("ptrace", "this machine's libc", libc, start="libc", more=configuration)]


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-ptrace",
    "Does PTRACE_GET_RSEQ_CONFIGURATION find the area, and all of it?",
    "all options: a debugger or checkpoint that must find the area",
    cases,
    2,
    measure,
)
