"""The census of packages: those that the distribution has installed, and package files, here or on a cluster.

A package file is one task. Its record is one line of the bundle, on the disk before the next is taken, so that
whatever ends a census loses at most the packages in hand; ``resume`` skips what is there by the digest of its
bytes. A task gets the package's path and digest; a machine of the cluster that does not see these very bytes
there says so, and they are sent to it.
"""

import hashlib
import json
import os
import queue
import shutil
import stat
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Protocol

import rseqlab
from rseqlab.census.process import printable
from rseqlab.errors import LabError, UsageError
from rseqlab.lab import bundle
from rseqlab.lab.cluster import connect
from rseqlab.lab.runner import runs_folder

RECORDS = "packages.jsonl"
MOST_SENT_BYTES = 256 << 20
"""Of a package whose bytes have to go through the cluster's scheduler; a larger one is refused."""

DEATHS = 2
"""A package is refused when this many processes have ended while they read it, the last one with it alone."""

LIST_TIMEOUT_S = 300
BATCH_FILES = 64
VOLATILE = ("elapsed_ns", "worker", "path")
"""What of a record depends on where and when it was made."""


class Scanner(Protocol):
    """Reads one package file; the answer has ``rows``, ``refused`` and ``files``."""

    def __call__(self, path: str) -> dict: ...


class GuardedScanner:
    """One process that reads package after package; one that does not survive is refused, and the next goes on."""

    def __init__(self):
        from rseqlab.census import pool

        self.path: str | None = None
        self.answers = pool.answers(self._batches(), 1)

    def _batches(self) -> Iterator[list[tuple[str, bool]]]:
        while self.path is not None:
            path, self.path = self.path, None
            yield [(path, True)]

    def __call__(self, path: str) -> dict:
        self.path = path
        return next(self.answers)

    def close(self) -> None:
        self.answers.close()


