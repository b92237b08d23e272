"""Runs on their way between machines: one file for a run, opened as what a stranger made, and studies of many.

What is exported is a packed run (lab/archive.py). The gzipped tar archives that were exported before are read too.
"""

import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from rseqlab.lab import archive as packed
from rseqlab.lab import bundle
from rseqlab.lab.archive import LARGEST_UNPACKED_BYTES, MEMBER, MOST_MEMBERS, SUFFIX, bundles_in, files_of
from rseqlab.lab.bundle import Bundle, BundleError
from rseqlab.lab.experiment import Experiment
from rseqlab.lab.runner import private_words

LARGEST_ARCHIVE_BYTES = 1 << 27
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Exported:
    """What was written: the archive, the digest of the run inside it, and in which files private words were replaced."""

    path: Path
    digest: str
    redacted: tuple[str, ...]


def name_of(run: Bundle) -> str:
    """What a run is called among others: its id and the beginning of its digest."""
    return f"{run.run['run_id']}-{run.digest[:12]}"


def pack(path: Path, out: Path | None, catalogue: Mapping[str, Experiment]) -> Bundle:
    """Check a run and write it as one file, ``out`` or ``<its name>.zip`` beside it; returns the packed run.

    Its digest is the run's own. Raises BundleError.
    """
    run = Bundle(path, catalogue).check()
    place = out or path.resolve().with_name(f"{run.name}{SUFFIX}")
    packed.pack(run.files, place)
    return Bundle(place, catalogue)


def unpack(path: Path, out: Path | None, catalogue: Mapping[str, Experiment]) -> Bundle:
    """Check a packed run and write its files into ``out``, or into a folder of its name beside it; returns that run."""
    run = Bundle(path, catalogue).check()
    if not path.is_file():
        raise BundleError(f"{path} is a folder already; only a packed run can be unpacked.")
    place = out or path.resolve().with_name(run.name)
    packed.unpack(run.files, place)
    return Bundle(place, catalogue)


