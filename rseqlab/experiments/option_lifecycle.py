"""option-lifecycle: fork, vfork, exec, the end of threads, cancellation, and a library that goes while it is registered."""

from collections.abc import Iterator

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import NO_GROUND, Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEME, SCHEMES, SLICE, SPARE_USED

SCENES = {
    "fork": "lifecycle",
    "exec": "lifecycle",
    "threads-end": "lifecycle",
    "cancel": "lifecycle",
    "unload": "lifecycle",
    "vfork": "vfork",
}
UNLOADED = {
    "unload, initial-exec": ("initial-exec", "unload"),
    "unload, initial-exec, the next library holds zeros": ("initial-exec", "unload:0"),
    "unload, global-dynamic": ("global-dynamic", "unload"),
}
"""The library that is opened next, where the registered area lay, holds canaries, or zeros: a kernel that finds
canaries where the area was takes them for the address of a critical section's descriptor."""


def cases(_: str) -> list[Case]:
    """Each event for each option; unloading where the library was opened late, under two TLS models."""
    found = []
    for scheme in SCHEMES:
        newest = SLICE if scheme.largest_bytes > ORIGINAL.bytes else SPARE_USED
        for scene, criterion in SCENES.items():
            if scene != "unload":
                setup = Setup(scheme, newest, (Consumer("one", newest),), scene)
                found.append(Case(criterion, scene, setup))
                continue
            for name, (model, what) in UNLOADED.items():
                late = Consumer("one", newest, "load", (f'-DTLS_MODEL="{model}"',))
                setup = Setup(scheme, newest, (late,), what, program=newest, everywhere=NO_GROUND)
                found.append(Case(criterion, name, setup))
    own = SCHEME["offset-size"]
    for scene, criterion in SCENES.items():
        how = "load" if scene == "unload" else "linked"
        setup = scenes.libc_itself(Setup(own, ORIGINAL, (Consumer("one", ORIGINAL, how),), scene))
        found.append(Case(criterion, f"{scene}, this machine's libc", setup, start="libc"))
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-lifecycle",
    "Do fork, exec, the end of threads, cancellation and dlclose leave everybody right?",
    "all options: fork, vfork, exec, thread exit, cancellation, unloading",
    cases,
    4,
    measure,
)
