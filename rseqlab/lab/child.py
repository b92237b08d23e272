"""One child process: a function of the package, run in a stated environment, with a deadline.

The parent gets the rows as they come and, whatever happens, an :class:`Outcome`. This module is both
ends: :func:`main` reads one request from standard input and writes one JSON object per line to the file
descriptor that it was told.
"""

import contextlib
import ctypes
import importlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

ERROR_TAIL_BYTES = 2000
FAILED_CODE = 3

ENTRY = "from rseqlab.lab import child; child.main()"
"""Not ``-m``: this module must be the one that experiments import :class:`Failed` from."""

KEPT_VARIABLES = (
    *("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "RSEQLAB_CACHE", "RSEQLAB_LIBRSEQ"),
    *("RSEQLAB_CC", "RSEQLAB_CFLAGS"),
    *(
        "HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
    ),  # where an installed package keeps what it compiles and measures
)
"""What a child inherits; all else in its environment is stated by the part."""


@dataclass(frozen=True)
class Outcome:
    """How a child ended: ``pass``, ``fail``, ``crash`` or ``timeout``, and why."""

    status: str
    reason: str | None
    seconds: float


class Failed(Exception):
    """Raised in a child: the experiment's own check does not hold. The status becomes ``fail``."""


class Child:
    """Iterate over it for rows; afterwards ``outcome`` says how the child ended.

    Leaving the iteration early (an exception, Ctrl-C) kills the child and whatever it started.
    """

    def __init__(
        self, function: Callable, arguments: Mapping, environment: Mapping[str, str], timeout_s: float
    ):
        self.request = {"module": function.__module__, "function": function.__name__, "arguments": arguments}
        self.environment = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        self.environment |= {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", **environment}
        self.timeout_s = timeout_s
        self.outcome: Outcome | None = None

    @property
    def ended(self) -> Outcome:
        """The outcome, once the rows were iterated over."""
        assert self.outcome is not None, "the child was not waited for"
        return self.outcome

    def __iter__(self) -> Iterator[dict]:
        started = time.monotonic()
        read_end, write_end = os.pipe()
        with open(read_end, "rb", buffering=0) as rows, tempfile.TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-c", ENTRY, str(write_end)],
                    stdin=subprocess.PIPE,
                    stdout=errors,
                    stderr=errors,
                    pass_fds=(write_end,),
                    env=self.environment,
                    start_new_session=True,
                )
            finally:
                os.close(write_end)
            try:
                assert process.stdin is not None  # it is a pipe
                with contextlib.suppress(BrokenPipeError), process.stdin:
                    process.stdin.write(json.dumps(self.request).encode())
                in_time = yield from self._rows(rows, started + self.timeout_s)
                self.outcome = self._end(process, in_time, errors, started)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _rows(self, pipe, deadline: float):
        """Yields complete lines. Returns whether the child closed its end before the deadline."""
        buffered = b""
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                if not self._ready(selector, deadline):
                    return False
                data = pipe.read(1 << 16)
                if not data:
                    return True
                *lines, buffered = (buffered + data).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    def _ready(self, selector: selectors.BaseSelector, deadline: float) -> bool:
        """Wait until there is something to read; whether there was before the deadline."""
        return bool(selector.select(max(0.0, deadline - time.monotonic())))

    def _end(self, process, in_time: bool, errors, started: float) -> Outcome:
        if in_time:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                in_time = False
        seconds = time.monotonic() - started
        if not in_time:
            return Outcome("timeout", f"still running after {self.timeout_s:g} s; it was killed", seconds)
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - ERROR_TAIL_BYTES))
        said = errors.read().decode(errors="replace").strip()
        if process.returncode == 0:
            return Outcome("pass", None, seconds)
        if process.returncode == FAILED_CODE:
            return Outcome("fail", said, seconds)
        last = said.rpartition("\n")[2]  # of a traceback: what was raised
        if process.returncode < 0:
            name = signal.Signals(-process.returncode).name
            return Outcome("crash", f"killed by {name}. {last}".strip(), seconds)
        return Outcome("crash", f"exit code {process.returncode}: {last or 'nothing was said'}", seconds)


@dataclass(frozen=True)
class ForkOutcome:
    """How a forked attempt ended: its value, or the signal that killed it, or neither (it hung)."""

    value: object = None
    signal_name: str | None = None
    hung: bool = False


def in_fork(function: Callable[[], object], timeout_s: float = 5.0) -> ForkOutcome:
    """Run ``function`` in a fork of this process; its JSON value comes back. For single-threaded callers.

    A fork keeps this thread's registration, so a fresh one stands for this thread as it is now.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            die_with_parent()
            signal.setitimer(signal.ITIMER_REAL, timeout_s)  # SIGALRM ends it by default
            os.close(read_end)
            os.write(write_end, json.dumps(function()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGALRM:
            return ForkOutcome(hung=True)
        return ForkOutcome(signal_name=signal.Signals(number).name)
    if not data:
        raise RuntimeError(
            f"an attempt in a fork ended with exit code {os.WEXITSTATUS(status)} and no answer"
        )
    return ForkOutcome(value=json.loads(data))


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)


def main() -> None:
    """The child's end. Exits 0, 3 where the experiment's own check failed, or as Python does."""
    die_with_parent()
    request = json.load(sys.stdin)
    function = getattr(importlib.import_module(request["module"]), request["function"])
    with open(int(sys.argv[1]), "w", buffering=1) as rows:
        try:
            for row in function(request["arguments"]):
                rows.write(json.dumps(row, allow_nan=False) + "\n")
        except Failed as failed:
            print(failed, file=sys.stderr)
            sys.exit(FAILED_CODE)
