"""Claims over several runs: what agrees, what is contrary, and whether something in the world explains it."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from built_runs import SHIPPED, Rows, in_builds
from runs import copy_of

from rseqlab.errors import LabError
from rseqlab.experiments import catalogue
from rseqlab.lab import bundle
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.verdict import FAILS, HOLDS
from rseqlab.study import claims, rates, stability
from rseqlab.study.run import CHOSEN, NotMeasured, StudyRun

COMMAND = [sys.executable, "-m", "rseqlab.cli", "stability"]


def changed(folder: Path, number: int, facts: dict, factor: float = 1.0) -> Path:
    """A run of 8 builds on a machine with these facts, where the vDSO takes ``factor`` times as long."""
    in_builds(folder, only=("cpu-id-read", "option-skew"))
    machine = json.loads((folder / "machine.json").read_text())
    machine["facts"] |= facts
    (folder / "machine.json").write_text(json.dumps(machine))
    record = json.loads((folder / "run.json").read_text())
    record["run_id"] += f"-{number}"
    (folder / "run.json").write_text(json.dumps(record))
    path = folder / "cpu-id-read.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["reader"] == "vdso":
            row["ns_per_read"] = str(float(row["ns_per_read"]) * factor)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    bundle.seal(folder)
    return folder


def lab(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return changed(tmp_path_factory.mktemp("stability") / "here", 0, {})


def test_another_libc_explains_a_function_of_libc_and_nothing_else_does(here, tmp_path):
    """C63 compares the vDSO with libc's sched_getcpu(): it fails on the shipped machine."""
    newer = changed(tmp_path / "newer", 1, {"libc": "glibc 2.43", "native_compiler": "gcc 16.0"}, 1.5)
    compiler = changed(tmp_path / "compiler", 2, {"native_compiler": "gcc 16.0"}, 1.5)
    runs = stability.open_runs([here, newer])
    found = stability.stability(runs)
    assert found.contrary == {"C63": "sched_getcpu() of glibc 2.43 against glibc 2.36"}
    assert not found.unexplained and "1 have a named cause and 0 none" in found.sentence()
    rows = {row.run: row for row in found.by_claim["C63"]}
    assert [row.verdict for row in rows.values()] == [FAILS, HOLDS]
    assert found.table().frame.iloc[0]["claim"] == "C63", "what is contrary comes first"
    unexplained = stability.stability(stability.open_runs([here, compiler]))
    assert unexplained.contrary == {"C63": "unexplained"} and unexplained.unexplained == ["C63"]
    mixed = stability.stability(stability.open_runs([here, newer, compiler]))
    assert "unexplained" in mixed.contrary["C63"], "what explains one pair explains not the other"


def test_the_command_ends_with_1_where_a_contrary_verdict_has_no_cause(here, tmp_path):
    other = changed(tmp_path / "other", 1, {}, 1.5)
    table = tmp_path / "stability.csv"
    result = lab(here, other, "--json", "--out", table)
    assert result.returncode == 1, result.stderr
    document = json.loads(result.stdout)
    bundle.validate(document, "stability", "stdout")
    assert document["unexplained"] == ["C63"] and len(document["runs"]) == 2
    read = stability.read(table)
    assert read.contrary == {"C63": "unexplained"} and len(read.rows) == len(document["rows"])
    effects = {row.run: (row.effect, row.low, row.high) for row in read.by_claim["C63"]}
    for run in stability.open_runs([here, other]):
        (judged,) = claims.judge(run, "C63")
        effect = judged.finding.effect
        assert effects[run.id] == (effect.median, effect.low, effect.high)
    assert lab(here, here).returncode == 0, "one run given twice agrees with itself"


def test_old_and_packed_runs_are_read_and_their_times_carry_no_verdict(here):
    result = lab(here, SHIPPED)
    assert result.returncode == 0, result.stderr
    assert "how often the rule is wrong is not measured" in result.stdout
    found = stability.stability(stability.open_runs([here, SHIPPED]))
    old = next(row for row in found.by_claim["C38b"] if row.run == found.runs[1])
    assert old.verdict == "inconclusive" and old.effect
    assert found.machines().frame["repeat"].tolist() == [1, 2]


