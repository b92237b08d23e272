"""cpu-id-read: what does it cost to learn the CPU number, by each way that a program has?

Each process pins itself to one CPU and times all ways interleaved, so that every ratio is between
batches of the same build, process and round. Two kinds of process take turns: one where libc registered
the thread, one where it did not. The own initial-exec area is registered for its batches only; where libc
owns the thread, libc's area is unregistered for that long, with the very values that the kernel
reports, and registered again.
"""

import errno
from collections.abc import Iterator, Mapping

from rseqlab import abi, host, native, rseq
from rseqlab.lab import builds
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.timing import Variant, interleaved, pinned

ORDERS = ("throughput", "dependent", "fenced")
"""Reads may overlap; each read's address waits for the last value; a barrier after each read."""

READERS = (
    "nothing",
    "libc-offset",
    "libc-offset-again",
    "libc-offset-exported",
    "libc-offset-hoisted",
    "own-tls",
    "sched_getcpu",
    "vdso",
    "syscall",
)
"""``libc-offset`` is a library that keeps a copy of libc's offset, ``libc-offset-exported`` one that looks at
``__rseq_offset`` each time. ``libc-offset-again`` is the same source at another place: the A/A control.
``nothing`` is the same loop with a move between registers in the place of the read."""

_LOOPS = {
    "nothing": "RL_READ_NOTHING",
    "libc-offset": "RL_READ_FIELD",
    "libc-offset-again": "RL_READ_FIELD_AGAIN",
    "libc-offset-exported": "RL_READ_FIELD_EXPORTED",
    "libc-offset-hoisted": "RL_READ_FIELD_HOISTED",
    "sched_getcpu": "RL_READ_SCHED_GETCPU",
    "vdso": "RL_READ_VDSO",
    "syscall": "RL_READ_SYSCALL",
}

SUMS_MODULO = 1 << 32
"""The loops add up in 32 bits (native/read_loop.h)."""

PROFILE = {
    "quick": {"builds": 8, "processes": 2, "rounds": 3, "batch_ns": 1_000_000},
    "full": {"builds": 24, "processes": 2, "rounds": 6, "batch_ns": 1_000_000},
}


def variants_of(start: str) -> list[tuple[str, str]]:
    """(reader, order) of every way that exists when libc did (``libc``) or did not (``none``) register."""
    readers = [reader for reader in READERS if start == "libc" or not reader.startswith("libc-")]
    return [
        (reader, order)
        for reader in readers
        for order in ORDERS
        if (reader, order) != ("sched_getcpu", "dependent")
    ]  # it takes no argument to depend on


def plan(profile: str) -> list[Part]:
    """Processes alternate between builds and between the two starts, so that a drift of the machine meets all."""
    size = PROFILE[profile]
    return builds.parts(
        size,
        lambda start: size["rounds"] * len(variants_of(start)),
        timeout_s=120,
        starts=builds.libc_and("none"),
    )


class _OwnTls:
    """The area in initial-exec TLS, registered for the thread only while a batch of it runs."""

    def __init__(self, arguments: Mapping):
        self.ffi, self.lib = builds.own_tls_loops(arguments)
        self.core_ffi, self.core = native.core()
        self.area = self.core_ffi.cast("void *", int(self.ffi.cast("uintptr_t", self.lib.rl_own_tls_area())))
        self.theirs = rseq.configuration()  # asked once: asking forks, which would disturb the batches

    def batch(self, order: str, iterations: int) -> tuple[int, int]:
        total = self.ffi.new("uint64_t *")
        self._theirs(abi.FLAG_UNREGISTER)
        self._ours(0)
        elapsed_ns = self.lib.rl_own_tls_read_loop(ORDERS.index(order), iterations, total)
        self._ours(abi.FLAG_UNREGISTER)
        self._theirs(0)
        return elapsed_ns, total[0]

    def _theirs(self, flags: int) -> None:
        if self.theirs.address:
            area = self.core_ffi.cast("void *", self.theirs.address)
            _check(
                self.core.rl_rseq(area, self.theirs.size_bytes, flags, self.theirs.signature),
                "libc's area",
                flags,
            )

    def _ours(self, flags: int) -> None:
        answer = self.core.rl_rseq(self.area, abi.ORIGINAL_SIZE_BYTES, flags, self.core.rl_signature())
        _check(answer, "the own area", flags)


