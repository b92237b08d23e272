"""option-checker: what does a static ABI checker (abidiff) say of the old and the new provider?

It compares the two files and runs nothing. What really happens to an old library is measured beside it, by
option-skew and option-interposition; the matrix puts the two together.
"""

import shutil
import subprocess
from collections.abc import Iterator

from rseqlab.lab.compile import CompileError
from rseqlab.lab.experiment import Need, Task
from rseqlab.options import parties, scenes
from rseqlab.options.parties import Scene, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import LAYOUTS, ORIGINAL, SCHEMES

CHANGED, INCOMPATIBLE = 4, 8
"""Bits of abidiff's exit code (abidiff(1), "Return values")."""
DEBUG = ("-g",)


def _missing() -> str | None:
    if shutil.which("abidiff"):
        return None
    return "abidiff was not found; `make deps` installs it (package abigail-tools)"


ABIDIFF = Need("abidiff", _missing)


def cases(_: str) -> list[Case]:
    """The original against each later layout."""
    return [
        Case("checker", layout.name, Setup(scheme, layout, ()))
        for scheme in SCHEMES
        for layout in LAYOUTS[1:]
        if layout.bytes <= scheme.largest_bytes
    ]


def compared(case: Case) -> dict:
    """abidiff's exit bits and words for one pair of files."""
    scheme = case.setup.scheme
    flags = (*DEBUG, "-DPLAIN=1") if scheme.symbol else DEBUG
    try:
        old, new = (parties.provider(scheme, layout, *flags) for layout in (ORIGINAL, case.setup.provider))
        result = subprocess.run(["abidiff", old, new], capture_output=True, text=True, timeout=60)
        told = result.stdout or result.stderr
        scene = Scene((), f"exit {result.returncode}", parties.words(told))
    except CompileError as error:
        scene = Scene((), scenes.NOT_BUILT, parties.words(error.said or str(error)))
    except subprocess.TimeoutExpired:
        scene = Scene((), "hung", None)
    words = {0: "no change", CHANGED: "a change"}
    code = int(scene.ended.removeprefix("exit ")) if scene.ended.startswith("exit") else 0
    found = "an incompatible change" if code & INCOMPATIBLE else words.get(code, f"exit code {code}")
    return scenes.base(case) | scenes.read(scene, 0) | {"found_count": code, "found": found}


def measure(task: Task) -> Iterator[dict]:
    """One row per pair of files."""
    wanted = [
        case
        for case in cases(task.arguments["profile"])
        if task.pending(case.option, case.criterion, case.name)
    ]
    yield from parties.side_by_side(compared, wanted)


EXPERIMENT = scenes.experiment(
    "option-checker",
    "What does a static ABI checker say of the old and the new provider, without running them?",
    "all options: abidiff beside what really happens",
    cases,
    3,
    measure,
    needs=(ABIDIFF,),
)
