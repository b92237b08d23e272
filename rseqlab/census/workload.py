"""Real programs with rseq on and off: how one is found, started, switched, checked and stopped.

A program runs as its distribution ships it; libc's tunable is the switch, and the kernel is asked whether it
did switch: for every thread, what area the kernel has on record (PTRACE_GET_RSEQ_CONFIGURATION), and in the
process's memory, what libc says of itself (``__rseq_size``), which tells libc's area from the program's own.

Servers listen on sockets in a private folder or on loopback. A process dies with the lab's child by three ways:
it is stopped at the end of a ``with``, it is in the process group that the lab kills, and the kernel kills it
when its parent dies; a keeper outside that group kills what got away from all three, and removes the folder.
"""

import contextlib
import ctypes
import errno
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from rseqlab import native
from rseqlab.lab import bundle
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import COMPILER, PACKAGE, Target, attempt, build, cache_folder
from rseqlab.lab.experiment import LINUX, REGISTRATION, Column, Experiment, Need, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES, LIBC_OWNS, libc_refusal

MODES = {"on": LIBC_OWNS, "on-again": LIBC_OWNS, "off": LIBC_LEAVES}
"""The switch. ``on-again`` is the A/A control: what two runs of the same thing differ by."""
COUNTED = "counted"
"""A run of its own, with a library preloaded that counts calls of sched_getcpu(); its speed is not shown."""

ROUNDS = {"quick": (1, 2), "full": (3, 4)}
"""Parts and rounds in each: what one child measures before the next one takes over."""

TIMEOUT_S = 60
STOP_S = 10
POLL_S = 0.01


# --- where it is found ----------------------------------------------------------------------------


def command(name: str, package: str, *places: str) -> Need:
    """The need for a program: on PATH, or at one of the places (globs) where its package puts it."""
    return Need(name, lambda: None if find(name, *places) else f"No {name} was found; {apt(package)}")


def apt(*packages: str) -> str:
    return f"install it with: apt-get install {' '.join(packages)} (or make workloads)"


def find(name: str, *places: str) -> str | None:
    """The path of a program, or None."""
    for place in places:
        if found := sorted(Path("/").glob(place.lstrip("/"))):
            return str(found[-1])
    return shutil.which(name)


def require(name: str, *places: str) -> str:
    """The path of a program that the experiment's needs have found."""
    if path := find(name, *places):
        return path
    raise Failed(f"{name} was there when the run was planned and is gone")


JEMALLOC_PLACES = ("/usr/lib/*/libjemalloc.so.2", "/usr/lib64/libjemalloc.so.2", "/usr/lib/libjemalloc.so.2")
JEMALLOC = command("libjemalloc.so.2", "libjemalloc2", *JEMALLOC_PLACES)
PERCPU = "percpu_arena:percpu"
"""jemalloc's option: a thread allocates from the arena of the CPU that it asks libc for."""


def jemalloc() -> str:
    return require("libjemalloc.so.2", *JEMALLOC_PLACES)


def with_jemalloc(environment: Mapping[str, str], options: str) -> dict[str, str]:
    """The environment with jemalloc preloaded, behind what is preloaded already."""
    preload = " ".join(filter(None, (environment.get("LD_PRELOAD"), jemalloc())))
    return {**environment, "LD_PRELOAD": preload, "MALLOC_CONF": options}


def jemalloc_says(statistics: str) -> str:
    """What jemalloc's statistics say of its arenas. Raises Failed where they are not jemalloc's, or not by CPU."""
    found = re.search(r'opt\.percpu_arena: "(\w+)"', statistics)
    if not found or found[1] != "percpu":
        raise Failed(f"the allocator says {found and found[0]}, not that it has an arena for each CPU")
    return f"jemalloc {found[0]}"


def wheels_folder() -> Path:
    """Where `make workloads` puts programs from PyPI, outside the lab's venv."""
    return cache_folder() / "workloads"


def wheel(name: str, sign: str) -> Need:
    """The need for a program from PyPI; ``sign`` is a file (a glob) that shows that it is there."""
    remedy = f"No {name} was found in the lab's cache; install it with: make workloads"
    return Need(name, lambda: None if any(wheels_folder().glob(sign)) else remedy)


