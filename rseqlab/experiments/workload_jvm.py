"""workload-jvm: does a JVM gain by rseq whose collector asks for its CPU?

HotSpot's ZGC keeps pages for each CPU and asks libc which one it is on (sched_getcpu()) where a thread's own
allocation buffer is used up, and the thread was not the last that it saw on its CPU. The same is run without those
buffers, where every allocation takes from the CPU's page. G1, which does not ask, is the control; the counts say.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.child import Failed
from rseqlab.lab.compile import PACKAGE
from rseqlab.lab.experiment import Task

_SOURCE = PACKAGE / "experiments" / "c" / "Allocate.java"
THREADS = 4
JAVA = workload.command("java", "default-jdk-headless")
COMPILER = workload.command("javac", "default-jdk-headless")


def _prepare(place: Place) -> Path:
    """The folder of the compiled program."""
    place.run([workload.require("javac"), "-d", place.folder, _SOURCE], {"HOME": str(place.folder)})
    return place.folder


def _run(
    place: Place,
    environment: Mapping[str, str],
    mode: str,
    classes: Path,
    collector: str,
    flags: tuple[str, ...],
    blocks: int,
) -> Result:
    # Without UsePerfData no file of the JVM is left in /tmp.
    always = ("-Xms512m", "-Xmx512m", "-XX:-UsePerfData", "-Xlog:gc,gc+init:stdout", *flags)
    running = place.start(
        [workload.require("java"), *always, "-cp", classes, "Allocate", THREADS, blocks],
        {**environment, "HOME": str(place.folder)},
    )
    seen = workload.switched_at(running, mode, threads=8)
    operations, elapsed_ns = workload.counted_and_timed(running, THREADS * blocks)
    said = re.search(
        r"Using (The Z Garbage Collector|G1)|Initializing (The Z Garbage Collector)", running.said()
    )
    if not said or collector not in said[0]:
        raise Failed(f"the JVM says {said and said[0]}, not that it uses {collector}: {running.tail()}")
    return Result(operations, elapsed_ns, seen, reported=said[0])


ZGC, G1 = "The Z Garbage Collector", "G1"


def _loads(classes: Path | None) -> tuple[Load, ...]:
    def load(name: str, about: str, collector: str, flags: tuple[str, ...], blocks: int) -> Load:
        return Load(
            f"java {name}",
            about,
            lambda place, environment, mode: _run(
                place, environment, mode, classes, collector, flags, blocks
            ),
        )

    return (
        load("zgc", "threads allocate arrays under ZGC", ZGC, ("-XX:+UseZGC",), 2_500_000),
        load(
            "zgc, no thread buffers",
            "the same with -XX:-UseTLAB: every allocation takes from the page of a CPU",
            ZGC,
            ("-XX:+UseZGC", "-XX:-UseTLAB"),
            1_000_000,
        ),
        load("g1", "the same under G1, which does not ask: the control", G1, ("-XX:+UseG1GC",), 3_000_000),
    )


LOADS = _loads(None)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    with Place() as kept:
        yield from workload.rows(task, _loads(_prepare(kept)))


EXPERIMENT = workload.experiment(
    "workload-jvm",
    "Does a JVM gain by rseq whose collector asks for its CPU?",
    "what real programs gain: a collector with per-CPU pages",
    LOADS,
    (JAVA, COMPILER),
    {"quick": 25, "full": 120},
    measure,
)
