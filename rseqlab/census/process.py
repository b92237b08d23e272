"""The live census: every thread of every process that the user may inspect, asked from the kernel.

A thread is stopped for the one question PTRACE_GET_RSEQ_CONFIGURATION and let go; how long that took is
part of the answer. All of it happens in a child process with a deadline: should it die, the kernel lets go
of whatever it held.
"""

import errno
import mmap
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic_ns, sleep

from rseqlab import abi, host, native
from rseqlab.census.text import printable as text_printable
from rseqlab.errors import LabError
from rseqlab.lab.child import Child

TIMEOUT_S = 120
STOP_TIMEOUT_MS = 100
"""Longer than any thread needs that can stop; one that sleeps uninterruptibly is left alone before."""
STRAGGLER_POLLS, STRAGGLER_PAUSE_S = 200, 0.005

KERNEL_THREAD = 0x00200000
"""PF_KTHREAD among the flags of proc_pid_stat(5)."""

ENDS_WITH_EINTR = {
    "x86_64": {65, 128, 220, 232, 281, 441},
    "aarch64": {22, 137, 192, 193, 441},
}
"""System calls that a stop ends with EINTR although no handler ran (signal(7)): epoll_wait, epoll_pwait,
epoll_pwait2, semop, semtimedop, rt_sigtimedwait. Every other call goes on as if nothing had been."""

OWNERS = {
    "libc": "the area lies at the thread pointer + __rseq_offset of the process's libc",
    "self": "registered elsewhere: by the program or a library that it loads",
    "none": "the kernel has no registration for the thread",
    "unknown": "registered, but libc's place could not be found out",
}


@dataclass(frozen=True)
class Mapped:
    """One executable file in a process: where its first byte lies, and who it is."""

    start: int
    device: str
    inode: int
    path: str
    piece: str
    """The address range in /proc/PID/map_files, which finds the file even where its name does not."""


def printable(text: str | bytes) -> str:
    """A name from outside, with everything escaped that is no printable character."""
    return text_printable(text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text)


# ---- in the child: what is asked of each thread ----


def inspect(arguments: Mapping) -> Iterator[dict]:
    """In a child: one row per process, and at the end one with what cannot be listed by process."""
    _, lib = native.core()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)  # so that who stands still does not wait for us
    own = {os.getpid(), *arguments["leave_out"]}
    wanted = arguments["pids"]
    outside: Counter[str] = Counter()
    stragglers: set[int] = set()
    started = monotonic_ns()
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if wanted is not None and pid not in wanted:
            continue
        if pid in own:
            outside["this census itself"] += len(_tasks(pid)) or 1
            continue
        row = _process(pid, outside, stragglers)
        if row is not None:
            yield row
    for _ in range(STRAGGLER_POLLS):
        stragglers = {tid for tid in stragglers if lib.rl_let_go(tid)}
        if not stragglers:
            break
        sleep(STRAGGLER_PAUSE_S)
    yield {"outside": outside, "elapsed_ns": monotonic_ns() - started, "let_go_by_ending": len(stragglers)}


def _process(pid: int, outside: Counter, stragglers: set[int]) -> dict | None:
    try:
        state = _stat(pid)
        name = Path(f"/proc/{pid}/comm").read_bytes().removesuffix(b"\n")
        status = _status(pid)
    except OSError:
        outside["gone"] += 1
        return None
    if state.flags & KERNEL_THREAD:
        outside["kernel thread"] += 1
        return None
    refused: Counter[str] = Counter()
    found = [one for tid in _tasks(pid) if (one := _thread(pid, tid, refused, stragglers))]
    maps, libc, why = [], None, None
    if found:
        maps = _maps(pid)
        libc, why = _libc(pid, maps)
    for one in found:
        one["owner"] = _owner(one, libc, why)
        del one["address"], one["thread_pointer"]
    return {
        "pid": pid,
        "name": printable(name),
        "executable": _executable(pid),
        "uid": status["uid"],
        **_place(pid),
        "libc": libc,
        "libc_reason": why,
        "threads": found,
        "not_inspected": dict(refused),
        "mapped": [[one.device, one.inode, one.path, one.piece] for one in maps],
    }


