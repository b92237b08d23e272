"""How the kernel under this process was made and is set, and the compilers beside it."""

import gzip
import os
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

from rseqlab import native
from rseqlab.facts import Facts, Unknown, read

SOFTWARE = Facts()
fact = SOFTWARE.fact

RSEQ_OPTION = re.compile(r"CONFIG_(?:DEBUG_)?RSEQ\w*")
SCHEDULER_OPTION = re.compile(
    r"CONFIG_(?:PREEMPT(?:_\w+)?|HZ|NO_HZ\w*|SCHED_(?:MC|SMT|CORE|AUTOGROUP|CLASS_EXT|HRTICK|CLUSTER|MM_CID)|"
    r"CPU_ISOLATION|HIGH_RES_TIMERS|IRQ_TIME_ACCOUNTING|VIRT_CPU_ACCOUNTING_GEN|MITIGATION_RETPOLINE|RETPOLINE|"
    r"RANDOMIZE_BASE|TRANSPARENT_HUGEPAGE)"
)
PARAMETERS = (
    "preempt",
    "mitigations",
    "nosmt",
    "nohz",
    "nohz_full",
    "isolcpus",
    "rcu_nocbs",
    "idle",
    "tsc",
    "clocksource",
    "transparent_hugepage",
    "nospectre_v2",
    "spectre_v2",
    "pti",
    "rseq_debug",
    "rseq_slice_ext",
)
"""Of the kernel's command line, which may hold anything: these are looked for, and nothing else of it is kept."""

COMPILERS = re.compile(r"(?:cc|gcc|clang|aarch64-linux-gnu-gcc|x86_64-linux-gnu-gcc)(?:-\d+)?")
COMPILER_TIMEOUT_S = 10


@cache
def _kernel_options() -> dict[str, str]:
    """Every option of the kernel's configuration that is set, or said not to be (``n``)."""
    wanted = (
        "/proc/config.gz",
        f"/boot/config-{platform.release()}",
        f"/lib/modules/{platform.release()}/config",
    )
    for path in wanted:
        if os.path.exists(path):
            data = Path(path).read_bytes()
            text = (gzip.decompress(data) if path.endswith(".gz") else data).decode(errors="replace")
            found = re.findall(r"^(?:# )?(CONFIG_\w+)(?:=(.*)| is not set)$", text, re.M)
            return {name: value or "n" for name, value in found}
    raise Unknown(f"none of {', '.join(wanted)} is there")


def _lines(wanted: re.Pattern) -> list[str]:
    """As the kernel's configuration has them."""
    return [
        f"# {name} is not set" if value == "n" else f"{name}={value}"
        for name, value in _kernel_options().items()
        if wanted.fullmatch(name)
    ]


@fact
def _kernel_config():
    """What it says of rseq."""
    return _lines(RSEQ_OPTION)


@fact
def _scheduler_config():
    """What it says of preemption, the timer and the scheduler."""
    return _lines(SCHEDULER_OPTION)


@fact
def _timer_hz():
    return int(_kernel_options()["CONFIG_HZ"])


@fact
def _kernel_parameters():
    """Those of its command line that bear on measurements."""
    words = (word.partition("=") for word in read("/proc/cmdline").split())
    return [f"{name}{sign}{value}" for name, sign, value in words if name in PARAMETERS]


@fact
def _preemption():
    """``none``, ``voluntary``, ``full``, ``lazy`` or ``rt``: what is in force, as far as a reader may know it."""
    path = Path("/sys/kernel/debug/sched/preempt")
    try:
        if found := re.search(r"\((\w+)\)", path.read_text()):
            return found[1]
    except OSError:
        pass  # only root may read it, and only where debugfs is mounted
    if "PREEMPT_RT" in platform.version():
        return "rt"
    if found := re.search(r"(?:^|\s)preempt=(\w+)", read("/proc/cmdline")):
        return found[1]
    options = _kernel_options()
    for name, mode in (
        ("CONFIG_PREEMPT_RT", "rt"),
        ("CONFIG_PREEMPT_LAZY", "lazy"),
        ("CONFIG_PREEMPT", "full"),
        ("CONFIG_PREEMPT_VOLUNTARY", "voluntary"),
        ("CONFIG_PREEMPT_NONE", "none"),
    ):
        if options.get(name) == "y":
            return mode
    raise Unknown("the kernel's configuration names no preemption model")


@cache
def _first_line(command: str) -> str:
    """What a compiler says of itself. Raises OSError or Unknown."""
    try:
        said = subprocess.run(
            [command, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMPILER_TIMEOUT_S,
            env=os.environ | {"LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        raise Unknown(f"{command} --version did not end within {COMPILER_TIMEOUT_S} s") from None
    return said.stdout.partition("\n")[0].strip()


@fact
def _compilers():
    """The first line of ``--version`` by command, of each compiler on the path."""
    names: set[str] = set()
    for folder in os.get_exec_path():
        try:
            names |= {name for name in os.listdir(folder) if COMPILERS.fullmatch(name)}
        except OSError:
            continue
    found = {name: _first_line(name) for name in sorted(names) if shutil.which(name)}
    if not found:
        raise Unknown("no cc, gcc or clang is on the path")
    return found


@fact
def _native_flags():
    """The flags that the compiled layer was built with, as far as they matter to its code."""
    ffi, lib = native.core()
    return ffi.string(lib.rl_compile_flags()).decode().split()
