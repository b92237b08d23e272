"""What the kernel does for rseq while it is watched, by process: updates, aborts, system calls.

The kernel counts by itself, in BPF programs at its own tracepoints, which bpftrace loads: no event is copied
out, and the kernel removes everything as soon as that process is gone, whatever ended it. Where tracefs is
not mounted, the watching child mounts it in a mount namespace of its own, which ends with it.
"""

import ctypes
import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rseqlab import native
from rseqlab.census.process import printable
from rseqlab.errors import LabError
from rseqlab.lab import ops
from rseqlab.lab.child import Child, Failed
from rseqlab.lab.timing import Variant, calibrate

TRACING, DEBUG = Path("/sys/kernel/tracing"), Path("/sys/kernel/debug")
STATISTICS = DEBUG / "rseq" / "stats"

EVENTS = {
    "updates": ("rseq", "rseq_update", "the kernel wrote the CPU number and the other fields"),
    "aborts": ("rseq", "rseq_ip_fixup", "the kernel sent a thread to its abort handler"),
    "calls": ("syscalls", "sys_enter_rseq", "rseq system calls: registrations, and their ends"),
}
"""What is counted, and the tracepoint (both of rseq: Linux 4.18)."""

MOST_PROCESSES = 65536
"""Names that the kernel keeps a count for; what comes after is counted in the total alone."""

START_TIMEOUT_S, RESEND_S = 30, 0.5
LINES_EVERY_S = 2
REMEDY = "`make deps` installs bpftrace"

MARK, ATTACHED = "interval:ms:20", "attached"

BLOCK, ROUNDS = 4, 4
STORM_HZ = 10_000
BATCH_NS = 20_000_000

MS_PRIVATE_RECURSIVE, CLONE_NEWNS = 0x44000, 0x20000
DIE_WITH_PARENT = 1


def obstacle() -> str | None:
    """Why the kernel cannot be watched from here, as far as it shows before trying."""
    if os.geteuid() != 0:
        return "only root may watch the kernel; run it as root"
    if not shutil.which("bpftrace"):
        return f"bpftrace was not found; {REMEDY}"
    return None


# ---- in the child ----


