"""option-dlopen: a library that needs the area is opened late: under each TLS model, and with static TLS used up.

The reserve of static TLS is a property of the loader (glibc.rtld.optional_static_tls): how much of it one
library can take is searched for by halving, with the loader's own words where it refuses.
"""

import platform
from collections.abc import Iterator
from pathlib import Path

from rseqlab.lab.experiment import Task
from rseqlab.options import parties, scenes
from rseqlab.options.parties import NO_GROUND, Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import LAYOUTS, ORIGINAL, SCHEME, SCHEMES, SLICE, SPARE_USED

RESERVES = {"quick": (None, 0, 4096), "full": (None, 0, 256, 1024, 4096, 16384)}
DIALECT = "-mtls-dialect=" + ("desc" if platform.machine() == "aarch64" else "gnu2")
MODELS = {
    "global-dynamic": ('-DTLS_MODEL="global-dynamic"',),
    "local-dynamic": ('-DTLS_MODEL="local-dynamic"',),
    "initial-exec": ('-DTLS_MODEL="initial-exec"',),
    "descriptors": ('-DTLS_MODEL="global-dynamic"', DIALECT),
}
STEP_BYTES = 64
MOST_BYTES = 32768


def cases(_: str) -> list[Case]:
    """Each TLS model with and without room; local-dynamic only where the library has TLS of its own."""
    found = []
    for scheme in SCHEMES:
        layouts = [layout for layout in LAYOUTS if layout.bytes <= scheme.largest_bytes]
        newest = SLICE if SLICE in layouts else SPARE_USED
        for model, flags in MODELS.items():
            if model == "local-dynamic" and scheme.id != "private":
                continue
            for layout in (ORIGINAL, newest):
                late = Consumer("one", layout, "load", flags)
                setup = Setup(scheme, newest, (late,), program=newest, everywhere=NO_GROUND)
                found.append(Case("dlopen", f"{model}, {layout.name}", setup))
                full = Setup(scheme, newest, (late,), program=newest, fill=True, everywhere=NO_GROUND)
                found.append(Case("static-tls", f"{model}, {layout.name}", full))
    own = SCHEME["offset-size"]
    late = Consumer("one", SPARE_USED, "load")
    for criterion, fill in (("dlopen", False), ("static-tls", True)):
        setup = scenes.libc_itself(Setup(own, SPARE_USED, (late,), fill=fill, everywhere=NO_GROUND))
        found.append(Case(criterion, "this machine's libc", setup, start="libc"))
    return found


def _reserve_name(tunable: int | None) -> str:
    return "the loader's own" if tunable is None else f"{tunable} bytes"


def _reserve(tunable: int | None, libc: Path | None) -> dict:
    """The largest static TLS that one more library can have under this tunable, and the words beyond it."""
    value = "glibc.pthread.rseq=0"
    if tunable is not None:
        value += f":glibc.rtld.optional_static_tls={tunable}"
    scheme = SCHEME["private"]

    def tried(size: int) -> parties.Scene:
        late = {"liblate.so": parties.filler("liblate.so", size)}
        return Setup(
            scheme,
            ORIGINAL,
            (),
            scene="main",
            environment=(("GLIBC_TUNABLES", value),),
            late=tuple(late.items()),
            libc=libc,
        ).play()

    low, high, refusal = 0, MOST_BYTES, None
    while high - low > STEP_BYTES:
        size = (low + high) // 2 // STEP_BYTES * STEP_BYTES
        scene = tried(size)
        if scene.ended == "exit 0":
            low = size
        else:
            high, refusal = size, scene
    base = scenes.base(Case("reserve", _reserve_name(tunable), Setup(scheme, ORIGINAL, ())))
    read = scenes.read(refusal or tried(low), 0)
    found = f"one library may have {low} bytes of static TLS, {high} are refused"
    return base | read | {"found_bytes": low, "found": found}


def measure(task: Task) -> Iterator[dict]:
    """One row per scene; one row per setting of the reserve."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))
    if task.arguments["start"] == "none":
        for tunable in RESERVES[task.arguments["profile"]]:
            if task.pending("private", "reserve", _reserve_name(tunable)):
                yield _reserve(tunable, scenes.given_libc(task))


EXPERIMENT = scenes.experiment(
    "option-dlopen",
    "What becomes of a library that is opened late, under each TLS model, and once static TLS is used up?",
    "all options: dlopen by TLS model, static TLS exhausted, the loader's reserve",
    cases,
    8,
    measure,
    extra_rows=lambda profile: len(RESERVES[profile]),
)
