"""Boots kernels in QEMU and brings home what init wrote on the result port, with a verdict on how it went.

A guest is not trusted: it has no network and no file of the host, its console and its results are pipes that
this process reads and bounds, and QEMU ends with this process whatever happens.

The result port is a serial port of its own: /dev/ttyS1 (ISA) on x86_64, /dev/ttyS0 (PCI) on aarch64, where the
console is ttyAMA0. Both drivers are built into the distribution's kernels of every series, so no module is
needed. What init has to write there is in ``c/guest.h``.
"""

import contextlib
import json
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache as once
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab import child
from rseqlab.lab.bundle import printable
from rseqlab.vm import cache, image
from rseqlab.vm.kernels import Kernel

QEMU = {"x86_64": "qemu-system-x86_64", "aarch64": "qemu-system-aarch64"}
GUEST_H = Path(__file__).parent / "c" / "guest.h"
CONSOLE_LIMIT_BYTES = 1 << 20
QEMU_WORDS_BYTES = 16 << 20
OWN_MEMORY_MIB = 200
"""What QEMU itself takes beside the guest's memory."""

PANIC = re.compile(rb"Kernel panic - not syncing: ([ -~]{200}|[ -~]*(?=[\r\n]))|-- System halted")
"""Its whole line: the words come over the serial port one by one."""
BEGIN = re.compile(rb"RSEQLAB-BEGIN (\d{1,4})\n")
END = re.compile(rb"\nRSEQLAB-END (\d{1,12}) ([0-9a-f]{8})\n\Z")
FRAME_BYTES = 256
"""What the marks around the results may take."""

PATIENCE = 3
ENOSYS = 38
STATUSES = ("done", "panic", "hang", "no boot", "refused", "bad results")


@dataclass(frozen=True)
class Guest:
    """One boot: a kernel, a root image, and what it may take."""

    kernel: Kernel
    initrd: Path
    cpus: int = 1
    busy_cpus: int | None = None
    """How many of its virtual CPUs work at once, where that is fewer: so many of the host's cores it keeps busy."""
    memory_mib: int = 512
    icount: bool = False
    """One instruction is one nanosecond of the guest's time (TCG, one virtual CPU): costs repeat."""
    append: tuple[str, ...] = ()
    """More words of the kernel's command line; NAME=value without a dot reaches init's environment."""
    timeout_s: float = 60
    """Of its own time: what it waited for a core while others ran is not counted, up to PATIENCE times as much."""
    results_limit_bytes: int = 8 << 20


@dataclass(frozen=True)
class Outcome:
    """How a boot ended. ``results`` is what init wrote, complete and checked, and empty unless ``status`` is done."""

    status: str
    """done; panic; hang (init ran and did not end in time); no boot (init never ran); refused (QEMU did not start
    it); bad results (what came is too long, cut off, damaged or no text)."""
    reason: str | None
    seconds: float
    accel: str
    qemu: str
    console: Path
    results: bytes = b""
    unfinished: bytes = field(default=b"", repr=False)
    """What had come of the results where they are not complete: evidence, not data."""
    rseq: bool | None = None
    """Whether the kernel has the system call at all; None where init never said."""


class RowsError(LabError):
    """The results are no rows."""


def rows(outcome: Outcome) -> list[dict]:
    """The results as rows: one JSON object of plain values per line. Raises RowsError at the first other line.

    Texts that are not printable are refused, too: they would reach a bundle and a terminal.
    """
    found = []
    for number, line in enumerate(outcome.results.decode().splitlines(), start=1):
        try:
            row = json.loads(line, parse_constant=lambda name: None)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not all(_plain(value) for value in (*row, *row.values())):
            raise RowsError(f"Line {number} of a guest's results is no row: {printable(line)[:120]!r}.")
        found.append(row)
    return found


def _plain(value: object) -> bool:
    if isinstance(value, int | float):
        return abs(value) < 1 << 64  # neither infinite nor a number of thousands of digits
    return value is None or (isinstance(value, str) and value.isprintable())


@once
def qemu_version(arch: str) -> str | None:
    """The version of the QEMU for this architecture, or None where there is none."""
    program = shutil.which(QEMU[arch])
    if not program:
        return None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30).stdout
    found = re.search(r"version (\S+)", said)
    return found[1] if found else "unknown"


def missing(arch: str | None = None) -> str | None:
    """Why no guest of this architecture (of any, by default) can be booted, or None."""
    absent = [QEMU[one] for one in ([arch] if arch else QEMU) if qemu_version(one) is None]
    if absent:
        return f"{' and '.join(absent)} was not found; `make deps` installs it"
    return None