def test_what_is_no_run_and_no_table_is_said(tmp_path):
    result = lab(tmp_path)
    assert result.returncode in (1, 2) and str(tmp_path) in result.stderr and "Traceback" not in result.stderr
    assert lab().returncode == 2
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(LabError, match=r"bad\.csv"):
        stability.read(tmp_path / "bad.csv")


def test_each_cause_looks_at_facts_that_it_is_about():
    by_id = {claim.id: claim for claim in claims.claims()}
    same = {"libc": "glibc 2.36", "kernel_release": "6.18", "native_compiler": "gcc 12", "cpu_family": 25,
            "cpu_model_number": 1, "cpu_model": "AMD EPYC", "rseq_libc_size": 20}  # fmt: skip
    cases = [
        ("L11", {"libc": "glibc 2.43"}, "malloc() of glibc 2.36 against glibc 2.43"),
        ("L01", {"rseq_libc_size": 28}, "__rseq_size is 20 against 28"),
        ("C41", {"kernel_release": "7.0"}, "the kernel, 6.18 against 7.0"),
        ("L06", {"cpu_family": 26}, "the CPU, "),
        ("C13i", {"native_compiler": "gcc 16"}, "the compiler's code, gcc 12 against gcc 16"),
        ("O08", {"libc": "glibc 2.43"}, "the libc itself, glibc 2.36 against glibc 2.43"),
    ]
    for claim, facts, words in cases:
        told = [rule(by_id[claim], same, same | facts) for rule in stability.CAUSES]
        assert any(one and one.startswith(words) for one in told), claim
    for claim, facts in [
        (
            "L06",
            {"libc": "glibc 2.43", "native_compiler": "gcc 16"},
        ),  # compiled code does not explain a price
        ("O04", {"libc": "glibc 2.43", "cpu_family": 26}),  # nor does a libc what an option survives
        ("C12", {"kernel_release": "7.0"}),
        ("C12", {}),
    ]:
        assert not any(rule(by_id[claim], same, same | facts) for rule in stability.CAUSES), claim


# ---- how often the rule is wrong ----


def repeats(builds: int, copies: int, price: float, noise: float = 0.05, seed: int = 4) -> list[dict]:
    """Rows of null-repeats: each copy of each build is moved by its place, ``chain-plus-one`` costs ``price`` more."""
    import numpy as np

    draw = np.random.default_rng(seed)
    rows = []
    for build in range(builds):
        for loop in ("read-throughput", "counter-rseq", "chain", "chain-plus-one"):
            for copy in range(copies):
                place = draw.normal(0, noise if loop.startswith(("read", "counter")) else 0.001)
                for process in range(2):
                    rows += [
                        {"part": f"{build}-{process}", "build": build, "process": process, "round": number,
                         "loop": loop, "copy": copy,
                         "ns_per_iteration": (price if loop == "chain-plus-one" else 1.0)
                         * float(np.exp(place + draw.normal(0, 0.002)))}
                        for number in range(2)
                    ]  # fmt: skip
    return rows


def test_a_loop_and_itself_get_hardly_ever_a_verdict_and_a_known_price_is_found():
    found = rates.rates(Rows(null_repeats=repeats(40, 12, rates.TRUE_RATIO)))
    assert len(found.alike) == 5 * 3 * 6 and len(found.different) == 5 * 12
    assert len(found.wrong) <= 0.05 * len(found.alike)
    assert len(found.found) == len(found.different) and len(found.covering) > 0.9 * len(found.different)
    assert f"Of {len(found.alike)} comparisons" in found.alike_sentence()
    sets = {one.builds for one in found.alike}
    assert len(sets) == 5 and len({build for one in sets for build in one}) == 40, "no build is in two sets"


def test_what_does_not_differ_is_not_found():
    found = rates.rates(Rows(null_repeats=repeats(16, 6, 1.0)))
    assert len(found.found) <= 1


def test_too_few_comparisons_are_not_measured():
    (claim,) = (one for one in claims.claims() if one.id == "L50")
    few = claims._find(Rows(null_repeats=repeats(8, 4, 1.05)), claim)
    assert few.verdict == "not measured" and "the claim needs 200 comparisons" in few.measured


def test_rows_of_one_build_say_nothing_of_the_rule(tmp_path):
    old = StudyRun(Bundle(copy_of(SHIPPED, tmp_path / "old"), catalogue()), CHOSEN)
    with pytest.raises(NotMeasured):
        rates.rates(old)
