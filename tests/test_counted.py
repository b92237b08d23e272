"""Counting instructions under the emulator: exact, the same twice, and what the source says."""

import re
from collections import Counter

import pytest
from conftest import require_or_skip

from rseqlab.experiments import percpu_instructions
from rseqlab.lab import counted
from rseqlab.lab.experiment import Task


@pytest.fixture(scope="module", params=counted.ARCHITECTURES)
def rows(request):
    """All rows of one architecture that hold the offset in a register, by (operation, by, bytes)."""
    refusal = percpu_instructions.refusal(request.param)
    require_or_skip(refusal is None, f"counting for {request.param}", str(refusal))
    found = percpu_instructions.EXPERIMENT.measure(Task({"arch": request.param, "peers": False}, frozenset()))
    return {(row["operation"], row["by"], row["bytes_copied"]): row for row in found if row["who"] == "ours"}


def own(row) -> float:
    """Instructions of the operation itself."""
    return row["instructions_per_operation"] - row["loop_instructions"]


def test_counting_the_same_program_twice_gives_the_same_rows(rows):
    arch = next(iter(rows.values()))["arch"]
    again = percpu_instructions.EXPERIMENT.measure(Task({"arch": arch, "peers": False}, frozenset()))
    assert [row for row in again if row["who"] == "ours"] == list(rows.values())
    assert all(row["repeats"] == 2 and row["reason"] is None for row in rows.values())


def test_every_section_of_the_header_is_counted_by_both_indexes(rows):
    text = (counted.NATIVE / "sections.h").read_text()
    plain = set(re.findall(r"^RL_SECTION rl_(\w+)\(", text, re.M))
    ordered = set(re.findall(r"^RL_SECTION rl_(\w+)##suffix\(", text, re.M))
    sections = plain | ordered | {f"{name}_release" for name in ordered}
    assert len(sections) > 8
    for by in ("cpu_id", "mm_cid"):
        assert {operation for operation, which, _ in rows if which == by} == sections
    copied = {bytes_copied for operation, _, bytes_copied in rows if "memcpy" in operation}
    assert copied == {8, 16, 64, 256}


def test_every_structure_is_counted(rows):
    text = (counted.NATIVE / "percpu.h").read_text()
    families = {name.split("_")[0] for name in re.findall(r"^RL_FAST \S.*? \*?rl_(\w+)\(", text, re.M)}
    arch = next(iter(rows.values()))["arch"]
    found, _ = counted.loops(arch, percpu_instructions.program(arch, peers=False))
    counted_families = {loop.operation.split("_")[0] for loop in found if loop.who == "ours_offset_loaded"}
    assert families - {"at", "slot", "record"} <= counted_families


def test_counts_are_whole_and_more_than_the_loop(rows):
    for row in rows.values():
        assert row["instructions_per_operation"] == int(row["instructions_per_operation"])
        assert row["operation"] == "nothing" or own(row) > 0


def test_the_code_of_a_turn_has_as_many_instructions_as_were_counted(rows):
    for row in rows.values():
        instructions = row["code"].split("; ")
        times = [
            float(match[1]) if (match := re.search(r"\(x([\d.]+)\)$", one)) else 1 for one in instructions
        ]
        assert sum(times) == row["instructions_per_operation"], row["code"]


def test_addv_is_the_instructions_of_its_source(rows):
    """Read the index, find its data, announce the section, compare the index, add: nothing else."""
    row = rows["addv", "cpu_id", None]
    mnemonics = Counter(instruction.split()[0] for instruction in row["code"].split("; "))
    loop = rows["nothing", "none", None]
    mnemonics -= Counter(instruction.split()[0] for instruction in loop["code"].split("; "))
    assert sum(mnemonics.values()) == own(row)
    if "clang" in row["compiler"]:
        return  # it reaches the data by other addressing modes
    if row["arch"] == "x86_64":
        assert re.search(r"mov \S+,%fs:0x8\(|mov \S+,%fs:\(", row["code"]) and "%fs:" in row["code"]
        assert mnemonics["lea"] >= 1 and "lock" not in row["code"] and own(row) <= 9
    else:
        assert "lsl #9" in row["code"], "the way to the index's data"
        assert (
            mnemonics["adrp"] == 1 and not re.search(r"\b(ldxr|stxr|ldadd)", row["code"]) and own(row) <= 12
        )


def test_no_operation_has_an_atomic_or_a_call_and_what_it_replaces_has(rows):
    atomic = re.compile(
        r"\b(lock|xchg|ldaxr|ldxr|stxr|stlxr|cas\w*|ldadd\w*|swp\w*|call|bl|blr|svc|syscall)\b"
    )
    for (operation, by, _), row in rows.items():
        assert bool(atomic.search(row["code"])) == (
            by == "none" and operation.startswith(("atomic", "cas"))
        ), row["code"]


def test_a_repeated_string_instruction_is_counted_once(rows):
    for row in rows.values():
        for instruction in row["code"].split("; "):
            assert not (instruction.startswith("rep") and "(x" in instruction), instruction