def _own_mounts() -> dict[str, str]:
    """tracefs and debugfs where they should be, seen by this process alone. Returns what could not be had."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments) -> str | None:
        return None if getattr(libc, name)(*arguments) == 0 else os.strerror(ctypes.get_errno())

    missing = {}
    if why := call("unshare", CLONE_NEWNS) or call("mount", None, b"/", None, MS_PRIVATE_RECURSIVE, None):
        missing["namespace"] = f"no mount namespace of our own: {why}"
    for kind, place, sign in (("tracefs", TRACING, TRACING / "events"), ("debugfs", DEBUG, DEBUG / "sched")):
        if sign.exists() or (kind == "debugfs" and any(DEBUG.glob("*"))):
            continue
        why = missing.get("namespace") or call("mount", b"nodev", os.fsencode(place), kind.encode(), 0, None)
        if why:
            missing[kind] = f"{kind} could not be mounted on {place}: {why}"
    return missing


def _script(events: Mapping[str, tuple], lines_every_s: int | None) -> str:
    text = "\n".join(
        f"tracepoint:{group}:{name} {{ @total_{key} = count(); @{key}[pid, comm] = count(); }}"
        for key, (group, name, _) in events.items()
    )
    # bpftrace says that it attaches before it does, and attaches one after the other, from one end or the other:
    # what stands at both ends has begun when everything between them has.
    text = f"{MARK} {{ @first = 1; }}\n{text}\n{MARK} {{ @last = 1; }}"
    text += f'\n{MARK} /@first && @last && !@told/ {{ printf("{ATTACHED}"); @told = 1; }}'
    if lines_every_s:
        shown = " ".join(f"print(@total_{key}); print(@{key});" for key in events)
        text += f"\ninterval:s:{lines_every_s} {{ {shown} }}"
    return text


@contextmanager
def _counting(events: Mapping[str, tuple], lines_every_s: int | None = None) -> Iterator["Counting"]:
    """bpftrace, attached. It ends with the block, or with this process."""
    libc = ctypes.CDLL(None)
    process = subprocess.Popen(
        ["bpftrace", "-f", "json", "-e", _script(events, lines_every_s)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"BPFTRACE_MAP_KEYS_MAX": str(MOST_PROCESSES)},
        preexec_fn=lambda: libc.prctl(DIE_WITH_PARENT, signal.SIGKILL),
    )
    try:
        counting = Counting(process, events)
        counting.wait_until_attached()
        yield counting
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Counting:
    """A running bpftrace, and the counts that it has told so far."""

    def __init__(self, process: subprocess.Popen, events: Mapping[str, tuple]):
        self.process = process
        self.counts: dict[str, dict[str, int]] = {key: {} for key in events}
        self.totals = dict.fromkeys(events, 0)
        self.said: list[str] = []
        self.buffered = b""
        self.ended = False

    def wait_until_attached(self) -> None:
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            for kind, value in self._read(end):
                if kind == "printf" and value == ATTACHED:
                    return
            if self.ended:
                break
        raise Failed(f"bpftrace did not attach: {' '.join(self.said)[-500:] or 'it said nothing'}")

    def finish(self) -> None:
        """Stop it; it tells the last counts as it ends.

        bpftrace hears a signal only while it waits for events (0.17): one that comes between is lost, and is
        sent again for as long as it still catches them. What it prints last, a signal would cut short.
        """
        end = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < end:
            if self._catches_signals():
                self.process.send_signal(signal.SIGINT)
            again = time.monotonic() + RESEND_S
            while time.monotonic() < again:
                if not self._read(again) and self.ended:
                    if code := self.process.wait(timeout=START_TIMEOUT_S):
                        raise Failed(f"bpftrace ended with {code}: {' '.join(self.said)[-500:]}")
                    return
        raise Failed(f"bpftrace did not end within {START_TIMEOUT_S} s of SIGINT")

    def _catches_signals(self) -> bool:
        with suppress(OSError):
            caught = re.search(
                r"^SigCgt:\s+(\S+)", Path(f"/proc/{self.process.pid}/status").read_text(), re.M
            )
            return bool(caught and int(caught[1], 16) & 1 << signal.SIGINT - 1)
        return False

    def read_until(self, end: float) -> bool:
        """Take what it tells until there is something, or until that time. Whether it told something."""
        return bool(self._read(end))

    def _read(self, end: float) -> list[tuple[str, object]]:
        ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
        data = os.read(self.process.stdout.fileno(), 1 << 20) if ready else b""
        self.ended = bool(ready) and not data
        *lines, self.buffered = (self.buffered + data).split(b"\n")
        found = [("data", None)] if data else []
        for line in lines:
            text = line.decode("utf-8", "backslashreplace")
            try:
                one = json.loads(text, strict=False)
                kind, value = one["type"], one["data"]
            except (ValueError, KeyError, TypeError):
                self.said += [printable(text)] if text.strip() else []
                continue
            found.append((kind, value))
            if kind == "map":
                self._take(value)
        return found

    def _take(self, maps: Mapping) -> None:
        for name, value in maps.items():
            key = name.removeprefix("@")
            if key in self.counts:
                self.counts[key] = value
            elif key.startswith("total_"):
                self.totals[key.removeprefix("total_")] = value


def _available(missing: Mapping[str, str]) -> tuple[dict[str, tuple], dict[str, str]]:
    found, reasons = {}, {}
    for key, event in EVENTS.items():
        group, name, _ = event
        if (TRACING / "events" / group / name).exists():
            found[key] = event
        else:
            reasons[key] = missing.get("tracefs") or f"this kernel has no tracepoint {group}:{name}"
    return found, reasons


def read_statistics(text: str) -> dict[str, int]:
    """The kernel's own counters since it was started, each a name and a number."""
    return {name: int(number) for name, number in re.findall(r"^\s*([\w ]*\w)\s*:\s*(\d+)\s*$", text, re.M)}


def _statistics(missing: Mapping[str, str]) -> tuple[dict[str, int] | None, str | None]:
    if "debugfs" in missing:
        return None, missing["debugfs"]
    try:
        return read_statistics(STATISTICS.read_text()), None
    except FileNotFoundError:
        return None, f"this kernel has no {STATISTICS} (CONFIG_RSEQ_STATS, newer kernels)"
    except OSError as error:
        return None, f"{STATISTICS}: {error.strerror}"


