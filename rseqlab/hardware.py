"""What the processor under this kernel is, and how it is set: numbers, caches, clocks, hypervisor, mitigations.

Nothing here tells one host from another of the same kind: no name, serial number or address.
"""

import re
from functools import cache
from pathlib import Path

from rseqlab import microarchitecture, native
from rseqlab.facts import Facts, Unknown, read

HARDWARE = Facts()
fact = HARDWARE.fact

CPU = Path("/sys/devices/system/cpu")
TSC_FLAGS = ("tsc", "constant_tsc", "nonstop_tsc", "tsc_known_freq", "tsc_reliable", "tsc_adjust", "rdtscp")
HYPERVISOR_BIT = 1 << 31
"""Of ECX of CPUID leaf 1."""
HYPERVISOR_LEAVES = range(0x40000000, 0x40010000, 0x100)
"""Where hypervisors say who they are; one that answers as another does so at the first and as itself behind it."""


@cache
def cpuinfo() -> str:
    """The beginning of /proc/cpuinfo: what the first CPUs say. Of hundreds of CPUs it takes long to read."""
    with open("/proc/cpuinfo", errors="replace") as file:
        return file.read(1 << 16)


def _said(name: str) -> str:
    if found := re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", cpuinfo(), re.M):
        return found[1].strip()
    raise Unknown(f"/proc/cpuinfo has no {name}")


def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, int, int, int]:
    """(EAX, EBX, ECX, EDX) of a CPUID leaf. Raises Unknown where the processor has no such instruction or leaf."""
    ffi, lib = native.core()
    answer = ffi.new("uint32_t[4]")
    if not lib.rl_cpuid(leaf, subleaf, answer):
        raise Unknown("this processor has no CPUID leaf of that number")
    return tuple(answer)


@fact
def _cpu_vendor():
    return _said("vendor_id")


@fact
def _cpu_family():
    return int(_said("cpu family"))


@fact
def _cpu_model_number():
    return int(_said("model"))


@fact
def _cpu_stepping():
    return int(_said("stepping"))


@fact
def _cpu_implementer():
    """arm64: who made the core, a code of Arm's."""
    return _said("CPU implementer")


@fact
def _cpu_part():
    """arm64: which core of its maker's."""
    return int(_said("CPU part"), 0)


@fact
def _cpu_revision():
    return f"r{int(_said('CPU variant'), 0)}p{int(_said('CPU revision'), 0)}"


def _core() -> microarchitecture.Core:
    numbers: dict[str, object] = {}
    for name in (
        "cpu_vendor",
        "cpu_family",
        "cpu_model_number",
        "cpu_stepping",
        "cpu_implementer",
        "cpu_part",
    ):
        try:
            numbers[name] = HARDWARE[name]()
        except Unknown:
            numbers[name] = None
    if found := microarchitecture.core_of(numbers):
        return found
    known = ", ".join(f"{name} {value}" for name, value in numbers.items() if value is not None)
    raise Unknown(f"data/{microarchitecture.TABLE} has no row for {known or 'a CPU that gives no numbers'}")


@fact
def _microarchitecture():
    return _core().microarchitecture


@fact
def _chip():
    if chip := _core().chip:
        return chip
    raise Unknown("the table names no chip apart from the core")


@fact
def _microarchitecture_source():
    return _core().source


@fact
def _microcode():
    return _said("microcode")


@fact
def _caches():
    """Of CPU 0, by level: type, bytes, and the CPUs that share it."""
    found = []
    for index in sorted((CPU / "cpu0" / "cache").glob("index[0-9]*")):
        size = re.fullmatch(r"(\d+)K", read(str(index / "size")))
        found.append(
            {
                "level": int(read(str(index / "level"))),
                "type": read(str(index / "type")).lower(),
                "bytes": int(size[1]) << 10 if size else None,
                "shared_by_cpus": read(str(index / "shared_cpu_list")),
            }
        )
    if not found:
        raise Unknown("/sys/devices/system/cpu/cpu0/cache has no cache")
    return found


@fact
def _smt():
    """``on``, ``off``, ``forceoff``, ``notsupported`` or ``notimplemented``, the kernel's own words."""
    return read(str(CPU / "smt" / "control"))


def _frequency(name: str) -> str:
    return read(str(CPU / "cpu0" / "cpufreq" / name))


@fact
def _frequency_min_hz():
    return int(_frequency("cpuinfo_min_freq")) * 1000


@fact
def _frequency_max_hz():
    return int(_frequency("cpuinfo_max_freq")) * 1000


@fact
def _frequency_driver():
    return _frequency("scaling_driver")


@fact
def _frequency_boost():
    """``on`` or ``off``."""
    for path, on in ((CPU / "intel_pstate" / "no_turbo", "0"), (CPU / "cpufreq" / "boost", "1")):
        if path.exists():
            return "on" if read(str(path)) == on else "off"
    raise Unknown("neither intel_pstate/no_turbo nor cpufreq/boost is there")


@fact
def _tsc():
    """What the kernel says of the time stamp counter, as flags of /proc/cpuinfo."""
    flags = _said("flags").split()
    return [name for name in TSC_FLAGS if name in flags]


@fact
def _clock_sources():
    return read("/sys/devices/system/clocksource/clocksource0/available_clocksource").split()


@fact
def _hypervisor():
    """The signatures of CPUID leaf 0x40000000 and on, ``none`` where the processor says that there is none."""
    if not cpuid(1)[2] & HYPERVISOR_BIT:
        return "none"
    found = []
    for leaf in HYPERVISOR_LEAVES:
        _, *words = cpuid(leaf)
        text = b"".join(word.to_bytes(4, "little") for word in words).rstrip(b"\0")
        if not (text.isascii() and text.decode("ascii", "replace").isprintable() and len(text) >= 4):
            break
        if text.decode() in found:
            break
        found.append(text.decode())
    if not found:
        raise Unknown("there is a hypervisor, and CPUID leaf 0x40000000 does not name it")
    return " and ".join(found)


@fact
def _mitigations():
    """What the kernel does about each vulnerability of the processor, in its own words."""
    found = {path.name: read(str(path)) for path in sorted((CPU / "vulnerabilities").iterdir())}
    return {name: text for name, text in found.items() if text != "Not affected"}


def _chosen(path: str) -> str:
    """Of a list in /sys such as ``always [madvise] never``: what is in force."""
    text = read(path)
    found = re.search(r"\[(\S+)\]", text)
    return found[1] if found else text


@fact
def _transparent_huge_pages():
    return _chosen("/sys/kernel/mm/transparent_hugepage/enabled")


@fact
def _transparent_huge_pages_defrag():
    return _chosen("/sys/kernel/mm/transparent_hugepage/defrag")
