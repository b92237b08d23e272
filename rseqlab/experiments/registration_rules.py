"""registration-rules: what does the kernel answer to every way of registering and unregistering?

Each attempt runs in a fork of its own, so each meets a thread in the stated state, and an attempt that
kills is a row. ``predicted`` is the documented rule (rseqlab/abi.py; kernel/rseq.c), empty where the
answer is known to differ between releases.
"""

import ctypes
import errno
import mmap
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rseqlab import abi, native, rseq
from rseqlab.lab.child import in_fork
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES, LIBC_OWNS, libc_refusal

QUESTIONS = (
    "length",
    "alignment",
    "flags",
    "signature",
    "address",
    "twice",
    "unregister",
    "descriptor",
    "thread",
    "process",
)
OTHER_SIGNATURE = 0x12345678


@dataclass(frozen=True)
class Attempt:
    """One thing tried. ``run`` gives the answer: 0 or a positive errno, or a word."""

    question: str
    label: str
    run: Callable[[], int | str]
    predicted: int | str | None
    length_bytes: int | None = None
    align_bytes: int | None = None
    flags: int | None = None


class _Memory:
    """A page of zeroed memory, registered and unregistered by bare calls."""

    def __init__(self):
        ffi, self.lib = native.core()
        self.ffi = ffi
        self.map = mmap.mmap(-1, 2 * mmap.PAGESIZE)
        self.base = int(ffi.cast("uintptr_t", ffi.from_buffer(self.map)))
        self.signature = self.lib.rl_signature()

    def call(self, displacement=0, length=abi.ORIGINAL_SIZE_BYTES, flags=0, signature=None) -> int:
        return self.call_at(self.base + displacement, length, flags, signature)

    def call_at(self, address, length=abi.ORIGINAL_SIZE_BYTES, flags=0, signature=None) -> int:
        """The kernel's answer: 0 or a positive errno."""
        signature = self.signature if signature is None else signature
        return -self.lib.rl_rseq(self.ffi.cast("void *", address), length, flags, signature)

    def register(self) -> None:
        """The first registration of an attempt that is about what follows it."""
        answer = self.call()
        if answer:
            raise RuntimeError(f"the kernel answered {_name(answer)} to a plain registration")


def _in_thread(function: Callable[[], object]) -> object:
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


def _registered() -> str:
    """Whether the calling thread has an area: only one that has none may register another."""
    memory = _Memory()
    if memory.call():
        return "registered"
    memory.call(flags=abi.FLAG_UNREGISTER)
    return "unregistered"


def _after_exec() -> str:
    """Registration of the program that replaces a fork of this thread, as it sees itself.

    A real fork: a vfork, which subprocess uses, would drop the registration before exec could.
    """
    code = "from rseqlab.experiments.registration_rules import _registered; print(_registered())"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if _registered() != "registered":
                os._exit(2)
            os.dup2(write_end, 1)
            os.execv(sys.executable, [sys.executable, "-c", code])
        finally:
            os._exit(1)
    os.close(write_end)
    with open(read_end) as pipe:
        said = pipe.read().strip()
    _, status = os.waitpid(pid, 0)
    return said or f"wait status {status:#x}"


