"""The C layer: what is in the built file, that every compiler takes it silently, and every architecture."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import programs
import pytest
from conftest import require_or_skip
from elftools.elf.elffile import ELFFile

from rseqlab import abi, host, native
from rseqlab.experiments import percpu_bound
from rseqlab.lab.compile import build

NATIVE = Path(native.__file__).parent
CHECK = Path(__file__).parent / "c" / "sections_check.c"
SOURCES = sorted(NATIVE.glob("*.c"))
STRICT = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
AARCH64 = "aarch64-linux-gnu-gcc"
EMULATED = [shutil.which("qemu-aarch64") or "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]

BY = ("cpu_id", "node_id", "mm_cid")
SECTIONS = [
    ("addv", "committed"),
    ("addv elsewhere", "aborted"),
    ("cmpeqv_storev", "committed"),
    ("cmpeqv_storev other", "compare failed"),
    ("cmpeqv_storev elsewhere", "aborted"),
    ("cmpnev_storeoffp_load", "committed"),
    ("head is second 1, loaded first 1", None),
    ("cmpnev_storeoffp_load empty", "compare failed"),
    ("cmpeqv_trystorev_storev", "committed"),
    ("cmpeqv_trystorev_storev_release", "committed"),
    ("cmpeqv_trystorev_storev other", "compare failed"),
    ("cmpeqv_cmpeqv_storev", "committed"),
    ("cmpeqv_cmpeqv_storev other", "compare failed"),
    ("cmpeqv_trymemcpy_storev", "committed"),
    ("cmpeqv_trymemcpy_storev_release", "committed"),
    ("cmpeqv_trymemcpy_storev other", "compare failed"),
    ("offset_deref_addv", "committed"),
    ("deref_cmpeqv_storev", "committed"),
    ("deref_cmpeqv_storev other", "compare failed"),
    ("deref_cmpeqv_storev elsewhere", "aborted"),
    ("deref_cmpnev_storeoffp_load", "committed"),
    ("head is second 1, loaded first 1", None),
    ("deref_cmpnev_storeoffp_load empty", "compare failed"),
    ("51 lengths copied, no byte too many", None),
    ("private copy seen", None),
    ("v 90, v2 8, copied payload", None),
]
EXPECTED = [
    *(f"{by} {what}: {result}" if result else what for by in BY for what, result in SECTIONS),
    "rseq_cs set",
    *["read done, sum 24"] * 3,
    "wrong count -22",
]


def tool(*commands: str) -> str:
    found = next(filter(None, map(shutil.which, commands)), None)
    require_or_skip(found is not None, commands[0], "install it with `make deps`")
    return found


def built(compiler: str, output: Path, *options: str) -> Path:
    result = subprocess.run(
        [compiler, *STRICT, *options, "-o", str(output), *map(str, [*SOURCES, CHECK]), "-ldl", "-lpthread"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and not result.stderr, result.stderr
    return output


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compiles_silently_and_sections_commit_and_compare(compiler, tmp_path):
    program = built(tool(compiler), tmp_path / "check")
    arch, *said = output_of(str(program)).splitlines()
    assert arch == f"arch {native.core()[0].string(native.core()[1].rl_arch()).decode()}"
    assert said == EXPECTED


def test_sections_commit_and_compare_on_the_running_kernel():
    """Also where there is no compiler, but what one built elsewhere: a guest."""
    arch, *said = output_of(str(build(programs.sections()))).splitlines()
    assert (arch, said) == (f"arch {host.arch()}", EXPECTED)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_package_builds_without_a_warning(compiler, tmp_path):
    """The extensions as set-up builds them, cffi's generated code included."""
    found = tool(compiler)
    root = NATIVE.parents[1]
    copy = shutil.copytree(
        root / "rseqlab", tmp_path / "rseqlab", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy.parent)
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", "out", "--build-temp", "temp"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"CC": found, "PYTHONPATH": ""},
    )
    assert result.returncode == 0, result.stderr
    assert not re.search(r"\.[ch]:\d+:\d+: warning", result.stdout + result.stderr), result.stderr
    assert len(list((tmp_path / "out").rglob("*.so"))) == 2


def test_aarch64_cross_build_runs_its_sections(tmp_path):
    """Real aarch64 instructions under a user-mode emulator; the system call itself is not there."""
    tool(EMULATED[0])
    program = built(tool(AARCH64), tmp_path / "check")
    assert output_of(*EMULATED, str(program)).splitlines() == ["arch aarch64", *EXPECTED]


