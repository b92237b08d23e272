"""The experiments on what the options cost: rows of the right shape, and checks that bite."""

import errno
import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from children import measure_changed
from conftest import require_or_skip
from elftools.elf.elffile import ELFFile

from rseqlab import host
from rseqlab.experiments import (
    catalogue,
    context_switch_cost,
    option_access_code,
    option_access_cost,
    registration_cost,
)
from rseqlab.lab import runner
from rseqlab.lab.child import Child, Outcome
from rseqlab.lab.compile import missing
from rseqlab.lab.experiment import Experiment, Part, measure_part
from rseqlab.study import claims, figures, tables
from rseqlab.study.run import NotMeasured, open_run

AARCH64 = "aarch64-linux-gnu-gcc"
SANDBOX = Path(__file__).with_name("sandbox.py")
EMULATED = [shutil.which("qemu-aarch64") or "qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"]


@pytest.fixture(autouse=True)
def compiler():
    require_or_skip(missing() is None, "cc", "install gcc")


def rows_of(experiment: Experiment, part: Part, **arguments) -> list[dict]:
    """The rows of a part, measured in a child with other arguments; each fits the columns."""
    assert part.skip is None, part.skip
    request = {"module": experiment.module, "arguments": {**part.arguments, **arguments}, "done": []}
    child = Child(measure_part, request, part.environment, 60)
    rows = list(child)
    assert child.outcome.status == "pass", child.outcome
    assert {tuple(row) for row in rows} == {tuple(rows[0])} if rows else True
    for row in rows:
        assert set(row) == {column.name for column in experiment.columns}
        for column in experiment.columns:
            value = row[column.name]
            assert value is not None or column.nullable, (column.name, row)
            assert not column.choices or value in (None, *column.choices), (column.name, row)
    assert len({tuple(row[name] for name in experiment.key) for row in rows}) == len(rows)
    return rows


ACCESS = catalogue()["option-access-cost"]


def test_every_way_of_reading_is_timed_and_its_sum_is_right():
    part = ACCESS.plan("quick")[0]
    small = {"rounds": 1, "batch_ns": 1_000_000, "first_uses": 1, "orders": ["dependent"]}
    rows = rows_of(ACCESS, part, **small)
    assert {row["access"] for row in rows} == {access.label for access in option_access_cost.ACCESSES}
    assert len(rows) == 2 * len(option_access_cost.ACCESSES)


@pytest.mark.parametrize("lie", ["s/ 2624$/ 2625/", "s/^[0-9]* 2624$/-22 2624/"])
def test_a_wrong_sum_or_a_refusal_of_the_loop_fails_the_part(lie, tmp_path):
    part = ACCESS.plan("quick")[0]
    liar = tmp_path / "liar"
    liar.write_text(f"#!/bin/sh\n{' '.join(option_access_cost.build_number(0).command())} | sed -u '{lie}'\n")
    liar.chmod(0o755)
    arguments = {**part.arguments, "command": [str(liar)], "rounds": 1}
    child = Child(
        measure_part, {"module": ACCESS.module, "arguments": arguments, "done": []}, part.environment, 60
    )
    list(child)
    assert child.outcome.status == "fail", child.outcome
    assert "summed up to 2625" in child.outcome.reason or "answered -22" in child.outcome.reason


def relocations(path) -> set[tuple[str, int]]:
    """(symbol, type) of each dynamic relocation of a thread-local symbol."""
    with open(path, "rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym")
        return {
            (symbols.get_symbol(one["r_info_sym"]).name, one["r_info_type"])
            for name in (".rela.dyn", ".rela.plt")
            if (section := elf.get_section_by_name(name))
            for one in section.iter_relocations()
        }


RELOCATIONS = {"x86_64": (18, 16, 36), "aarch64": (1030, 1028, 1031)}
"""TPOFF64, DTPMOD64 and TLSDESC, by their numbers in the processor supplements to the ELF ABI."""