def watch(arguments: Mapping) -> Iterator[dict]:
    """In a child: the counts so far, again and again; the last row has them all."""
    missing = _own_mounts()
    events, reasons = _available(missing)
    before, reason = _statistics(missing)
    if reason:
        reasons["statistics"] = reason
    seconds = arguments["seconds"]
    if not events and before is None:
        yield {"reasons": reasons}
        return
    started = time.monotonic_ns()

    def row(counting: Counting | None) -> dict:
        after = _statistics(missing)[0] if before is not None else None
        return {
            "elapsed_ns": time.monotonic_ns() - started,
            "counts": counting.counts if counting else {},
            "totals": counting.totals if counting else {},
            "statistics": {key: after[key] - before.get(key, 0) for key in after} if after else None,
            "reasons": reasons,
        }

    if events and (why := obstacle()):
        reasons |= dict.fromkeys(events, why)
        events = {}
    if not events:
        time.sleep(seconds)
        yield row(None)
        return
    try:
        with _counting(events, LINES_EVERY_S if seconds > LINES_EVERY_S else None) as counting:
            started = time.monotonic_ns()
            yield {"attached": True}
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if counting.read_until(end):
                    yield row(counting)
                elif counting.ended:
                    raise Failed(f"bpftrace ended early: {' '.join(counting.said)[-500:]}")
            elapsed_ns = time.monotonic_ns() - started
            counting.finish()
            yield row(counting) | {"elapsed_ns": elapsed_ns}
    except Failed as failed:
        if before is None:
            raise
        reasons |= dict.fromkeys(events, str(failed))
        yield row(None)


def load(arguments: Mapping) -> Iterator[dict]:
    """In a child: a counter under a storm of signals, in blocks with and without the trace, and once more without."""
    missing = _own_mounts()
    events, _ = _available(missing)

    def batch(iterations: int) -> dict:
        return ops.run_job("counter/rseq", 1, iterations, ops.places(1), storm_hz=STORM_HZ)

    iterations = calibrate(Variant(("storm",), batch), arguments["batch_ns"])
    pid = str(os.getpid())

    def block(number: int, state: str) -> Iterator[dict]:
        for place in range(arguments["block"]):
            one = batch(iterations)
            yield {
                "round": number,
                "place": place,
                "state": state,
                "cpu_ns_per_operation": one["cpu_ns_per_operation"],
                "cpu_ns": one["cpu_ns"],
                "aborts": one["aborts_migrated"] + one["aborts_interrupted"],
            }

    for number in range(arguments["rounds"]):
        states = ["untraced", "traced", "untraced again"]
        for state in states[number % 3 :] + states[: number % 3]:
            if state != "traced":
                yield from block(number, state)
                continue
            with _counting(events) as counting:
                rows = list(block(number, state))
                counting.finish()
            seen = {
                key: sum(count for who, count in found.items() if who.partition(",")[0] == pid)
                for key, found in counting.counts.items()
            }
            yield from rows
            yield {"round": number, "state": "seen", "seen": seen}


# ---- outside of the child: the document ----


def overhead(rounds: int = ROUNDS, batch_ns: int = BATCH_NS) -> tuple[dict | None, str | None]:
    """What the trace costs a load that aborts, and whether it sees the aborts that the load counts itself."""
    from rseqlab.lab import stats  # here: it brings scipy, and children import this module

    child = Child(load, {"rounds": rounds, "block": BLOCK, "batch_ns": batch_ns}, {}, 60 + 10 * rounds)
    rows = list(child)
    if child.outcome.status != "pass":
        return None, f"the load ended with {child.outcome.status}: {printable(child.outcome.reason or '')}"
    of = {
        state: [row["cpu_ns_per_operation"] for row in rows if row["state"] == state]
        for state in ("untraced", "traced", "untraced again")
    }
    cost, null = stats.ratio(of["traced"], of["untraced"]), stats.ratio(of["untraced again"], of["untraced"])
    seen = [row["seen"] for row in rows if row["state"] == "seen"]
    traced = [row for row in rows if row["state"] == "traced"]
    events = sum(sum(one.values()) for one in seen)
    work_ns = sum(row["cpu_ns"] for row in traced)
    return {
        "load": f"one thread that counts in critical sections under {STORM_HZ} signals a second",
        "ratio": cost.median,
        "low": cost.low,
        "high": cost.high,
        "null_ratio": null.median,
        "null_low": null.low,
        "null_high": null.high,
        "samples": cost.samples,
        "untraced_p50_ns_per_operation": statistics.median(of["untraced"]),
        "events_per_second": 1e9 * events / work_ns if work_ns else None,
        "aborts_by_load": sum(row["aborts"] for row in traced),
        "aborts_by_trace": sum(one.get("aborts", 0) for one in seen),
    }, None


