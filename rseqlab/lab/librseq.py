"""Where the reader's headers of librseq are, the C library of the same operations. None of it is in this project."""

import hashlib
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "RSEQLAB_LIBRSEQ"
REMEDY = (
    f"set {VARIABLE} to a checkout of librseq, to its include folder, or to a Linux source tree (whose "
    "tools/testing/selftests/rseq holds the same operations)"
)
NAMES_2024 = "rseq_load_cbne_store__ptr"
NAMES_BEFORE = "rseq_cmpeqv_storev"


@dataclass(frozen=True)
class Headers:
    """One copy of the headers: where it lies, how it is included and which names its operations have."""

    folder: Path
    include: str
    names_2024: bool
    files: tuple[Path, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """For the compiler; warnings inside them are not ours to show."""
        names = ("-DRSEQLAB_PEER_NAMES_2024",) if self.names_2024 else ()
        return (f"-DRSEQLAB_PEER={self.include}", *names, "-isystem", str(self.folder))

    @property
    def title(self) -> str:
        """What they are, by shape and content; no path."""
        total = hashlib.sha256()
        for path in self.files:
            total.update(path.name.encode() + b"\0" + path.read_bytes())
        kind = "librseq" if self.include.startswith("<rseq/") else "librseq in the Linux kernel's selftests"
        return f"{kind}, headers with digest {total.hexdigest()[:12]}"


def find() -> Headers | None:
    """The headers that $RSEQLAB_LIBRSEQ names, or those that are installed; None where there are none."""
    named = os.environ.get(VARIABLE)
    folders = [Path(named).absolute()] if named else [*_by_pkg_config(), Path("/usr/include")]
    return next(filter(None, (_in(folder) for folder in folders)), None)


def missing() -> str | None:
    """Why there is nothing to compare with, with the remedy, or None."""
    if find():
        return None
    if os.environ.get(VARIABLE):  # its value stays out: the reason goes into bundles
        return (
            f"Below the folder that {VARIABLE} names is no include/rseq/rseq.h, rseq/rseq.h, "
            "tools/testing/selftests/rseq/rseq.h or rseq.h that has the operations by index mode (librseq since "
            f"2022, Linux since 6.3); {REMEDY}."
        )
    return f"The headers of librseq are not installed; {REMEDY}."


def _by_pkg_config() -> list[Path]:
    try:
        said = subprocess.run(
            ["pkg-config", "--cflags-only-I", "librseq"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [Path(word.removeprefix("-I")) for word in shlex.split(said.stdout)]


def _in(folder: Path) -> Headers | None:
    places = (
        (folder / "include", "<rseq/rseq.h>", "rseq/rseq.h"),
        (folder, "<rseq/rseq.h>", "rseq/rseq.h"),
        (folder / "tools/testing/selftests/rseq", '"rseq.h"', "rseq.h"),
        (folder, '"rseq.h"', "rseq.h"),
    )
    for place, include, name in places:
        header = place / name
        if not header.is_file():
            continue
        text = header.read_text(errors="replace")
        # Before `enum rseq_percpu_mode` (2022) the operations took no index: another interface.
        if "rseq_percpu_mode" in text and (NAMES_2024 in text or NAMES_BEFORE in text):
            files = tuple(sorted(header.parent.rglob("*.h") if "/" in name else place.glob("*.h")))
            return Headers(place, include, NAMES_2024 in text, files)
    return None
