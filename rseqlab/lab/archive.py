"""A bundle's files as they lie: in a directory, or packed in one file that is read in place.

A packed run is a zip file whose members are compressed each for itself (LZMA), so that one table is read without
the others. The same run gives the same bytes. A file from a stranger is believed no more than a directory is.
"""

import hashlib
import lzma
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from rseqlab.errors import LabError

SUFFIX = ".zip"
LARGEST_BYTES = 1 << 28
"""Of one file of a bundle; larger is refused rather than read."""
LARGEST_UNPACKED_BYTES = 1 << 29
"""Of all files of a packed bundle together."""
LARGEST_PACKED_BYTES = 1 << 27
MOST_MEMBERS = 200
LARGEST_DIRECTORY_BYTES = 1 << 16
"""Of a zip file's list of members: enough for the most members with the longest names."""
MEMBER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.(json|csv)|SHA256SUMS")
TIME = (1980, 1, 1, 0, 0, 0)
"""Of every member: the earliest that a zip file can say. The same run gives the same bytes."""
PIECE_BYTES = 4096
"""Unpacked at a time: what this much of compressed data can grow to fits into memory, whatever it claims."""

END = struct.Struct("<4s4H2LH")
"""How a zip file ends: signature, disk numbers and member counts, size and place of the list, comment length."""
LARGE_FILE_SIGNATURE, LARGE_FILE_BYTES = b"PK\x06\x07", 20
"""What stands before that end in a file of more than 4 GiB, and would lead a reader to another list."""


class BundleError(LabError):
    """A bundle cannot be written, or must not be believed. The message names the file and the row."""


class Files(Protocol):
    """Where a bundle's files lie. Each method raises BundleError, naming the file, where it cannot be believed."""

    path: Path

    def names(self) -> list[str]:
        """The names of the files that belong to a bundle, sorted."""

    def read(self, name: str) -> bytes:
        """The whole file, at most LARGEST_BYTES."""


class Folder:
    """A directory."""

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[str]:
        """What ends in .json or .csv, and the checksums; other files are nobody's business."""
        try:
            found = [path.name for path in self.path.iterdir()]
        except OSError as error:
            raise BundleError(
                f"Could not read {self.path}: {error.strerror}. Is this the folder of a finished run?"
            ) from None
        return sorted(name for name in found if name.endswith((".json", ".csv")) or name == "SHA256SUMS")

    def read(self, name: str) -> bytes:
        with plain_file(self.path / name) as file:
            return file.read()