def export(path: Path, out: Path | None, catalogue: Mapping[str, Experiment]) -> Exported:
    """Check a run and write it as one file, ``out`` or ``rseqlab-<run>-<digest>.zip`` in the current folder.

    Host name, home and the places of the lab on the disk do not leave: where a file holds one, it is replaced and
    the copy is sealed anew, so its digest is another than the run's here. Raises BundleError.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "run"
        packed.unpack(Bundle(path, catalogue).check().files, copy)
        redacted = _redact(copy)
        if redacted:
            bundle.seal(copy)
        run = Bundle(copy, catalogue)
        place = out or Path(f"rseqlab-{name_of(run)}{SUFFIX}")
        packed.pack(run.files, place)
        return Exported(place, run.digest, tuple(redacted))


def _redact(folder: Path) -> list[str]:
    changed = []
    for path in sorted(folder.iterdir()):
        text = path.read_text()
        if (clean := private_words(text)) != text:
            path.write_text(clean)
            changed.append(path.name)
    return changed


def import_(archive: Path, runs: Path, catalogue: Mapping[str, Experiment]) -> tuple[Path, Bundle, bool]:
    """(folder, run, whether it is new here) of the run in an archive that anybody may have made.

    Nothing is trusted: only plain files in one folder under names that bundles have, within limits of count and
    size, and the run must pass every check that a local one must. What fails leaves nothing behind.
    """
    try:
        runs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=runs, prefix=".import-") as scratch:
            folder = Path(scratch) / "run"
            folder.mkdir()
            if archive.is_file() and zipfile.is_zipfile(archive):
                packed.unpack(files_of(archive), folder)
            else:
                _unpack(archive, folder)
            run = Bundle(folder, catalogue).check()
            place = runs / name_of(run)
            if place.exists():
                return place, Bundle(place, catalogue), False
            os.replace(folder, place)
    except OSError as error:
        raise BundleError(
            f"Could not import {archive}: {error.strerror} ({error.filename or runs})."
        ) from None
    return place, Bundle(place, catalogue), True


class _Limited:
    """A stream that ends with an error instead of going on for ever: headers of a tar may be as large as files."""

    def __init__(self, file: gzip.GzipFile, path: Path):
        self.file, self.path, self.left = file, path, LARGEST_UNPACKED_BYTES

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise BundleError(f"{self.path}: more than {LARGEST_UNPACKED_BYTES} bytes when unpacked")
        return self.file.read(size)


def _unpack(path: Path, folder: Path) -> None:
    try:
        if not path.is_file():
            raise BundleError(f"{path}: not a file; `rseqlab bundle export` makes archives of runs.")
        if (size := path.stat().st_size) > LARGEST_ARCHIVE_BYTES:
            raise BundleError(f"{path}: {size} bytes; at most {LARGEST_ARCHIVE_BYTES} are read")
        with (
            gzip.open(path) as file,
            tarfile.open(fileobj=cast(IO[bytes], _Limited(file, path)), mode="r|") as archive,
        ):
            for number, member in enumerate(archive, 1):
                name = _member_name(path, member, number)
                if number > MOST_MEMBERS:
                    raise BundleError(f"{path}: more than {MOST_MEMBERS} files")
                with (
                    cast(IO[bytes], archive.extractfile(member)) as source,
                    open(folder / name, "xb") as target,
                ):
                    shutil.copyfileobj(source, target)
    except FileExistsError:
        raise BundleError(f"{path}: holds two files of one name") from None
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, ValueError) as error:
        raise BundleError(
            f"{path}: not an archive of a run ({error}); `rseqlab bundle export` makes one."
        ) from None


def _member_name(path: Path, member: tarfile.TarInfo, number: int) -> str:
    folder, _, name = member.name.partition("/")
    if not (member.isreg() and not member.sparse and FOLDER.fullmatch(folder) and MEMBER.fullmatch(name)):
        raise BundleError(f"{path}: member {number} ({ascii(member.name)[:80]}) is no plain file of a bundle")
    return name


def merge(folders: Sequence[Path], out: Path, catalogue: Mapping[str, Experiment]) -> list[Bundle]:
    """Copy runs, and those of studies among ``folders``, into one study: a folder of runs. A run is there once.

    What is packed stays packed. An existing study takes more. Raises BundleError before anything is copied where one
    of them is not sound.
    """
    found: dict[str, Bundle] = {}
    for folder in folders:
        for member in members(folder):
            run = Bundle(member, catalogue).check()
            found.setdefault(run.digest, run)
    if out.exists() and any(
        path.name != "run.json" and not path.is_dir() and path.suffix != SUFFIX for path in out.iterdir()
    ):
        raise BundleError(f"{out} holds other things than runs; choose another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        there = {packed.name_at(path) for path in bundles_in(out)}
        for run in found.values():
            if name_of(run) in there:
                continue
            with tempfile.TemporaryDirectory(dir=out, prefix=".merge-") as scratch:
                copy = Path(scratch) / "run"
                if run.directory.is_file():
                    shutil.copyfile(run.directory, copy)
                    os.replace(copy, out / f"{name_of(run)}{SUFFIX}")
                else:
                    packed.unpack(run.files, copy)
                    os.replace(copy, out / name_of(run))
    except OSError as error:
        raise BundleError(f"Could not write {out}: {error.strerror}. Choose another --out.") from None
    return [Bundle(path, catalogue) for path in members(out)]


def members(folder: Path) -> list[Path]:
    """The runs of a study, packed or not, in the order of their names; a run is a study of one."""
    if folder.is_file() or (folder / "run.json").exists():
        return [folder]
    if found := bundles_in(folder):
        return found
    raise BundleError(f"{folder}: holds no run and no study of runs; `rseqlab bundle merge` makes a study.")
