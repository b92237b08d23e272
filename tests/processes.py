"""Processes that tests look at, read from /proc: a bare system has neither ps nor pgrep."""

import os
from pathlib import Path


def children_of(pid: int) -> list[int]:
    """The processes whose parent is this one, those that ended and were not waited for included."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The second field is the program's name, which may hold spaces and brackets.
            parent = path.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it ended meanwhile
            continue
        if int(parent) == pid:
            found.append(int(path.parent.name))
    return found


def processes_naming(text: str) -> list[int]:
    """The other processes whose command line has the text in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ")
        except OSError:
            continue
        if text.encode() in words and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found
