"""option-redefine: a program or a library defines __rseq_offset and __rseq_size as well: whom does libc register, and where?

Under this machine's libc, or, with ``--libc``, under another one by its own loader. Each test case is a process of
its own; one that dies says what it did last. The same under several libcs, in guests of both architectures, is
kernel-redefine.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from rseqlab import host
from rseqlab.lab.compile import COMPILER
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_OWNS, libc_refusal
from rseqlab.options import parties, redefine, scenes

TIMEOUT_S = 300


def plan(_: str) -> list[Part]:
    """One child plays every case; both profiles ask the same, as nothing is timed."""
    given = os.environ.get(scenes.GIVEN_LIBC)
    rows = len(redefine.cases()) * len(redefine.THREADS)
    refusal = None if given else libc_refusal()
    name = "given-libc" if given else "libc"
    return [Part(name, rows, TIMEOUT_S, LIBC_OWNS, {"libc": given}, skip=refusal)]


def measure(task: Task) -> Iterator[dict]:
    """Two rows a case: the main thread and a new one."""
    libc = Path(str(task.arguments["libc"])) if task.arguments["libc"] else None
    wanted = [
        case
        for case in redefine.cases()
        if any(task.pending(*case.key, thread) for thread in redefine.THREADS)
    ]
    for rows in parties.side_by_side(lambda case: redefine.run(case, libc), wanted):
        for row in rows:
            if task.pending(*(row[name] for name in redefine.KEY)):
                yield {"arch": host.arch()} | row


EXPERIMENT = Experiment(
    name="option-redefine",
    question="Who else defines __rseq_offset and __rseq_size: where does libc then register its threads?",
    serves="offset-size: interposition of the names that libc itself exports",
    columns=(Column("arch", "text", "the architecture", choices=("x86_64", "aarch64")), *redefine.COLUMNS),
    key=redefine.KEY,
    needs=(LINUX, NATIVE, REGISTRATION, COMPILER),
    seconds={"quick": 5, "full": 5},
    plan=plan,
    measure=measure,
)
