"""workload-lttng: how many events a second does LTTng-UST record with rseq on and off?

LTTng-UST has a ring buffer for each CPU and asks libc for the CPU with every event (sched_getcpu()). What it
recorded is counted afterwards: events emitted = events in the trace + events that the tracer says it lost.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rseqlab import host
from rseqlab.census import workload
from rseqlab.census.workload import Load, Need, Place, Result
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import PACKAGE, Target, build
from rseqlab.lab.experiment import Task

_C = PACKAGE / "experiments" / "c"
EVENTS = 1_200_000
BUFFERS = 8
"""Of each CPU; together they hold all events where this machine has not very many CPUs."""
BUFFER_BYTES = 4 << 20
ALL_BUFFERS_BYTES = 1 << 30

TOOLS = workload.command("lttng", "lttng-tools")
DAEMON = workload.command("lttng-sessiond", "lttng-tools")
READER = workload.command("babeltrace2", "babeltrace2")
HEADERS = Need(
    "LTTng-UST's headers",
    lambda: (
        None
        if any(Path("/usr/include").glob("**/lttng/ust-abi.h"))
        else f"No headers of LTTng-UST were found; {workload.apt('liblttng-ust-dev')}"
    ),
)
_SHARED = Path("/dev/shm")
WAIT_FILES = "lttng-ust-wait-*"
"""LTTng leaves one for each user in /dev/shm; what a run adds there it removes."""


def program() -> str:
    """The path of the traced program. Raises CompileError."""
    flags = ("-std=gnu11", "-O2", "-Wall", f"-I{_C}", "-llttng-ust", "-ldl")
    return str(build(Target("traced", (_C / "traced.c",), flags, depends=(_C / "traced.h",))))


def _buffer_bytes() -> int:
    """A power of two, so that the buffers of all CPUs stay within ALL_BUFFERS_BYTES."""
    each = ALL_BUFFERS_BYTES // BUFFERS // host.possible_cpus()
    return min(BUFFER_BYTES, 1 << max(16, each.bit_length() - 1))


def _run(place: Place, environment: Mapping[str, str], mode: str) -> Result:
    """A session daemon of its own, one session, one traced program; nobody's privileges."""
    before = set(_SHARED.glob(WAIT_FILES))
    place.afterwards(lambda: [added.unlink() for added in set(_SHARED.glob(WAIT_FILES)) - before])
    home = {"HOME": str(place.folder), "LTTNG_HOME": str(place.folder)}
    daemon = place.start([workload.require("lttng-sessiond"), "--no-kernel"], home, unprivileged=True)
    sockets = place.folder / ".lttng"
    daemon.until(lambda: any(sockets.glob("lttng-ust-sock-*")), "listening for programs")
    lttng = [workload.require("lttng"), "--no-sessiond"]

    def control(*words: str) -> str:
        return place.run([*lttng, *words], home, unprivileged=True)

    daemon.until(lambda: "rror" not in _quietly(place, [*lttng, "list"], home), "answering")
    control("create", "lab", f"--output={place.folder / 'trace'}")
    sizes = (f"--subbuf-size={_buffer_bytes()}", f"--num-subbuf={BUFFERS}")
    control("enable-channel", "-u", "-s", "lab", *sizes, "--buffers-pid", "numbers")
    control("enable-event", "-u", "-s", "lab", "-c", "numbers", "rseqlab_traced:number")
    control("start", "lab")
    running = place.start(
        ["taskset", "-c", str(host.allowed_cpus()[-1]), program(), EVENTS],
        {**environment, **home},
        name="traced",
        unprivileged=True,
    )
    seen = workload.switched_at(running, mode, threads=3)  # its own, and two that listen to the daemon
    operations, elapsed_ns = workload.counted_and_timed(running, EVENTS)
    control("stop", "lab")
    lost = sum(map(int, re.findall(r"Discarded events:\s+(\d+)", control("list", "lab"))))
    control("destroy", "lab")
    counter = ["-c", "sink.utils.counter", "-p", "step=+0"]  # only the sum at the end
    said = place.run([workload.require("babeltrace2"), str(place.folder / "trace"), *counter], home)
    recorded = int(re.findall(r"(\d+) Event messages?", said)[-1])
    if recorded + lost != operations:
        raise Failed(f"{operations} events were emitted, {recorded} recorded, {lost} lost")
    return Result(operations, elapsed_ns, seen, reported=f"{recorded} events recorded, {lost} lost")


def _quietly(place: Place, words: list[str], environment: Mapping[str, str]) -> str:
    running = place.start(words, environment, unprivileged=True)
    running.process.wait(workload.STOP_S)
    return running.said() if running.process.returncode == 0 else "Error"


LOADS = (
    Load("lttng-ust", "one thread on one CPU emits events with one number each into that CPU's buffer", _run),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-lttng",
    "How many events a second does LTTng-UST record with rseq on and off?",
    "what real programs gain: a tracer with per-CPU buffers",
    LOADS,
    (TOOLS, DAEMON, READER, HEADERS),
    {"quick": 20, "full": 90},
    measure,
)