def accel(guest: Guest) -> str:
    """kvm where it was seen to boot a kernel of this architecture; tcg otherwise, and always to count."""
    if guest.icount or guest.kernel.arch != os.uname().machine:
        return "tcg"
    return "tcg" if kvm_refusal(guest.kernel) else "kvm"


KVM_TIMEOUT_S = 20
KVM_SIGN = b"Kernel panic"
"""An image with an init that cannot be executed: a kernel that boots says so and panics."""


def kvm_refusal(kernel: Kernel) -> str | None:
    """Why KVM is not used, or None where it booted a kernel. The device file proves nothing: a kernel is tried.

    Tried once for each boot of this machine and version of QEMU; the answer lies in the cache.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm cannot be opened"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    tried = f"{boot_id} {kernel.arch} {qemu_version(kernel.arch)}"
    record = cache.folder("kvm") / "tried.json"
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(record.read_text())
        if known["tried"] == tried:
            return known["refusal"]
    refusal = _try_kvm(kernel)
    with cache.writing(record) as partial:
        partial.write_text(json.dumps({"tried": tried, "refusal": refusal}))
    return refusal


def _try_kvm(kernel: Kernel) -> str | None:
    guest = Guest(
        kernel, image.root(kernel.arch, {"/init": b""}, "/init"), memory_mib=256, timeout_s=KVM_TIMEOUT_S
    )
    with selectors.DefaultSelector() as selector:
        running = _Running(guest, selector, "kvm")
        try:
            while not running.ended():
                for key, _ in selector.select(max(0.0, running.deadline - time.monotonic())):
                    key.data()
            booted = KVM_SIGN in running.console
            _, reason = running.judged()
        finally:
            running.kill()
    return None if booted else f"KVM is there but boots no kernel: {reason}"


def command(guest: Guest, results_fd: int, how: str) -> list[str]:
    """What starts the guest by ``how`` (tcg, kvm): console on standard output, results on the file descriptor."""
    kernel = guest.kernel
    append = ["quiet", "panic=-1"]
    if kernel.arch == "x86_64":
        machine = ["-cpu", "max" if how == "tcg" else "host"]
        results = ["-serial", "chardev:results"]
        # A host that is busy lets the kernel wait in vain for its first timer interrupts, and it would give up.
        append += ["console=ttyS0", "RSEQLAB_PORT=/dev/ttyS1", "no_timer_check"]
    else:
        # The board's first interrupt controller serves 8 CPUs.
        machine = ["-M", "virt,gic-version=3" if guest.cpus > 8 else "virt", "-cpu", "max,pauth-impdef=on"]
        if how == "kvm":
            machine = ["-M", "virt,gic-version=host", "-cpu", "host"]
        results = ["-device", "pci-serial,chardev=results"]
        append += ["console=ttyAMA0", "RSEQLAB_PORT=/dev/ttyS0"]
    if guest.icount:
        acceleration = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off", "-rtc", "clock=vm"]
        append += ["nokaslr"] + (["tsc=reliable", "clocksource=tsc"] if kernel.arch == "x86_64" else [])
    else:
        acceleration = ["-accel", "tcg,thread=multi" if how == "tcg" else how]
    return [
        QEMU[kernel.arch],
        "-nodefaults",
        "-no-user-config",
        *machine,
        *acceleration,
        *("-smp", str(guest.cpus), "-m", str(guest.memory_mib)),
        *("-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"file,id=results,path=/dev/fd/{results_fd}", *results),
        *("-kernel", str(kernel.image), "-initrd", str(guest.initrd)),
        *("-append", " ".join([*append, *guest.append])),
    ]


def boot(guest: Guest) -> Outcome:
    """Boot one guest and wait for its end."""
    for _, outcome in boot_all([guest]):
        return outcome
    raise AssertionError("a guest without an outcome")


def boot_all(guests: Sequence[Guest]) -> Iterator[tuple[Guest, Outcome]]:
    """Boot all of them, several at once within this machine's cores and free memory; each as it ends.

    Leaving the iteration early (an exception, Ctrl-C) ends those that run.
    """
    waiting, running = list(guests), []
    try:
        with selectors.DefaultSelector() as selector:
            while waiting or running:
                while waiting and (why := _fits(waiting[0], running)) is None:
                    guest = waiting.pop(0)
                    try:
                        how = accel(guest)
                        with _uninterrupted():
                            running.append(_Running(guest, selector, how))
                    except OSError as error:
                        name = QEMU[guest.kernel.arch]
                        yield guest, _refused(guest, f"{name} did not start: {error.strerror}")
                if waiting and not running:  # there is nothing whose end would make room for it
                    guest = waiting.pop(0)
                    yield guest, _refused(guest, why)
                    continue
                deadline = min((one.deadline for one in running), default=0.0)
                for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                    key.data()
                for one in [one for one in running if one.ended()]:
                    outcome = one.outcome()
                    running.remove(one)
                    yield one.guest, outcome
    finally:
        for one in running:
            one.kill()


def _fits(guest: Guest, running: Sequence["_Running"]) -> str | None:
    """None where the guest may start beside these now, or why not."""
    if reason := missing(guest.kernel.arch):
        return reason
    cores = len(os.sched_getaffinity(0))
    busy = [min(one.busy_cpus or one.cpus, cores) for one in (guest, *(other.guest for other in running))]
    if running and sum(busy) > cores:
        return "the cores are taken"
    needed = guest.memory_mib + OWN_MEMORY_MIB
    promised = sum(one.guest.memory_mib + OWN_MEMORY_MIB - one.resident_mib() for one in running)
    free = available_mib() - max(0, promised)
    if needed > free:
        return (
            f"not enough memory: the guest needs {needed:,} MiB with QEMU itself, {max(0, free):,} MiB are free; "
            "stop other programs"
        )
    return None


def available_mib() -> int:
    """What this machine, or the control group that we are in, can still give."""
    text = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1]) // 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::")[1].strip().lstrip(
            "/"
        )
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        free = min(free, (int(limit) - used) >> 20)
    return free


def _refused(guest: Guest, why: str) -> Outcome:
    qemu = f"{QEMU[guest.kernel.arch]} {qemu_version(guest.kernel.arch)}"
    return Outcome("refused", why, 0.0, "tcg", qemu, Path(os.devnull))


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block ends: Python loses one that comes while it forks with a preexec_fn."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_the_child(parent: int) -> None:
    """Before QEMU is executed: it dies with us, and writes no file beyond its own few words."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    child.die_with_parent()
    resource.setrlimit(resource.RLIMIT_FSIZE, (QEMU_WORDS_BYTES, QEMU_WORDS_BYTES))
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