def _thread(pid: int, tid: int, refused: Counter, stragglers: set[int]) -> dict | None:
    """What the kernel says of one thread; None where it was not asked, and then the reason is counted."""
    ffi, lib = native.core()
    place = f"{pid}/task/{tid}"
    state, call = "", []
    try:
        state = _stat(place).state  # everybody may read it, the call only who may trace the thread
        call = Path(f"/proc/{place}/syscall").read_bytes().split()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESRCH):
            refused["gone"] += 1
            return None
    if state in ("D", "Z", "X"):
        refused[
            "uninterruptible sleep" if state == "D" else "ended, but not yet collected by its parent"
        ] += 1
        return None
    answer = ffi.new("struct rl_inspection *")
    error = -lib.rl_inspect(tid, STOP_TIMEOUT_MS, answer)
    stragglers.difference_update([one for one in stragglers if not lib.rl_let_go(one)])
    if error:
        if error == errno.ETIMEDOUT:
            stragglers.add(tid)
        refused[_why_not(pid, tid, error)] += 1
        return None
    got = answer.configuration
    registered = bool(got.pointer)
    known = registered and answer.thread_pointer
    return {
        "tid": tid,
        "address": got.pointer,
        "thread_pointer": answer.thread_pointer,
        "size_bytes": got.size_bytes if registered else None,
        "signature": got.signature if registered else None,
        "flags": got.flags if registered else None,
        "offset_bytes": got.pointer - answer.thread_pointer if known else None,
        "stopped_ns": answer.stopped_ns,
        "was_stopped": state == "T",
        "call_may_end_early": bool(call[:1])
        and call[0].isdigit()
        and int(call[0]) in ENDS_WITH_EINTR.get(host.arch(), ()),
    }


def _why_not(pid: int, tid: int, error: int) -> str:
    """The reason behind the kernel's answer, as far as it shows outside."""
    if error == errno.ESRCH:
        return "gone"
    if error == errno.EIO:
        return "this kernel cannot be asked (PTRACE_GET_RSEQ_CONFIGURATION came with Linux 5.13)"
    if error == errno.ETIMEDOUT:
        return f"did not stop within {STOP_TIMEOUT_MS} ms"
    try:
        status = _status(f"{pid}/task/{tid}")
    except OSError:
        return "gone"
    if status["tracer"]:
        return "already traced by another process"
    if error != errno.EPERM:
        return f"the kernel answered {errno.errorcode.get(error, error)}"
    if status["uid"] != os.geteuid() and os.geteuid() != 0:
        return "another user's process (EPERM)"
    if os.geteuid() != 0 and os.stat(f"/proc/{pid}").st_uid != status["uid"]:
        return "not dumpable: it gave up or gained rights (EPERM)"
    if scope := _yama():
        return f"Yama forbids it: kernel.yama.ptrace_scope is {scope} (EPERM)"
    return "not allowed (EPERM)"


@cache
def _yama() -> int:
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except OSError:
        return 0


@dataclass(frozen=True)
class _State:
    state: str
    flags: int


def _stat(place: int | str) -> _State:
    """The name in the middle may hold anything, also brackets: the last one ends it."""
    fields = Path(f"/proc/{place}/stat").read_bytes().rpartition(b")")[2].split()
    return _State(fields[0].decode(), int(fields[6]))


def _status(place: int | str) -> dict[str, int]:
    text = Path(f"/proc/{place}/status").read_bytes()
    uid, tracer = (re.search(rb"^%s:\s+(\d+)" % name, text, re.M) for name in (b"Uid", b"TracerPid"))
    return {"uid": int(uid[1]), "tracer": int(tracer[1])}


def _tasks(pid: int) -> list[int]:
    try:
        return sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    except OSError:
        return []


def _executable(pid: int) -> str | None:
    try:
        return printable(os.readlink(os.fsencode(f"/proc/{pid}/exe")))
    except OSError:
        return None


def _place(pid: int) -> dict:
    """The control group, and whether the process sees other processes or files than we do."""
    group, apart = None, None
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/cgroup").read_bytes().splitlines()
        group = next((printable(one[3:]) for one in lines if one.startswith(b"0::")), None)
    with suppress(OSError):
        apart = [
            kind
            for kind in ("pid", "mnt", "user")
            if os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        ]
    return {"cgroup": group, "other_namespaces": apart}


