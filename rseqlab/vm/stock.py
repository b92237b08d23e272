"""Fetches what guests are made of: kernels and libcs, several at once, with one download."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rseqlab.vm import cache, kernels, libcs, packages
from rseqlab.vm.kernels import Kernel
from rseqlab.vm.libcs import Libc
from rseqlab.vm.packages import Progress, quiet

ASK_AGAIN_S = 3600
"""An answer of the package source that is older may name packages that it has replaced since."""


@dataclass(frozen=True)
class Fetched:
    """What is in the cache now; ``new`` of them were not before."""

    kernels: tuple[Kernel, ...]
    libcs: tuple[Libc, ...]
    new: int


STEPS = (("package lists", 30.0), ("download", 15.0), ("unpacking", 15.0))
"""What ``progress`` is called with, and about how many seconds each takes for the default set."""


def defaults() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The default set: (series, architecture) of kernels, (name, architecture) of libcs."""
    return (
        [(series, arch) for series in kernels.SERIES for arch in kernels.ARCHS],
        [(name, arch) for name in libcs.VERSIONS for arch in kernels.ARCHS],
    )


def fetch(
    wanted_kernels: Sequence[tuple[str, str]],
    wanted_libcs: Sequence[tuple[str, str]],
    progress: Progress = quiet,
    fresh: bool = False,
) -> Fetched:
    """See that these are in the cache; what is not is downloaded. Raises LabError in one sentence.

    With ``fresh`` the package source is asked again, so that what it has replaced since comes anew.
    """
    with cache.lock():
        return _fetched(wanted_kernels, wanted_libcs, progress, fresh)


def _fetched(
    wanted_kernels: Sequence[tuple[str, str]],
    wanted_libcs: Sequence[tuple[str, str]],
    progress: Progress,
    fresh: bool,
) -> Fetched:
    if fresh:
        progress("package lists", 0, 1)
        packages.refresh()
    try:
        return _fetch(wanted_kernels, wanted_libcs, progress)
    except packages.PackageError:
        asked = packages.offer()
        if fresh or asked is None or time.time() - asked["asked_unix_s"] < ASK_AGAIN_S:
            raise
    progress("package lists", 0, 1)
    packages.refresh()
    return _fetch(wanted_kernels, wanted_libcs, progress)


def _fetch(
    wanted_kernels: Sequence[tuple[str, str]], wanted_libcs: Sequence[tuple[str, str]], progress: Progress
) -> Fetched:
    if packages.offer() is None:
        progress("package lists", 0, 1)
        packages.refresh()
    progress("package lists", 1, 1)
    chosen = [(kernels, kernels.package(*one)) for one in dict.fromkeys(wanted_kernels)]
    chosen += [(libcs, libcs.package(*one)) for one in dict.fromkeys(wanted_libcs)]
    chosen = list(dict.fromkeys(chosen))
    absent = [(kind, package) for kind, package in chosen if not kind.here(package)]
    if absent:
        with cache.scratch() as space:
            debs = packages.download(
                list(dict.fromkeys(one for kind, package in absent for one in kind.needed(package))),
                space,
                progress,
            )
            for number, (kind, package) in enumerate(absent):
                progress("unpacking", number, len(absent))
                kind.keep(package, debs)
            progress("unpacking", len(absent), len(absent))
    return Fetched(
        tuple(kernels.here(package) for kind, package in chosen if kind is kernels),
        tuple(libcs.here(package) for kind, package in chosen if kind is libcs),
        len(absent),
    )
