"""A kernel that no distribution ships: slice extension, rseq statistics and debugging compiled in.

Built from the distribution's own newest kernel source package, or from a tree of the reader's, as small as the
lab's guests allow. The result lies in the cache under a name made from everything that went into it: source,
patches, options and compiler. The unpacked source is gone afterwards, also where the build was interrupted.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rseqlab import host
from rseqlab.errors import LabError, UsageError
from rseqlab.lab import compile, counted
from rseqlab.vm import cache, kernels, packages

ARCHITECTURES = ("x86_64", "aarch64")
X86, ARM = ("x86_64",), ("aarch64",)


@dataclass(frozen=True)
class Option:
    """A configuration option that is switched on, and what the lab wants it for.

    A build without one of ``required`` architectures' options is refused: what it would show is not what was asked.
    """

    name: str
    why: str
    arch: tuple[str, ...] = ARCHITECTURES
    required: tuple[str, ...] = ARCHITECTURES


OPTIONS = (
    Option("64BIT", "the lab's programs are 64-bit", X86, X86),
    Option("SMP", "rseq is about several CPUs; mm_cid depends on it"),
    Option("EXPERT", "the options of rseq below are asked for only then"),
    Option("DEBUG_KERNEL", "debugging options are asked for only then"),
    Option("MULTIUSER", "system calls about users that a libc expects"),
    Option("BINFMT_ELF", "the guest's programs"),
    Option("BINFMT_SCRIPT", "a guest whose init is a script"),
    Option("BLK_DEV_INITRD", "the guest's root image"),
    Option("RD_GZIP", "the image is packed with gzip"),
    Option("PROC_FS", "programs read what the kernel says of them"),
    Option("SYSFS", "debugfs is mounted in it"),
    Option("DEVTMPFS", "the guest's device files"),
    Option("SHMEM", "memory shared between processes"),
    Option("TMPFS", "a guest's scratch files"),
    Option("PRINTK", "the console says why a guest died"),
    Option("TTY", "the console and the result port are terminals"),
    Option("SERIAL_8250", "the console, and the result port", ARCHITECTURES, X86),
    Option("SERIAL_8250_CONSOLE", "messages of the kernel on it", X86, X86),
    Option("SERIAL_8250_PCI", "a result port of a machine that has it on PCI only"),
    Option("SERIAL_AMBA_PL011", "the console of QEMU's machine", ARM, ARM),
    Option("SERIAL_AMBA_PL011_CONSOLE", "messages of the kernel on it", ARM, ARM),
    Option("PCI", "the result port may be a PCI device"),
    Option("PCI_HOST_GENERIC", "the PCI bridge of QEMU's machine", ARM, ()),
    Option("ACPI", "power-off, and the interrupts of a machine of several CPUs", X86, X86),
    Option("ARM_PSCI_FW", "power-off", ARM, ()),
    Option("POSIX_TIMERS", "programs that set timers and sleep to a time"),
    Option("HIGH_RES_TIMERS", "a granted slice ends after microseconds; slice extension depends on it"),
    Option("FUTEX", "locks that sleep"),
    Option("EPOLL", "system calls that a libc expects"),
    Option("SIGNALFD", "system calls that a libc expects"),
    Option("EVENTFD", "system calls that a libc expects"),
    Option("ADVISE_SYSCALLS", "madvise, which allocators call"),
    Option("MEMBARRIER", "its rseq commands are part of the interface"),
    Option("KALLSYMS", "a trace with names where the kernel dies"),
    Option("RSEQ", "the system call"),
    Option("DEBUG_FS", "statistics, debugging and the slice's length lie there"),
    Option("RSEQ_STATS", "rseq/stats in debugfs: what the kernel counts"),
    Option(
        "RSEQ_SLICE_EXTENSION",
        "the slice extension; in 7.3 it depends on GENERIC_ENTRY, which arm64 does not select",
        ARCHITECTURES,
        X86,
    ),
    Option(
        "DEBUG_RSEQ",
        "the older checks; where the entry code is generic, debugfs rseq/debug and rseq_debug=1 switch newer ones",
        ARM,
        (),
    ),
)

SLICE = "RSEQ_SLICE_EXTENSION"
SOURCE_NAME = re.compile(r"^linux-source-[0-9.]+$")
IMAGES = {"x86_64": ("x86", "bzImage"), "aarch64": ("arm64", "Image")}
"""Architecture to the kernel's word for it and the image that it makes."""

