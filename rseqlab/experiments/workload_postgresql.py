"""workload-postgresql: does PostgreSQL, which uses no rseq, notice whether libc registers?

A server on a unix socket in a private folder, with a process for each connection, under pgbench.
"""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rseqlab.census import workload
from rseqlab.census.workload import Load, Place, Result
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Task

BINARIES = "/usr/lib/postgresql/*/bin"
CLIENTS, TRANSACTIONS = 4, {"select": 5_000, "update": 800}
"""Of each client."""
FLAGS = {"select": "-S", "update": "-N"}


def _place(name: str) -> tuple[str, str]:
    return name, f"{BINARIES}/{name}"


NEEDS = tuple(
    workload.command(name, "postgresql", f"{BINARIES}/{name}") for name in ("postgres", "initdb", "pgbench")
)


def _prepare(place: Place) -> Path:
    """A database cluster that every run gets a copy of."""
    data = place.folder / "template"
    initdb = [workload.require(*_place("initdb")), "-D", data, "-A", "trust", "-U", "lab", "--no-sync"]
    place.run([*initdb, "--no-locale", "-E", "UTF8"], {}, unprivileged=True)
    server = _serve(place, data, {})
    pgbench = [workload.require(*_place("pgbench")), "-h", place.folder, "-U", "lab"]
    place.run([*pgbench, "-i", "-q", "-s", "5", "postgres"], {}, unprivileged=True)
    server.stop()
    return data


def _serve(place: Place, data: Path, environment: Mapping[str, str]):
    settings = ("listen_addresses=", "synchronous_commit=off", "fsync=off", "autovacuum=off")
    words = [word for one in settings for word in ("-c", one)]
    server = place.start(
        [workload.require(*_place("postgres")), "-D", data, "-k", place.folder, *words],
        environment,
        unprivileged=True,
    )
    server.until(lambda: "ready to accept connections" in server.said(), "ready")
    return server


def _run(place: Place, environment: Mapping[str, str], mode: str, template: Path, what: str) -> Result:
    data = place.folder / "data"
    shutil.copytree(template, data)
    if one := workload.stranger():
        for path in (data, *data.rglob("*")):
            shutil.chown(path, one.pw_uid, one.pw_gid)
    server = _serve(place, data, environment)
    expected = CLIENTS * TRANSACTIONS[what]
    pgbench = [workload.require(*_place("pgbench")), "-h", place.folder, "-U", "lab", "-n", FLAGS[what]]
    driver = place.start(
        [*pgbench, "-c", CLIENTS, "-j", "2", "-t", TRANSACTIONS[what], "postgres"], {}, unprivileged=True
    )
    family = server.until(lambda: _family(server.pid), "serving its clients")
    seen = workload.switched(*family, mode=mode)
    said = driver.wait()
    done = re.search(r"transactions actually processed: (\d+)/(\d+)", said)
    speed = re.search(r"^tps = ([\d.]+) \(without initial", said, re.M)
    if not done or not speed or int(done[1]) != expected:
        raise Failed(f"pgbench did {done and done[1]} of {expected} transactions: {driver.tail()}")
    held = workload.resident_kib(server.pid, *workload.children(server.pid))
    server.stop()
    version = re.search(r"starting (PostgreSQL [\d.]+)", server.said())
    return Result(expected, round(expected / float(speed[1]) * 1e9), seen, held, version and version[1])


def _family(pid: int) -> list[int] | None:
    """The server and its processes, once there is one for each client beside its own."""
    below = workload.children(pid)
    names = [Path(f"/proc/{one}/cmdline").read_bytes() for one in below]
    return [pid, *below] if sum(b"lab" in name for name in names) >= CLIENTS else None


def _loads(template: Path | None) -> tuple[Load, ...]:
    def load(what: str, about: str) -> Load:
        return Load(
            f"postgresql {what}",
            about,
            lambda place, environment, mode: _run(place, environment, mode, template, what),
        )

    return (
        load("select", "pgbench -S: reads by key"),
        load("update", "pgbench -N: updates and inserts, without waiting for the disk"),
    )


LOADS = _loads(None)


def measure(task: Task) -> Iterator[dict]:
    """Rows of one part."""
    with Place() as kept:
        yield from workload.rows(task, _loads(_prepare(kept)))


EXPERIMENT = workload.experiment(
    "workload-postgresql",
    "Does PostgreSQL, which uses no rseq, notice whether libc registers?",
    "what non-users pay: a database under its own benchmark",
    LOADS,
    NEEDS,
    {"quick": 25, "full": 130},
    measure,
)
