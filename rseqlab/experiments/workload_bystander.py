"""workload-bystander: what do programs pay that use no rseq, for libc's registration of their threads?

System calls, context switches on one CPU, many processes that talk, and programs that start and end: where the
kernel has work with a registered area, if it has any. The first three are perf's own benchmarks.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping

from rseqlab import host
from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result, Running
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Task

PERF = workload.command("perf", "linux-perf", "/usr/bin/perf_*")
SHELL = workload.command("dash", "dash")

CALLS, PIPES, PROGRAMS = 3_000_000, 80_000, 1_000
GROUPS, LOOPS = 4, 300
MESSAGES = GROUPS * 20 * 20 * LOOPS
"""Twenty senders of a group send to its twenty receivers."""


def _seconds(operations: int) -> Callable[[str], float]:
    def found(said: str) -> float:
        if each := re.search(r"([\d.]+) usecs/op", said):
            return float(each[1]) * operations / 1e6
        if total := re.search(r"Total time: ([\d.]+) \[sec\]", said):
            return float(total[1])
        raise Failed(f"perf gave no time: {said[-200:]}")

    return found


def _perf(
    words: tuple[str, ...], operations: int, pinned: bool
) -> Callable[[Place, Mapping[str, str], str], Result]:
    def run(place: Place, environment: Mapping[str, str], mode: str) -> Result:
        pin = ["taskset", "-c", str(host.allowed_cpus()[-1])] if pinned else []
        running = place.start([*pin, workload.require("perf"), "bench", *words], environment, name="perf")
        seen = _asked_while_running(running, mode)
        said = running.wait()
        return Result(operations, round(_seconds(operations)(said) * 1e9), seen, reported=" ".join(words))

    return run


def _asked_while_running(running: Running, mode: str):
    running.until(lambda: b"bench" in workload.command_line(running.pid), "running its benchmark")
    return workload.settled(running, mode)


def _programs(place: Place, environment: Mapping[str, str], mode: str) -> Result:
    """A shell that starts one program after another; each is registered anew by its libc."""
    script = f"read go; n=0; while [ $n -lt {PROGRAMS} ]; do /bin/true || exit 1; n=$((n+1)); done; echo $n"
    running = place.start([workload.require("dash"), "-c", script], environment, piped=True)
    seen = workload.settled(running, mode)
    start = time.perf_counter_ns()
    running.tell(b"go\n")
    said = running.wait()
    elapsed_ns = time.perf_counter_ns() - start
    if said.strip() != str(PROGRAMS):
        raise Failed(f"the shell started {said.strip()!r} of {PROGRAMS} programs")
    return Result(PROGRAMS, elapsed_ns, seen)


LOADS = (
    Load(
        "system calls",
        "perf bench syscall basic: getppid()",
        _perf(("syscall", "basic", "-l", str(CALLS)), CALLS, False),
    ),
    Load(
        "context switches",
        "perf bench sched pipe on one CPU: two switches an operation",
        _perf(("sched", "pipe", "-l", str(PIPES)), PIPES, True),
    ),
    Load(
        "messages",
        "perf bench sched messaging (hackbench): 160 processes send to each other",
        _perf(("sched", "messaging", "-g", str(GROUPS), "-l", str(LOOPS)), MESSAGES, False),
    ),
    Load("program starts", "dash starts /bin/true again and again", _programs),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-bystander",
    "What do programs pay that use no rseq, for libc's registration of their threads?",
    "what non-users pay: system calls, context switches, program starts",
    LOADS,
    (PERF, SHELL),
    {"quick": 30, "full": 150},
    measure,
)
