"""The experiments on what the options cost: rows of the right shape, and checks that bite."""

import re
import shutil
import subprocess

import pytest
from conftest import require_or_skip
from elftools.elf.elffile import ELFFile

from rseqlab import host
from rseqlab.experiments import catalogue, option_access_cost
from rseqlab.lab.child import Child
from rseqlab.lab.compile import missing
from rseqlab.lab.experiment import Experiment, Part, measure_part

AARCH64 = "aarch64-linux-gnu-gcc"
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
    liar.write_text(f"#!/bin/sh\n{' '.join(part.arguments['command'])} | sed -u '{lie}'\n")
    liar.chmod(0o755)
    arguments = {**part.arguments, "command": [str(liar)], "rounds": 1}
    child = Child(measure_part, {"module": ACCESS.module, "arguments": arguments, "done": []}, part.environment, 60)
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


@pytest.mark.parametrize("compiler", ["cc", AARCH64])
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
        [*EMULATED, *built.command()], input=questions, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    labels, _, answers = said.partition("\n\n")
    assert set(labels.splitlines()) == {access.label for access in option_access_cost.ACCESSES}
    reads = [8] * 3 * count + [1] * count
    for label, answer, read in zip(labels.splitlines() * 4, answers.splitlines(), reads, strict=True):
        elapsed_ns, total = map(int, answer.split())
        assert elapsed_ns >= 0 and total == (0 if label == "nothing" else 41 * read), (label, answer)
