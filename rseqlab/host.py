"""Facts of this machine. Each is a value, or None with the reason why it is unknown.

Neither the host's name nor a user's is among them.
"""

import os
import platform
import re
import struct
import sys
import time
from pathlib import Path

from rseqlab import abi, native
from rseqlab.facts import Facts, Unknown, collect, parse_cpu_list, read
from rseqlab.hardware import HARDWARE, cpuinfo
from rseqlab.microarchitecture import cpu_title
from rseqlab.software import SOFTWARE

__all__ = ["ADDED", "ARCHITECTURES", "IDENTITY", "Unknown", "allowed_cpus", "arch", "cpu_title", "facts"]
__all__ += ["parse_cpu_list", "possible_cpus", "possible_nodes", "steal_ticks"]

_FACTS = Facts()
_fact = _FACTS.fact

ADDED = (*HARDWARE, *SOFTWARE)
"""The facts that machine.json has since its schema version 2."""

IDENTITY = (
    "arch",
    "kernel_release",
    "kernel_version",
    "cpu_model",
    "cpu_vendor",
    "cpu_family",
    "cpu_model_number",
    "cpu_stepping",
    "cpu_implementer",
    "cpu_part",
    "cpus_online",
    "cpus_allowed",
    "libc",
    "virtualisation",
    "native_compiler",
)
"""The facts that must agree before rows of two sessions may stand in one bundle."""

ARCHITECTURES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
"""The lab's spelling for what platforms call themselves."""


def facts() -> tuple[dict[str, object], dict[str, str]]:
    """(values, reasons): every fact by name, None where unknown, and then the reason by the same name."""
    return collect({**_FACTS, **HARDWARE, **SOFTWARE})


def arch() -> str:
    """``x86_64``, ``aarch64``, or the platform's own word for one without a port."""
    machine = platform.machine().lower()
    return ARCHITECTURES.get(machine, machine)


def possible_cpus() -> int:
    """One more than the highest CPU number that a thread of this process may meet.

    Where /sys is hidden, as in some containers: the highest of the affinity mask, which a thread does
    not leave by itself.
    """
    try:
        return max(parse_cpu_list(read("/sys/devices/system/cpu/possible"))) + 1
    except OSError:
        return allowed_cpus()[-1] + 1


def possible_nodes() -> int:
    """One more than the highest number of a NUMA node; 1 where the kernel does not say."""
    try:
        return max(parse_cpu_list(read("/sys/devices/system/node/possible"))) + 1
    except OSError:
        return 1


def allowed_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    return sorted(os.sched_getaffinity(0))


@_fact
def _arch():
    return arch()


@_fact
def _kernel_release():
    return platform.release()


@_fact
def _kernel_version():
    return platform.version()


@_fact
def _cpu_model():
    for line in cpuinfo().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model"):
            return value.strip()
    ids = re.findall(r"^CPU (implementer|part)\s*:\s*(\S+)", cpuinfo(), re.M)
    if ids:
        return " ".join(f"{name} {value}" for name, value in ids[:2])
    raise Unknown("/proc/cpuinfo names no model")


@_fact
def _cpus_possible():
    return read("/sys/devices/system/cpu/possible")


@_fact
def _cpus_online():
    return read("/sys/devices/system/cpu/online")


@_fact
def _cpus_allowed():
    return re.search(r"^Cpus_allowed_list:\s+(\S+)", read("/proc/self/status"), re.M)[1]


@_fact
def _threads_per_core():
    return len(parse_cpu_list(read("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list")))


@_fact
def _memory_bytes():
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@_fact
def _page_bytes():
    return os.sysconf("SC_PAGE_SIZE")


@_fact
def _libc():
    try:
        return os.confstr("CS_GNU_LIBC_VERSION")
    except ValueError:
        raise Unknown("not glibc: CS_GNU_LIBC_VERSION is unknown to it") from None


@_fact
def _libc_package():
    """The distribution's own revision: Debian's glibc 2.36, for one, carries a change of 2.40."""
    for paragraph in read("/var/lib/dpkg/status").split("\n\n"):
        if paragraph.startswith("Package: libc6\n"):
            return re.search(r"^Version: (.+)$", paragraph, re.M)[1]
    raise Unknown("no Debian package database")


@_fact
def _distribution():
    return platform.freedesktop_os_release()["PRETTY_NAME"]


def _auxv() -> dict[int, int]:
    return dict(struct.iter_unpack("@LL", Path("/proc/self/auxv").read_bytes()))


@_fact
def _at_rseq_feature_size_bytes():
    return _auxv().get(abi.AT_RSEQ_FEATURE_SIZE) or _raise_no_entry()


@_fact
def _at_rseq_align_bytes():
    return _auxv().get(abi.AT_RSEQ_ALIGN) or _raise_no_entry()


def _raise_no_entry():
    raise Unknown("the aux vector has no such entry: a kernel before 6.3")


@_fact
def _clock_source():
    return read("/sys/devices/system/clocksource/clocksource0/current_clocksource")


@_fact
def _clock_resolution_ns():
    return round(time.clock_getres(time.CLOCK_MONOTONIC) * 1e9, 3)


@_fact
def _governor():
    return read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@_fact
def _aslr():
    return int(read("/proc/sys/kernel/randomize_va_space"))


@_fact
def _virtualisation():
    """``none`` or what the machine says it runs on."""
    vendor = ""
    for path in ("/sys/class/dmi/id/sys_vendor", "/sys/hypervisor/type"):
        if os.path.exists(path):
            vendor = read(path)
            break
    if "hypervisor" in cpuinfo():
        return f"hypervisor ({vendor or 'it does not give its name'})"
    if arch() == "x86_64":
        return "none"
    raise Unknown("only x86_64 tells in /proc/cpuinfo")


def steal_ticks() -> tuple[int, int]:
    """(steal, total) ticks of all CPUs since boot, /proc/stat."""
    ticks = [int(word) for word in read("/proc/stat").splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


@_fact
def _steal_percent_since_boot():
    steal, total = steal_ticks()
    return round(100 * steal / total, 3)


@_fact
def _load_average():
    return round(os.getloadavg()[0], 2)


@_fact
def _seccomp_mode():
    """0 none, 1 strict, 2 filter (proc_pid_status(5))."""
    return int(re.search(r"^Seccomp:\s+(\d)", read("/proc/self/status"), re.M)[1])


@_fact
def _python():
    return platform.python_version()


@_fact
def _platform():
    return sys.platform


@_fact
def _native_compiler():
    ffi, lib = native.core()
    return ffi.string(lib.rl_compiler()).decode()