def _maps(pid: int) -> list[Mapped]:
    """The files with executable parts, each with the address where it begins."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_bytes().splitlines()
    except OSError:
        return []
    starts, found = {}, {}
    for line in lines:
        piece, rights, offset, device, inode, *path = line.split(maxsplit=5)
        if inode == b"0" or not path:
            continue
        key = (device, inode)
        if int(offset, 16) == 0:
            starts.setdefault(key, int(piece.partition(b"-")[0], 16))
        if b"x" in rights:
            found.setdefault(key, (piece.decode(), os.fsdecode(path[0])))
    return [
        Mapped(starts.get(key, 0), key[0].decode(), int(key[1]), path, piece)
        for key, (piece, path) in found.items()
    ]


# ---- whose area it is ----

LOADERS = re.compile(r"/(ld-linux[^/]*|ld64?|ld-\d[^/]*)\.so(\.\d+)?$")
EXPORTS = (("__rseq_offset", "<q", 8), ("__rseq_size", "<I", 4), ("__rseq_flags", "<I", 4))


def _libc(pid: int, maps: list[Mapped]) -> tuple[dict | None, str | None]:
    """What the process's libc has put into __rseq_offset, __rseq_size and __rseq_flags, or why not known."""
    loaders = [one for one in maps if LOADERS.search(one.path.removesuffix(" (deleted)"))]
    candidates = loaders or maps[:1]  # a static program has its libc within it
    for one in candidates:
        try:
            places = _places(f"/proc/{pid}/map_files/{one.piece}", one)
            if len(places) < len(EXPORTS):
                continue
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
                values = []
                for name, form, size in EXPORTS:
                    memory.seek(one.start + places[name])
                    values += struct.unpack(form, memory.read(size))
        except (OSError, struct.error, ValueError, OverflowError) as error:
            return None, f"libc's exports could not be read: {printable(str(error))}"
        return {
            "file": printable(one.path),
            "offset_bytes": values[0],
            "size_bytes": values[1],
            "flags": values[2],
        }, None
    if not loaders:
        return None, "a static program whose symbols do not show __rseq_offset, or one that has just begun"
    return None, "its loader exports no __rseq_offset: a glibc before 2.35, or another libc"


def _places(opened: str, one: Mapped) -> dict[str, int]:
    """Where the file has what libc exports, from its first byte in memory."""
    for path in (opened, one.path):
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != one.inode:
                    continue
                return _symbols((status.st_dev, status.st_ino, status.st_mtime_ns), path)
        except OSError:
            continue
    raise OSError(errno.ENOENT, "the file is not to be had under its name any more")


_known: dict[tuple, dict[str, int]] = {}


def _symbols(key: tuple, path: str) -> dict[str, int]:
    if key not in _known:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _known[key] = defined(data, [name for name, _, _ in EXPORTS])
    return _known[key]


MOST_SECTIONS, MOST_SYMBOLS, LONGEST_NAME = 1000, 1_000_000, 32
"""A file that claims more is not read on: it belongs to whoever runs it, and may be made to keep us busy."""


