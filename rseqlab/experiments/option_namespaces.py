"""option-namespaces: a library in a link namespace of its own (dlmopen, LD_AUDIT): does it find the registered area?

A namespace gets its own copy of every library, so of the library that plays libc too. The real libc keeps
what it exports of rseq in the loader, of which a process has one: where it does an option itself
(offset-size), it and not the library that plays it is the party here.
"""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import NO_GROUND, Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEMES

WAYS = {
    "dlmopen": (Consumer("one", ORIGINAL, "isolate"), "plain"),
    "dlmopen, beside a library outside": (Consumer("one", ORIGINAL, "isolate"), "plain"),
    "LD_AUDIT": (Consumer("one", ORIGINAL, "audit", ("-DAUDIT=1",)), "audit"),
}


def cases(_: str) -> list[Case]:
    """Each way for each option; `offset-size` is what the real libc does."""
    found = []
    for name, (inside, scene) in WAYS.items():
        consumers = (inside, Consumer("two", ORIGINAL)) if "beside" in name else (inside,)
        for scheme in SCHEMES:
            setup = Setup(scheme, ORIGINAL, consumers, scene, everywhere=NO_GROUND)
            if scheme.id == "offset-size":
                setup = scenes.libc_itself(setup)
                found.append(Case("namespaces", f"{name}, this machine's libc", setup, start="libc"))
            else:
                found.append(Case("namespaces", name, setup))
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-namespaces",
    "Does a library in a link namespace of its own find the area that libc registered?",
    "all options: dlmopen and audit modules",
    cases,
    3,
    measure,
)