@pytest.mark.parametrize("compiler", ["gcc", "clang", AARCH64])
def test_each_library_reads_by_its_own_tls_model_alone(compiler):
    """A linker turns one model into another where it can; then the row would be mislabelled."""
    require_or_skip(shutil.which(compiler) is not None, compiler, "install it with `make deps`")
    arch = "aarch64" if compiler == AARCH64 else host.arch()
    built = option_access_cost.build_all(compiler)
    said = subprocess.run(["readelf", "-d", built.program], capture_output=True, text=True, check=True).stdout
    linked = dict(re.findall(r"\[(\S*-libaccess_(\S+)\.so)\]", said)[i][::-1] for i in range(4))
    symbols = {f"rl_{name}_abi" for name in ("padding", "grow", "version", "pointer", "handshake")}
    for model, wanted in zip(option_access_cost.MODELS, RELOCATIONS[arch], strict=False):
        found = relocations(linked[model])
        for symbol in symbols | {"rl_consumer_own"}:
            types = {kind for name, kind in found if name == symbol}
            assert wanted in types and not types & (set(RELOCATIONS[arch]) - {wanted}), (model, symbol, types)


def test_the_aarch64_program_reads_the_same_values():
    """Real aarch64 instructions under a user-mode emulator: the values, not the times."""
    require_or_skip(shutil.which(AARCH64) is not None, AARCH64, "install it with `make deps`")
    require_or_skip(shutil.which(EMULATED[0]) is not None, EMULATED[0], "install it with `make deps`")
    built = option_access_cost.build_all(AARCH64)
    count, orders = len(option_access_cost.ACCESSES), range(len(option_access_cost.ORDERS))
    questions = "".join(f"{number} {order} 8\n" for order in orders for number in range(count))
    said = subprocess.run(
        [*EMULATED, *built.command()],
        input=questions,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    labels, _, answers = said.partition("\n\n")
    assert set(labels.splitlines()) == {access.label for access in option_access_cost.ACCESSES}
    reads = [8] * 3 * count + [1] * count
    for label, answer, read in zip(labels.splitlines() * 4, answers.splitlines(), reads, strict=True):
        elapsed_ns, total = map(int, answer.split())
        assert elapsed_ns >= 0 and total == (0 if label == "nothing" else 41 * read), (label, answer)


REGISTRATION = catalogue()["registration-cost"]
SWITCH = catalogue()["context-switch-cost"]
MEMORY = catalogue()["thread-memory"]
CODE = catalogue()["option-access-code"]
COUNT = catalogue()["option-access-count"]
SMALL = {"rounds": 1, "batch_ns": 1_000_000}


@pytest.mark.parametrize("start", ["libc", "none"])
def test_registering_is_timed_beside_its_yardsticks(start):
    part = next(part for part in REGISTRATION.plan("quick") if part.arguments["start"] == start)
    if part.skip:
        pytest.skip(part.skip)
    rows = rows_of(REGISTRATION, part, **SMALL)
    assert {(row["way"], row["turn"]) for row in rows} == set(registration_cost.variants_of(start))
    assert all(row["reason"] or row["elapsed_ns"] > 0 for row in rows)
    accepted = {row["length_bytes"] for row in rows if row["length_bytes"] and not row["reason"]}
    assert (32 in accepted) is (start == "none")


def measured_with(monkeypatch, experiment: Experiment, name: str, value: str) -> tuple[list[dict], Outcome]:
    """The last part, in a child where one name of the experiment's module has another value."""
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))  # where a child finds children.py
    part = experiment.plan("quick")[-1]
    changed = {"module": experiment.module, "name": name, "value": value}
    child = Child(
        measure_changed, {**changed, "arguments": {**part.arguments, **SMALL}}, part.environment, 60
    )
    return list(child), child.outcome


def test_a_registration_whose_sum_is_wrong_fails_the_part(monkeypatch):
    rows, outcome = measured_with(monkeypatch, REGISTRATION, "expected_sum", "lambda *_: -7")
    assert not rows and outcome.status == "fail" and "not -7" in outcome.reason


