"""Where kernels, libcs and images are kept: written to a temporary name, then renamed. Nothing half-written is found."""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab import compile

LEFT_BEHIND_S = 24 * 3600


class CacheError(LabError):
    """The cache could not be written; nothing of what was attempted is in it."""


def top() -> Path:
    """``vm`` below $RSEQLAB_CACHE, ``build`` in the checkout, or the reader's cache folder."""
    given = os.environ.get("RSEQLAB_CACHE")
    return (Path(given) if given else compile.cache_folder().parent) / "vm"


def folder(name: str) -> Path:
    """A folder of the cache, made."""
    path = top() / name
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(
            f"Could not create {path}: {error.strerror}. Set RSEQLAB_CACHE to a folder that is writable."
        ) from None
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder on the cache's own disk, gone afterwards; a full disk is one sentence."""
    with _said_plainly(top()), tempfile.TemporaryDirectory(dir=folder("partial")) as made:
        yield Path(made)


@contextmanager
def writing(output: Path) -> Iterator[Path]:
    """A temporary name; the file or folder that lies there when the block ends becomes ``output`` in one step."""
    with scratch() as space:
        partial = space / output.name
        yield partial
        into_place(partial, output)


_held = 0


@contextmanager
def lock() -> Iterator[None]:
    """One process at a time fetches; another one waits, and then finds what this one fetched."""
    global _held
    if _held:
        yield
        return
    with open(folder("partial").parent / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        _held += 1
        _forget_left_behind()
        try:
            yield
        finally:
            _held -= 1


def _forget_left_behind() -> None:
    """What a process that was killed left in the scratch folder: what is older than any work takes."""
    for path in folder("partial").iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(path)


def into_place(made: Path, home: Path) -> None:
    """A finished file or folder becomes ``home`` in one step; what lay there before is replaced."""
    home.parent.mkdir(parents=True, exist_ok=True)
    if home.is_dir():  # a folder cannot be renamed over another
        os.replace(home, made.parent / "replaced")  # gone with the scratch
    os.replace(made, home)


@contextmanager
def _said_plainly(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CacheError(
                f"The disk of {place} is full; what was being written was removed. Free some space "
                "(`rseqlab kernels clean` empties this cache) or set RSEQLAB_CACHE to another disk."
            ) from None
        raise


def size_bytes(path: Path | None = None) -> int:
    """What lies below ``path`` (the whole cache by default) takes, links not followed."""
    total = 0
    for place, _, names in os.walk(path or top()):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
    return total


def clean() -> dict[str, int]:
    """Remove all of it. Returns the bytes that each part of it took."""
    freed = {}
    if top().is_dir():
        for part in sorted(top().iterdir()):
            freed[part.name] = size_bytes(part) if part.is_dir() else part.lstat().st_size
            shutil.rmtree(part) if part.is_dir() else part.unlink()
    return freed
