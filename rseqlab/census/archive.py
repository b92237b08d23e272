"""Archives, read as a stream by libarchive: packages, wheels, tars and images of containers, one in another.

Nothing is unpacked to disk, and no program is started: only formats and compressions that this libarchive has
itself are enabled (it would start a program for some others), and none that refers to files outside.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_void_p, cast, create_string_buffer
from functools import cache

from rseqlab.census.limits import (
    FREE_BYTES,
    MAX_DEPTH,
    MAX_MEMBER_BYTES,
    MAX_MEMBERS,
    MAX_RATIO,
    MAX_UNPACKED_BYTES,
)
from rseqlab.census.source import MemorySource

FORMATS = ("ar", "cpio", "tar", "zip")
FILTERS = ("none", "gzip", "bzip2", "xz", "lzma", "zstd", "lz4", "rpm")
REMEDY = "libarchive is missing: install the package libarchive13 (or libarchive13t64)"
BLOCK_BYTES = 64 * 1024

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x5d\0\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
PLAIN = (b"!<arch>\n", b"PK\x03\x04", b"PK\x05\x06", b"\xed\xab\xee\xdb", b"070701", b"070702")
NAMES = re.compile(
    r"\.(?:deb|udeb|rpm|whl|zip|jar|war|egg|apk|conda|a|cpio|tar|tgz|tbz2?|txz|tzst|(?:tar|cpio)\.\w{1,5})$",
    re.I,
)
IMAGE_LAYER = re.compile(r"(?:^|/)(?:blobs/sha256/[0-9a-f]{64}|[0-9a-f]{64}(?:/layer\.tar|\.tar)?)$")


class Exceeded(Exception):
    """An archive wants more than the census gives to one file."""


def is_archive(name: str, head: bytes, named: bool = False) -> bool:
    """By its first bytes, and by its name: a compressed file need not hold an archive, nor need a zip be one.

    ``named`` by the user, the first bytes are enough. A tar without compression says what it is.
    """
    if head[257:262] == b"ustar":
        return True
    fits = head.startswith(PLAIN) or head.startswith(COMPRESSED)
    return fits and (named or bool(NAMES.search(name) or IMAGE_LAYER.search(name)))


@cache
def _supported() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Formats and filters that need no outside program: for those that do libarchive answers with a warning."""
    import logging

    logging.getLogger("libarchive").setLevel(logging.CRITICAL)
    from libarchive import ffi

    pointer = ffi.read_new()
    try:
        formats = [one for one in FORMATS if ffi.get_read_format_function(one)(pointer) == ffi.ARCHIVE_OK]
        filters = [one for one in FILTERS if ffi.get_read_filter_function(one)(pointer) == ffi.ARCHIVE_OK]
    finally:
        ffi.read_free(pointer)
    return tuple(formats), tuple(filters)


@cache
def unavailable() -> str | None:
    """Why archives cannot be read here, or None."""
    try:
        _supported()
    except (
        ImportError,
        OSError,
        TypeError,
        AttributeError,
    ) as error:  # how libarchive-c fails without the library
        return f"{REMEDY} ({error})"
    return None