# --- the switch, checked --------------------------------------------------------------------------

STOP_TIMEOUT_MS = 2000
"""So long a thread may take to stand still for a question."""


@dataclass(frozen=True)
class Registration:
    """What the kernel has on record for a process, and whose area it is: ``libc``, ``program`` or ``none``."""

    owner: str
    threads: int
    registered_threads: int
    area_bytes: int | None
    """Of one thread; None where no thread has an area."""


def _area_of(tid: int) -> tuple[int, int]:
    """(address, bytes) of a thread's area, (0, 0) for none. The thread stands still for the question only."""
    ffi, lib = native.core()
    answer = ffi.new("struct rl_inspection *")
    if error := -lib.rl_inspect(tid, STOP_TIMEOUT_MS, answer):
        raise OSError(error, f"PTRACE_GET_RSEQ_CONFIGURATION of thread {tid}: {os.strerror(error)}")
    return answer.configuration.pointer, answer.configuration.size_bytes


@cache
def _libc_size_place() -> tuple[str, int] | None:
    """(file, offset from its first mapping) of ``__rseq_size`` in this process's libc."""
    try:
        address = ctypes.addressof(ctypes.c_uint.in_dll(ctypes.CDLL(None), "__rseq_size"))
    except ValueError:
        return None
    for start, end, path in _mappings(os.getpid()):
        if start <= address < end and path:
            return path, address - _base(os.getpid(), path)
    return None


def _mappings(pid: int) -> Iterator[tuple[int, int, str]]:
    for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        start, _, end = span.partition("-")
        yield int(start, 16), int(end, 16), path[0] if path else ""


def _base(pid: int, path: str) -> int | None:
    return min((start for start, _, found in _mappings(pid) if found == path), default=None)


def libc_size(pid: int) -> int | None:
    """``__rseq_size`` in a running process that has this process's libc; None where it has another or none."""
    if (place := _libc_size_place()) is None or (base := _base(pid, place[0])) is None:
        return None
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(base + place[1])
            return int.from_bytes(memory.read(4), "little")
    except OSError as error:
        if error.errno == errno.EIO:  # it has executed another program since its mappings were read
            return None
        raise


def registration(*pids: int) -> Registration:
    """Asks the kernel about every thread of running processes, and the first one's libc about itself."""
    areas = []
    for task in sorted(path for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()):
        with contextlib.suppress(ProcessLookupError):  # a thread that has ended since
            areas.append(_area_of(int(task.name)))
    if not areas:
        raise Failed(f"process {pids[0]} ended before the kernel could be asked about its threads")
    sizes = [size for address, size in areas if address]
    whose = "none"
    if sizes:
        said = libc_size(pids[0])
        if said is None:
            raise Failed("the program has an area, but not this system's libc that could say whose it is")
        whose = "libc" if said else "program"
    return Registration(whose, len(areas), len(sizes), sizes[0] if sizes else None)


SETTLE_S = 3
"""A thread exists before its libc registers it; so long it may take."""


def switched(*pids: int, mode: str, own: bool = False) -> Registration:
    """The registration of processes that were started in ``mode``; Failed where the switch did not switch.

    ``own``: the program registers areas itself where libc does not.
    """
    expected = "libc" if mode != "off" else ("program" if own else "none")
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = registration(*pids)
        whole = found.owner == expected and (expected != "libc" or found.registered_threads == found.threads)
        if whole:
            return found
        if time.monotonic() > deadline:
            raise Failed(
                f"started with rseq {mode}, the areas belong to {found.owner}, not to {expected}: "
                f"{found.registered_threads} of {found.threads} threads are registered"
            )
        time.sleep(POLL_S)


def settled(running: "Running", mode: str) -> Registration:
    """``switched`` of a program that has just been started: its libc has done its part when it sleeps or computes."""
    if mode == "off":  # nothing is to come; but it must have come so far that something could have
        running.until(lambda: libc_size(running.pid) is not None and _beyond_start(running.pid), "started")
    return switched(running.pid, mode=mode)