def _end(results: bytearray) -> re.Match | None:
    return END.search(results, max(0, len(results) - FRAME_BYTES))


class _Running:
    """One QEMU process and what has come from it so far."""

    def __init__(self, guest: Guest, selector: selectors.BaseSelector, how: str):
        self.guest, self.selector, self.accel = guest, selector, how
        self.started = time.monotonic()
        self.deadline = self.started + guest.timeout_s
        self.results, self.console = bytearray(), bytearray()
        self.console_total = 0
        self.verdict: tuple[str, str | None] | None = None
        self.qemu_words = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        results_read, results_write = os.pipe()
        console_read, console_write = os.pipe()
        parent = os.getpid()
        try:
            self.process = subprocess.Popen(
                command(guest, results_write, how),
                stdin=subprocess.DEVNULL,
                stdout=console_write,
                stderr=self.qemu_words,
                pass_fds=(results_write,),
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
                preexec_fn=lambda: _in_the_child(parent),
            )
        except BaseException:
            os.close(results_read)
            os.close(console_read)
            raise
        finally:
            os.close(results_write)
            os.close(console_write)
        self.pipes = {results_read: self._take_results, console_read: self._take_console}
        for pipe, take in self.pipes.items():
            os.set_blocking(pipe, False)
            selector.register(pipe, selectors.EVENT_READ, lambda pipe=pipe, take=take: self._read(pipe, take))

    def _read(self, pipe: int, take) -> None:
        data = os.read(pipe, 1 << 16)
        if data:
            take(data)
        else:
            self._close(pipe)

    def _close(self, pipe: int) -> None:
        with contextlib.suppress(KeyError, ValueError):  # the selector may be closed before the guest is
            self.selector.unregister(pipe)
        os.close(pipe)
        del self.pipes[pipe]

    def _take_results(self, data: bytes) -> None:
        if self.verdict:
            return
        self.results += data
        if len(self.results) > self.guest.results_limit_bytes + FRAME_BYTES:
            limit = self.guest.results_limit_bytes
            self.verdict = (
                "bad results",
                f"the guest wrote more than the {limit:,} bytes that its results may have",
            )
        elif _end(self.results):
            self.verdict = self._checked()

    def _checked(self) -> tuple[str, str | None]:
        """The verdict on complete results."""
        begin, end = (
            BEGIN.match(self.results),
            _end(self.results),
        )
        if not begin:
            return "bad results", "what the guest wrote does not begin with the mark of guest.h"
        content = bytes(self.results[begin.end() : end.start()])
        if len(content) != int(end[1]):
            return "bad results", f"the guest says {int(end[1]):,} bytes of results, {len(content):,} came"
        if zlib.crc32(content) != int(end[2], 16):
            return "bad results", "the checksum of the guest's results is wrong"
        try:
            content.decode()
        except UnicodeDecodeError as error:
            return "bad results", f"the guest's results are no UTF-8 at byte {error.start:,}"
        return "done", None

    def _take_console(self, data: bytes) -> None:
        self.console_total += len(data)
        searched_from = max(0, len(self.console) - 300)
        self.console += data
        if not self.verdict and (found := PANIC.search(self.console, searched_from)):
            said = (found[1] or found[0]).decode("ascii", "replace").strip()
            self.verdict = ("panic", f"the kernel panicked: {printable(said)}")
            self.deadline = min(self.deadline, time.monotonic() + 0.5)  # for what it still says
        if len(self.console) > 2 * CONSOLE_LIMIT_BYTES:  # the first half stays, of the rest the newest
            del self.console[CONSOLE_LIMIT_BYTES // 2 : -CONSOLE_LIMIT_BYTES // 2]

    def resident_mib(self) -> int:
        """The memory that it has taken already."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGESIZE") >> 20
        return 0

    def ended(self) -> bool:
        """Whether there is nothing more to wait for."""
        if self.verdict and self.verdict[0] != "panic":
            return True
        if self.pipes and time.monotonic() >= self.deadline and not self.verdict:
            waited_s = min(self._waited_s(), PATIENCE * self.guest.timeout_s)
            self.deadline = self.started + self.guest.timeout_s + waited_s
        return not self.pipes or time.monotonic() >= self.deadline

    def _waited_s(self) -> float:
        """How long it was ready to run and had no core: on a busy machine that is no sign of a hang."""
        waited_ns = [0]
        with contextlib.suppress(OSError, IndexError, ValueError):
            for task in Path(f"/proc/{self.process.pid}/task").iterdir():
                waited_ns.append(int((task / "schedstat").read_text().split()[1]))
        return max(waited_ns) / 1e9

    def kill(self) -> None:
        """End it now; a guest has nothing that would be lost."""
        for pipe in list(self.pipes):
            self._close(pipe)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()

    def judged(self) -> tuple[str, str | None]:
        """Status and reason; the process is ended first."""
        in_time = not self.pipes
        if in_time:  # it closed its ends, so it is about to end by itself
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        code = self.process.poll()
        self.kill()
        return self.verdict or self._unfinished(in_time, code)

    def outcome(self) -> Outcome:
        """All that is known of this boot, which is over."""
        seconds = time.monotonic() - self.started
        status, reason = self.judged()
        begin, end = BEGIN.match(self.results), _end(self.results)
        content, unfinished = b"", bytes(self.results[begin.end() if begin else 0 :])
        if status == "done":
            content, unfinished = bytes(self.results[begin.end() : end.start()]), b""
        console = self._keep_console()
        return Outcome(
            status,
            f"{reason}; console: {console}" if reason else None,
            seconds,
            self.accel,
            f"{QEMU[self.guest.kernel.arch]} {qemu_version(self.guest.kernel.arch)}",
            console,
            content,
            unfinished,
            int(begin[1]) != ENOSYS if begin else None,
        )

    def _unfinished(self, in_time: bool, code: int | None) -> tuple[str, str]:
        self.qemu_words.seek(0)
        words = printable(self.qemu_words.read(2000).decode(errors="replace").strip().rpartition("\n")[2])[
            :300
        ]
        if in_time and code and not self.console and not self.results:
            return (
                "refused",
                f"{QEMU[self.guest.kernel.arch]} ended with {code}: {words or 'nothing was said'}",
            )
        if in_time:
            if self.results:
                return "bad results", "the guest ended before its results were complete"
            return "no boot", f"the guest ended before init wrote anything{': ' + words if words else ''}"
        limit = f"{time.monotonic() - self.started:.0f} s"
        if BEGIN.match(self.results):
            return "hang", f"init had begun and was not done after {limit}"
        if self.results:
            return (
                "bad results",
                f"after {limit} what the guest wrote still did not begin with the mark of guest.h",
            )
        return "no boot", f"init had not begun after {limit}"

    def _keep_console(self) -> Path:
        """In the cache, control characters taken out, so that it can be shown as it is."""
        kernel = self.guest.kernel
        text = bytes(self.console[:CONSOLE_LIMIT_BYTES]).decode("ascii", "replace").replace("\r\n", "\n")
        text = "".join(one if one.isprintable() or one == "\n" else "?" for one in text)
        handle, name = tempfile.mkstemp(
            prefix=f"{kernel.arch}-{kernel.series}-", suffix=".txt", dir=cache.folder("consoles")
        )
        with open(handle, "w") as file:
            file.write(text)
        _forget_old(Path(name).parent)
        return Path(name)


CONSOLES_KEPT = 200


def _forget_old(folder: Path) -> None:
    """Keep the newest consoles only."""
    there = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in there[:-CONSOLES_KEPT]:
        path.unlink(missing_ok=True)
