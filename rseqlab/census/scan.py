"""A census of files: all workers' answers as one document, the same for any number of workers."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from rseqlab.census import pool, walk
from rseqlab.census.evidence import CLASSES, RULES
from rseqlab.census.limits import DOCUMENT, FILE_TIMEOUT_S, MEMORY_BYTES
from rseqlab.census.marks import MARKS
from rseqlab.census.text import plain

BATCH_FILES = 64


def _batches(files: Iterable[tuple[str, bool]], few: bool) -> Iterator[pool.Batch]:
    """``few`` were named: each of those may be a large archive, and is a batch of its own."""
    batch: pool.Batch = []
    for path, named in files:
        batch.append((path, named))
        if len(batch) >= BATCH_FILES or (named and few):
            yield batch
            batch = []
    if batch:
        yield batch


def scan(
    paths: Iterable[str],
    workers: int | None = None,
    show: Callable[[int], None] = lambda files: None,
    timeout_s: float = FILE_TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> dict:
    """The document ``rseqlab/census``. ``show`` is told now and then how many files are done."""
    paths = [os.fspath(one) for one in paths]
    rows, refused, others = [], [], []
    machines, totals = Counter(), Counter()

    def refuse(path: str, reason: str) -> None:
        refused.append({"path": path, "member": None, "reason": reason})

    workers = workers or len(os.sched_getaffinity(0))
    batches = _batches(walk.files(paths, refuse), len(paths) <= BATCH_FILES)
    for answer in pool.answers(batches, workers, timeout_s, memory_bytes):
        rows += answer.get("rows", ())
        refused += answer.get("refused", ())
        others += answer.get("others", ())
        machines.update(answer.get("elf", {}))
        totals.update({name: answer.get(name, 0) for name in ("files", "archives", "read_bytes")})
        show(totals["files"])

    def ordered(found: list[dict]) -> list[dict]:
        found.sort(key=lambda one: (one["path"], one["member"] or "", one.get("reason", "")))
        return [{**one, "path": plain(one["path"])} for one in found]

    counts = Counter(one["class"] for one in rows)
    return {
        "schema": "rseqlab/census",
        "version": 1,
        "paths": [plain(one) for one in paths],
        "totals": {
            "files": totals["files"],
            "archives": totals["archives"],
            "elf_files": sum(machines.values()),
            "read_bytes": totals["read_bytes"],
            "refused": len(refused),
        },
        "machines": dict(sorted(machines.items())),
        "classes": [{"class": one, "words": words, "files": counts[one]} for one, words in CLASSES.items()],
        "files": ordered(rows),
        "others": ordered(others),
        "refused": ordered(refused),
        "rules": [
            {"rule": one.id, "class": one.gives, "confidence": one.confidence, "words": one.words}
            for one in RULES.values()
        ],
        "marks": [{"origin": one.origin, "mark": one.text.decode(), "where": one.where} for one in MARKS],
        "limits": DOCUMENT,
    }