def test_a_length_that_the_kernel_refuses_is_a_row_with_its_answer(monkeypatch):
    """Refused to the side that answers, to the one that asks, or to both: nobody waits for the other."""
    pairs = "{'none-none': (0, 0), '32-none': (3, 0), '32-32': (0, 3), '64-64': (3, 3)}"
    rows, outcome = measured_with(monkeypatch, SWITCH, "PAIRS", pairs)
    refused = [row for row in rows if row["pair"] != "none-none"]
    assert outcome.status == "pass" and len(refused) == 6 and len(rows) == 8
    assert all("-22" in row["reason"] and row["elapsed_ns"] is None for row in refused)


def test_threads_that_cannot_be_started_are_a_row_with_the_reason(monkeypatch):
    rows, outcome = measured_with(monkeypatch, MEMORY, "MEASURED_THREADS", "0")
    assert outcome.status == "pass" and rows
    assert all(row["bytes_per_thread"] is None and "ended with 1" in row["reason"] for row in rows)


def test_every_round_trip_switches_and_every_area_is_kept():
    rows = rows_of(SWITCH, SWITCH.plan("quick")[0], **SMALL)
    assert {(row["pair"], row["between"]) for row in rows} == set(
        itertools.product(context_switch_cost.PAIRS, context_switch_cost.BETWEEN)
    )
    for row in rows:
        if not row["reason"]:
            switches = row["voluntary_switches"] + row["involuntary_switches"]
            assert switches >= 2 * row["iterations"] - 2, row


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"number": 19}, "the number is 19 after 10 round trips, not 20"),
        ({"voluntary_switches": 5}, "10 round trips made 12 context switches, not 20"),
        ({"cpu_id": [1, 0]}, "the CPU numbers [1, 0], not [1, 1]"),
    ],
)
def test_a_batch_without_its_switches_or_areas_is_refused(change, said):
    outcome = {"number": 20, "voluntary_switches": 13, "involuntary_switches": 7, "cpu_id": [1, 1]} | change
    answer = context_switch_cost.complaint(outcome, (32, 32), 10, 1)
    assert answer is said if said is None else said in answer


def test_bytes_per_thread_are_what_compiler_and_allocator_gave():
    computed, measured = MEMORY.plan("quick")[:2]
    rows = rows_of(MEMORY, computed)
    each = {row["layout"]: row["bytes_per_thread"] for row in rows}
    assert each["none"] == each["none again"] == 0 and each["padding"] == 32 and each["private"] == 64
    assert each["grow-symbol 64"] == each["offset-size 64"] == 64 and each["version-symbol 64"] == 96
    assert each["pointer 64"] > 96, "malloc keeps a header, and aligns"
    assert all(row["total_bytes"] == round(row["bytes_per_thread"] * row["threads"]) for row in rows)
    assert {row["threads"] for row in rows} == {1, 1_000, 100_000}
    held = {row["layout"]: row for row in rows_of(MEMORY, measured)}
    assert set(held) == set(each)
    assert all(row["reason"] or row["bytes_per_thread"] > 4096 for row in held.values()), "a thread has pages"


def test_the_code_of_each_read_is_what_its_model_says():
    found = {}
    for part in CODE.plan("quick"):
        arch = part.arguments["arch"]
        require_or_skip(part.skip is None, f"what compiles for {arch}", f"{part.skip}")
        rows = rows_of(CODE, part)
        assert len(rows) == part.rows
        for row in rows:
            found.setdefault((arch, row["tls_model"], row["option"], row["check"]), []).append(row)
    marks = {
        ("x86_64", "initial-exec"): "R_X86_64_GOTTPOFF",
        ("x86_64", "global-dynamic"): "R_X86_64_TLSGD",
        ("x86_64", "descriptor"): "R_X86_64_GOTPC32_TLSDESC",
        ("x86_64", "local-exec"): "R_X86_64_TPOFF32",
        ("aarch64", "initial-exec"): "R_AARCH64_TLSIE_",
        ("aarch64", "global-dynamic"): "R_AARCH64_TLSGD_",
        ("aarch64", "descriptor"): "R_AARCH64_TLSDESC_",
        ("aarch64", "local-exec"): "R_AARCH64_TLSLE_",
    }
    for (arch, model, option, check), rows in found.items():
        text = "\n".join(f"{row['text']} {row['relocation'] or ''}" for row in rows)
        assert marks.get((arch, model), "") in text, (arch, model, option)
        assert rows[-1]["text"].startswith("ret") and rows[0]["function_instructions"] == len(rows) - 1, text
        assert (rows[0]["function_calls"] == 1) is (model in ("global-dynamic", "descriptor")), text
        if option == "pointer" and check == "none":
            plain = found[arch, model, "grow-symbol", "none"][0]["function_instructions"]
            assert rows[0]["function_instructions"] == plain + 1, "a pointer is one load more"


