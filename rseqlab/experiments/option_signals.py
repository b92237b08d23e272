"""option-signals: the first use of rseq happens in a signal handler, at the worst moments.

A library that registers at first use is interrupted just before and just after its call; the handler uses
rseq as well. And a first touch of the area itself: a thread-local object of a library that was opened late
may have to be allocated, which no handler may do; allocations inside the handler are counted.
"""

from collections.abc import Iterator, Mapping

from rseqlab.experiments.option_dlopen import MODELS
from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import NO_GROUND, Consumer, Scene, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEME, SCHEMES

MOMENTS = {1: "interrupted before the call", 2: "interrupted after the call"}
USERS = {"takes EBUSY for a refusal": (), "takes EBUSY for its own": ("-DCAREFUL=1",)}


def allocations(scene: Scene) -> Mapping[str, object]:
    """How often the handler allocated, over all threads."""
    counts = [line.number("count") for line in scene.of("allocated")]
    return {"found_count": max(counts, default=0), "found": "allocations inside the signal handler"}


def cases(_: str) -> list[Case]:
    """The interrupted registration, and the first touch under each TLS model."""
    found = []
    for scheme in SCHEMES:
        for user, flags in USERS.items():
            for moment, words in MOMENTS.items():
                setup = Setup(scheme, ORIGINAL, (Consumer("one", ORIGINAL, flags=flags),), f"lazily:{moment}")
                found.append(Case("signals", f"{user}, {words}", setup))
        for model, flags in MODELS.items():
            if model == "local-dynamic" and scheme.id != "private":
                continue  # another object's variable cannot be reached that way
            late = Consumer("one", ORIGINAL, "load", flags)
            setup = Setup(
                scheme,
                ORIGINAL,
                (late,),
                "first-touch",
                program_flags=("-DCOUNTS_ALLOCATIONS=1",),
                everywhere=NO_GROUND,
            )
            found.append(Case("signals", f"first touch, {model}", setup, more=allocations))
    late = Consumer("one", ORIGINAL, "load")
    setup = Setup(
        SCHEME["offset-size"],
        ORIGINAL,
        (late,),
        "first-touch",
        program_flags=("-DCOUNTS_ALLOCATIONS=1",),
        everywhere=NO_GROUND,
    )
    found.append(
        Case(
            "signals",
            "first touch, this machine's libc",
            scenes.libc_itself(setup),
            start="libc",
            more=allocations,
        )
    )
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-signals",
    "Is a first use of rseq from a signal handler safe, at the worst moments?",
    "all options: lazy registration from a nested handler against registration at start",
    cases,
    4,
    measure,
)
