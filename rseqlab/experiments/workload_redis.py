"""workload-redis: does Redis on jemalloc with an arena for each CPU gain by rseq?

jemalloc asks libc for the CPU with sched_getcpu(), which reads the area where libc has registered one.
"""

import re
from collections.abc import Iterator, Mapping

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Task

SERVER = workload.command("redis-server", "redis-server")
DRIVER = workload.command("redis-benchmark", "redis-tools")

OPERATIONS = 200_000
"""Under a second on slow machines of today: commands of one run."""


def _run(place: Place, environment: Mapping[str, str], mode: str, test: str) -> Result:
    """One server on a unix socket, one test of redis-benchmark, and what the server says of its allocator."""
    socket = place.folder / "redis.sock"
    environment = workload.with_jemalloc(environment, workload.PERCPU)
    quiet = ("--port", "0", "--save", "", "--appendonly", "no", "--daemonize", "no")
    server = place.start(
        [workload.require("redis-server"), *quiet, "--unixsocket", socket, "--dir", place.folder],
        environment,
    )
    client = [workload.require("redis-cli"), "-s", socket]
    server.until(lambda: socket.exists() and b"PONG" in _ask(place, client, "PING"), "answering")
    seen = workload.switched(server.pid, mode=mode)
    driver = [workload.require("redis-benchmark"), "-s", socket, "-t", test, "-d", "512", "-r", "50000"]
    said = place.run([*driver, "-n", OPERATIONS, "-P", "16", "-c", "20", "--csv"], {})
    speed = re.findall(r'^"[^"]*","([\d.]+)"', said, re.M)
    if len(speed) != 1:
        raise Failed(f"redis-benchmark gave {len(speed)} results, not one: {said[-200:]}")
    done = int(re.search(rb"total_commands_processed:(\d+)", _ask(place, client, "INFO", "stats"))[1])
    if done < OPERATIONS:
        raise Failed(f"redis-server counts {done} commands, redis-benchmark sent {OPERATIONS}")
    held = workload.resident_kib(server.pid)
    stats = _ask(place, client, "MEMORY", "MALLOC-STATS").decode(errors="replace")
    reported = workload.jemalloc_says(stats)
    _ask(place, client, "SHUTDOWN", "NOSAVE")
    server.wait()
    return Result(OPERATIONS, round(OPERATIONS / float(speed[0]) * 1e9), seen, held, reported)


def _ask(place: Place, client: list, *words: str) -> bytes:
    running = place.start([*client, *words], {})
    running.process.wait(20)
    return running.log.read_bytes()


def _load(test: str, about: str) -> Load:
    return Load(f"redis {test}", about, lambda place, environment, mode: _run(place, environment, mode, test))


LOADS = (
    _load("set", "redis-benchmark -t set with values of 512 bytes, pipelined: every command allocates"),
    _load("lpush", "redis-benchmark -t lpush with values of 512 bytes, pipelined: one list grows"),
)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    yield from workload.rows(task, LOADS)


EXPERIMENT = workload.experiment(
    "workload-redis",
    "Does Redis on jemalloc with an arena for each CPU gain by rseq?",
    "what real programs gain: an allocator with per-CPU arenas under a server",
    LOADS,
    (SERVER, DRIVER, workload.JEMALLOC),
    {"quick": 20, "full": 90},
    measure,
)