def census(
    seconds: float, show: Callable[[str], None] = lambda _: None, measure_overhead: bool = True
) -> tuple[dict, bool]:
    """The document rseqlab/census-trace, and whether Ctrl-C ended it early.

    Raises LabError with the reasons where nothing could be measured.
    """
    child = Child(watch, {"seconds": seconds}, {}, seconds + 3 * START_TIMEOUT_S)
    last, interrupted = None, False
    try:
        for row in child:
            if row.get("attached"):
                show(f"Watching the kernel for {seconds:g} s")
            else:
                last = row
    except KeyboardInterrupt:
        interrupted = True
    if not interrupted and child.outcome.status != "pass":
        said = f"it ended with {child.outcome.status}: {printable(child.outcome.reason or '')}"
        raise LabError(f"The kernel could not be watched: {obstacle() or said}")
    if last is None:
        raise KeyboardInterrupt
    if "counts" not in last or not (last["counts"] or last["statistics"]):
        reasons = "; ".join(sorted(set(last["reasons"].values())))
        raise LabError(f"Nothing could be measured: {reasons}.")
    cost, why = None, "the tracepoints were not watched"
    if interrupted:
        why = "interrupted before it was measured"
    elif last["counts"] and not measure_overhead:
        why = "not asked for"
    elif last["counts"] and (why := native.unavailable()) is None:
        show("Measuring what watching costs")
        with suppress(KeyboardInterrupt):
            cost, why = overhead()
    processes: dict[tuple[int, str], dict[str, int]] = {}
    for key, found in last["counts"].items():
        for who, count in found.items():
            pid, _, name = who.partition(",")
            row = processes.setdefault((int(pid), printable(name)), dict.fromkeys(EVENTS, 0))
            row[key] += count
    rows = [{"pid": pid, "name": name, **counts} for (pid, name), counts in processes.items()]
    rows.sort(key=lambda row: (-row["aborts"], -row["updates"], row["pid"], row["name"]))
    return {
        "schema": "rseqlab/census-trace",
        "version": 1,
        "interface": "BPF programs at the kernel's tracepoints, loaded by bpftrace",
        "seconds": seconds,
        "elapsed_ns": last["elapsed_ns"],
        "interrupted": interrupted,
        "meanings": {key: f"{event[0]}:{event[1]}: {event[2]}" for key, event in EVENTS.items()},
        "totals": {key: last["totals"].get(key) for key in EVENTS},
        "statistics": last["statistics"],
        "not_measured": last["reasons"],
        "processes": rows,
        "unlisted": {key: last["totals"][key] - sum(row[key] for row in rows) for key in last["counts"]},
        "overhead": cost,
        "overhead_reason": why if cost is None else None,
    }, interrupted


def sentences(document: Mapping) -> Iterator[str]:
    """The summary in words."""
    seconds = document["elapsed_ns"] / 1e9
    totals = ", ".join(f"{count} {key}" for key, count in document["totals"].items() if count is not None)
    cut = ", when it was interrupted" if document["interrupted"] else ""
    yield f"In {seconds:.1f} s{cut}: {totals or 'no tracepoint was watched'}."
    if document["statistics"]:
        counters = ", ".join(f"{name} {count}" for name, count in document["statistics"].items())
        yield f"The kernel's own statistics grew by: {counters}."
    for key, reason in document["not_measured"].items():
        yield f"Not measured: {key}, because {reason}."
    found = document["overhead"]
    if found is None:
        yield f"What watching costs was not measured: {document['overhead_reason']}."
        return
    yield (
        f"Watching costs {found['load']} a factor of {found['ratio']:.3f} "
        f"[{found['low']:.3f}, {found['high']:.3f}] of CPU time (the same thing twice: "
        f"{found['null_ratio']:.3f} [{found['null_low']:.3f}, {found['null_high']:.3f}]; {found['samples']} "
        f"pairs in one process, at {found['events_per_second']:.0f} events per second of work). "
        f"The load counted {found['aborts_by_load']} aborts and the trace {found['aborts_by_trace']}."
    )
