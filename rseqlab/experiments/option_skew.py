"""option-skew: does a library of one time work with the libc of another, and how far can the struct grow?

Consumer and provider are built from one source with two layouts. Each consumer is linked against the
provider of its own time and runs with the other one, once as a library and once as the program itself.
"""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import LAYOUTS, ORIGINAL, SCHEME, SCHEMES, SLICE, SPARE_USED, Layout, Scheme

READERS = {"library": Consumer("one", ORIGINAL), "program": Consumer("program", ORIGINAL, "program")}


def skewed(scheme: Scheme, runs_with: Layout, built_for: Layout, reader: str, **more) -> Setup:
    """A consumer built for one layout, with a provider of another."""
    one = READERS[reader]
    return Setup(scheme, runs_with, (Consumer(one.name, built_for, one.how),), **more)


def cases(_: str) -> list[Case]:
    """Both directions, for every layout that the option can describe; each layout with itself for the room."""
    found = []
    for scheme in SCHEMES:
        for layout in LAYOUTS[1:]:
            pairs = {"old-consumer": (layout, ORIGINAL), "new-consumer": (ORIGINAL, layout)}
            for reader in READERS:
                name = f"{layout.name}, {reader}"
                found.append(Case("room", name, skewed(scheme, layout, layout, reader), may_be_refused=True))
                if layout.bytes <= scheme.largest_bytes:
                    found += [
                        Case(criterion, name, skewed(scheme, *pair, reader))
                        for criterion, pair in pairs.items()
                    ]
        for layout in (SPARE_USED, SLICE):
            if layout.bytes <= scheme.largest_bytes:
                setup = skewed(scheme, layout, layout, "library", kernel="real")
                found.append(Case("kernel-today", layout.name, setup))
    own = SCHEME["offset-size"]
    for reader in READERS:
        for criterion, layout in (("old-consumer", ORIGINAL), ("new-consumer", SPARE_USED)):
            setup = scenes.libc_itself(skewed(own, layout, layout, reader))
            found.append(Case(criterion, f"this machine's libc, {reader}", setup, start="libc"))
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-skew",
    "Does a library of one time work with the libc of another, and how far can the struct grow?",
    "all options: old consumer on new provider, new consumer on old provider, room, today's kernel",
    cases,
    5,
    measure,
)
