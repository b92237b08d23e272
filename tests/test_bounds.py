"""How far the operations are from what a CPU can do: the models, the counts that may not grow, and what is said of them."""

import shutil

import pandas as pd
import pytest
from conftest import require_or_skip

from rseqlab.experiments import percpu_bound
from rseqlab.lab import counted, librseq, port_model
from rseqlab.lab.experiment import Task
from rseqlab.study import bounds

MOST = {
    ("x86_64", "gcc"): {"addv": 11, "cmpeqv_storev": 14, "cmpnev_storeoffp_load": 16, "deref_cmpnev_storeoffp_load": 17},
    ("x86_64", "clang"): {"addv": 13, "cmpeqv_storev": 15, "cmpnev_storeoffp_load": 17, "deref_cmpnev_storeoffp_load": 18},
    ("aarch64", "gcc"): {"addv": 14, "cmpeqv_storev": 16, "cmpnev_storeoffp_load": 17, "deref_cmpnev_storeoffp_load": 19},
    ("aarch64", "clang"): {"addv": 17, "cmpeqv_storev": 18, "cmpnev_storeoffp_load": 20, "deref_cmpnev_storeoffp_load": 22},
}  # fmt: skip
"""Instructions of a turn, the loop included, with the offset in a register: the same from gcc 12 to 16 and clang 14 to 21."""

EVERY = [(arch, compiler) for arch in counted.ARCHITECTURES for compiler in percpu_bound.compilers(arch)]
"""A compiler of another architecture can lack its C library: those are skipped by name."""


def turns(arch, compiler, peers=False) -> dict[tuple[str, str], list[str]]:
    """The instructions of a turn by (who, operation), on one index and without copies."""
    reason = percpu_bound.refusal(arch, compiler, peers)
    require_or_skip(reason is None, f"{compiler.name} for {arch}", str(reason))
    found = counted.turns(arch, percpu_bound.program(arch, compiler, peers))
    return {
        (loop.who, loop.operation): code
        for loop, code in found.items()
        if loop.by == "cpu_id" and loop.bytes_copied is None
    }


@pytest.mark.parametrize(("arch", "compiler"), EVERY, ids=lambda one: getattr(one, "name", one))
def test_no_compiler_makes_a_section_longer_than_it_was(arch, compiler):
    found = turns(arch, compiler)
    most = MOST[arch, compiler.name.split()[0]]
    longer = {
        name: (len(found["ours", name]), limit)
        for name, limit in most.items()
        if len(found["ours", name]) > limit
    }
    assert not longer, "instructions, and the most that there may be"


@pytest.mark.parametrize(("arch", "compiler"), EVERY, ids=lambda one: getattr(one, "name", one))
def test_no_operation_executes_more_than_librseqs(arch, compiler):
    if reason := librseq.missing():
        pytest.skip(reason)
    found = turns(arch, compiler, peers=True)
    theirs = {operation: len(code) for (who, operation), code in found.items() if who == "theirs"}
    assert len(theirs) >= 6
    longer = {
        operation: (len(found["ours_offset_loaded", operation]), count)
        for operation, count in theirs.items()
        if len(found["ours_offset_loaded", operation]) > count
    }
    assert not longer, "ours, and librseq's instructions"


@pytest.fixture
def model():
    require_or_skip(port_model.missing() is None, "llvm-mca", str(port_model.missing()))


TWO_STORES = ["movq %rax, (%rdi)", "movq %rax, 64(%rsi)", "decq %rcx", "jne 401000"]


def test_a_turn_of_two_stores_takes_what_its_stores_take(model):
    (one,) = port_model.modelled("x86_64", "znver3", [TWO_STORES])
    assert (one.instructions, one.loads, one.stores) == (4, 0, 2)
    assert one.stores_cycles == one.memory_cycles > one.issue_cycles
    assert one.cycles == pytest.approx(one.stores_cycles, rel=0.05)


def test_a_load_that_waits_for_the_store_takes_longer_and_is_said_apart(model):
    (one,) = port_model.modelled("x86_64", "znver3", [["addq $1, (%rdi)", "decq %rcx", "jne 401000"]])
    assert (one.loads, one.stores) == (1, 1)
    assert one.waiting_cycles > 3 * one.cycles


def test_what_is_no_instruction_is_refused_in_words(model):
    with pytest.raises(port_model.ModelError, match=r"llvm-mca.*ended with"):
        port_model.modelled("x86_64", "znver3", [["frobnicate %rax"]])


def test_without_the_tool_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    port_model.tool.cache_clear()
    assert "llvm-mca" in port_model.missing() and "make deps" in port_model.missing()
    assert percpu_bound.EXPERIMENT.unmet()
    port_model.tool.cache_clear()


class Rows:
    """What a table of a run gives, out of one part."""

    def __init__(self, rows):
        self.rows = pd.DataFrame(rows)

    def table(self, name):
        assert name == "percpu-bound"
        return self.rows


def test_nothing_is_faster_than_its_bound_and_the_sentence_counts_the_rows(model):
    arch = counted.host.arch()
    compiler = percpu_bound.compilers(arch)[0]
    reason = percpu_bound.refusal(arch, compiler, False)
    require_or_skip(reason is None, "counting", str(reason))
    arguments = {"arch": arch, "compiler": compiler.name, "peers": False}
    rows = list(percpu_bound.measure(Task(arguments, frozenset())))
    assert all(row["cycles"] >= 0.95 * row["bound_cycles"] for row in rows)
    assert all(row["cycles"] <= row["waiting_cycles"] for row in rows)
    assert {row["cpu_model"] for row in rows} == set(port_model.models(arch))
    said = bounds.bounds_in_a_sentence(Rows(rows))
    assert said.startswith(f"By 1 compiler and on {len(port_model.models(arch))} CPUs")
    assert said.endswith("Not compared with librseq: its headers were not there.")
    shown = bounds.bounds(Rows(rows))
    assert len(shown.frame) == len({row["operation"] for row in rows})

    theirs = [row | {"who": "theirs"} for row in rows if row["who"] == "ours-offset-loaded"]
    cheaper = [row | {"instructions": 1, "cycles": row["cycles"] / 2} for row in theirs[:1]] + theirs[1:]
    assert "0 execute more instructions" in bounds.bounds_in_a_sentence(Rows(rows + theirs))
    assert "1 execute more instructions" in bounds.bounds_in_a_sentence(Rows(rows + cheaper))
