"""option-legacy-writer: a user keeps a word of its own in cpu_id_start, as TCMalloc has done since 2023. Who suffers?

The others read the area right after the write; the kernel mends the field at the thread's next switch.
"""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEME, SCHEMES

PAIR = (Consumer("one", ORIGINAL), Consumer("two", ORIGINAL))


def cases(_: str) -> list[Case]:
    """A writer and a reader; for `private` the writer alone, because nobody shares its area."""
    found = []
    for scheme in SCHEMES:
        alone = scheme.id == "private"
        setup = Setup(scheme, ORIGINAL, PAIR[:1] if alone else PAIR, "legacy")
        found.append(Case("legacy-writer", "the writer alone" if alone else "one writes, two reads", setup))
    setup = scenes.libc_itself(Setup(SCHEME["offset-size"], ORIGINAL, PAIR, "legacy"))
    return [*found, Case("legacy-writer", "this machine's libc", setup, start="libc")]


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-legacy-writer",
    "A user keeps a word of its own in cpu_id_start: who else reads it?",
    "all options: a legacy user that overwrites cpu_id_start",
    cases,
    2,
    measure,
)