def attempts(start: str) -> Iterator[Attempt]:
    """Every attempt of a thread that libc registered (``libc``) or left alone (``none``)."""
    memory = _Memory()
    feature_bytes, auxv_align = rseq.auxv()
    extended_bytes = max(feature_bytes, abi.ORIGINAL_SIZE_BYTES + 1)
    taken = start == "libc"

    def rule(length=abi.ORIGINAL_SIZE_BYTES, address=memory.base, flags=0) -> int:
        fits = (
            not flags
            and not taken
            and abi.accepted_length(length, feature_bytes)
            and address % abi.required_alignment_bytes(length, auxv_align) == 0
        )
        return 0 if fits else errno.EINVAL

    for length in range(257):
        yield Attempt(
            "length", f"{length}", lambda n=length: memory.call(length=n), rule(length), length, 256, 0
        )
    for length in (abi.ORIGINAL_SIZE_BYTES, extended_bytes):
        for displacement in range(1, 257):
            yield Attempt(
                "alignment",
                f"{length} bytes, {displacement} past a page",
                lambda n=length, d=displacement: memory.call(d, n),
                rule(length, memory.base + displacement),
                length,
                displacement & -displacement,
                0,
            )
    for bit in range(1, 32):
        # Bit 1 is RSEQ_FLAG_SLICE_EXT_DEFAULT_ON since 7.0: no release-independent prediction.
        yield Attempt(
            "flags",
            f"bit {bit}",
            lambda b=bit: memory.call(flags=_int32(1 << b)),
            None if bit == 1 else rule(flags=1 << bit),
            32,
            256,
            1 << bit,
        )
    yield Attempt("flags", "unregister and bit 1", lambda: memory.call(flags=3), errno.EINVAL, 32, 256, 3)
    for name, signature in (("zero", 0), ("all ones", 0xFFFFFFFF), ("another", OTHER_SIGNATURE)):
        yield Attempt("signature", name, lambda s=signature: memory.call(signature=s), rule(), 32, 256, 0)
    yield from _addresses(memory, start)
    yield from _twice(memory, start)
    yield from _unregister(memory, start)
    yield from _descriptors(memory, start)
    yield from _threads_and_processes(memory, start)


def _int32(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


def _addresses(memory: _Memory, start: str) -> Iterator[Attempt]:
    taken = errno.EINVAL if start == "libc" else None
    places = {"NULL": 0, "unmapped, at 1 MiB": 1 << 20, "kernel half": 1 << 63}
    for name, address in places.items():
        predicted = taken or (errno.EFAULT if name == "kernel half" else None)
        yield Attempt("address", name, lambda a=address: memory.call_at(a), predicted, 32, None, 0)

    def read_only() -> int:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ)
        return memory.call_at(_address_of(memory, page))

    yield Attempt("address", "read-only page", read_only, taken, 32, 256, 0)


def _address_of(memory: _Memory, page: mmap.mmap) -> int:
    return int(memory.ffi.cast("uintptr_t", memory.ffi.from_buffer(page)))


def _twice(memory: _Memory, start: str) -> Iterator[Attempt]:
    if start == "libc":
        theirs = rseq.configuration()
        again = {
            "libc's own area, the same values": (
                (theirs.address, theirs.size_bytes, 0, theirs.signature),
                errno.EBUSY,
            ),
            "libc's own area, another length": (
                (theirs.address, theirs.size_bytes + 32, 0, theirs.signature),
                errno.EINVAL,
            ),
            "libc's own area, another signature": (
                (theirs.address, theirs.size_bytes, 0, OTHER_SIGNATURE),
                errno.EPERM,
            ),
        }
        for label, (values, predicted) in again.items():
            yield Attempt("twice", label, lambda v=values: memory.call_at(*v), predicted, values[1])
        return

    def second(**values) -> int:
        memory.register()
        return memory.call(**values)

    for label, values, predicted in (
        ("the same area", {}, errno.EBUSY),
        ("another area", {"displacement": 256}, errno.EINVAL),
        ("the same area, another length", {"length": 64}, errno.EINVAL),
        ("the same area, another signature", {"signature": OTHER_SIGNATURE}, errno.EPERM),
    ):
        yield Attempt("twice", label, lambda v=values: second(**v), predicted, values.get("length", 32))


