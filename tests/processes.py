"""Processes that tests look at and stop; read from /proc, since a bare system has neither ps nor pgrep."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from conftest import PATIENCE


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


@contextlib.contextmanager
def stopped_when(process: subprocess.Popen, reached: Callable[[], bool], what: str) -> Iterator[None]:
    """The process is stopped (SIGSTOP) in the body, in the state that was waited for, and goes on after it.

    It runs in short slices until then, so it cannot pass the state unseen and end before it gets a signal.
    """
    deadline = time.monotonic() + 60 * PATIENCE
    try:
        while True:
            assert process.poll() is None, f"ended with {process.returncode} before: {what}"
            process.send_signal(signal.SIGSTOP)
            if reached():
                break
            process.send_signal(signal.SIGCONT)
            assert time.monotonic() < deadline, f"not in time: {what}"
            time.sleep(0.02)
        yield
    finally:
        process.send_signal(signal.SIGCONT)
