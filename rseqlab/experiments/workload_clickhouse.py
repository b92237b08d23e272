"""workload-clickhouse: does ClickHouse gain, which reads libc's area itself?

chdb, ClickHouse in a Python process, unmodified from PyPI. It imports ``__rseq_offset`` and ``__rseq_size`` weakly
and has jemalloc with an arena for each CPU built in; it never calls libc's sched_getcpu(), so nothing is counted.
"""

import re
import sys
from collections.abc import Iterator, Mapping

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Task

WHEEL = "chdb-core"
THREADS, NUMBERS, KEYS = 4, 4_000_000, 100_000

SCRIPT = """
import re, sys, time
from chdb import session
folder, threads, numbers, keys = sys.argv[1], *map(int, sys.argv[2:])
one = session.Session(folder)
ask = lambda text: one.query(text, "TSVRaw").bytes().decode()
query = f'''select count(), sum(length(s)), sum(arrayCount(x -> length(x) > 3, s)) from (
    select number % {keys} as k, groupArray(toString(number)) as s from numbers_mt({numbers}) group by k)
    settings max_threads={threads}'''
ask(query.replace(str(numbers), str(keys)))
print("ready", flush=True)
sys.stdin.readline()
start = time.perf_counter_ns()
answer = ask(query).split()
elapsed = time.perf_counter_ns() - start
held = re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]
arena = re.search(r'opt.percpu_arena: "\\w+"', ask("select * from system.jemalloc_stats"))
warned = ask("select count() from system.warnings where message like '%rseq%'").strip()
print("answer", *answer, "version", ask("select version()").strip())
print("held", held, "arena", arena and arena[0], "warnings", warned)
print(f"operations={answer[1]} elapsed_ns={elapsed}")
"""


def _run(place: Place, environment: Mapping[str, str], mode: str) -> Result:
    words = [place.folder / "database", THREADS, NUMBERS, KEYS]
    running = place.start(
        [sys.executable, "-B", "-c", SCRIPT, *words],
        {**environment, "PYTHONPATH": str(workload.wheels_folder()), "HOME": str(place.folder)},
        name="clickhouse",
        piped=True,
    )
    running.until(lambda: "ready" in running.said(), "ready")
    seen = workload.settled(running, mode)
    running.tell(b"go\n")
    operations, elapsed_ns = workload.counted_and_timed(running, NUMBERS)
    said = running.said()
    answer = [int(word) for word in re.search(r"^answer (\d+) (\d+) (\d+) ", said, re.M).groups()]
    if answer != [KEYS, NUMBERS, NUMBERS - 1000]:
        raise Failed(f"the query answered {answer}, not {[KEYS, NUMBERS, NUMBERS - 1000]}")
    held, arena, warnings = re.search(r"^held (\d+) arena (.*) warnings (\d+)$", said, re.M).groups()
    version = re.search(r" version (\S+)", said)[1]
    reported = f"ClickHouse {version}: {arena}; {warnings} warnings about rseq"
    return Result(operations, elapsed_ns, seen, int(held), reported)


LOADS = (
    Load("clickhouse group", "threads build arrays of strings by key and join them", _run, counted=False),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-clickhouse",
    "Does ClickHouse gain, which reads libc's area itself?",
    "what real programs gain: a database that reads libc's area",
    LOADS,
    (workload.wheel(WHEEL, "chdb/_chdb*.so"),),
    {"quick": 20, "full": 80},
    measure,
)
