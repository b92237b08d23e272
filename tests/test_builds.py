"""Code layouts: what differs between two builds of one source, what does not, and what a failing build costs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab.experiments import abort_cost, catalogue, null_repeats
from rseqlab.lab import builds, compile, probe, runner
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.experiment import Column, Experiment, Part

FUNCTIONS = (
    *("nothing_throughput", "field_throughput", "field_again_throughput", "hoisted_throughput"),
    *("count_rseq", "count_rseq_again", "count_in_thread", "trap", "trap_again", "rl_takeover_run"),
)
LINE = re.compile(r"\s+([0-9a-f]+):\t(.+)")
ADDRESS = re.compile(r"\b[0-9a-f]+ <[^>]*>|\(%rip\)|0x[0-9a-f]+|-?\d+\(%r?ip\)|#.*$")


@pytest.fixture(autouse=True)
def compiler():
    require_or_skip(compile.missing() is None, "a C compiler", str(compile.missing()))
    require_or_skip(shutil.which("objdump") is not None, "objdump", "install binutils")


def addresses(path: Path) -> dict[str, int]:
    said = subprocess.run(["nm", path], capture_output=True, text=True, check=True).stdout
    return {name: int(address, 16) for address, _, name in re.findall(r"^(\S+) ([tT]) (\S+)$", said, re.M)}


def code(path: Path, function: str) -> list[tuple[int, str]]:
    """(address, instruction) of a function, without what only fills up."""
    command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = [
        (int(line[1], 16), " ".join(line[2].split())) for line in map(LINE.match, said.splitlines()) if line
    ]
    return [
        (address, text) for address, text in found if not re.match(r"(cs |data16 )*nop|xchg %ax,%ax", text)
    ]


def body(path: Path, function: str) -> list[str]:
    """The instructions of a loop: from the target of the last conditional jump back to that jump."""
    every = code(path, function)
    jumps = [
        (int(found[1], 16), address)
        for address, text in every
        if (found := re.match(r"(?:j(?!mp)\w+|b\.\w+|cbn?z \w+,) *([0-9a-f]+) <", text))
        and int(found[1], 16) < address
    ]
    first, last = max(jumps, key=lambda jump: jump[1])
    return [text for address, text in every if first <= address <= last]


def words(instructions: list[str]) -> list[str]:
    return [text.split()[0] for text in instructions]


def test_a_number_is_always_the_same_layout_and_another_number_another():
    layouts = [builds.layout(number) for number in range(40)]
    assert layouts == [builds.layout.__wrapped__(number) for number in range(40)]
    assert len({one.stack_offset_bytes for one in layouts}) > 30
    assert {one.align_loops for one in layouts[:8]} == set(builds.ALIGNMENTS)
    assert not layouts[0].shuffled and layouts[0].environment_bytes == 0


def test_builds_differ_in_where_code_lies_and_in_nothing_that_it_does():
    numbers = (0, 1, 5, 10)
    paths = [builds.make(builds.LOOPS, number) for number in numbers]
    assert paths == [builds.make(builds.LOOPS, number) for number in numbers] and len(set(paths)) == len(
        paths
    )
    found = [addresses(path) for path in paths]
    assert all(one.keys() == found[0].keys() for one in found)
    orders = {tuple(sorted(FUNCTIONS, key=one.__getitem__)) for one in found}
    assert len(orders) == len(numbers)
    for name in FUNCTIONS:
        assert len({one[name] % 64 for one in found} | {one[name] for one in found}) > 2, name
    # Builds 0, 5 and 10 have one alignment of loops: the same instructions at other places.
    for name in ("field_throughput", "count_rseq", "trap"):
        bodies = [[ADDRESS.sub("", text) for text in body(paths[place], name)] for place in (0, 2, 3)]
        assert bodies[0] == bodies[1] == bodies[2], name
    starts = [code(path, "field_throughput")[0][0] for path in paths]
    loops = [
        min(a for a, text in code(path, "field_throughput") if text == body(path, "field_throughput")[0])
        for path in paths
    ]
    assert len({loop - start for loop, start in zip(loops, starts, strict=True)}) > 1, "no loop was padded"


@pytest.mark.parametrize("number", [0, 1, 3])
def test_every_build_does_its_work(number):
    ffi, lib = builds.loops({"build": number})
    total = ffi.new("uint64_t *")
    assert lib.rl_read_loop(lib.RL_READ_NOTHING, lib.RL_DEPENDENT, 3, 400, total) > 0 and total[0] == 1200
    from rseqlab.lab import ops

    for technique in ("counter/nothing", "counter/rseq", "counter/rseq-again", "list/rseq", "pool/malloc"):
        row = ops.run_job(technique, 2, 8000, loops=(ffi, lib))
        assert row["done"] == row["operations"] == 16000


def test_what_python_declares_of_a_build_is_what_the_extension_has():
    """The library is opened without a compiler, by a declaration of its own: both must be of one layout."""
    from rseqlab import native

    ffi, lib = builds.loops({"build": 0})
    core_ffi, core = native.core()
    for struct in (
        "struct rl_ops_job",
        "struct rl_ops_outcome",
        "struct rl_takeover_job",
        "struct rl_takeover_outcome",
    ):
        assert ffi.sizeof(struct) == core_ffi.sizeof(struct)
        fields = [dict(one.typeof(struct).fields) for one in (ffi, core_ffi)]
        assert {name: field.offset for name, field in fields[0].items()} == {
            name: field.offset for name, field in fields[1].items()
        }
    for enum in ("rl_reader", "rl_order", "rl_event", "rl_taker"):
        for name in ffi.typeof(f"enum {enum}").relements:
            assert getattr(lib, name) == getattr(core, name, getattr(lib, name))


COMPILERS = ["cc", "clang"]


@pytest.fixture(params=COMPILERS)
def loops(request, monkeypatch):
    """Path of build 0 by each compiler."""
    require_or_skip(shutil.which(request.param) is not None, request.param, "install it with `make deps`")
    monkeypatch.setenv(builds.COMPILER, request.param)
    builds._takes_alignment.cache_clear()
    yield builds.make(builds.LOOPS, 0)
    builds._takes_alignment.cache_clear()


@pytest.mark.parametrize("order", ["throughput", "dependent", "fenced"])
def test_the_loop_of_nothing_has_the_shape_of_the_loop_of_a_read(order, loops):
    """But for the one instruction that is measured: a move between registers stands for the load."""
    nothing, hoisted = (body(loops, f"{name}_{order}") for name in ("nothing", "hoisted"))
    assert len(nothing) == len(hoisted), (nothing, hoisted)
    reads = 4 if order == "throughput" else 1
    assert sum("%fs" in one for one in hoisted) in (reads, 0)  # 0: aarch64 has another thread pointer
    assert sum("%fs" in one for one in nothing) == 0
    different = sum(one.split()[0] != other.split()[0] for one, other in zip(nothing, hoisted, strict=True))
    assert different <= reads


@pytest.mark.parametrize("order", ["throughput", "dependent", "fenced"])
def test_a_reader_differs_by_the_loads_that_it_needs_alone(order, loops):
    hoisted, kept, exported = (
        len(body(loops, f"{name}_{order}")) for name in ("hoisted", "field", "exported")
    )
    reads = 4 if order == "throughput" else 1
    assert 0 <= kept - hoisted <= 2 * reads and 0 <= exported - kept <= 2 * reads
    assert words(body(loops, f"field_{order}")) == words(body(loops, f"field_again_{order}"))


def test_counting_nothing_has_one_instruction_in_the_place_of_an_operation(loops):
    nothing, thread_local = body(loops, "count_nothing"), body(loops, "count_in_thread")
    assert len(thread_local) - len(nothing) in (
        0,
        16,
    )  # three instructions an increment without one on memory
    assert words(body(loops, "count_rseq")) == words(body(loops, "count_rseq_again"))


def test_the_chain_with_one_more_has_one_more():
    path = builds.make(builds.COPIES, 0)
    chain, longer = body(path, "chain_0"), body(path, "chain_plus_one_0")
    assert len(longer) - len(chain) == 4  # four chains a turn
    assert (
        len({addresses(path)[f"chain_{copy}"] for copy in range(null_repeats.COPIES)}) == null_repeats.COPIES
    )


def test_a_compiler_that_refuses_the_alignment_is_recorded(monkeypatch, tmp_path):
    old = tmp_path / "old-cc"
    old.write_text(
        '#!/bin/sh\ncase "$*" in *-falign-loops*) echo "no such flag" >&2; exit 1;; esac\nexec cc "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv(builds.COMPILER, str(old))
    monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path / "cache"))
    builds._takes_alignment.cache_clear()
    record = builds.describe(1)
    assert record["refused_flags"] == ["-falign-loops=1"] and "-falign-loops=1" not in record["flags"]
    assert builds.make(builds.OWN_TLS, 1).exists()
    builds._takes_alignment.cache_clear()


def test_two_processes_that_build_the_same_both_succeed(monkeypatch, tmp_path):
    import os
    import sys

    environment = os.environ | {"RSEQLAB_CACHE": str(tmp_path)}
    program = "from rseqlab.lab import builds; print(builds.make(builds.OWN_TLS, 4))"
    command = [sys.executable, "-c", program]
    started = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = [one.communicate(timeout=120)[0] for one in started]
    assert [one.returncode for one in started] == [0, 0] and said[0] == said[1]
    assert {path.suffix for path in tmp_path.iterdir()} == {".s", ".so"}, "something half built was left"


def hang_in_build_2(task):
    """An experiment's loop that runs away in one layout."""
    while task.arguments["build"] == 2:
        pass
    yield {"round": 0, "value": 1}