TOOLS = {
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "ld": "binutils",
    "perl": "perl",
    "xz": "xz-utils",
    "tar": "tar",
    "patch": "patch",
}
HEADERS = {"libelf.h": "libelf-dev", "openssl/opensslv.h": "libssl-dev"}
"""What a build needs to find, and the package that has it."""

REPRODUCIBLE = {
    "KBUILD_BUILD_TIMESTAMP": "2020-07-14",
    "KBUILD_BUILD_USER": "rseqlab",
    "KBUILD_BUILD_HOST": "rseqlab",
    "KBUILD_BUILD_VERSION": "1",
}
"""The same source gives the same image, and the image does not name this machine."""

FREE_BYTES = 3_000_000_000
"""An unpacked source takes 1.8 GB, what is built of it 0.3 GB."""

USUAL_STEPS = 1700
"""Lines that make prints for a kernel of these options, where no earlier build says it better."""

TIMEOUT_S = 3600
VERSION = 1
"""Of what a cached build's record says; another one is built anew."""

Show = Callable[[str, int, int], None]
"""Progress: a step's name, how much of it is done, of how much."""

STEPS = (("source", 30.0), ("configuration", 10.0), ("kernel", 260.0))
"""The names that ``build`` shows progress of, and how long each usually takes."""


class BuildError(LabError):
    """The kernel could not be built; nothing of it is in the cache."""


@dataclass(frozen=True)
class Built:
    """What is known of a kernel that was built here."""

    kernel: kernels.Kernel
    source: str
    patches: tuple[str, ...]
    compiler: str
    options: tuple[str, ...]
    dropped: tuple[str, ...]
    steps: int
    seconds: float

    @property
    def has_slices(self) -> bool:
        return SLICE in self.options


def options(arch: str) -> tuple[Option, ...]:
    return tuple(option for option in OPTIONS if arch in option.arch)


# ---- what is needed ----


def missing(arch: str) -> str | None:
    """What a build for this architecture lacks here, with the command that adds it; None where nothing."""
    compiler = counted.compiler(arch)
    lacking = {package: tool for tool, package in TOOLS.items() if not shutil.which(tool)}
    if not shutil.which(compiler):
        lacking["gcc" if compiler == "cc" else f"gcc-{arch.replace('_', '-')}-linux-gnu"] = compiler
    if shutil.which("cc"):
        lacking |= {package: name for name, package in HEADERS.items() if not _has_header(name)}
    if not lacking:
        return None
    return (
        f"A kernel for {arch} cannot be built here: {', '.join(lacking.values())} was not found. "
        f"Add what is missing with: apt-get install {' '.join(sorted(lacking))}"
    )