def _beyond_start(pid: int) -> bool:
    """Whether the loader has handed over to the program: what it maps last is there."""
    return any("libc.so" in path for _, _, path in _mappings(pid)) and bool(
        re.search(r"\[heap\]", Path(f"/proc/{pid}/maps").read_text())
    )


def command_line(pid: int) -> bytes:
    """What a process was started with."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def switched_at(running: "Running", mode: str, threads: int, own: bool = False) -> Registration:
    """``switched`` of a program that works and ends by itself, asked when it has that many threads."""
    path = Path(f"/proc/{running.pid}/task")
    running.until(lambda: len(list(path.iterdir())) >= threads, f"running {threads} threads")
    return switched(running.pid, mode=mode, own=own)


def counted_and_timed(running: "Running", expected: int) -> tuple[int, int]:
    """``operations=... elapsed_ns=...`` as the program says at its end; Failed where it did not do what was asked."""
    found = re.search(r"^operations=(\d+) elapsed_ns=(\d+)$", running.wait(), re.M)
    if not found or int(found[1]) != expected:
        raise Failed(f"{running.name} did {found and found[1]} of {expected} operations: {running.tail()}")
    return int(found[1]), int(found[2])


def resident_kib(*pids: int) -> int:
    """What the processes hold in memory: resident set sizes, summed (VmRSS, proc_pid_status(5)).

    One that has ended meanwhile holds nothing.
    """
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
            total += int(found[1]) if found else 0
    return total


# --- a private place to run in --------------------------------------------------------------------

KEEPER = """
read -r _
for path in $(grep -lsFe "RSEQLAB_PLACE=$1" /proc/[0-9]*/environ
              find /proc/[0-9]*/cwd -maxdepth 0 -lname "$1*" 2>/dev/null); do
    path=${path#/proc/}
    kill -9 "${path%%/*}" 2>/dev/null
done
for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" 2>/dev/null && break; sleep 0.3; done
"""
"""Waits until the other end of its pipe is gone, by whatever death; kills what still runs in the folder or was
started for it (a daemon leaves its group and its parent); removes the folder."""
KEEPER_S = 15


def stranger() -> pwd.struct_passwd | None:
    """Whom programs run as that refuse root: postgres or nobody; None where the lab does not run as root."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Failed("the lab runs as root, and there is neither a user postgres nor nobody to run programs as")


class Running:
    """A process of a place; ``said()`` is what it printed so far."""

    def __init__(self, process: subprocess.Popen, name: str, log: Path):
        self.process, self.name, self.log = process, name, log

    @property
    def pid(self) -> int:
        return self.process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, timeout_s: float = TIMEOUT_S) -> str:
        """What it printed in all. Raises Failed where it does not end well in time."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} still ran after {timeout_s:g} s") from None
        if code:
            raise Failed(f"{self.name} ended with {code}: {self.tail()}")
        return self.said()

    def tell(self, words: bytes) -> None:
        """What it is to read; nothing more will come."""
        with contextlib.suppress(BrokenPipeError), self.process.stdin as pipe:
            pipe.write(words)

    def tail(self) -> str:
        """The end of what it said, fit for a reason."""
        return " ".join(self.said().split())[-400:] or "it said nothing"

    def until(self, ready: Callable[[], object], what: str, timeout_s: float = 20) -> object:
        """What ``ready`` answers once that is true. Raises Failed where the process ends first or takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError):
                if answer := ready():
                    return answer
            if self.process.poll() is not None:
                raise Failed(f"{self.name} ended with {self.process.returncode} before {what}: {self.tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: not {what} within {timeout_s:g} s: {self.tail()}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Ends it: politely, then for certain."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def children(pid: int) -> list[int]:
    """The living children of a process."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Every process below this one, the nearest first."""
    below = children(pid)
    return below + [deeper for child in below for deeper in descendants(child)]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Place:
    """A private folder, and the processes that run in it; all of both are gone when the ``with`` ends."""

    def __enter__(self) -> "Place":
        self._stack = contextlib.ExitStack()
        self.folder = Path(tempfile.mkdtemp(prefix="rseqlab-workload-"))
        keeper = subprocess.Popen(
            ["sh", "-c", KEEPER, "keeper", str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self._stack.callback(keeper.wait, KEEPER_S)
        self._stack.callback(keeper.stdin.close)
        if one := stranger():
            os.chown(self.folder, one.pw_uid, one.pw_gid)
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def afterwards(self, do: Callable[[], object]) -> None:
        """Done when everything that is started from now on has been stopped."""
        self._stack.callback(do)

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        name: str | None = None,
        unprivileged: bool = False,
        piped: bool = False,
    ) -> Running:
        """Starts a program; what it says goes to a file. It is stopped when the place is left.

        ``piped``: it reads what it is told; otherwise nothing is there to read.
        """
        name = name or Path(arguments[0]).name
        number, log = tempfile.mkstemp(prefix=f"{name}-", suffix=".log", dir=self.folder)
        who = stranger() if unprivileged else None
        also = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if who else {}
        try:
            process = subprocess.Popen(
                [str(word) for word in arguments],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=number,
                stderr=subprocess.STDOUT,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LC_ALL": "C.UTF-8",
                    **environment,
                    "RSEQLAB_PLACE": str(self.folder),
                },
                cwd=self.folder,
                preexec_fn=_die_with_parent,
                **also,
            )
        finally:
            os.close(number)
        running = Running(process, name, Path(log))
        self._stack.callback(self._stop, running)
        return running

    @staticmethod
    def _stop(running: Running) -> None:
        below = descendants(running.pid) if running.process.poll() is None else []
        running.stop()
        for pid in below:  # what its own end did not take along
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], **options) -> str:
        """Starts a program and waits for its end; what it printed."""
        return self.start(arguments, environment, **options).wait()