@pytest.mark.parametrize("compiler", ["gcc", AARCH64])
def test_the_unsupported_path_is_built_and_says_so(compiler, tmp_path):
    program = built(tool(compiler), tmp_path / "check", "-DRSEQLAB_UNSUPPORTED")
    emulated = EMULATED if compiler == AARCH64 else []
    if emulated:
        tool(emulated[0])
    arch, *said = output_of(*emulated, str(program)).splitlines()
    results = [line.rpartition(": ")[2] for line in said if ": " in line]
    assert arch == "arch unsupported" and set(results) == {"unsupported"} and len(results) > 40
    assert "rseq_cs not set" in said and "wrong count -38" in said
    assert said.count("v 40, v2 0, copied ") == 3, "an unsupported section must change nothing"


def test_architectures_define_the_same_names():
    names = {}
    for path in sorted((NATIVE / "arch").glob("*.h")):
        text = path.read_text()
        macros = re.findall(r"^#define (RL_\w+)", text, re.M)
        functions = re.findall(r"^static inline \S+ \*?(rl_\w+)\(", text, re.M)
        names[path.name] = sorted([*macros, *functions])
    assert names["x86_64.h"] == names["aarch64.h"] == names["unsupported.h"]
    assert len(names["x86_64.h"]) > 8


def extension(name: str) -> Path:
    native.core(), native.own_tls()
    return next(NATIVE.glob(f"_{name}.*.so"), None) or next(NATIVE.glob(f"_{name}*.so"))


def descriptors(elf: ELFFile) -> list[tuple[int, int, int]]:
    """(start, length, abort) of every critical section, its addresses taken from the relocations."""
    section = elf.get_section_by_name("__rseq_cs")
    place, data = section["sh_addr"], section.data()
    addends = {
        relocation["r_offset"]: relocation["r_addend"]
        for relocation in elf.get_section_by_name(".rela.dyn").iter_relocations()
    }
    found = []
    for offset in range(0, len(data), 32):
        length = int.from_bytes(data[offset + 16 : offset + 24], "little")
        found.append((addends[place + offset + 8], length, addends[place + offset + 24]))
    return found


def bytes_at(elf: ELFFile, address: int, size: int) -> bytes:
    for section in elf.iter_sections():
        start = section["sh_addr"]
        if (
            section["sh_type"] == "SHT_PROGBITS"
            and start <= address
            and address + size <= start + section["sh_size"]
        ):
            return section.data()[address - start : address - start + size]
    raise AssertionError(f"nothing at {address:#x}")


def check_sections(path: Path, signature: int, at_least: int) -> None:
    with open(path, "rb") as file:
        elf = ELFFile(file)
        found = descriptors(elf)
        assert len(found) >= at_least
        assert len(elf.get_section_by_name("__rseq_cs_ptr_array").data()) == 8 * len(found)
        for start, length, abort in found:
            assert 0 < length < 256
            assert not start <= abort < start + length, (
                "an abort handler inside its own section loops for ever"
            )
            assert int.from_bytes(bytes_at(elf, abort - 4, 4), "little") == signature


def test_the_built_extension_has_descriptors_pointers_and_signatures():
    check_sections(extension("core"), native.core()[1].rl_signature(), 1)


@pytest.mark.parametrize(
    ("compiler", "arch"), [("gcc", host.arch()), ("clang", host.arch()), (AARCH64, "aarch64")]
)
def test_every_section_of_every_compiler_has_them(compiler, arch, tmp_path):
    program = built(tool(compiler), tmp_path / "check.so", "-shared", "-fPIC")
    check_sections(program, abi.SIGNATURES[arch], sum(result is not None for _, result in SECTIONS))


def test_signature_is_the_documented_one():
    ffi, lib = native.core()
    assert lib.rl_signature() == abi.SIGNATURES[ffi.string(lib.rl_arch()).decode()]


LOCKED = re.compile(r"lock|xchg .*\(|cmpxchg|ld(a|)xr|st(l|)xr|cas|ldadd|swp")
CALLS = re.compile(r"call|blr?$|blr? ")
OUTLINED = re.compile(r"bl .*<__aarch64_\w+>")
"""How gcc does an atomic instruction for any aarch64: it calls its own helper, which looks for LSE."""
LINE = re.compile(r"\s+([0-9a-f]+):\t(.+)")
FAST = sorted(re.findall(r"\b(rl_call_\w+)\(", (NATIVE / "rseqlab.h").read_text()))


def instructions(path: Path, *which: str) -> dict[int, str]:
    """Address to "mnemonic operands"; between the two is a tab on aarch64, spaces on x86_64."""
    said = output_of(tool("objdump"), "-d", "--no-show-raw-insn", *which, str(path))
    found = filter(None, map(LINE.match, said.splitlines()))
    return {int(line[1], 16): " ".join(line[2].split()) for line in found}


