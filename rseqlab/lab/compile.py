"""Builds an experiment's C with the system's compiler, once: the result lies at a path that its content names.

Nothing is written outside the cache folder, and nothing half-built is ever found there.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

from rseqlab.errors import LabError
from rseqlab.lab.experiment import Need
from rseqlab.paths import PACKAGE, cache_folder

Made = TypeVar("Made")
TIMEOUT_S = 120


class CompileError(LabError):
    """The compiler or the linker refused; ``said`` has its own words and ``command`` what was asked of it."""

    def __init__(self, message: str, command: Sequence[str] = (), said: str = ""):
        super().__init__(message)
        self.command = tuple(command)
        self.said = said


@dataclass(frozen=True)
class Target:
    """One compiler call. ``depends`` are files that the sources include: the result's name covers them too."""

    name: str
    sources: tuple[Path, ...]
    flags: tuple[str, ...] = ()
    compiler: str = "cc"
    depends: tuple[Path, ...] = field(default=())

    def command(self, output: Path) -> list[str]:
        """Sources first, so that libraries and objects among the flags are linked after them."""
        return [self.compiler, *map(str, self.sources), *self.flags, "-o", str(output)]


FILLED_BY = "filled-by.json"
"""In a cache folder that another machine filled: what each compiler's name stands for, by :func:`compiler_id`."""


@cache
def compiler_id(compiler: str) -> str:
    """The first line of ``compiler --version``; where there is no such compiler, what filled the cache in its place.

    Raises CompileError where there is neither.
    """
    if reason := missing(compiler):
        try:
            return json.loads((cache_folder() / FILLED_BY).read_text())[compiler]
        except (OSError, ValueError, KeyError):
            raise CompileError(reason) from None
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S)
    return said.stdout.partition("\n")[0]


def missing(compiler: str = "cc") -> str | None:
    """Why nothing can be built with this compiler, or None. What was built before may be there all the same."""
    if shutil.which(compiler):
        return None
    return f"No {compiler} was found; `make deps` installs what the lab compiles with."


COMPILER = Need("a C compiler", missing)


def build(target: Target) -> Path:
    """The built file. Raises CompileError with the compiler's words."""
    total = hashlib.sha256(compiler_id(target.compiler).encode())
    for flag in target.flags:
        total.update(flag.replace(str(PACKAGE), "").encode() + b"\0")
    for path in (*target.sources, *target.depends):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return produce(target.name, total.hexdigest(), lambda made: run(target, made), target.compiler)


def produce(name: str, digest: str, make: Callable[[Path], None], compiler: str = "cc") -> Path:
    """The file in the cache that ``digest`` names; ``make`` writes it to the path that it is given where it is missing.

    Raises CompileError with the compiler's words. Two processes that make the same at once both succeed: each
    writes its own file and renames it. An interrupt leaves nothing behind.
    """
    output = cache_folder() / f"{digest[:16]}-{name}"
    if output.exists():
        return output
    if reason := missing(compiler):
        raise CompileError(f"{name}: {reason} Nothing was built of these sources before.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(
            f"Could not create {output.parent}: {error.strerror}. Set RSEQLAB_CACHE to a folder that is writable."
        ) from None
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        made = Path(scratch) / name
        make(made)
        os.replace(made, output)
    return output


def run(target: Target, output: Path) -> None:
    """One compiler call. Raises CompileError with the compiler's words."""
    command = target.command(output)
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | {"LC_ALL": "C.UTF-8"}
        )
    except subprocess.TimeoutExpired:
        raise CompileError(f"{target.name}: the compiler still ran after {TIMEOUT_S} s", command) from None
    if result.returncode:
        raise CompileError(
            f"{target.name}: {target.compiler} refused: {result.stderr.strip()[:500]}", command, result.stderr
        )


def attempt(make: Callable[[], Made]) -> tuple[Made | None, str | None]:
    """What ``make`` builds and None, or None and why it cannot be built: what a plan needs for its ``skip``."""
    try:
        return make(), None
    except CompileError as error:
        return None, str(error)