def _unregister(memory: _Memory, start: str) -> Iterator[Attempt]:
    theirs = rseq.configuration() if start == "libc" else None

    def call(displacement=0, length=None, flags=abi.FLAG_UNREGISTER, signature=None) -> int:
        if theirs:
            return memory.call_at(
                theirs.address + displacement,
                length or theirs.size_bytes,
                flags,
                theirs.signature if signature is None else signature,
            )
        memory.register()
        return memory.call(displacement, length or abi.ORIGINAL_SIZE_BYTES, flags, signature)

    def then_read_cpu_id() -> str:
        if answer := call():
            return f"unregistering answered {_name(answer)}"
        address = theirs.address if theirs else memory.base
        return str(memory.ffi.cast("int32_t *", address + abi.FIELD["cpu_id"].offset_bytes)[0])

    def twice() -> int | str:
        if answer := call():
            return f"the first time answered {_name(answer)}"
        if theirs:
            return call()
        return memory.call(flags=abi.FLAG_UNREGISTER)

    def foreign() -> int:
        """Another thread unregisters an area that is registered, but not for it."""
        if theirs is None:
            memory.register()
        return _in_thread(call if theirs else lambda: memory.call(flags=abi.FLAG_UNREGISTER))

    yield Attempt("unregister", "the same values", call, 0)
    yield Attempt("unregister", "then cpu_id reads", then_read_cpu_id, str(abi.CPU_ID_UNINITIALIZED))
    yield Attempt("unregister", "the same values, a second time", twice, errno.EINVAL)
    for length in (20, 28, 33, 64):
        yield Attempt(
            "unregister",
            f"length {length}",
            lambda n=length: call(length=n),
            None if theirs else errno.EINVAL,
            length,
        )
    yield Attempt("unregister", "another signature", lambda: call(signature=OTHER_SIGNATURE), errno.EPERM)
    yield Attempt("unregister", "another address", lambda: call(256), errno.EINVAL)
    yield Attempt("unregister", "another thread's area", foreign, errno.EINVAL)
    if start == "none":
        yield Attempt(
            "unregister", "nothing registered", lambda: memory.call(flags=abi.FLAG_UNREGISTER), errno.EINVAL
        )


def _descriptors(memory: _Memory, start: str) -> Iterator[Attempt]:
    """What a thread gets for a bad section descriptor, read by the kernel as a signal is delivered.

    Layout: struct rseq_cs, include/uapi/linux/rseq.h: version, flags, start, length, abort address.
    """
    area = rseq.configuration().address if start == "libc" else memory.base
    place, zeros, signed = memory.base + 1024, memory.base + 2048, memory.base + 3072
    # The signal meets this thread in libc's kill(): a section of these pages is running then.
    code = ctypes.cast(ctypes.CDLL(None).kill, ctypes.c_void_p).value & -mmap.PAGESIZE
    here = (code, 2 * mmap.PAGESIZE)

    def interrupted_with(pointer: int, descriptor: tuple[int, int, int, int, int]) -> str:
        if start == "none":
            memory.register()
        memory.map[1024:1056] = struct.pack("=IIQQQ", *descriptor)
        memory.map[3068:3072] = struct.pack("=I", memory.signature)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        memory.lib.rl_store_u64(memory.ffi.cast("void *", area + abi.FIELD["rseq_cs"].offset_bytes), pointer)
        os.kill(os.getpid(), signal.SIGUSR1)
        return "alive"

    for label, pointer, descriptor, predicted in (
        ("of a section that does not run", place, (0, 0, zeros, 16, signed), "alive"),
        ("of one that does not run, without signature", place, (0, 0, zeros, 16, zeros + 64), None),
        ("in unmapped memory", 1 << 20, (0, 0, 0, 0, 0), "SIGSEGV"),
        ("of another version", place, (1, 0, *here, zeros), "SIGSEGV"),
        ("whose abort handler has no signature", place, (0, 0, *here, zeros), "SIGSEGV"),
        ("whose abort handler lies inside its section", place, (0, 0, *here, code + 64), "SIGSEGV"),
    ):
        yield Attempt("descriptor", label, lambda p=pointer, d=descriptor: interrupted_with(p, d), predicted)


