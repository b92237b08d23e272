"""option-static: static programs: the option linked in for good, interposed, and with a library opened late."""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import NO_GROUND, Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEMES, SLICE, SPARE_USED

DEFINES = ('-DDEFINES="globl"',)


def cases(_: str) -> list[Case]:
    """Alone, with a definition of its own, with an old layout inside, with a library by dlopen."""
    found = []
    for scheme in SCHEMES:
        newest = SLICE if scheme.largest_bytes > ORIGINAL.bytes else SPARE_USED
        ways = {
            "one time": (Consumer("program", newest, "program"),),
            "old objects, new libc": (Consumer("program", ORIGINAL, "program"),),
            "defines the object": (Consumer("program", ORIGINAL, "program", DEFINES),),
            "opens a library": (
                Consumer("program", newest, "program"),
                Consumer("one", newest, "load"),
            ),
        }
        for name, consumers in ways.items():
            setup = Setup(scheme, newest, consumers, static=True, everywhere=NO_GROUND)
            refusable = name == "defines the object"
            if scheme.id == "offset-size":  # the real one is in every static program, so no other can be
                libc = scenes.libc_itself(setup)
                found.append(Case("static", name, libc, start="libc", may_be_refused=refusable))
            else:
                found.append(Case("static", name, setup, may_be_refused=refusable))
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-static",
    "Does a static program find the area, and what becomes of a library that it opens?",
    "all options: static linking",
    cases,
    4,
    measure,
)
