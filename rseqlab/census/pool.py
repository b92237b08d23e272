"""Processes that read files: each can crash or hang, and takes no more with it than the file that did it.

Not multiprocessing: a task of a cluster may not have children of that kind, and a killed worker must cost one
file, not the pool.
"""

import json
import mmap
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator

from rseqlab.census.limits import FILE_TIMEOUT_S, MEMORY_BYTES
from rseqlab.census.worker import AT

ENTRY = "from rseqlab.census import worker; worker.main()"
Batch = list[tuple[str, bool]]


class Worker:
    """One process and the batch that it has."""

    def __init__(self, memory_bytes: int):
        descriptor = os.memfd_create("rseqlab-census")
        try:
            os.ftruncate(descriptor, AT.size)
            self.shared = mmap.mmap(descriptor, AT.size)
            self.process = subprocess.Popen(
                [sys.executable, "-c", ENTRY, str(descriptor), str(memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # what C libraries say there would reach the terminal raw
                pass_fds=(descriptor,),
                # Threads of numpy's libraries reserve address space, of which a worker has little.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        finally:
            os.close(descriptor)
        self.batch: Batch = []
        self.answer = b""
        self.begun = self.begun_before = 0
        self.since = time.monotonic()

    def give(self, batch: Batch) -> bool:
        """False where the process is gone."""
        self.batch, self.answer, self.since = batch, b"", time.monotonic()
        self.begun_before = AT.unpack_from(self.shared, 0)[0]
        try:
            self.process.stdin.write(json.dumps(batch).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            return False
        return True

    @property
    def at(self) -> int:
        """Which file of its batch it is at."""
        begun, index = AT.unpack_from(self.shared, 0)
        return index if begun > self.begun_before else 0

    def stuck(self, timeout_s: float) -> bool:
        begun, _ = AT.unpack_from(self.shared, 0)
        if begun != self.begun:
            self.begun, self.since = begun, time.monotonic()
        return time.monotonic() - self.since > timeout_s

    def end(self) -> int:
        self.process.kill()
        code = self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()
        self.shared.close()
        return code


def _why(code: int) -> str:
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with code {code}"


def answers(
    batches: Iterable[Batch],
    workers: int,
    timeout_s: float = FILE_TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> Iterator[dict]:
    """The answer to each batch, in whatever order they come; a file that its worker did not survive is refused."""
    waiting: deque[Batch] = deque()
    batches = iter(batches)
    busy: dict[int, Worker] = {}
    idle: list[Worker] = []
    with selectors.DefaultSelector() as selector:

        def start() -> None:
            one = Worker(memory_bytes)
            os.set_blocking(one.process.stdout.fileno(), False)
            selector.register(one.process.stdout, selectors.EVENT_READ, one)
            idle.append(one)

        def drop(one: Worker, reason: str) -> dict | None:
            """End a worker; its batch goes back without the file that it was at, which the answer refuses."""
            selector.unregister(one.process.stdout)
            busy.pop(id(one), None)
            index = one.at
            code = one.end()
            path, _ = one.batch[index]
            rest = one.batch[:index] + one.batch[index + 1 :]
            if rest:
                waiting.append(rest)
            start()
            said = reason or f"the process that read it {_why(code)}"
            return {"files": 1, "refused": [{"path": path, "member": None, "reason": said}]}

        try:
            for _ in range(workers):
                start()
            exhausted = False
            while True:
                while idle:
                    batch = waiting.popleft() if waiting else (None if exhausted else next(batches, None))
                    if batch is None:
                        exhausted = True
                        break
                    one = idle.pop()
                    busy[id(one)] = one
                    if not one.give(batch):
                        yield drop(one, "")
                if not busy:
                    if exhausted and not waiting:
                        return
                    continue
                for key, _ in selector.select(0.5):
                    one = key.data
                    data = os.read(one.process.stdout.fileno(), 1 << 20)
                    if not data:
                        if id(one) in busy:
                            yield drop(one, "")
                        continue
                    one.answer += data
                    if one.answer.endswith(b"\n"):
                        busy.pop(id(one))
                        idle.append(one)
                        yield json.loads(one.answer)
                for one in [one for one in busy.values() if one.stuck(timeout_s)]:
                    yield drop(one, f"reading it took more than {timeout_s:g} s")
        finally:
            for one in (*idle, *busy.values()):
                one.end()