class Packed:
    """One zip file. It is opened for each read: a table that nobody asks for costs nothing."""

    def __init__(self, path: Path):
        self.path = path

    def names(self) -> list[str]:
        with self._opened() as (_, members):
            return sorted(members)

    def read(self, name: str) -> bytes:
        with self._opened() as (archive, members):
            if name not in members:
                raise BundleError(
                    f"{self.path}: has no {name}; a packed run is made by `rseqlab bundle pack`"
                )
            return self._member(archive, members[name])

    def _member(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
        with archive.open(member) as file:
            data = b"".join(iter(lambda: file.read(PIECE_BYTES), b""))
        if len(data) != member.file_size:
            raise BundleError(f"{self.path}: {member.filename} ends early: damaged")
        return data

    @contextmanager
    def _opened(self) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
        try:
            with open_plain(self.path) as file:
                self._check_end(file)
                with zipfile.ZipFile(file) as archive:
                    yield archive, self._members(archive)
        except (zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, struct.error, ValueError) as error:
            raise BundleError(f"{self.path}: not a packed run, or damaged ({error})") from None
        except (NotImplementedError, RuntimeError) as error:  # other methods of compression, passwords
            raise BundleError(f"{self.path}: not a packed run of rseqlab ({error})") from None

    def _check_end(self, file: IO[bytes]) -> None:
        """Refuse what would make the reader of zip files work before anybody has looked at it."""
        size = file.seek(0, os.SEEK_END)
        if size > LARGEST_PACKED_BYTES:
            raise BundleError(f"{self.path}: {size} bytes; at most {LARGEST_PACKED_BYTES} are read")
        last = min(size, END.size + LARGE_FILE_BYTES)
        file.seek(size - last)
        tail = file.read(last)
        if len(tail) < END.size or tail[-END.size :][:4] != b"PK\x05\x06":
            raise BundleError(f"{self.path}: not a packed run, or its end is missing")
        *_, count, directory_bytes, _, comment_bytes = END.unpack(tail[-END.size :])
        if comment_bytes or tail.startswith(LARGE_FILE_SIGNATURE):
            raise BundleError(f"{self.path}: not a packed run of rseqlab: it has parts that those have not")
        if count > MOST_MEMBERS or directory_bytes > LARGEST_DIRECTORY_BYTES:
            raise BundleError(f"{self.path}: {count} files; a run has at most {MOST_MEMBERS}")
        file.seek(0)

    def _members(self, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name, kind = member.filename, stat.S_IFMT(member.external_attr >> 16)
            where = f"{self.path}: member {ascii(name)[:80]}"
            if not MEMBER.fullmatch(name) or kind not in (0, stat.S_IFREG):
                raise BundleError(f"{where} is no plain file of a bundle")
            if name in found:
                raise BundleError(f"{where} is there twice")
            if member.file_size > LARGEST_BYTES:
                raise BundleError(f"{where}: {member.file_size} bytes; at most {LARGEST_BYTES} are read")
            found[name] = member
        if (total := sum(member.file_size for member in found.values())) > LARGEST_UNPACKED_BYTES:
            raise BundleError(f"{self.path}: {total} bytes when unpacked; at most {LARGEST_UNPACKED_BYTES}")
        return found


def files_of(path: Path) -> Files:
    """The files of the bundle at ``path``: a packed run where that is a file, a directory otherwise."""
    return Packed(path) if path.is_file() else Folder(path)


def name_at(path: Path) -> str:
    """What the run at ``path`` is called: the directory's name, or the file's without its suffix."""
    return path.name.removesuffix(SUFFIX)


def bundles_in(folder: Path) -> list[Path]:
    """The runs that lie in ``folder``, finished or not, packed or not, by name. Nothing is opened or checked."""
    found = [path.parent for path in folder.glob("[!.]*/run.json")]
    found += [path for path in folder.glob(f"[!.]*{SUFFIX}") if path.is_file()]
    return sorted(found, key=lambda path: (name_at(path), path.name))


def sha256(data: bytes) -> str:
    """The checksum that SHA256SUMS lists."""
    return hashlib.sha256(data).hexdigest()


@contextmanager
def plain_file(path: Path) -> Iterator[IO[bytes]]:
    """A plain file of bearable size, not followed to elsewhere, or BundleError: a bundle may come from anywhere."""
    with open_plain(path, os.O_NOFOLLOW) as file:
        if (size := os.fstat(file.fileno()).st_size) > LARGEST_BYTES:
            raise BundleError(f"{path}: {size} bytes, not a plain file of at most {LARGEST_BYTES} bytes")
        yield file


@contextmanager
def open_plain(path: Path, flags: int = 0) -> Iterator[IO[bytes]]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | flags)
    except OSError as error:
        raise BundleError(
            f"Could not read {path}: {error.strerror}. Is this the folder of a finished run?"
        ) from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"{path}: not a plain file")
        yield file


def pack(source: Files, out: Path) -> None:
    """Write a bundle's files as one packed run. ``out`` is there as a whole, or not at all; never written over."""
    if out.exists():
        raise BundleError(f"{out} exists already; nothing was written. Choose another --out or remove it.")
    temporary = out.with_name(out.name + ".part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
            for name in source.names():
                member = zipfile.ZipInfo(name, TIME)
                member.create_system, member.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                archive.writestr(member, source.read(name), zipfile.ZIP_LZMA)
        Packed(temporary).names()  # what the limits would refuse is not written either
        os.replace(temporary, out)
    except OSError as error:
        raise BundleError(f"Could not write {out}: {error.strerror}. Choose another --out.") from None
    finally:
        temporary.unlink(missing_ok=True)


def unpack(source: Files, folder: Path) -> None:
    """Write a bundle's files into ``folder``, which must be empty or not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BundleError(f"{folder} is not empty; nothing was written. Choose another --out.")
        for name in source.names():
            (folder / name).write_bytes(source.read(name))
    except OSError as error:
        raise BundleError(f"Could not write {folder}: {error.strerror}. Choose another --out.") from None
