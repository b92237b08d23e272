"""workload-python: does an allocation-heavy Python process gain by rseq on an allocator with per-CPU arenas?

CPython with all its memory from malloc (PYTHONMALLOC=malloc), jemalloc preloaded: threads parse and write JSON.
"""

import sys
from collections.abc import Iterator, Mapping

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.experiment import Task

DOCUMENTS = 12_000
THREADS = 2

SCRIPT = """
import json, sys, threading, time
threads, documents = map(int, sys.argv[1:])
text = json.dumps([{"id": n, "name": "n" * (n % 40), "tags": ["a", str(n)], "at": n / 7} for n in range(40)])
done = []
def work():
    kept = []
    for n in range(documents // threads):
        kept.append(json.loads(text))
        if len(kept) == 50:
            done.append(sum(json.loads(json.dumps(one)) == one for one in kept[:5]) == 5 and len(kept))
            kept.clear()
    done.append(len(kept))
start = time.perf_counter_ns()
all = [threading.Thread(target=work) for _ in range(threads)]
[one.start() for one in all]
[one.join() for one in all]
print(f"operations={sum(done)} elapsed_ns={time.perf_counter_ns() - start}")
"""


def _run(place: Place, environment: Mapping[str, str], mode: str) -> Result:
    environment = workload.with_jemalloc(environment, f"{workload.PERCPU},stats_print:true")
    running = place.start(
        [sys.executable, "-I", "-S", "-c", SCRIPT, THREADS, DOCUMENTS],
        {**environment, "PYTHONMALLOC": "malloc"},
        name="python",
    )
    seen = workload.switched_at(running, mode, threads=THREADS + 1)
    operations, elapsed_ns = workload.counted_and_timed(running, DOCUMENTS)
    return Result(operations, elapsed_ns, seen, reported=workload.jemalloc_says(running.said()))


LOADS = (
    Load("python json", "two threads parse JSON documents, keep some and drop them; memory by malloc", _run),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-python",
    "Does an allocation-heavy Python process gain by rseq on an allocator with per-CPU arenas?",
    "what real programs gain: an allocator with per-CPU arenas under an interpreter",
    LOADS,
    (workload.JEMALLOC,),
    {"quick": 12, "full": 60},
    measure,
)