def free_port() -> int:
    """A port of the loopback interface that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listening(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# --- counting calls -------------------------------------------------------------------------------

_COUNTER = PACKAGE / "experiments" / "c" / "count_getcpu.c"


def counter() -> str:
    """The path of the library that counts calls of sched_getcpu(). Raises CompileError."""
    flags = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared")
    return str(build(Target("count_getcpu.so", (_COUNTER,), flags)))


def counting(environment: Mapping[str, str], library: str, file: Path) -> dict[str, str]:
    """The environment with the counting library preloaded; each process adds its count to the file."""
    preload = " ".join(filter(None, (library, environment.get("LD_PRELOAD"))))
    return {**environment, "LD_PRELOAD": preload, "RSEQLAB_COUNT_FILE": str(file)}


def counted_calls(file: Path) -> int:
    """The calls that the processes counted; Failed where none of them reported."""
    lines = file.read_text().split() if file.exists() else []
    if not lines:
        raise Failed("no process said how often it called sched_getcpu(): the counter was not loaded")
    return sum(map(int, lines))


# --- one experiment -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What one run of a program gave."""

    operations: int
    elapsed_ns: int
    registration: Registration
    resident_kib: int | None = None
    reported: str | None = None
    cache_bytes: int | None = None
    """What the program's allocator says it holds in per-CPU caches."""


@dataclass(frozen=True)
class Load:
    """One thing a program is asked to do. ``run(place, environment, mode)`` starts, checks, loads and stops it."""

    name: str
    about: str
    run: Callable[[Place, Mapping[str, str], str], Result] = field(compare=False)


COLUMNS = (
    Column("round", "int", "every load is run once a round in every mode"),
    Column("position", "int", "place within the round's random order"),
    Column("workload", "text", "the program and what it is asked to do"),
    Column("mode", "text", "libc's tunable; counted: a run that counts calls", choices=(*MODES, COUNTED)),
    Column("operations", "int", "what was done, as the program or its driver says", minimum=1),
    Column("elapsed_ns", "int", "how long that took", minimum=1),
    Column("operations_per_second", "float", "operations / elapsed", minimum=1e-9),
    Column("resident_kib", "int", "resident set after the load, of all its processes", nullable=True),
    Column("rseq_owner", "text", "whose the areas are, by the kernel", choices=("libc", "program", "none")),
    Column("threads", "int", "threads that the kernel was asked about", minimum=1),
    Column("registered_threads", "int", "those of them with an area"),
    Column("area_bytes", "int", "registered length; empty: none", nullable=True),
    Column("cache_bytes", "int", "what the allocator says is in its per-CPU caches", nullable=True),
    Column("reported", "text", "what the program itself says", nullable=True),
    Column("getcpu_calls", "int", "calls of sched_getcpu(), counted", nullable=True),
)
KEY = ("round", "workload", "mode")


