"""One file: what kind it is, and the findings of each ELF file in it."""

import errno
import os
import stat
from dataclasses import dataclass, field

from rseqlab.census import archive, descriptors, registration, symbols, words
from rseqlab.census.elf import Elf, machine_of
from rseqlab.census.evidence import Findings
from rseqlab.census.limits import MAX_FILE_BYTES
from rseqlab.census.marks import MARKS
from rseqlab.census.source import Damaged, FileSource, Source
from rseqlab.census.words import WORDS

ELF_MAGIC = b"\x7fELF"
HEAD_BYTES = 512
"""What decides what a file is: tar has its magic at 257."""

PACKED_MARK = b"UPX!"
KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@dataclass
class Report:
    """What one file said: plain values, because it crosses from one process to another as JSON."""

    elf: dict[str, int] = field(default_factory=dict)
    others: list[dict] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)
    refused: list[dict] = field(default_factory=list)
    files: int = 0
    archives: int = 0
    read_bytes: int = 0

    def refuse(self, member: str | None, reason: str) -> None:
        self.refused.append({"member": member, "reason": reason})


def examine(path: str, named: bool, report: Report) -> None:
    """``named`` by the user: then a symbolic link is followed, and an archive needs no name that says so."""
    report.files += 1
    try:
        status = os.stat(path, follow_symlinks=named)
        if not stat.S_ISREG(status.st_mode):
            kind = KINDS.get(stat.S_IFMT(status.st_mode), "no regular file")
            report.refuse(None, f"{kind}; only regular files are read")
            return
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (0 if named else os.O_NOFOLLOW)
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        report.refuse(None, _words(error))
        return
    try:
        source = FileSource(descriptor, status.st_size)
        head = source.read(0, HEAD_BYTES)
        report.read_bytes += len(head)
        if head.startswith(ELF_MAGIC):
            if status.st_size > MAX_FILE_BYTES:
                report.refuse(None, f"it has {status.st_size} bytes; more than {MAX_FILE_BYTES} are not read")
                return
            report.read_bytes += status.st_size
            elf(source, None, report)
        elif archive.is_archive(os.path.basename(path), head, named):
            archive.examine(descriptor, os.path.basename(path), report, elf)
    except OSError as error:
        report.refuse(None, _words(error))
    finally:
        os.close(descriptor)


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"
    return str(error)


def elf(source: Source, member: str | None, report: Report) -> None:
    """One ELF file, on disk or in an archive; it ends up among the rows, the others, or the refused."""
    try:
        head = source.read(0, 1024)
        machine = machine_of(head)
        report.elf[machine] = report.elf.get(machine, 0) + 1
        if machine not in WORDS:
            report.others.append({"member": member, "machine": machine})
            return
        parsed = Elf(source)
        if PACKED_MARK in head:
            raise Damaged(
                "it is packed (UPX): what it holds shows only when it is executed, which is not done"
            )
        places = words.find(source, machine)
        if places:
            row = _row(parsed, places)
            if row:
                report.rows.append({"member": member, **row})
            if not places.complete:
                report.refuse(
                    member,
                    f"it holds more than {words.MAX_FOUND} of the words that are looked for; the first were",
                )
    except Damaged as error:
        report.refuse(member, str(error))
    except OSError as error:
        report.refuse(member, _words(error))


def _row(parsed: Elf, places: words.Places) -> dict | None:
    found = Findings()
    descriptors.examine(parsed, places, found)
    registration.examine(parsed, places, found)
    symbols.examine(parsed, places, found)
    strongest = found.strongest
    if strongest is None:
        return None
    return {
        "size_bytes": parsed.source.size_bytes,
        "machine": parsed.machine,
        "class": strongest.gives,
        "confidence": strongest.confidence,
        "origins": origins(parsed.source),
        "evidence": found.document(),
    }


def origins(source: Source) -> list[dict]:
    """Which marks the file bears, with the place of the first of each."""
    found: dict[bytes, int] = {}
    overlap = max(len(one.text) for one in MARKS) - 1
    at, kept, step = 0, b"", 1 << 20
    while at < source.size_bytes:
        part = source.read(at, step)
        if not part:
            break
        data = kept + part
        for one in MARKS:
            if one.text not in found and (place := data.find(one.text)) >= 0:
                found[one.text] = at - len(kept) + place
        at += len(part)
        kept = data[-overlap:]
    named: dict[str, list[dict]] = {}
    for one in MARKS:
        if one.text in found:
            mark = {"mark": one.text.decode(), "offset_bytes": found[one.text]}
            named.setdefault(one.origin, []).append(mark)
    return [{"origin": origin, "marks": marks} for origin, marks in named.items()]