class Budget:
    """What one archive, with all in it, has used."""

    def __init__(self):
        self.members = self.unpacked = 0
        self.packed: Callable[[], int] = lambda: 0

    def member(self) -> None:
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise Exceeded(f"it has more than {MAX_MEMBERS} members")

    def spend(self, count: int) -> None:
        self.unpacked += count
        if self.unpacked > MAX_UNPACKED_BYTES:
            raise Exceeded(f"it unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        if self.unpacked > FREE_BYTES:
            packed = max(1, self.packed())
            if self.unpacked > MAX_RATIO * packed:
                raise Exceeded(
                    f"{packed} of its bytes unpack to {self.unpacked}, which is more than {MAX_RATIO} to 1"
                )


@contextmanager
def _reader(open_with: Callable):
    from libarchive import ffi

    formats, filters = _supported()
    pointer = ffi.read_new()
    try:
        for one in formats:
            ffi.get_read_format_function(one)(pointer)
        for one in filters:
            ffi.get_read_filter_function(one)(pointer)
        open_with(pointer)
        yield pointer
    finally:
        ffi.read_free(pointer)


def examine(descriptor: int, name: str, report, elf: Callable) -> None:
    """All members of the archive behind the descriptor; ``elf(source, member, report)`` takes each ELF file."""
    reason = unavailable()
    if reason:
        report.refuse(None, reason)
        return
    from libarchive import ffi

    budget = Budget()
    os.lseek(descriptor, 0, os.SEEK_SET)
    budget.packed = lambda: os.lseek(descriptor, 0, os.SEEK_CUR)
    _members(lambda pointer: ffi.read_open_fd(pointer, descriptor, BLOCK_BYTES), [], budget, report, elf)
    report.read_bytes += budget.unpacked


def _members(open_with: Callable, outer: list[str], budget: Budget, report, elf: Callable) -> None:
    """One archive; what refuses it is listed, and what was found before stays."""
    from libarchive import ffi
    from libarchive.entry import ArchiveEntry
    from libarchive.exception import ArchiveError

    inside = "!".join(outer) or None
    try:
        with _reader(open_with) as pointer:
            report.archives += 1
            while True:
                entry = ArchiveEntry(pointer)
                try:
                    if ffi.read_next_header2(pointer, entry._entry_p) == ffi.ARCHIVE_EOF:
                        break
                except ArchiveError as error:
                    if error.retcode == ffi.ARCHIVE_FATAL:
                        raise
                    report.refuse(inside, f"a member cannot be read: {_said(error)}")
                    continue
                budget.member()
                _member(pointer, entry, outer, budget, report, elf)
    except ArchiveError as error:
        cause = getattr(open_with, "buffers", {}).get("error")  # of the archive around this one
        if isinstance(cause, Exceeded | MemoryError):
            raise cause from None
        report.refuse(inside, f"it is no archive that can be read to its end: {_said(cause or error)}")
    except MemoryError:
        report.refuse(inside, "it needs more memory than a worker is given")
    except Exceeded as error:
        if outer:  # the limits are of the outermost archive
            raise
        report.refuse(inside, str(error))


def _member(pointer, entry, outer: list[str], budget: Budget, report, elf: Callable) -> None:
    from libarchive.exception import ArchiveError

    if not entry.isreg or entry.islnk:
        return
    name = _name(entry)
    path = [*outer, name]
    blocks = _blocks(pointer, budget)
    try:
        head = _head(blocks)
        if head.startswith(b"\x7fELF"):
            _elf_member(head, blocks, "!".join(path), entry.size, report, elf)
        elif is_archive(name, head):
            if len(path) > MAX_DEPTH:
                report.refuse("!".join(path), f"archives lie more than {MAX_DEPTH} deep in one another")
            else:
                _members(_opener(head, blocks), path, budget, report, elf)
        if not _is_zip(pointer):  # libarchive seeks over the rest of a zip's; all else it would unpack unseen
            for _ in blocks:
                pass
    except ArchiveError as error:
        report.refuse("!".join(path), f"it cannot be read: {_said(error)}")
        from libarchive import ffi

        if error.retcode == ffi.ARCHIVE_FATAL:
            raise


def _elf_member(head: bytes, blocks: Iterator[bytes], path: str, size: int | None, report, elf) -> None:
    if size is not None and size > MAX_MEMBER_BYTES:
        report.refuse(path, f"it has {size} bytes; of an ELF file in an archive {MAX_MEMBER_BYTES} are read")
        return
    data = bytearray(head)
    for block in blocks:
        data += block
        if len(data) > MAX_MEMBER_BYTES:
            report.refuse(path, f"it has more than {MAX_MEMBER_BYTES} bytes, and is held in memory")
            return
    elf(MemorySource(data), path, report)


def _blocks(pointer, budget: Budget) -> Iterator[bytes]:
    from libarchive import ffi

    buffer = create_string_buffer(BLOCK_BYTES)
    view = memoryview(buffer).cast("B")
    while True:
        count = ffi.read_data(pointer, buffer, BLOCK_BYTES)
        if count <= 0:
            return
        budget.spend(count)
        yield bytes(view[:count])


def _head(blocks: Iterator[bytes]) -> bytes:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= 512:
            break
    return head


def _opener(head: bytes, blocks: Iterator[bytes]) -> Callable:
    """Opens an archive in an archive: each of its blocks is asked of the outer one."""
    from libarchive import ffi

    buffers = {}

    def more(_pointer, _context, place):
        try:
            data = buffers.pop("head", None) or next(blocks, b"")
        except BaseException as error:  # may not pass through C; raised again where the reading ends
            buffers["error"] = error
            return ffi.ARCHIVE_FATAL
        buffers["kept"] = create_string_buffer(data, len(data)) if data else None
        cast(place, POINTER(c_void_p))[0] = cast(buffers["kept"], c_void_p) if data else None
        return len(data)

    buffers["head"] = head
    callback = ffi.READ_CALLBACK(more)

    def open_with(pointer):
        open_with.kept = callback  # alive as long as the archive
        ffi.read_open(pointer, None, ffi.NO_OPEN_CB, callback, ffi.NO_CLOSE_CB)

    open_with.buffers = buffers
    return open_with


def _is_zip(pointer) -> bool:
    from libarchive import ffi

    return (ffi.format_name(pointer) or b"").startswith(b"ZIP")


def _name(entry) -> str:
    from libarchive import ffi

    raw = ffi.entry_pathname(entry._entry_p)
    if raw is not None:
        return raw.decode("utf-8", "backslashreplace")
    return ffi.entry_pathname_w(entry._entry_p) or "(a name that cannot be read)"


def _said(error) -> str:
    if not hasattr(error, "msg"):
        return str(error)
    text = error.msg if isinstance(error.msg, str) else (error.msg or b"").decode("utf-8", "backslashreplace")
    return text or f"libarchive's code {error.retcode}"