def _has_header(name: str) -> bool:
    asked = subprocess.run(
        ["cc", "-E", "-x", "c", "-o", os.devnull, "-"],
        input=f"#include <{name}>\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    return asked.returncode == 0


# ---- what was built ----


def _folder() -> Path:
    return cache.folder("own-kernels")


def built(arch: str | None = None) -> list[Built]:
    """The kernels in the cache that were built here, oldest first. What another version recorded is passed over."""
    found = []
    for record in sorted(_folder().glob("*/record.json"), key=lambda path: (path.stat().st_mtime_ns, path)):
        if one := _read(record.parent):
            found.append(one)
    return [one for one in found if arch in (None, one.kernel.arch)]


def newest(arch: str, option: str | None = None) -> Built | None:
    """The kernel that was built last for this architecture, with this option where one is named."""
    return next((one for one in reversed(built(arch)) if option is None or option in one.options), None)


def no_slices(arch: str) -> str | None:
    """Why no kernel with slice extension can be booted for this architecture, or None where one can."""
    if newest(arch, SLICE):
        return None
    if without := newest(arch):
        return (
            f"the kernel of {without.source} that was built for {arch} is without slice extension: "
            f"{SLICE} could not be switched on there"
        )
    if arch == "aarch64":
        return (
            "no kernel with slice extension is built for aarch64: in Linux 7.3 the option depends on GENERIC_ENTRY, "
            "which arm64 does not select; of a source that has it `rseqlab kernels build --arch aarch64` makes one"
        )
    return f"no kernel with slice extension is built for {arch}; `rseqlab kernels build` makes one"


def _read(folder: Path) -> Built | None:
    try:
        record = json.loads((folder / "record.json").read_text())
        if record.pop("version") != VERSION:
            return None
        image = folder / IMAGES[record["kernel"]["arch"]][1]
        sha256 = record["kernel"]["sha256"]
        if hashlib.sha256(image.read_bytes()).hexdigest() != sha256:
            return None
        kernel = kernels.Kernel(**record.pop("kernel") | {"image": image})
        return Built(kernel, **{name: tuple(v) if isinstance(v, list) else v for name, v in record.items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- building ----


def build(
    arch: str, patches: Sequence[Path] = (), source: Path | None = None, show: Show = lambda *_: None
) -> Built:
    """The built kernel; from the cache where all that goes into it is the same. Raises LabError.

    ``source`` is a tree of the reader's own, which is only read: the build lies beside it. ``patches`` are applied to
    the distribution's source with ``patch -p1``, in this order.
    """
    if arch not in ARCHITECTURES:
        raise UsageError(
            f"A kernel for {arch!r} cannot be built. The architectures are: {', '.join(ARCHITECTURES)}."
        )
    if source and patches:
        raise UsageError(
            "--patch is for the distribution's source. A tree of your own is only read: apply the patches to it first."
        )
    texts = [_patch_text(path) for path in patches]
    tree_digest = tree_id(source) if source else None
    if reason := missing(arch):
        raise BuildError(reason)
    package = None if source else newest_source()
    name = str(source.resolve().name) if source else f"{package.name} {package.version}"
    wanted = _digest(arch, tree_digest or name, texts)
    if found := _read(_folder() / wanted):
        os.utime(_folder() / wanted / "record.json")  # asked for last: the one that experiments boot
        return found
    _enough_space()
    with cache.scratch() as space:
        tree = source.resolve() if source else _unpacked(package, space, show)
        for path, text in zip(patches, texts, strict=True):
            apply(tree, path, text)
        show("source", 1, 1)
        steps = next((one.steps for one in reversed(built(arch))), USUAL_STEPS)
        suffix = "-rseqlab-patched" if patches else "-rseqlab-own" if source else "-rseqlab"
        result = _compile(arch, tree, suffix, space, steps, show)
        release, series = _release(tree, space / "out")
        sub, image = IMAGES[arch]
        ready = space / "ready"
        ready.mkdir()
        shutil.copy(space / "out" / "arch" / sub / "boot" / image, ready / image)
        shutil.copy(space / "out" / ".config", ready / "config")
        content = (ready / image).read_bytes()
        kernel = kernels.Kernel(
            series=series,
            release=release,
            arch=arch,
            image=ready / image,
            origin="built",
            package=None if source else name,
            sha256=hashlib.sha256(content).hexdigest(),
        )
        record = asdict(Built(kernel, name, tuple(path.name for path in patches), *result))
        record["kernel"]["image"] = image
        (ready / "record.json").write_text(json.dumps({"version": VERSION} | record, indent=1) + "\n")
        target = _folder() / wanted
        cache.into_place(ready, target)
    return _read(target)


def _digest(arch: str, source: str, patches: Sequence[str]) -> str:
    total = hashlib.sha256(
        f"{VERSION} {arch} {source}\0{compile.compiler_id(counted.compiler(arch))}\0".encode()
    )
    for option in options(arch):
        total.update(option.name.encode() + b"\0")
    for text in (*(f"{name}={value}" for name, value in REPRODUCIBLE.items()), *patches):
        total.update(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest())
    return total.hexdigest()[:24]


def _enough_space() -> None:
    free = shutil.disk_usage(_folder()).free
    if free < FREE_BYTES:
        raise BuildError(
            f"{cache.top()} has {free / 1e9:.1f} GB free; building a kernel takes {FREE_BYTES / 1e9:.0f} GB for a "
            "while. Free some, or set RSEQLAB_CACHE to a folder on another disk."
        )


def newest_source() -> packages.Package:
    """The newest package of kernel source that the distribution has; found by its name. Raises PackageError."""
    packages.offered()  # asks the archive where it never was asked
    said = packages._run(["apt-cache", "search", "--names-only", SOURCE_NAME.pattern], packages.ASK_TIMEOUT_S)
    names = [line.partition(" ")[0] for line in said.splitlines()]
    found = [one for one in packages.candidates(names) if SOURCE_NAME.match(one.name)] if names else []
    if not found:
        raise BuildError(
            "The package source has no kernel source (linux-source-NUMBER). `rseqlab kernels list --refresh` asks it "
            "again; --source DIR builds a tree of your own."
        )
    # It belongs to every architecture; apt finds it under the one that it takes for its own.
    return packages.by_version([one for one in found if one.arch == host.arch()] or found)[-1]


def _unpacked(package: packages.Package, space: Path, show: Show) -> Path:
    """The distribution's source, fetched, verified and unpacked below ``space``."""
    show("source", 0, 3)
    archive = packages.download([package], space)[package]
    show("source", 1, 3)
    (space / "package").mkdir()
    packages.unpack(archive, space / "package")
    archive.unlink()
    (tarball,) = (space / "package").glob("usr/src/linux-source-*.tar.*")
    (space / "tree").mkdir()
    _tool(["tar", "-x", "-f", str(tarball), "-C", str(space / "tree"), "--strip-components=1"], space)
    shutil.rmtree(space / "package")
    return space / "tree"


def _patch_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UsageError(f"Could not read the patch {path}: {error.strerror}.") from None


def apply(tree: Path, path: Path, text: str) -> None:
    """Apply one patch to the unpacked source. Raises BuildError with patch's own words where it does not apply."""
    command = [
        "patch",
        "-p1",
        "--force",
        "--no-backup-if-mismatch",
        "--reject-file=-",
        "--directory",
        str(tree),
    ]
    said = subprocess.run(
        command,
        input=text.encode("utf-8", "surrogateescape"),
        capture_output=True,
        timeout=300,
        env=os.environ | {"LC_ALL": "C.UTF-8"},
    )
    if said.returncode:
        raise BuildError(
            f"{path} does not apply to this source with `patch -p1`: {_words(said.stdout + said.stderr)} "
            "Nothing was built."
        )


def tree_id(tree: Path) -> str:
    """Names what lies in a tree of the reader's: every file's path, size and time. Raises UsageError for no tree."""
    makefile = tree / "Makefile"
    try:
        head = makefile.read_text(errors="replace")[:2000]
    except OSError as error:
        raise UsageError(
            f"{tree} is no tree of kernel source: its Makefile could not be read ({error.strerror}). "
            "Name the folder that has the kernel's top Makefile."
        ) from None
    if not re.search(r"^VERSION = \d+$", head, re.M) or not (tree / "Kconfig").is_file():
        raise UsageError(
            f"{tree} is no tree of kernel source: its Makefile states no VERSION, or there is no Kconfig. "
            "Name the folder that has the kernel's top Makefile."
        )
    if (tree / ".config").exists():
        raise UsageError(
            f"{tree} was built in (there is a .config), so the kernel's make refuses to build beside it. "
            "Clean it with `make mrproper`, or name another checkout."
        )
    total = hashlib.sha256()
    for place, folders, names in os.walk(tree):
        folders[:] = sorted(folder for folder in folders if folder != ".git")
        for name in sorted(names):
            path = os.path.join(place, name)
            known = os.lstat(path)
            line = f"{os.path.relpath(path, tree)}\0{known.st_size}\0{known.st_mtime_ns}\0"
            total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _make(arch: str, tree: Path, out: Path) -> list[str]:
    command = ["make", "-C", str(tree), f"O={out}", f"ARCH={IMAGES[arch][0]}"]
    return command if arch == host.arch() else [*command, f"CROSS_COMPILE={arch}-linux-gnu-"]


def _compile(
    arch: str, tree: Path, suffix: str, space: Path, usual: int, show: Show
) -> tuple[str, tuple[str, ...], tuple[str, ...], int, float]:
    """Configure and compile: compiler, options that are on, those that could not be, make's lines and seconds."""
    started, out = time.monotonic(), space / "out"
    make = _make(arch, tree, out)
    out.mkdir()
    show("configuration", 0, 2)
    _tool([*make, "tinyconfig"], out)
    with open(out / ".config", "a") as config:
        config.writelines(f"CONFIG_{option.name}=y\n" for option in options(arch))
        config.write(f'CONFIG_LOCALVERSION="{suffix}"\n')
    show("configuration", 1, 2)
    _tool([*make, "olddefconfig"], out)
    settled = (out / ".config").read_text()
    on, dropped = settle(arch, settled)
    show("configuration", 2, 2)
    steps = _run_make([*make, f"-j{len(host.allowed_cpus())}", IMAGES[arch][1]], space / "log", usual, show)
    return (
        compile.compiler_id(counted.compiler(arch)),
        on,
        dropped,
        steps,
        round(time.monotonic() - started, 1),
    )


def settle(arch: str, config: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of the options are on in a finished configuration, and which are not. Raises where one must be."""
    set_ = set(re.findall(r"^CONFIG_(\w+)=y$", config, re.M))
    wanted = options(arch)
    lost = [option for option in wanted if option.name not in set_]
    if needed := [option for option in lost if arch in option.required]:
        told = "; ".join(f"{option.name} ({option.why})" for option in needed)
        raise BuildError(
            f"This source does not have, or does not allow for {arch}: {told}. Nothing was built; a source of 7.0 or "
            "newer has slice extension and its statistics."
        )
    return tuple(option.name for option in wanted if option not in lost), tuple(
        option.name for option in lost
    )


def _release(tree: Path, out: Path) -> tuple[str, str]:
    """As the kernel itself will say it, and its series: 7.3.4-rseqlab is of 7.3."""
    release = (out / "include" / "config" / "kernel.release").read_text().strip()
    match = re.match(r"\d+\.\d+", release)
    return release, match[0] if match else release


def _environment() -> Mapping[str, str]:
    """Without what a reader's own kernel builds may have exported: make takes its variables from there, too."""
    foreign = (
        "KBUILD",
        "KCONFIG",
        "KERNEL",
        "ARCH",
        "CROSS_COMPILE",
        "MAKE",
        "CC",
        "LD",
        "LLVM",
        "KCFLAGS",
        "CONFIG_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | REPRODUCIBLE | {"LC_ALL": "C.UTF-8"}


def _tool(command: Sequence[str], place: Path) -> None:
    """One short step; its group of processes is ended with it where it is interrupted."""
    log = place / "tool-log"
    _run(command, log, 900, lambda _: None)


def _run_make(command: Sequence[str], log: Path, usual: int, show: Show) -> int:
    done = 0

    def line(_: str) -> None:
        nonlocal done
        done += 1
        show("kernel", min(done, usual - 1), usual)

    show("kernel", 0, usual)
    _run(command, log, TIMEOUT_S, line)
    show("kernel", usual, usual)
    return done


def _run(command: Sequence[str], log: Path, timeout_s: float, each: Callable[[str], None]) -> None:
    """Run it in a group of its own and tell ``each`` its lines. Whatever ends this, no process is left."""
    with (
        open(log, "w", buffering=1, errors="replace") as file,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(),
            start_new_session=True,
        ) as process,
    ):
        late = threading.Event()

        def too_late() -> None:
            late.set()
            _end(process)

        watch = threading.Timer(timeout_s, too_late)
        watch.start()
        try:
            for line in process.stdout:
                file.write(line)
                each(line)
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            watch.cancel()
    if late.is_set():
        raise BuildError(
            f"{' '.join(command[:1])} still ran after {timeout_s:.0f} s; it was ended and nothing is kept."
        )
    if process.returncode:
        kept = _keep_log(log)
        raise BuildError(
            f"`{command[0]}` ended with {process.returncode}: {_words(_last(log))} The whole of what it said: {kept}."
        )


def _end(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _keep_log(log: Path) -> Path:
    """Beside the cache's kernels, where the temporary folder's end does not reach it; one, the last."""
    kept = _folder() / "failed-build.log"
    shutil.copy(log, kept)
    return kept


def _last(log: Path) -> bytes:
    """The lines that a compiler means, or else the end."""
    lines = log.read_bytes().splitlines()
    errors = [line for line in lines if b"error" in line.lower() or b"***" in line]
    return b"\n".join((errors or lines)[-6:])


def _words(said: bytes) -> str:
    """At most 600 characters of a program's words in one line that a terminal can be shown."""
    text = " ".join(said.decode("utf-8", "replace").split())
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:600]
