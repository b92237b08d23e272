"""Answers of commands that only read, kept beside what they were made of: asked again, they need no table.

An answer is found again only where everything that it was made of is unchanged: the code, the data and notebooks, every
run that could be shown, the machine's kernel and libc, and the variables that choose among them. Of files their sizes,
times and numbers are compared, not their content. Deleting the folder costs nothing but time.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rseqlab import __version__, paths

MOST_ANSWERS = 200
"""Older ones are deleted."""
CHOOSING_VARIABLES = (
    "RSEQLAB_RUN",
    "RSEQLAB_RUNS",
    "RSEQLAB_CACHE",
    "RSEQLAB_LIBRSEQ",
    "GLIBC_TUNABLES",
    "PATH",
)


def remembered(command: str, asked: dict, make: Callable[[], dict], *runs: Path | None) -> dict:
    """What ``make`` answers to ``asked``, or what it answered when everything was as it is now.

    ``runs`` are the runs that were named on the command line. Exceptions of ``make`` are not kept.
    """
    file = paths.answers_folder() / f"{command}-{_key(command, asked, runs)}.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        answer = make()
        _keep(file, answer)
        return answer


def _key(command: str, asked: dict, runs: Iterable[Path | None]) -> str:
    libc = "confstr" in dir(os) and "CS_GNU_LIBC_VERSION" in os.confstr_names
    parts = [
        f"{datetime.now(UTC):%Y-%m-%d %H}",  # answers say how old a run is, by the hour
        *(command, json.dumps(asked, sort_keys=True), __version__, sys.version, *os.uname()[2:]),
        *(os.confstr("CS_GNU_LIBC_VERSION") if libc else platform.libc_ver()[1] or "", str(Path.cwd())),
        *(f"{name}={os.environ.get(name)}" for name in CHOOSING_VARIABLES),
        *_states(paths.PACKAGE, "*.py", "*.h", "*.c", "*.json"),
        *_states(paths.project_root() / "data", "*"),
        *_states(paths.runs_folder(), "*"),
        *(state for run in runs if run is not None for state in _states(run, "*")),
        *(state for place in os.get_exec_path() for state in _state(Path(place))),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _states(folder: Path, *patterns: str) -> Iterator[str]:
    """What is there, by name: size, time and number of each file."""
    yield from _state(folder)
    for pattern in patterns:
        for path in sorted(folder.rglob(pattern)):
            yield from _state(path)


def _state(path: Path) -> Iterator[str]:
    try:
        facts = path.stat()
    except OSError:
        return
    yield f"{path} {facts.st_size} {facts.st_mtime_ns} {facts.st_ino}"


def _keep(file: Path, answer: dict) -> None:
    """Write it down where that can be done; an answer that cannot be kept is an answer all the same."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(answer, allow_nan=False))
        os.replace(temporary, file)
        kept = sorted(file.parent.glob("*.json"), key=lambda one: one.stat().st_mtime_ns, reverse=True)
        for old in kept[MOST_ANSWERS:]:
            old.unlink(missing_ok=True)
    except OSError:
        temporary.unlink(missing_ok=True)