def _threads_and_processes(memory: _Memory, start: str) -> Iterator[Attempt]:
    taken = start == "libc"

    def register_first(then: Callable[[], int | str]) -> Callable[[], int | str]:
        def run():
            if not taken:
                memory.register()
            return then()

        return run

    def thread_ends_registered() -> str:
        """The area outlives its thread; its memory is then used for something else."""
        if answer := _in_thread(lambda: memory.call(512)):
            return f"registering answered {_name(answer)}"
        memory.map.write(b"\xff" * mmap.PAGESIZE)
        return "alive"

    def thread_ends_without_its_area() -> str:
        """The memory goes first, then the thread: the kernel has nowhere to write."""

        def body():
            page = mmap.mmap(-1, mmap.PAGESIZE)
            answer = memory.call_at(_address_of(memory, page))
            page.close()
            return answer

        _in_thread(body)
        return "alive"

    def forked() -> str:
        outcome = in_fork(_registered)
        return outcome.value or outcome.signal_name

    yield Attempt(
        "thread",
        "a new thread of a registered one starts",
        register_first(lambda: _in_thread(_registered)),
        "registered" if taken else "unregistered",
    )
    if start == "libc":
        yield Attempt("thread", "ends while registered", lambda: _in_thread(_registered) and "alive", "alive")
    else:
        yield Attempt(
            "thread", "ends while registered; its memory is reused", thread_ends_registered, "alive"
        )
        yield Attempt(
            "thread", "its memory is unmapped while registered", thread_ends_without_its_area, "SIGSEGV"
        )
    yield Attempt("process", "a fork of a registered thread starts", register_first(forked), "registered")
    yield Attempt(
        "process",
        "after exec by a registered thread",
        register_first(_after_exec),
        "registered" if taken else "unregistered",
    )
    yield Attempt(
        "process",
        "the forking thread stays",
        register_first(lambda: os.waitpid(_quick_fork(), 0) and _registered()),
        "registered",
    )


def _quick_fork() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def _name(answer: int | str | None) -> str | None:
    """``accepted``, an errno's name, or the word that it is."""
    if answer is None or isinstance(answer, str):
        return answer
    return "accepted" if answer == 0 else errno.errorcode.get(answer, f"errno {answer}")


def measure(task: Task) -> Iterator[dict]:
    """One row per attempt."""
    start = task.arguments["start"]
    for attempt in attempts(start):
        if not task.pending(attempt.question, attempt.label):
            continue
        outcome = in_fork(attempt.run, timeout_s=20)
        answer = outcome.signal_name or ("hung" if outcome.hung else _name(outcome.value))
        yield {
            "start": start,
            "question": attempt.question,
            "attempt": attempt.label,
            "length_bytes": attempt.length_bytes,
            "align_bytes": attempt.align_bytes,
            "flags": attempt.flags,
            "answer": answer,
            "predicted": _name(attempt.predicted),
        }


def plan(_: str) -> list[Part]:
    """Two processes; the profile changes nothing, because nothing is sampled."""
    return [
        Part("libc", 832, 120, LIBC_OWNS, {"start": "libc"}, skip=libc_refusal()),
        Part("none", 835, 120, LIBC_LEAVES, {"start": "none"}),
    ]


EXPERIMENT = Experiment(
    name="registration-rules",
    question="What does the kernel answer to every way of registering and unregistering?",
    serves="private, grow-symbol and offset-size: which sizes, alignments and second owners a kernel takes",
    columns=(
        Column("start", "text", "who registered the thread before the attempt", choices=("libc", "none")),
        Column("question", "text", "what the attempt varies", choices=QUESTIONS),
        Column("attempt", "text", "the attempt, unique within its question"),
        Column("length_bytes", "int", "the length given to the kernel", nullable=True),
        Column(
            "align_bytes", "int", "largest power of two up to 256 that divides the address", nullable=True
        ),
        Column("flags", "int", "the flags given to the kernel", nullable=True),
        Column("answer", "text", "accepted, the errno, a state, or the signal that killed the attempt"),
        Column(
            "predicted", "text", "what the documented rule says; empty where it says nothing", nullable=True
        ),
    ),
    key=("question", "attempt"),
    needs=(LINUX, NATIVE, REGISTRATION),
    seconds={"quick": 4, "full": 4},
    plan=plan,
    measure=measure,
)