def _check(answer: int, what: str, flags: int) -> None:
    if answer:
        verb = "unregister" if flags & abi.FLAG_UNREGISTER else "register"
        raise Failed(f"could not {verb} {what}: the kernel answered {errno.errorcode.get(-answer, answer)}")


def measure(task: Task) -> Iterator[dict]:
    """Rows of one process. A way that this machine does not have gives one row with the reason."""
    start, size = task.arguments["start"], task.arguments
    ffi, lib = builds.loops(size)
    state = rseq.owner()
    if state.owner != start:
        raise Failed(
            f"the process was started so that the owner is {start}, but it is {state.owner}: {state.rule}"
        )
    exported = rseq.libc()
    offset_bytes = exported.offset_bytes if exported else 0
    try:
        own_tls, own_tls_missing = _OwnTls(size), None
    except native.NativeUnavailable as error:
        own_tls, own_tls_missing = None, str(error)

    with pinned(host.allowed_cpus()[-1]) as cpu:

        def run(reader: str, order: str, iterations: int) -> tuple[int, int]:
            if reader == "own-tls":
                return own_tls.batch(order, iterations)
            total = ffi.new("uint64_t *")
            loop, read = getattr(lib, _LOOPS[reader]), cpu if reader == "nothing" else offset_bytes
            return lib.rl_read_loop(loop, ORDERS.index(order), read, iterations, total), total[0]

        def missing(reader: str) -> str | None:
            if reader == "own-tls":
                return own_tls_missing
            answer, _ = run(reader, "throughput", 4)
            if answer >= 0:
                return None
            return "this kernel's vDSO has no getcpu" if reader == "vdso" else f"the loop answered {answer}"

        def batch(reader: str, order: str, iterations: int) -> dict:
            elapsed_ns, total = run(reader, order, iterations)
            expected = cpu * iterations % SUMS_MODULO
            if elapsed_ns < 0 or total != expected:
                raise Failed(
                    f"{reader}, {order}: {iterations} reads on CPU {cpu} summed up to {total}, "
                    f"not {expected}; the loop answered {elapsed_ns}"
                )
            return {
                "reader": reader,
                "order": order,
                "start": start,
                "cpu": cpu,
                "elapsed_ns": elapsed_ns,
                "ns_per_read": elapsed_ns / iterations,
                "reason": None,
            }

        reasons = {
            reader: missing(reader) for reader in READERS if start == "libc" or not reader.startswith("libc-")
        }
        timed = []
        for reader, order in variants_of(start):
            if not reasons[reader]:
                timed.append(Variant((reader, order), lambda n, r=reader, o=order: batch(r, o, n)))
            elif task.pending(0, reader, order):
                yield {
                    "round": 0,
                    "reader": reader,
                    "order": order,
                    "start": start,
                    "cpu": cpu,
                    "position": None,
                    "iterations": None,
                    "elapsed_ns": None,
                    "ns_per_read": None,
                    "reason": reasons[reader],
                }
        yield from interleaved(timed, size["rounds"], size["batch_ns"], size["seed"], task.pending)


EXPERIMENT = Experiment(
    name="cpu-id-read",
    question="What does it cost to learn the CPU number, by each way that a program has?",
    serves="access cost: offset-size against an own TLS symbol; what sched_getcpu gains from rseq",
    columns=(
        *builds.COLUMNS,
        Column("round", "int", "every variant is timed once a round"),
        Column("reader", "text", "the way of reading", choices=READERS),
        Column("order", "text", "what the next read waits for", choices=ORDERS),
        Column("start", "text", "who registered the thread at process start", choices=("libc", "none")),
        Column("cpu", "int", "the CPU that the process was pinned to"),
        Column("position", "int", "place within the round's random order", nullable=True),
        Column("iterations", "int", "reads in the batch", nullable=True, minimum=1),
        Column("elapsed_ns", "int", "the batch, by CLOCK_MONOTONIC", nullable=True, minimum=1),
        Column(
            "ns_per_read", "float", "elapsed_ns / iterations, the loop included", nullable=True, minimum=1e-6
        ),
        Column("reason", "text", "why it was not measured", nullable=True),
    ),
    key=("round", "reader", "order"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 10, "full": 60},
    plan=plan,
    measure=measure,
    prepare=builds.prepares(builds.LOOPS, builds.OWN_TLS),
)