def test_executed_instructions_repeat_and_show_the_slow_path():
    rows = rows_of(COUNT, COUNT.plan("quick")[0])
    if reasons := {row["reason"] for row in rows} - {None}:
        pytest.skip("; ".join(reasons))
    counts = {}
    for row in rows:
        counts.setdefault((row["access"], row["read"]), set()).add(row["executed_instructions"])
    for model in ("initial-exec", "local-exec", "descriptor", "global-dynamic"):
        plain = counts[f"grow-symbol {model} at-start none", "second"]
        assert len(plain) == 1, "a hot read always executes the same"
        assert {count + 1 for count in plain} == counts[f"pointer {model} at-start none", "second"]
    opened = "private global-dynamic by-dlopen-large none"
    assert min(counts[opened, "first"]) > 10 * max(counts[opened, "second"]), "the first read allocates"


def test_a_process_that_may_not_be_stepped_gives_rows_with_the_reason(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))
    part = COUNT.plan("quick")[0]
    sandboxed = [sys.executable, str(SANDBOX), "ptrace", str(errno.EPERM), *part.arguments["command"]]
    rows = rows_of(COUNT, part, command=sandboxed, repeats=1)
    assert all(row["executed_instructions"] is None and "-1" in row["reason"] for row in rows)


def test_a_disassembly_is_read_as_objdump_writes_it():
    listing = """
0000000000000010 <read_grow_symbol_each>:
  10:\tmov    0x0(%rip),%rax        # 17 <read_grow_symbol_each+0x7>
\t\t\t13: R_X86_64_GOTTPOFF\tgrow_abi-0x4
  17:\tjbe    26 <read_grow_symbol_each+0x16>
  1b:\tret
  1c:\tnopl   0x0(%rax)
"""
    assert option_access_code.functions(listing) == {
        "read_grow_symbol_each": [
            option_access_code.Instruction("mov 0x0(%rip),%rax", "R_X86_64_GOTTPOFF grow_abi"),
            option_access_code.Instruction("jbe 26"),
            option_access_code.Instruction("ret"),
        ]
    }


# ---- what a study makes of the rows ----

COSTS = (ACCESS, CODE, COUNT, MEMORY, REGISTRATION, SWITCH)


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """A real run of all five, as short as it can be."""
    require_or_skip(missing() is None, "cc", "install gcc")
    tiny = {"builds": 2, "processes": 2, "rounds": 2, "batch_ns": 1_000_000}
    with pytest.MonkeyPatch.context() as patch:
        for experiment in COSTS:
            module = sys.modules[experiment.module]
            if hasattr(module, "PROFILE"):
                patch.setitem(module.PROFILE, "quick", module.PROFILE["quick"] | tiny | {"first_uses": 2})
        folder = tmp_path_factory.mktemp("runs") / "costs"
        document = runner.run(list(COSTS), "quick", folder, False, lambda *_: None)
    for name, record in document["experiments"].items():
        assert record["status"] == "pass", (name, record["status"], record["reason"])
    return open_run(folder)


