"""One process of a census: reads batches of paths, answers each batch with one line.

Before each file it notes in shared memory which one it is at. Whatever a hostile file does to this process, the
one that started it knows which file it was.
"""

import json
import mmap
import resource
import signal
import struct
import sys
from dataclasses import asdict

from rseqlab.census.files import Report, examine

AT = struct.Struct("<QQ")
"""How many files this process has begun, and which of its batch it is at."""


def main() -> None:
    """Arguments: the descriptor of the shared memory, the bytes of address space."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this one ends it
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    shared = mmap.mmap(int(sys.argv[1]), AT.size)
    begun = 0
    for line in sys.stdin.buffer:
        report = Report()
        for index, (path, named) in enumerate(json.loads(line)):
            begun += 1
            AT.pack_into(shared, 0, begun, index)
            rows, refused, others = len(report.rows), len(report.refused), len(report.others)
            before = dict(report.elf), report.files, report.archives, report.read_bytes
            try:
                examine(path, named, report)
            except (MemoryError, RecursionError) as error:
                # What it had said is taken back: half an answer depends on how much memory was left.
                del report.rows[rows:], report.refused[refused:], report.others[others:]
                report.elf, report.files, report.archives, report.read_bytes = before
                report.files += 1
                words = (
                    "memory than a worker is given"
                    if isinstance(error, MemoryError)
                    else "nesting than Python has"
                )
                report.refuse(None, f"it needs more {words}")
            for one in (*report.rows[rows:], *report.refused[refused:], *report.others[others:]):
                one["path"] = path
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
        sys.stdout.flush()
