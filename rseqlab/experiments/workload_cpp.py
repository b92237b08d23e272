"""workload-cpp: does a C++ program with threads gain by rseq where its allocator has an arena for each CPU?

Blocks are allocated in one thread and freed in the next. jemalloc asks libc for the CPU only where its cache for
each thread does not have a block, and another thread used the arena last; so there is a load without that cache too.
"""

from collections.abc import Iterator, Mapping

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.compile import PACKAGE, Need, Target, build, missing
from rseqlab.lab.experiment import Task

_SOURCE = PACKAGE / "experiments" / "c" / "alloc_threads.cpp"
THREADS = 4
COMPILER = Need("a C++ compiler", lambda: missing("c++"))


def program() -> str:
    """The path of the built program. Raises CompileError."""
    flags = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-pthread")
    return str(build(Target("alloc_threads", (_SOURCE,), flags, compiler="c++")))


def _run(place: Place, environment: Mapping[str, str], mode: str, options: str, blocks: int) -> Result:
    options = f"{options},stats_print:true"
    running = place.start(
        [program(), THREADS, blocks], workload.with_jemalloc(environment, options), name="alloc_threads"
    )
    seen = workload.switched_at(running, mode, threads=THREADS + 1)
    operations, elapsed_ns = workload.counted_and_timed(running, THREADS * blocks)
    return Result(operations, elapsed_ns, seen, reported=workload.jemalloc_says(running.said()))


def _load(name: str, about: str, options: str, blocks: int) -> Load:
    return Load(
        f"c++ {name}", about, lambda place, environment, mode: _run(place, environment, mode, options, blocks)
    )


LOADS = (
    _load("percpu", "blocks cross threads; jemalloc, an arena for each CPU", workload.PERCPU, 4_000_000),
    _load(
        "percpu, no thread cache",
        "the same without jemalloc's cache for each thread: every call chooses an arena",
        f"{workload.PERCPU},tcache:false",
        1_500_000,
    ),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-cpp",
    "Does a C++ program with threads gain by rseq where its allocator has an arena for each CPU?",
    "what real programs gain: an allocator with per-CPU arenas under threads",
    LOADS,
    (COMPILER, workload.JEMALLOC),
    {"quick": 12, "full": 60},
    measure,
)