def digest_of(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_one(scanner: Scanner, path: str, digest: str) -> dict:
    """A package's record. A process that ended while it read the package is given one more chance."""
    started = time.monotonic_ns()
    deaths = 0
    while True:
        answer = scanner(path)
        ended = [one for one in answer["refused"] if "the process that read it" in one["reason"]]
        if not ended or (deaths := deaths + 1) >= DEATHS:
            break
    name = os.path.basename(path)
    if ended:
        return _refused(name, path, digest, f"{DEATHS} times {ended[0]['reason']}")
    return {
        "package": printable(os.fsencode(name)),
        "digest": digest,
        "bytes": os.stat(path).st_size,
        "elf_files": sum(answer.get("elf", {}).values()),
        "files": _sorted(map(_member, answer["rows"])),
        "refused": _sorted(map(_member, answer["refused"])),
        "reason": None,
        "path": printable(os.fsencode(path)),
        "elapsed_ns": time.monotonic_ns() - started,
        "worker": None,
    }


def _member(row: Mapping) -> dict:
    """A finding of a file in a package: where the package lay does not belong to it."""
    kept = {key: value for key, value in row.items() if key != "path"}
    return kept | {"member": printable(os.fsencode(row["member"])) if row["member"] is not None else None}


def _sorted(rows: Iterable[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def _refused(name: str, path: str, digest: str | None, reason: str) -> dict:
    return {
        "package": printable(os.fsencode(name)),
        "digest": digest,
        "bytes": None,
        "elf_files": 0,
        "files": [],
        "refused": [],
        "reason": printable(reason),
        "path": printable(os.fsencode(path)),
        "elapsed_ns": 0,
        "worker": None,
    }


# ---- the bundle ----


class Records:
    """The lines of a bundle. Each is on the disk when :meth:`add` returns."""

    def __init__(self, folder: Path, resume: bool):
        self.path = folder / RECORDS
        if self.path.exists() and not resume:
            raise UsageError(
                f"{printable(str(folder))} has a census already; --resume goes on with it, or name another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.known = _read(self.path) if resume and self.path.exists() else []
        self.file = open(self.path, "ab")  # noqa: SIM115 - stays open until close()
        self.done = {one["digest"] for one in self.known if one["digest"]}

    def add(self, record: dict) -> None:
        self.known.append(record)
        if record["digest"]:
            self.done.add(record["digest"])
        self.file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def _read(path: Path) -> list[dict]:
    """The records that stay. A last line that was cut short, and what could not be read at all, is taken off."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        if not all(isinstance(one, dict) and "digest" in one for one in records):
            raise ValueError("a line is no record")
    except ValueError as error:
        raise LabError(
            f"{printable(str(path))} is no census of packages: {error}. Name another folder."
        ) from None
    kept = [one for one in records if one["digest"]]
    if len(whole) < len(data) or len(kept) < len(records):
        bundle.write_text(path, "".join(json.dumps(one, allow_nan=False) + "\n" for one in kept))
    return kept


def read_list(path: Path) -> list[str]:
    """The package files that a list names, one a line; empty lines and those that begin with # say nothing."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"Could not read the list {printable(str(path))}: {error.strerror}.") from None
    found = [os.fsdecode(line.strip()) for line in lines if line.strip() and not line.startswith(b"#")]
    if not found:
        raise UsageError(f"The list {printable(str(path))} names no package file.")
    return list(dict.fromkeys(found))


# ---- on this machine ----


def here(
    paths: list[str],
    records: Records,
    workers: int | None = None,
    show: Callable[[int], None] = lambda done: None,
    open_scanner: Callable[[], Scanner] = GuardedScanner,
) -> int:
    """Read them with this many processes. Returns how many were there already."""
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    answers: queue.SimpleQueue = queue.SimpleQueue()
    for path in paths:
        waiting.put(path)
    stop = threading.Event()

    def slot() -> None:
        scanner = None
        try:
            while not stop.is_set():
                path = waiting.get_nowait()
                try:
                    digest = digest_of(path)
                except OSError as error:
                    answers.put(_refused(os.path.basename(path), path, None, error.strerror or str(error)))
                    continue
                if digest in records.done:
                    answers.put(None)
                    continue
                scanner = scanner or open_scanner()
                answers.put(read_one(scanner, path, digest))
        except queue.Empty:
            pass
        except BaseException as error:  # a fault of ours must end the census, not one slot of it
            answers.put(error)
        finally:
            if scanner is not None and hasattr(scanner, "close"):
                scanner.close()

    count = min(workers or len(os.sched_getaffinity(0)), len(paths))
    slots = [threading.Thread(target=slot, daemon=True) for _ in range(count)]
    skipped = 0
    try:
        for one in slots:
            one.start()
        for done in range(len(paths)):
            record = answers.get()
            if isinstance(record, BaseException):
                raise record
            if record is None or (record["digest"] and record["digest"] in records.done):
                skipped += 1
            else:
                records.add(record)
            show(done + 1)
    finally:
        stop.set()
        for one in slots:
            one.join()
    return skipped


# ---- on a cluster ----

_mine = threading.local()


def on_worker(path: str, digest: str, payload: bytes | None, attempts: list[str] | None, alone: bool) -> dict:
    """On a machine of the cluster: the package's record, or what stands in its way.

    ``attempts`` names a counter that the scheduler keeps: where this is not the first try, the worker before
    has ended with the package in hand.
    """
    if attempts is not None:
        from distributed import get_client

        client = get_client()
        before = client.get_metadata(attempts, 0)
        if before:
            return {"state": "killed" if alone else "suspect"}
        client.set_metadata(attempts, 1)
    if not hasattr(_mine, "scanner"):
        _mine.scanner = open_scanner_on_worker()()
    with tempfile.TemporaryDirectory(prefix="rseqlab-") as scratch:
        place = path
        if payload is not None:
            place = os.path.join(scratch, os.path.basename(path))
            Path(place).write_bytes(payload)
        try:
            same = digest_of(place) == digest
        except OSError:
            same = False
        if not same:
            return {"state": "not visible"}
        return {
            "state": "done",
            "record": read_one(_mine.scanner, place, digest),
            "version": rseqlab.__version__,
        }


def open_scanner_on_worker() -> Callable[[], Scanner]:
    return GuardedScanner


def on_cluster(
    address: str,
    paths: list[str],
    records: Records,
    show: Callable[[int], None] = lambda done: None,
    task: Callable[..., dict] = on_worker,
) -> int:
    """Read them on the Dask cluster at this address. Returns how many were there already.

    A worker that is lost gives its packages back to the scheduler. A package that a worker was lost with is
    tried once more at the end, alone in the cluster: so it is not blamed for what another one did.
    """
    with connect(address, "--cluster") as client:
        return _Cluster(client, paths, records, show, task).run()


class _Cluster:
    """What is under way on a cluster."""

    def __init__(self, client, paths, records, show, task):
        self.client, self.records, self.show, self.task = client, records, show, task
        self.paths = iter(paths)
        self.total = len(paths)
        self.run_id = f"rseqlab-{os.getpid()}-{time.time_ns()}"
        self.number = self.skipped = self.finished = 0
        self.suspects: list[tuple[str, str]] = []
        self.tasks: dict = {}
        self.taken: set[str] = set()

    def run(self) -> int:
        from distributed import as_completed

        completed = as_completed(loop=self.client.loop)
        try:
            self._fill(completed)
            while self.tasks:
                future = next(completed)
                self._take(future, completed)
                self._fill(completed)
            while self.suspects:
                path, digest = self.suspects.pop()
                completed.add(self._submit(path, digest, None, alone=True))
                while self.tasks:
                    self._take(next(completed), completed)
        finally:
            with suppress(Exception):
                self.client.cancel(list(self.tasks))
        return self.skipped

    def _fill(self, completed) -> None:
        """Keep every thread of the cluster busy, and one package waiting for each."""
        room = 2 * max(1, sum(self.client.nthreads().values()))
        while len(self.tasks) < room:
            path = next(self.paths, None)
            if path is None:
                return
            try:
                digest = digest_of(path)
            except OSError as error:
                self._add(_refused(os.path.basename(path), path, None, error.strerror or str(error)))
                continue
            if digest in self.records.done or digest in self.taken:
                self._finish(skipped=True)
                continue
            self.taken.add(digest)
            completed.add(self._submit(path, digest, None))

    def _submit(self, path: str, digest: str, payload: bytes | None, alone: bool = False):
        self.number += 1
        key = f"{self.run_id}-{self.number}"
        place = path if payload is not None else os.path.abspath(path)
        future = self.client.submit(
            self.task, place, digest, payload, [self.run_id, str(self.number)], alone, key=key, pure=False
        )
        self.tasks[future] = (path, digest, alone)
        return future

    def _take(self, future, completed) -> None:
        path, digest, alone = self.tasks.pop(future)
        name = os.path.basename(path)
        error = future.exception() if future.status == "error" else None
        if error is not None:
            if type(error).__name__ != "KilledWorker":
                raise LabError(
                    f"A worker of the cluster could not read {printable(name)}: {type(error).__name__}: "
                    f"{printable(str(error))[:300]}. Its Python needs rseqlab {rseqlab.__version__}."
                )
            answer = {"state": "killed" if alone else "suspect"}
        elif future.status != "finished":
            raise LabError(
                f"The cluster gave {printable(name)} back unread ({future.status}): its scheduler is gone or was "
                "restarted. What was read is kept; --resume goes on with it."
            )
        else:
            answer = future.result()
        future.release()
        if answer["state"] == "done":
            if answer["version"] != rseqlab.__version__:
                raise LabError(
                    f"A worker of the cluster has rseqlab {printable(answer['version'])}, this is "
                    f"{rseqlab.__version__}: their records cannot stand in one bundle."
                )
            self._add(answer["record"])
        elif answer["state"] == "suspect" and not alone:
            self.suspects.append((path, digest))
        elif answer["state"] == "not visible":
            self._send(path, digest, alone, completed)
        else:  # alone, and again a worker ended
            reason = f"{DEATHS} workers of the cluster ended while they read it, the second with it alone"
            self._add(_refused(name, path, digest, reason))

    def _send(self, path: str, digest: str, alone: bool, completed) -> None:
        """The bytes themselves, through the scheduler, which keeps them until the record is there."""
        name = os.path.basename(path)
        try:
            size = os.stat(path).st_size
            if size > MOST_SENT_BYTES:
                why = f"the cluster does not see it, and its {size} bytes are more than the {MOST_SENT_BYTES} that are sent"
                return self._add(_refused(name, path, digest, why))
            payload = Path(path).read_bytes()
        except OSError as error:
            return self._add(_refused(name, path, None, error.strerror or str(error)))
        if hashlib.sha256(payload).hexdigest() != digest:
            return self._add(_refused(name, path, None, "it changed while the census ran"))
        completed.add(self._submit(path, digest, payload, alone))

    def _add(self, record: dict) -> None:
        self.records.add(record)
        self._finish()

    def _finish(self, skipped: bool = False) -> None:
        self.finished += 1
        self.skipped += skipped
        self.show(self.finished)


# ---- what is installed ----


def installed() -> Iterator[tuple[str, str, list[str]]]:
    """(package, version, files) by the distribution's own list: dpkg's, rpm's, or both."""
    asked = False
    if shutil.which("dpkg-query"):
        asked = True
        yield from _listed(
            ["dpkg-query", "-W", "-f", ">${binary:Package}\\t${Version}\\n${db-fsys:Files}\\n"]
        )
    if shutil.which("rpm"):
        asked = True
        yield from _listed(["rpm", "-qa", "--qf", ">%{NAME}\\t%{VERSION}-%{RELEASE}\\n[ %{FILENAMES}\\n]"])
    if not asked:
        raise LabError(
            "Neither dpkg-query nor rpm is here to say which packages are installed; "
            "`rseqlab census /usr` looks at the files themselves."
        )


def _listed(command: list[str]) -> Iterator[tuple[str, str, list[str]]]:
    said = subprocess.run(
        command, capture_output=True, timeout=LIST_TIMEOUT_S, env=os.environ | {"LC_ALL": "C.UTF-8"}
    )
    if said.returncode:
        raise LabError(f"{command[0]} failed: {printable(said.stderr)[:300]}")
    yield from parse_listed(said.stdout)


def parse_listed(text: bytes) -> Iterator[tuple[str, str, list[str]]]:
    """A line `>name TAB version` for each package, and a line that begins with a blank for each of its files."""
    package, version, files = "", "", []
    for line in text.split(b"\n"):
        if line.startswith(b">"):
            if package:
                yield package, version, files
            name, _, rest = line[1:].partition(b"\t")
            package, version, files = printable(name), printable(rest), []
        elif line.startswith(b" /"):
            files.append(os.fsdecode(line[1:]))
    if package:
        yield package, version, files


@cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def scan_installed(
    workers: int | None = None, show: Callable[[int, int], None] = lambda done, total: None
) -> tuple[list[dict], dict]:
    """(a record for each package, how much was read). Every file is read once, whoever lists it."""
    from rseqlab.census import pool

    owners: dict[str, list[int]] = {}
    records = []
    for package, version, files in installed():
        records.append({"package": package, "version": version, "files": [], "refused": []})
        for path in files:
            folder, name = os.path.split(path)
            place = os.path.join(_real_folder(folder), name)
            with suppress(OSError, ValueError):
                if stat.S_ISREG(os.lstat(place).st_mode):
                    owners.setdefault(place, []).append(len(records) - 1)
    paths = list(owners)
    batches = (
        [(path, False) for path in paths[start : start + BATCH_FILES]]
        for start in range(0, len(paths), BATCH_FILES)
    )
    read = Counter()
    for answer in pool.answers(batches, workers or len(os.sched_getaffinity(0))):
        read["files"] += answer.get("files", 0)
        read["read_bytes"] += answer.get("read_bytes", 0)
        read["elf_files"] += sum(answer.get("elf", {}).values())
        for key, rows in (("files", answer.get("rows", ())), ("refused", answer.get("refused", ()))):
            for row in rows:
                for number in owners.get(row["path"], ()):
                    records[number][key].append({**row, "path": printable(os.fsencode(row["path"]))})
        show(read["files"], len(paths))
    for one in records:
        one["files"], one["refused"] = _sorted(one["files"]), _sorted(one["refused"])
    return records, dict(read)


# ---- the documents ----


def document(mode: str, records: list[dict], elapsed_ns: int, **more) -> dict:
    """The document rseqlab/census-packages: those with evidence or refusals one by one, the others counted."""
    shown = [
        {
            "package": one["package"],
            "version": one.get("version"),
            "digest": one.get("digest"),
            "classes": dict(sorted(Counter(row["class"] for row in one["files"]).items())),
            "files": one["files"],
            "refused": one["refused"],
            "reason": one.get("reason"),
        }
        for one in records
        if one["files"] or one["refused"] or one.get("reason")
    ]
    shown.sort(key=lambda one: (one["package"], one["digest"] or ""))
    classes = Counter()
    for one in shown:
        classes.update(one["classes"].keys())
    return {
        "schema": "rseqlab/census-packages",
        "version": 1,
        "mode": mode,
        "totals": {
            "packages": len(records),
            "with_evidence": sum(bool(one["files"]) for one in records),
            "refused": sum(bool(one.get("reason")) for one in records),
            "elf_files": sum(one.get("elf_files", 0) for one in records),
            "elapsed_ns": elapsed_ns,
            **{"files_read": None, "already_there": 0, "bytes": None, "read_bytes": None},
            **{"folder": None, "cluster": None},
            **more,
        },
        "packages_by_class": dict(sorted(classes.items())),
        "packages": shown,
    }


def census_installed(
    workers: int | None = None, show: Callable[[int, int], None] = lambda done, total: None
) -> dict:
    """What the installed packages do."""
    started = time.monotonic_ns()
    records, read = scan_installed(workers, show)
    elapsed_ns = time.monotonic_ns() - started
    return document(
        "installed",
        records,
        elapsed_ns,
        files_read=read.get("files", 0),
        elf_files=read.get("elf_files", 0),
        read_bytes=read.get("read_bytes", 0),
    )


def census_archives(
    paths: list[str],
    folder: Path,
    resume: bool = False,
    cluster: str | None = None,
    workers: int | None = None,
    show: Callable[[int], None] = lambda done: None,
) -> dict:
    """What package files hold; their records are in ``folder``."""
    started = time.monotonic_ns()
    records = Records(folder, resume)
    try:
        if cluster is None:
            already = here(paths, records, workers, show)
        else:
            already = on_cluster(cluster, paths, records, show)
    finally:
        records.close()
    return document(
        "archives",
        records.known,
        time.monotonic_ns() - started,
        already_there=already,
        bytes=sum(one["bytes"] or 0 for one in records.known),
        folder=printable(str(folder)),
        cluster=printable(cluster) if cluster else None,
    )


def new_folder() -> Path:
    """Where a bundle of packages goes that nobody named: among the runs, by the time."""
    return runs_folder() / time.strftime("packages-%Y%m%dT%H%M%SZ", time.gmtime())


def sentences(document: Mapping) -> Iterator[str]:
    """The summary in words."""
    totals = document["totals"]
    seconds = totals["elapsed_ns"] / 1e9
    which = "installed packages" if document["mode"] == "installed" else "package files"
    yield (
        f"{totals['packages']} {which}, {totals['elf_files']} ELF files, in {seconds:.1f} s: "
        f"{totals['with_evidence']} have files with evidence of rseq."
    )
    if document["packages_by_class"]:
        classes = ", ".join(f"{name} {count}" for name, count in document["packages_by_class"].items())
        yield f"Packages by what their files do (one may do several): {classes}."
    if totals["already_there"]:
        yield f"{totals['already_there']} were there already."
    for one in document["packages"]:
        if one["reason"]:
            yield f"Refused: {one['package']}: {one['reason']}"
    refused = sum(len(one["refused"]) for one in document["packages"])
    if refused:
        yield f"{refused} files within packages could not be read; --json lists each with the reason."
    if totals["folder"]:
        yield f"The records are in {totals['folder']}."


def lines(document: Mapping) -> Iterator[tuple[str, ...]]:
    """The packages with evidence."""
    for one in document["packages"]:
        if one["files"]:
            classes = ", ".join(f"{name} {count}" for name, count in one["classes"].items())
            origins = sorted({mark["origin"] for row in one["files"] for mark in row["origins"]})
            yield one["package"], one["version"] or "", classes, ", ".join(map(printable, origins))


def lasting(record: Mapping) -> dict:
    """A record without what depends on where and when it was made."""
    return {key: value for key, value in record.items() if key not in VOLATILE}
