"""option-alignment: does the object lie at the alignment that it asks for, in programs, libraries and small threads?"""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import NO_GROUND, Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import LAYOUTS, ORIGINAL, SCHEME, SCHEMES

LATE = {
    "opened late, global-dynamic": ('-DTLS_MODEL="global-dynamic"',),
    "opened late, initial-exec": ('-DTLS_MODEL="initial-exec"',),
}


def cases(_: str) -> list[Case]:
    """Every layout; for `private` also in the library that is opened late, where the area is its own."""
    found = []
    for scheme in SCHEMES:
        for layout in LAYOUTS:
            if layout.bytes > scheme.largest_bytes:
                continue
            ways = {
                "library": Consumer("one", layout),
                "program": Consumer("program", layout, "program"),
            } | {name: Consumer("one", layout, "load", flags) for name, flags in LATE.items()}
            for name, consumer in ways.items():
                setup = Setup(
                    scheme, layout, (consumer,), "small-stack", program=layout, everywhere=NO_GROUND
                )
                found.append(Case("alignment", f"{layout.name}, {name}", setup))
        if scheme.symbol and scheme.largest_bytes > ORIGINAL.bytes:
            early = Consumer("early", ORIGINAL, "preload", ('-DDEFINES="globl"',))
            setup = Setup(scheme, LAYOUTS[-1], (early,), "small-stack", everywhere=NO_GROUND)
            found.append(Case("alignment", f"{LAYOUTS[-1].name}, interposed with {ORIGINAL.name}", setup))
    own = SCHEME["offset-size"]
    setup = scenes.libc_itself(
        Setup(own, ORIGINAL, (Consumer("one", ORIGINAL),), "small-stack", everywhere=NO_GROUND)
    )
    found.append(Case("alignment", "this machine's libc", setup, start="libc"))
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-alignment",
    "Does the object lie at the alignment that it asks for, in programs, libraries and small threads?",
    "all options: alignment honoured",
    cases,
    6,
    measure,
)