def defined(data: bytes | mmap.mmap, names: list[str]) -> dict[str, int]:
    """Where a 64-bit ELF file defines these symbols, as addresses from its first byte; what is missing is absent."""
    if data[:6] != b"\x7fELF\x02\x01":
        return {}
    program, sections = struct.unpack_from("<QQ", data, 32)
    programs, section_bytes, section_count = (
        struct.unpack_from("<H", data, 56)[0],
        *struct.unpack_from("<HH", data, 58),
    )
    first = min(
        (
            struct.unpack_from("<Q", data, program + number * 56 + 16)[0]
            for number in range(programs)
            if struct.unpack_from("<I", data, program + number * 56)[0] == 1  # PT_LOAD
        ),
        default=0,
    )
    wanted = {name.encode(): name for name in names}
    found: dict[str, int] = {}
    for number in range(min(section_count, MOST_SECTIONS)):
        where = sections + number * section_bytes
        kind = struct.unpack_from("<I", data, where + 4)[0]
        if kind not in (2, 11) or len(found) == len(names):  # SHT_SYMTAB, SHT_DYNSYM
            continue
        start, size, link = struct.unpack_from("<QQI", data, where + 24)
        strings = struct.unpack_from("<Q", data, sections + link * section_bytes + 24)[0]
        entries = data[start : start + min(size // 24, MOST_SYMBOLS) * 24]
        for name, _, _, section, value, _ in struct.iter_unpack("<IBBHQQ", entries):
            if (
                section
                and (text := data[strings + name : strings + name + LONGEST_NAME].partition(b"\0")[0])
                in wanted
            ):
                found[wanted[text]] = value - first
    return found


def _owner(thread: Mapping, libc: Mapping | None, why: str | None) -> str:
    if not thread["address"]:
        return "none"
    if libc is not None and thread["thread_pointer"]:
        return "libc" if thread["offset_bytes"] == libc["offset_bytes"] and libc["size_bytes"] else "self"
    if why and why.startswith("its loader exports"):
        return "self"  # this libc registers nothing
    return "unknown"


# ---- outside of the child: the document ----


def census(
    scan: Callable[[list[str]], dict] | None = None,
    pids: list[int] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict:
    """The document rseqlab/census-live. ``scan`` is the census of files, asked about what is mapped.

    ``pids`` limits it to these processes. Raises LabError where the child did not come to its end.
    """
    if reason := native.unavailable():
        raise LabError(reason)
    child = Child(inspect, {"leave_out": [os.getpid()], "pids": pids}, {}, timeout_s)
    *processes, end = list(child) or [None]
    if child.outcome.status != "pass" or end is None or "outside" not in end:
        raise LabError(f"The live census ended with {child.outcome.status}: {child.outcome.reason}")
    threads = [thread for one in processes for thread in one["threads"]]
    refused = Counter(end["outside"])
    for one in processes:
        refused.update(one["not_inspected"])
    stops = sorted(thread["stopped_ns"] for thread in threads)
    files, unread = _join(processes, scan)
    return {
        "schema": "rseqlab/census-live",
        "version": 1,
        "rule": "The census's own two processes are left out; whatever else runs is included, also what "
        "started it.",
        "usual_signature": abi.SIGNATURES.get(host.arch()),
        "owners": OWNERS,
        "summary": {
            "processes": sum(bool(one["threads"]) for one in processes),
            "threads": len(threads),
            "threads_by_owner": {owner: sum(t["owner"] == owner for t in threads) for owner in OWNERS},
            "not_inspected": dict(sorted(refused.items())),
            "inspection_ns": end["elapsed_ns"],
            "threads_per_second": len(threads) / (end["elapsed_ns"] / 1e9),
            "stopped_p50_ns": stops[len(stops) // 2] if stops else None,
            "stopped_max_ns": stops[-1] if stops else None,
            "calls_that_may_end_early": sum(t["call_may_end_early"] for t in threads),
            "let_go_by_ending": end["let_go_by_ending"],
            "files_unread": unread,
        },
        "processes": processes,
        "files": files,
    }


def sentences(document: Mapping) -> Iterator[str]:
    """The summary in words."""
    found = document["summary"]
    owners = ", ".join(f"{count} {owner}" for owner, count in found["threads_by_owner"].items() if count)
    yield (
        f"{found['threads']} threads of {found['processes']} processes were asked, "
        f"{found['threads_per_second']:.0f} a second; owner of the area: {owners or 'none was asked'}."
    )
    if found["stopped_max_ns"] is not None:
        yield (
            f"A thread was stopped for {found['stopped_p50_ns'] / 1000:.0f} us at the median and "
            f"{found['stopped_max_ns'] / 1000:.0f} us at most."
        )
    if found["calls_that_may_end_early"]:
        yield (
            f"{found['calls_that_may_end_early']} threads waited in a call that any stop ends with EINTR, "
            "such as epoll_wait; their programs will have called it again (signal(7))."
        )
    if found["not_inspected"]:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in found["not_inspected"].items())
        yield f"Threads not inspected: {reasons}."
    yield document["rule"]


def lines(document: Mapping) -> Iterator[tuple[str, ...]]:
    """The processes in which a thread was asked, alike ones together, those that registered themselves first."""
    groups: dict[tuple, int] = {}
    for process in document["processes"]:
        threads = process["threads"]
        if not threads:
            continue
        libc = process["libc"]
        row = (
            process["name"],
            ", ".join(sorted({one["owner"] for one in threads})),
            ", ".join(sorted({str(one["size_bytes"] or "") for one in threads})),
            str(libc["size_bytes"]) if libc else "no __rseq_size",
            process["cgroup"] or "",
            ", ".join(process["files"]),
        )
        groups[row] = groups.get(row, 0) + len(threads)
    for row, threads in sorted(groups.items(), key=lambda one: ("self" not in one[0][1], one[0])):
        yield (row[0], str(threads), *row[1:])


def _join(processes: list[dict], scan: Callable | None) -> tuple[list[dict], dict[str, int]]:
    """What the mapped files are, each looked at once; every process gets the paths of those with evidence."""
    users: dict[tuple, list[dict]] = {}
    readable: dict[tuple, str] = {}
    shown: dict[tuple, str] = {}
    for process in processes:
        for device, inode, path, piece in process.pop("mapped"):
            key = (device, inode)
            users.setdefault(key, []).append(process)
            shown.setdefault(key, printable(path))
            if key not in readable and (place := _readable(process["pid"], inode, path, piece)):
                readable[key] = place
        process["files"] = []
    unread = {"gone, or not ours to read": len(users) - len(readable)}
    if scan is None:
        return [], unread
    by_place = {place: key for key, place in readable.items()}
    found = scan(list(by_place))
    rows = []
    for row in found["files"]:
        key = by_place.get(row["path"])
        if key is None:
            continue
        rows.append({**row, "path": shown[key], "processes": len(users[key])})
        for process in users[key]:
            process["files"].append(shown[key])
    return rows, unread


def _readable(pid: int, inode: int, path: str, piece: str) -> str | None:
    """A name under which this very file can be opened from here."""
    for place in (path, f"/proc/{pid}/root{path}", f"/proc/{pid}/map_files/{piece}"):
        with suppress(OSError, ValueError):
            if os.stat(place).st_ino == inode and os.access(place, os.R_OK):
                return place
    return None
