"""option-interposition: somebody else defines the object that libc was to own. Whose definition wins, who overwrites what?

Early adopters defined ``__rseq_abi`` themselves, as the documentation of their time told them. Each object
here has canaries around it; what is overwritten is compared before libc acts, after it, and after the kernel.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from rseqlab.lab.experiment import Task
from rseqlab.options import parties, scenes
from rseqlab.options.parties import Consumer, Scene, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import (
    FUTURE_256,
    LAYOUTS,
    ORIGINAL,
    SCHEME,
    SCHEMES,
    SLICE,
    SPARE_USED,
    Layout,
    Scheme,
)

STRONG, WEAK = '-DDEFINES="globl"', '-DDEFINES="weak"'
UNPADDED = Layout("20-in-24", 20, 24, 8, "the five fields without the spare bytes that the header adds")
DYNAMIC_WEAK = (("LD_DYNAMIC_WEAK", "1"),)
LIBRARY = Consumer("one", ORIGINAL)
LAYOUTS_OF = {"quick": (SPARE_USED, SLICE, FUTURE_256), "full": LAYOUTS[1:]}


def cases(profile: str) -> list[Case]:
    """By the program, by a library before or after libc, by a preloaded one; strong and weak."""
    return [replace(case, more=winner) for scheme in SCHEMES for case in _cases(scheme, profile)]


def _cases(scheme: Scheme, profile: str) -> Iterator[Case]:
    for layout in [layout for layout in LAYOUTS_OF[profile] if layout.bytes <= scheme.largest_bytes]:
        for word, flag in (("strong", STRONG), ("weak", WEAK)):
            for order, first in (("library first", False), ("libc first", True)):
                setup = Setup(scheme, layout, _by_program(flag), provider_first=first)
                yield Case("interpose-program", f"{layout.name}, {word}, {order}", setup)
                early = (Consumer("early", ORIGINAL, "linked", (flag,)), LIBRARY)
                setup = Setup(scheme, layout, early, provider_first=first)
                yield Case("interpose-library", f"{layout.name}, {word}, linked, {order}", setup)
            early = (Consumer("early", ORIGINAL, "preload", (flag,)), LIBRARY)
            yield Case("interpose-library", f"{layout.name}, {word}, preloaded", Setup(scheme, layout, early))
        setup = Setup(scheme, layout, _by_program(WEAK), environment=DYNAMIC_WEAK)
        yield Case("interpose-program", f"{layout.name}, weak, LD_DYNAMIC_WEAK", setup)
    setup = Setup(scheme, SPARE_USED, _by_program(STRONG, UNPADDED), kernel="real")
    yield Case("short-definition", "20-in-24, strong", setup)
    largest = SLICE if scheme.largest_bytes > ORIGINAL.bytes else SPARE_USED
    for name, flag in (("protected", '-DVISIBILITY="protected"'), ("-Bsymbolic", "-Wl,-Bsymbolic")):
        for who, consumers in (("nobody", (LIBRARY,)), ("the program", _by_program(STRONG))):
            setup = Setup(scheme, largest, consumers, provider_flags=(flag,))
            yield Case("visibility", f"{name}, {who} interposes", setup, may_be_refused=True)


def winner(scene: Scene) -> Mapping[str, object]:
    """Whose definition libc itself ended up with, and what it takes it for."""
    lines = scene.of("describe")
    if not lines:
        return {}
    whose = "its own" if all(line.facts["own"] == "1" for line in lines) else "somebody else's"
    least = min(line.number("seen_align") for line in lines)
    said = f"libc uses {whose} definition and takes it for {lines[0].facts['bytes']} bytes"
    asked = lines[0].number("align")
    return {"found": f"{said}, aligned to {asked}" + (f" but found at {least}" if least < asked else "")}


def _by_program(flag: str, layout: Layout = ORIGINAL) -> tuple[Consumer, ...]:
    return (Consumer("program", layout, "program", (flag,)), LIBRARY)


STORAGES = {"thread-local object": "__thread", "ordinary object": ""}


def words(name: str) -> dict:
    """What the loader says of an object that grew since the program was linked with it."""
    setup = Setup(SCHEME["grow-symbol"], SLICE, ())
    scene = parties.used_object(STORAGES[name], ORIGINAL.bytes, SLICE.bytes)
    found = "the loader says so" if scene.said else "the loader says nothing"
    return scenes.base(Case("loader-words", name, setup)) | scenes.read(scene, 0) | {"found": found}


def measure(task: Task) -> Iterator[dict]:
    """One row per scene; then what the loader says of a grown object, thread-local and ordinary."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))
    for name in STORAGES:
        if task.pending("grow-symbol", "loader-words", name):
            yield words(name)


EXPERIMENT = scenes.experiment(
    "option-interposition",
    "Somebody else defines the object that libc was to own: whose definition wins, who overwrites what?",
    "options with a symbol: interposition by program, library and preload; visibility",
    cases,
    8,
    measure,
    extra_rows=lambda profile: len(STORAGES),
)