def experiment(
    name: str,
    question: str,
    serves: str,
    loads: Sequence[Load],
    needs: Sequence[Need],
    seconds: Mapping[str, float],
    measure: Callable[[Task], Iterator[dict]],
) -> Experiment:
    """An experiment on one program. ``measure`` must be a function of the experiment's own module."""

    def plan(profile: str) -> list[Part]:
        parts, rounds = ROUNDS[profile]
        library, refusal = attempt(counter)
        whole = TIMEOUT_S * (1 + rounds * len(loads) * len(MODES))
        found = [
            Part(
                f"pairs-{number}",
                rounds * len(loads) * len(MODES),
                whole,
                arguments={"kind": "pairs", "seed": number, "rounds": rounds},
                skip=libc_refusal(),
            )
            for number in range(parts)
        ]
        arguments = {"kind": COUNTED, "library": library}
        return [Part(COUNTED, len(loads), whole, LIBC_OWNS, arguments, refusal or libc_refusal()), *found]

    return Experiment(
        name=name,
        question=question,
        serves=serves,
        columns=COLUMNS,
        key=KEY,
        needs=(LINUX, REGISTRATION, COMPILER, *needs),
        seconds=seconds,
        plan=plan,
        measure=measure,
        group="workloads",
    )


def rows(task: Task, loads: Sequence[Load]) -> Iterator[dict]:
    """Rows of one part: every load in every mode once a round, the modes of a load next to each other."""
    if task.arguments["kind"] == COUNTED:
        yield from _counted(task, loads)
        return
    for number in range(task.arguments["rounds"]):
        draw = random.Random(task.arguments["seed"] * 1_000_003 + number)
        order = [(load, mode) for load in _shuffled(draw, loads) for mode in _shuffled(draw, MODES)]
        for position, (load, mode) in enumerate(order):
            if task.pending(number, load.name, mode):
                with Place() as place:
                    result = load.run(place, MODES[mode], mode)
                yield _row(number, position, load, mode, result, None)


def _counted(task: Task, loads: Sequence[Load]) -> Iterator[dict]:
    for position, load in enumerate(loads):
        if task.pending(0, load.name, COUNTED):
            with Place() as place:
                file = place.folder / "calls"
                file.touch()
                file.chmod(0o666)  # some programs run as another user
                environment = counting(LIBC_OWNS, task.arguments["library"], file)
                result = load.run(place, environment, "on")
                calls = counted_calls(file)
            yield _row(0, position, load, COUNTED, result, calls)


def _shuffled(draw: random.Random, things) -> list:
    found = list(things)
    draw.shuffle(found)
    return found


def printable(text: str | None) -> str | None:
    """A program's words, fit for a bundle, of a bounded length."""
    return text and bundle.printable(text)[:300].strip()


def _row(
    number: int, position: int, load: Load, mode: str, result: Result, calls: int | None
) -> dict[str, object]:
    seen = result.registration
    return {
        "round": number,
        "position": position,
        "workload": load.name,
        "mode": mode,
        "operations": result.operations,
        "elapsed_ns": result.elapsed_ns,
        "operations_per_second": result.operations * 1e9 / result.elapsed_ns,
        "resident_kib": result.resident_kib,
        "rseq_owner": seen.owner,
        "threads": seen.threads,
        "registered_threads": seen.registered_threads,
        "area_bytes": seen.area_bytes,
        "cache_bytes": result.cache_bytes,
        "reported": printable(result.reported),
        "getcpu_calls": calls,
    }
