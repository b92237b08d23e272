"""Root images for guests: a cpio archive, written here and not by the host's tools, so no root is needed.

Same files, same bytes: names are sorted, times are zero, owners are root. The result's name is a digest
of what is in it, so an image is written once and found again.
"""

import gzip
import hashlib
import io
import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.vm import cache

LEVEL = 1
"""Of gzip: an image is read once by each boot, and written while somebody waits."""

NODES = {"dev/console": (5, 1), "dev/null": (1, 3), **{f"dev/ttyS{n}": (4, 64 + n) for n in range(4)}}
"""What a guest needs before it has mounted anything, and all that it has on a kernel without devtmpfs."""


@dataclass(frozen=True)
class Link:
    """A symbolic link in the guest."""

    target: str


def root(arch: str, files: Mapping[str, Path | bytes | str | Link], init: str) -> Path:
    """The image (cpio, gzip) that holds ``files`` by guest path; ``init`` is the guest path of the first program.

    A text or bytes are a file's content, a Path is a file of the host, a Link a symbolic link. Folders come by
    themselves; every file may be executed.
    """
    entries = {_inside(name): value for name, value in files.items()}
    if _inside(init) not in entries:
        raise LabError(
            f"The image's init is {init}, which is not among its files: {', '.join(sorted(files))}."
        )
    if _inside(init) != "init":
        entries["init"] = Link("/" + _inside(init))
    total = hashlib.sha256(f"1 {arch} {LEVEL} {zlib.ZLIB_RUNTIME_VERSION}\0".encode())
    for name in sorted(entries):
        kind, content = _content(entries[name])
        total.update(f"{name}\0{kind}\0{len(content)}\0".encode() + hashlib.sha256(content).digest())
    output = cache.folder("images") / f"{total.hexdigest()[:24]}-{arch}.cpio.gz"
    if not output.exists():
        with cache.writing(output) as partial, open(partial, "wb") as file:
            file.write(_packed(entries))
    return output


def _inside(name: str) -> str:
    parts = [part for part in name.split("/") if part]
    if not parts or "." in parts or ".." in parts or "\0" in name:
        raise LabError(f"{name!r} is no path of a file inside a guest's image.")
    return "/".join(parts)


def _content(value: Path | bytes | str | Link) -> tuple[str, bytes]:
    if isinstance(value, Link):
        return "link", value.target.encode()
    if isinstance(value, Path):
        try:
            return "file", value.read_bytes()
        except OSError as error:
            raise LabError(f"Could not read {value} for a guest's image: {error.strerror}.") from None
    return "file", value.encode() if isinstance(value, str) else value


def _packed(entries: Mapping[str, Path | bytes | str | Link]) -> bytes:
    raw = io.BytesIO()
    folders = {"dev", "proc", "sys", "tmp"}
    for name in (*entries, *NODES):
        folders.update(parent for parent in map(str, Path(name).parents) if parent != ".")
    plain = {name: (stat.S_IFDIR | 0o755, b"", (0, 0)) for name in folders if name not in entries}
    plain |= {name: (stat.S_IFCHR | 0o600, b"", numbers) for name, numbers in NODES.items()}
    for name, value in entries.items():
        kind, content = _content(value)
        mode = stat.S_IFLNK | 0o777 if kind == "link" else stat.S_IFREG | 0o755
        plain[name] = (mode, content, (0, 0))
    for number, name in enumerate(sorted(plain), start=1):
        _entry(raw, number, name, *plain[name])
    _entry(raw, 0, "TRAILER!!!", 0, b"", (0, 0))
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=LEVEL, mtime=0, filename="") as file:
        file.write(raw.getvalue())
    return packed.getvalue()


def _entry(
    raw: io.BytesIO, number: int, name: str, mode: int, content: bytes, device: tuple[int, int]
) -> None:
    """One entry of the "newc" format: an ASCII header of hexadecimal numbers, the name, the content."""
    encoded = os.fsencode(name) + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    numbers = (number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(encoded), 0)
    raw.write(b"070701" + b"".join(b"%08X" % value for value in numbers) + encoded)
    raw.write(bytes(-raw.tell() % 4))
    raw.write(content)
    raw.write(bytes(-raw.tell() % 4))
