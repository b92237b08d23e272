"""One job of the native harness (native/ops.c): threads that do operations by one technique, and their row."""

from collections.abc import Sequence

from rseqlab import host, native
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Column

COLUMNS = (
    Column("iterations", "int", "operations of each thread", minimum=1),
    Column("operations", "int", "threads * iterations, and those of signal handlers", minimum=1),
    Column("done", "int", "operations found in the data afterwards; equals operations", minimum=1),
    Column("aborts_moved", "int", "attempts that found another index at their start"),
    Column("aborts_migrated", "int", "attempts aborted by the kernel; the thread has another index now"),
    Column(
        "aborts_interrupted",
        "int",
        "attempts aborted by the kernel, at the same index: preempted, or a signal",
    ),
    Column("context_switches", "int", "of the threads, inside the timed part"),
    Column("elapsed_ns", "int", "first thread's start to last thread's end, CLOCK_MONOTONIC", minimum=1),
    Column("cpu_ns", "int", "CPU time of all threads, CLOCK_THREAD_CPUTIME_ID", minimum=1),
    Column("cpu_ns_per_operation", "float", "cpu_ns / (threads * iterations)", minimum=1e-6),
    Column("elapsed_ns_per_operation", "float", "elapsed_ns / (threads * iterations)", minimum=1e-6),
)
"""What every experiment records of a job; :func:`run_job` gives the values, but for ``iterations``."""

SIGNALS, SLOTS, RESIDENT = "signals", "slots_used", "resident_bytes"


def run_job(
    technique: str,
    threads: int,
    iterations: int,
    cpus: Sequence[int] | None = None,
    stride_bytes: int = 0,
    storm_hz: int = 0,
    moves: int = 0,
    loops: tuple | None = None,
) -> dict:
    """Run it and check that its work was done. Raises Failed where it was not, or could not be started.

    ``technique`` is a name of native/techniques.c. ``loops`` is (ffi, lib) of the build that is measured
    (lab/builds.py); the installed extension without. ``cpus``: one for each thread to stay on; none leaves them where the process may run.
    ``storm_hz``: signals a second to each thread, whose handler does one operation more. ``moves``: how often
    each thread is moved to another of its CPUs.
    """
    ffi, lib = loops or native.core()
    number = lib.rl_ops_find(technique.encode())
    places = ffi.new("int32_t[]", list(cpus) if cpus else [-1] * threads)
    job = {
        "technique": number,
        "threads": threads,
        "iterations": iterations,
        "cpus": places,
        "indices": host.possible_cpus(),
        "stride_bytes": stride_bytes,
        "storm_hz": storm_hz,
        "moves": moves,
    }
    outcome = ffi.new("struct rl_ops_outcome *")
    answer = lib.rl_ops_run(ffi.new("struct rl_ops_job *", job), outcome)
    operations = threads * iterations + outcome.handled
    if answer or outcome.done != operations:
        raise Failed(
            f"{technique}, {threads} threads: of {operations} operations {outcome.done} were found in the data; "
            f"the run answered {answer}"
        )
    return {
        "operations": operations,
        "done": outcome.done,
        "aborts_moved": outcome.aborts.moved,
        "aborts_migrated": outcome.aborts.migrated,
        "aborts_interrupted": outcome.aborts.interrupted,
        "context_switches": outcome.switches,
        "elapsed_ns": outcome.elapsed_ns,
        "cpu_ns": outcome.cpu_ns,
        "cpu_ns_per_operation": outcome.cpu_ns / (threads * iterations),
        "elapsed_ns_per_operation": outcome.elapsed_ns / (threads * iterations),
        SIGNALS: outcome.handled,
        SLOTS: outcome.slots_used,
        RESIDENT: outcome.resident_bytes,
    }


def thread_counts(*factors: int) -> list[int]:
    """1, 2, and the factors times the CPUs that this process may use."""
    return sorted({1, 2, *(factor * len(host.allowed_cpus()) for factor in factors)})


def places(threads: int) -> list[int] | None:
    """A CPU for each thread where there are enough: a question about those CPUs. A crowd is the scheduler's to place."""
    allowed = host.allowed_cpus()
    return allowed[-threads:] if threads <= len(allowed) else None