FIGURES = {
    "access_cost": figures.access_cost,
    "first_use": figures.first_use,
    "context_switch": figures.context_switch,
    "thread_memory": figures.thread_memory,
}
TABLES = {
    "access_cost": tables.access_cost,
    "access_cost first-use": lambda run: tables.access_cost(run, "first-use"),
    "size_checks": tables.size_checks,
    "access_code": lambda run: tables.access_code(run, "pointer", host.arch()),
    "executed_instructions": tables.executed_instructions,
    "instruction_counts": tables.instruction_counts,
    "context_switch": tables.context_switch,
    "thread_memory": tables.thread_memory,
    "registration": lambda run: tables.costs(run, "registration-cost"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_costs_describe_themselves_and_repeat(small_run, name):
    shown = FIGURES[name](small_run)
    assert isinstance(shown, figures.Figure), shown
    assert 'role="img"' in shown.svg and "aria-label=" in shown.svg and len(shown.description) > 80
    assert shown.caption in repr(shown) and len(shown.numbers)
    assert FIGURES[name](small_run).svg == shown.svg, "the same run must give the same figure"
    assert "#010203" not in shown.svg


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_costs_have_rows(small_run, name):
    shown = TABLES[name](small_run)
    assert isinstance(shown, tables.Table), shown
    assert len(shown.frame) and shown.caption in repr(shown) and "<table" in shown._repr_html_()


def test_claims_about_costs_are_judged_on_rows(small_run):
    names = {experiment.name for experiment in COSTS}
    judged = [one for one in claims.judge(small_run) if one.claim.experiment in names]
    assert {one.claim.experiment for one in judged} == names
    for one in judged:
        if one.claim.rule.startswith(
            "adds_at_most"
        ):  # sets a cost against percpu-counter's, which is not in this run
            assert one.finding.verdict == claims.NOT_MEASURED
            continue
        assert one.finding.verdict in claims.VERDICTS and one.finding.measured.startswith("Here "), str(one)
        if one.claim.kind == "performance" and one.finding.effect:
            assert one.finding.verdict == claims.INCONCLUSIVE, "a few pairs give no verdict"
    assert [one.finding.verdict for one in claims.judge(small_run, "C13i", "C13x")] == [claims.HOLDS] * 2


@pytest.mark.parametrize("make", [*FIGURES.values(), *TABLES.values()])
def test_a_run_without_these_experiments_says_so(make, small_run):
    records = small_run.bundle.run["experiments"]
    kept = {name: records.pop(name) for name in list(records)}
    try:
        assert isinstance(make(small_run), NotMeasured)
    finally:
        records.update(kept)


def test_an_architecture_without_a_cross_compiler_is_not_measured(small_run):
    record = small_run.bundle.run["experiments"]["option-access-code"]
    small_run.bundle.run["experiments"]["option-access-code"] = record | {"reason": "no such compiler"}
    try:
        assert "no such compiler" in str(tables.access_code(small_run, "pointer", "riscv64"))
    finally:
        small_run.bundle.run["experiments"]["option-access-code"] = record


def test_no_two_claims_share_an_id():
    ids = [claim.id for claim in claims.claims()]
    assert len(set(ids)) == len(ids)


def test_the_totals_of_the_memory_table_are_the_layouts(small_run):
    frame = tables.thread_memory(small_run).frame.set_index("layout")
    assert frame.loc["offset-size 64", "100,000 threads, bytes"] == "6,400,000"
    assert frame.loc["none", "1,000 threads, bytes"] == "0"


@pytest.mark.parametrize("compiler", ["gcc", "clang", AARCH64])
@pytest.mark.parametrize("source", ["registration.c", "ping_pong.c", "thread_memory.c", "access_step.c"])
def test_the_c_compiles_silently(compiler, source, tmp_path):
    require_or_skip(shutil.which(compiler) is not None, compiler, "install it with `make deps`")
    package = Path(option_access_cost.__file__).parents[1]
    flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", f"-I{package / 'native'}"]
    sizes = [f"-D{name}_{what}=64" for name in ("AREA", "SECOND", "EXTENSION") for what in ("BYTES", "ALIGN")]
    command = [compiler, *flags, *sizes, "-c", str(package / "experiments" / "c" / source), "-o"]
    said = subprocess.run([*command, str(tmp_path / "made.o")], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and not said.stderr, said.stderr