HANGS = Experiment(
    name="hangs-in-one-build",
    question="?",
    serves="this test",
    columns=(*builds.COLUMNS, Column("round", "int", "one"), Column("value", "int", "one")),
    key=("round",),
    needs=(),
    seconds={"quick": 1, "full": 1},
    plan=lambda profile: [
        Part(f"none-{number}-0", 1, 2, arguments={"build": number, "process": 0}) for number in range(4)
    ],
    measure=hang_in_build_2,
)


EXPERIMENT = HANGS
"""What the child imports of this module."""


def test_a_runaway_loop_in_one_build_costs_that_build_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    folder = tmp_path / "run"
    record = runner.run([HANGS], "quick", folder, False, lambda *_: None)["experiments"][HANGS.name]
    assert record["status"] == "pass" and record["rows"] == 3
    assert re.fullmatch(r"build 2: timeout: still running after 2 s; it was killed", record["reason"])
    found = Bundle(folder, {HANGS.name: HANGS})
    assert sorted(row["build"] for row in found.tables[HANGS.name]) == [0, 1, 3]
    assert sorted(found.run["builds"]) == ["0", "1", "2", "3"]


def test_a_build_that_does_not_compile_costs_its_own_parts(tmp_path, monkeypatch):
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", str(probe.kernel_refusal()))
    monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "cc"
    broken.write_text(
        '#!/bin/sh\ncase "$*" in *-falign-loops=32*) echo "internal compiler error" >&2; exit 4;; esac\n'
        'exec cc "$@"\n'
    )
    broken.chmod(0o755)
    monkeypatch.setenv(builds.COMPILER, str(broken))
    builds._takes_alignment.cache_clear()
    experiment = abort_cost.EXPERIMENT
    parts = [part for part in experiment.plan("quick") if part.id.endswith("-0")][:5]
    small = Experiment(**{**vars(experiment), "plan": lambda _: parts})
    folder = tmp_path / "run"
    record = runner.run([small], "quick", folder, False, lambda *_: None)["experiments"][experiment.name]
    builds._takes_alignment.cache_clear()
    assert record["status"] == "pass", record
    assert record["reason"].startswith("build 3: skip: ") and "internal compiler error" in record["reason"]
    assert [part["status"] for part in record["parts"].values()] == ["pass", "pass", "pass", "skip", "pass"]
    assert {row["build"] for row in Bundle(folder, catalogue()).tables[experiment.name]} == {0, 1, 2, 4}


