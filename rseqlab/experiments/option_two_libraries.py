"""option-two-libraries: do unrelated libraries of different times share the area, in every order and under symbol versions?"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import FUTURE_128, ORIGINAL, SCHEME, SCHEMES, SLICE, SPARE_USED, Scheme

NAMES = ("one", "two", "three")
SCRIPT = ("-DSCRIPT=1",)


def newest(scheme: Scheme):
    """The newest layout that the option can describe, up to 128 bytes."""
    return FUTURE_128 if scheme.largest_bytes > ORIGINAL.bytes else SPARE_USED


def cases(_: str) -> list[Case]:
    """Two and three libraries of different times, every link order, libc before and after them."""
    found = []
    for scheme in SCHEMES:
        provider = newest(scheme)
        middle = SLICE if scheme.largest_bytes > ORIGINAL.bytes else SPARE_USED
        for times in ((ORIGINAL, provider), (ORIGINAL, middle, provider)):
            libraries = [Consumer(name, time) for name, time in zip(NAMES, times, strict=False)]
            for order in permutations(libraries):
                for first in (False, True):
                    names = ", ".join(f"{one.name} {one.layout.name}" for one in order)
                    setup = Setup(scheme, provider, tuple(order), provider_first=first)
                    where = "before" if first else "after"
                    found.append(Case("two-libraries", f"{names}; libc {where} them", setup))
    own = SCHEME["offset-size"]
    pair = (Consumer("one", ORIGINAL), Consumer("two", SPARE_USED))
    setup = scenes.libc_itself(Setup(own, SPARE_USED, pair))
    found.append(Case("two-libraries", "this machine's libc", setup, start="libc"))
    alone = Setup(SCHEME["private"], ORIGINAL, (Consumer("one", ORIGINAL),))
    found.append(Case("two-libraries", "one library beside a libc that registers", alone, start="libc"))
    return found + [case for scheme in SCHEMES for case in _versions(scheme)]


def _versions(scheme: Scheme) -> Iterator[Case]:
    """The symbol gets a version, or loses it, after a library was linked; both ways to keep an old version."""
    provider = newest(scheme)
    if scheme.id == "version-symbol":
        library = Consumer("one", ORIGINAL)
        setup = Setup(scheme, provider, (library,), program=ORIGINAL)
        yield Case("versions", "the old name is the head of the new object", setup)
        separate = replace(setup, provider_flags=("-DOLD_NAME=SEPARATE",))
        yield Case("versions", "the old name is an object of its own", separate)
        return
    for name, linked_with, there in (
        ("linked without a version, runs with one", (), SCRIPT),
        ("linked with a version, runs without one", SCRIPT, ()),
    ):
        library = Consumer("one", ORIGINAL, linked_with=linked_with)
        setup = Setup(scheme, provider, (library,), program=ORIGINAL, provider_flags=there)
        yield Case("versions", name, replace(setup, linked_flags=linked_with))


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-two-libraries",
    "Do unrelated libraries of different times share the area, in every order and under symbol versions?",
    "all options: two and three unrelated libraries, link order, symbol versions",
    cases,
    6,
    measure,
)