def check_fast_path(path: Path, name: str) -> None:
    """No call anywhere in it: what follows an abort is reached by a jump, so that nothing needs a stack frame."""
    code = list(instructions(path, f"--disassemble={name}").values())
    assert len(code) > 3, f"{name} is not in {path.name}"
    assert not [one for one in code if CALLS.match(one) and not OUTLINED.match(one)], code
    locked = [one for one in code if LOCKED.match(one) or OUTLINED.match(one)]
    assert bool(locked) == (name == "rl_call_node_counter_add"), code  # the one that says it is atomic


def test_no_locked_instruction_and_no_call_between_start_and_commit():
    path = extension("core")
    with open(path, "rb") as file:
        found = descriptors(ELFFile(file))
    every = instructions(path)
    for start, length, _ in found:
        code = [one for address, one in every.items() if start <= address < start + length]
        assert len(code) >= 2
        assert not [one for one in code if LOCKED.match(one) or CALLS.match(one)], code


@pytest.mark.parametrize("name", FAST)
def test_no_locked_instruction_and_no_call_on_a_fast_path(name):
    check_fast_path(extension("core"), name)


OF_HOST = percpu_bound.compilers(host.arch())
"""Every compiler here that builds for this machine; what a distribution ships as gcc is one of them."""


@pytest.mark.parametrize(
    "compiler",
    OF_HOST or [pytest.param(None, marks=pytest.mark.skip(reason="cc is missing"))],
    ids=lambda compiler: compiler.name if compiler else "none",
)
def test_no_compiler_puts_a_call_on_a_fast_path(compiler, tmp_path):
    library = tmp_path / "percpu.so"
    command = [compiler.command, *STRICT, "-fno-strict-aliasing", "-shared", "-fPIC", "-o", str(library)]
    sources = [str(NATIVE / name) for name in ("percpu.c", "percpu_calls.c", "rseq.c")]
    subprocess.run([*command, *sources, "-ldl"], check=True, timeout=60)
    for name in FAST:
        check_fast_path(library, name)


def test_every_technique_is_found_by_its_name_and_does_its_work():
    from rseqlab.experiments import percpu_counter

    ffi, lib = native.core()
    names = []
    while (name := lib.rl_ops_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    assert [lib.rl_ops_find(name.encode()) for name in names] == list(range(len(names)))
    assert lib.rl_ops_find(b"counter/abacus") == -2
    assert {f"counter/{name}" for name in percpu_counter.TECHNIQUES} <= set(names)
    threads = 4
    cpus = ffi.new("int32_t[]", [-1] * threads)
    for number, name in enumerate(names):
        job = {"technique": number, "threads": threads, "iterations": 8000, "cpus": cpus}
        outcome = ffi.new("struct rl_ops_outcome *")
        answer = lib.rl_ops_run(
            ffi.new("struct rl_ops_job *", job | {"indices": host.possible_cpus()}), outcome
        )
        assert (answer, outcome.done) == (0, 8000 * threads), name


def test_a_job_that_cannot_be_done_is_refused_not_hung():
    ffi, lib = native.core()
    cpus = ffi.new("int32_t[]", [4095] * 2)  # a CPU that is not there
    job = ffi.new(
        "struct rl_ops_job *", {"technique": 0, "threads": 2, "iterations": 8, "cpus": cpus, "indices": 2}
    )
    outcome = ffi.new("struct rl_ops_outcome *")
    assert lib.rl_ops_run(job, outcome) == -22
    for wrong in (
        {"threads": 0},
        {"iterations": 7},
        {"technique": 1000},
        {"technique": -1},
        {"storm_hz": 10},
    ):
        cpus[0] = cpus[1] = -1
        right = {"technique": 0, "threads": 2, "iterations": 8, "cpus": cpus, "indices": 2}
        assert lib.rl_ops_run(ffi.new("struct rl_ops_job *", right | wrong), outcome) == -22, wrong


def test_the_gil_is_released_while_counting():
    import threading
    import time

    ffi, lib = native.core()
    cpus = ffi.new("int32_t[]", [-1])
    job = ffi.new(
        "struct rl_ops_job *",
        {
            "technique": lib.rl_ops_find(b"counter/thread-local"),
            "threads": 1,
            "iterations": 800_000_000,
            "cpus": cpus,
            "indices": 8,
        },
    )
    outcome = ffi.new("struct rl_ops_outcome *")
    worker = threading.Thread(target=lib.rl_ops_run, args=(job, outcome))
    worker.start()
    ticks = 0
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert outcome.done == 800_000_000
    assert ticks > 1, "this thread could not run while C counted"
