"""option-skew: does a library of one time work with the libc of another?

Consumer and provider are built from one source with two layouts. Each consumer is linked against the
provider of its own time and runs with the other one, once as a library and once as the program itself.
"""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import parties, scenes
from rseqlab.options.parties import PROVIDER, Scene
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import LAYOUTS, ORIGINAL, SCHEME, SCHEMES, SPARE_USED, Layout, Scheme

READERS = ("library", "program")


def skewed(scheme: Scheme, runs_with: Layout, built_for: Layout, reader: str, *flags: str) -> Scene:
    """A consumer built for one layout, with a provider of another."""
    own = parties.provider(scheme, built_for, *flags)
    libraries = {PROVIDER: own}
    if reader == "library":
        libraries = {"libone.so": parties.consumer("one", scheme, built_for, own, *flags)} | libraries
    executable = parties.program(scheme, built_for, libraries, *flags, own_consumer=reader == "program")
    there = libraries | {PROVIDER: parties.provider(scheme, runs_with, *flags)}
    step = "one" if reader == "library" else "program"
    return parties.play(executable, [step], there, libc=scenes.given_libc())


def cases(_: str) -> list[Case]:
    """Both directions, for every layout that the option can describe."""
    found = []
    for scheme in SCHEMES:
        for layout in LAYOUTS[1:]:
            if layout.bytes > scheme.largest_bytes:
                continue
            for criterion, runs_with, built_for in (
                ("old-consumer", layout, ORIGINAL),
                ("new-consumer", ORIGINAL, layout),
                ("control", layout, layout),
            ):
                for reader in READERS:
                    found.append(
                        Case(
                            scheme.id,
                            criterion,
                            f"{layout.name}, {reader}",
                            lambda s=scheme, r=runs_with, b=built_for, w=reader: skewed(s, r, b, w),
                            runs_with.name,
                            (built_for.name,),
                        )
                    )
    own = SCHEME["offset-size"]
    for criterion, layout in (("old-consumer", ORIGINAL), ("new-consumer", SPARE_USED)):
        for reader in READERS:
            found.append(
                Case(
                    own.id,
                    criterion,
                    f"libc itself, {reader}",
                    lambda b=layout, w=reader: skewed(own, b, b, w, "-DLIBC=1"),
                    "libc",
                    (layout.name,),
                    start="libc",
                )
            )
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-skew",
    "Does a library of one time work with the libc of another, under each option?",
    "all options: old consumer on new provider, new consumer on old provider",
    cases,
    5,
    measure,
)