@pytest.mark.parametrize(
    ("statuses", "status", "reason"),
    [
        (["pass"] * 8, "pass", None),
        (["pass"] * 7 + ["crash"], "pass", "build 7: crash: why"),
        (["pass"] * 6 + ["timeout", "timeout"], "pass", "builds 6, 7: timeout: why"),
        (["pass"] * 4 + ["crash"] * 4, "crash", "0-4-0, 0-5-0, 0-6-0, 0-7-0: why"),
        (["pass"] * 7 + ["fail"], "fail", "0-7-0: why"),
        (["skip"] * 8, "skip", "why"),
    ],
)
def test_how_an_experiment_ends_whose_builds_failed(statuses, status, reason):
    parts = {
        f"0-{number}-0": {"status": one, "reason": None if one == "pass" else "why", "build": number}
        for number, one in enumerate(statuses)
    }
    assert runner.judge_parts(parts) == (status, reason)


def test_without_a_compiler_the_installed_extension_is_the_one_build(monkeypatch):
    monkeypatch.setenv(builds.COMPILER, "no-such-compiler")
    parts = abort_cost.plan("quick")
    assert {part.arguments["build"] for part in parts} == {None} and len(parts) == 16
    status, reason = runner.judge_parts(
        {part.id: {"status": "pass", "reason": None, "build": None} for part in parts}
    )
    assert status == "pass" and "measured in one build" in reason and "no-such-compiler" in reason


def test_each_timed_experiment_plans_enough_builds_for_a_verdict():
    timed = [one for one in catalogue().values() if {"build", "process"} <= {c.name for c in one.columns}]
    assert len(timed) >= 13
    for experiment in timed:
        if experiment.unmet():
            continue
        for profile, least in (("quick", 8), ("full", 24)):
            parts = experiment.plan(profile)
            starts = {part.arguments["start"] for part in parts}
            for start in starts:
                some = [part.arguments for part in parts if part.arguments["start"] == start]
                assert len({one["build"] for one in some}) >= least, (experiment.name, profile)
                assert {one["process"] for one in some} == {0, 1}
            assert len({part.id for part in parts}) == len(parts)
            assert experiment.prepare is not None


def test_a_library_with_sections_stays_mapped_after_it_is_closed():
    """The kernel follows rseq_cs at the next preemption: where the descriptor is gone, the thread gets SIGSEGV."""
    ffi, lib = builds.load(builds.COPIES, 1, (builds.NATIVE / "copies.cdef.h").read_text())
    ffi.dlclose(lib)
    builds._opened.cache_clear()  # nobody may be given the closed one
    path = str(builds.make(builds.COPIES, 1))
    assert path in Path("/proc/self/maps").read_text()
