"""The benchmark's document, and what its comparison says and refuses to say."""

import copy
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from rseqlab.errors import LabError
from rseqlab.lab import bundle
from rseqlab.study import bench

COMMAND = [sys.executable, "-m", "rseqlab.cli", "bench"]
MACHINE = {"arch": "x86_64", "kernel_release": "6.18"}


def rows(builds=8, **values_ns):
    """Raw rows of two processes of each build: each technique's own time, the same in every batch up to 0.2 %."""
    return [
        {"part": f"p{build}-{process}", "build": build, "process": process, "round": number, "threads": threads,
         "technique": technique, "cpu_ns_per_operation": value * threads * (1 + (build + number) / 5000)}
        for technique, value in values_ns.items()
        for build in range(builds)
        for process in range(2)
        for number in range(4)
        for threads in (1, 2)
    ]  # fmt: skip


def document(builds=8, **values_ns) -> dict:
    found = {
        "schema": "rseqlab/bench",
        "version": 2,
        "lab_version": "0",
        "profile": "quick",
        "started": "2026-01-01T00:00:00Z",
        "machine": MACHINE,
        "steal_percent": {"percpu-ops": 0.0},
        "variants": bench.summary(bench.Benchmark("percpu-ops", ("technique",), "cpu_ns_per_operation"),
                                  rows(builds, **{re.sub("_again$", "-again", name): value for name, value in values_ns.items()})),
        "comparison": None,
    }  # fmt: skip
    bundle.validate(found, "bench", "the test's")
    return found


def verdicts(now: dict, then: dict) -> dict[str, str]:
    return {row["variant"]["technique"]: row["verdict"] for row in bench.compare(now, then)}


def test_only_one_thread_counts_and_the_interval_holds_the_median():
    [row] = document(rseq=2.0)["variants"]
    assert row["low_ns"] <= row["median_ns"] <= row["high_ns"]
    assert row["median_ns"] == pytest.approx(2.0, rel=0.01)
    assert (row["samples"], row["processes"], len(row["builds_ns"])) == (64, 16, 8)


@pytest.mark.parametrize(
    ("before_ns", "now_ns", "expected"),
    [(2.0, 1.5, "faster"), (2.0, 2.5, "slower"), (2.0, 2.0, "no difference")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(before_ns, now_ns, expected):
    then = document(rseq=before_ns, mutex=5.0, mutex_again=5.0)
    now = document(rseq=now_ns, mutex=5.0, mutex_again=5.0)
    found = verdicts(now, then)
    assert (found["rseq"], found["mutex"]) == (expected, "no difference")


def test_a_machine_that_runs_slower_now_is_no_slower_code():
    then = document(rseq=2.0, mutex=5.0, mutex_again=5.0)
    now = document(rseq=2.2, mutex=5.5, mutex_again=5.5)
    assert set(verdicts(now, then).values()) == {"undecided"}


def test_what_differs_from_itself_by_more_is_undecided():
    then, now = document(rseq=2.0, rseq_again=2.3), document(rseq=2.2, rseq_again=2.2)
    assert verdicts(now, then)["rseq"] == "undecided"


@pytest.mark.parametrize(
    ("arguments", "lacks"),
    [
        ({"builds": 7, "rseq_again": 2.0}, "measured in 7 builds; a verdict needs 8"),
        ({"builds": 1, "rseq_again": 2.0}, "measured in one build; a verdict needs 8"),
        ({}, "there is no A/A control"),
    ],
)
def test_too_few_builds_and_no_control_carry_no_verdict_and_say_so(arguments, lacks):
    then, now = document(rseq=2.0, **arguments), document(rseq=4.0, **arguments)
    (row,) = (row for row in bench.compare(now, then) if row["variant"]["technique"] == "rseq")
    assert (row["verdict"], row["lacks"]) == ("no verdict", lacks)


def test_the_interval_that_is_shown_is_the_one_that_was_judged():
    """Whatever the numbers: no verdict contradicts what is printed beside it."""
    draw = np.random.default_rng(2)
    for _ in range(50):
        numbers = {name: float(value) for name, value in zip("abcdef", draw.uniform(1, 3, 6), strict=True)}
        then = document(**numbers, a_again=numbers["a"])
        now = document(
            **{name: value * draw.uniform(0.9, 1.1) for name, value in numbers.items()}, a_again=2.0
        )
        for row in bench.compare(now, then):
            expected = (
                "slower" if row["low"] > 1 else "faster" if row["high"] < 1
                else "no difference" if row["low"] >= 1 / 1.05 and row["high"] <= 1.05
                else "undecided"
            )  # fmt: skip
            assert row["verdict"] == expected, row


def test_only_variants_that_both_have_are_compared():
    first, second = document(rseq=2.0, rseq_again=2.0), document(rseq=2.0, rseq_again=2.0, mutex=5.0)
    assert verdicts(first, second) == {"rseq": "no difference", "rseq-again": "no difference"}


def test_a_document_of_one_build_is_refused_with_what_to_do(tmp_path):
    path = written(tmp_path, document(rseq=2.0) | {"version": 1})
    with pytest.raises(LabError, match=r"one build.*rseqlab bench --out"):
        bench.read(path)


def test_what_is_not_this_projects_code_is_a_control():
    variants = document(
        **{"counter/rseq": 2.0, "section/addv": 2.0, "list/cas": 2.0, "list/rseq-mm_cid": 2.0}
    )["variants"]
    assert [row["variant"]["technique"] for row in variants if row["control"]] == ["list/cas"]


def lab(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def written(folder, found: dict):
    path = folder / "earlier.json"
    path.write_text(json.dumps(found))
    return path


def test_another_machine_and_another_profile_are_refused_before_anything_is_measured(tmp_path):
    here = document(rseq=2.0) | {"machine": bench.machine()}
    elsewhere = copy.deepcopy(here)
    elsewhere["machine"]["cpu_model"] = "Another CPU"
    result = lab("--against", written(tmp_path, elsewhere))
    assert result.returncode == 1 and "cpu_model was Another CPU" in result.stderr and not result.stdout
    result = lab("--against", written(tmp_path, here), "--profile", "full", "--json")
    assert result.returncode == 1 and "--profile quick" in result.stderr
    assert json.loads(result.stdout)["kind"] == "failed"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "rseqlab/bench"}', "\0"])
def test_a_file_that_is_none_says_so(text, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(LabError, match=re.escape(str(path))):
        bench.read(path)


def test_a_bad_file_is_exit_1_and_a_missing_one_and_a_wrong_profile_exit_2(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for arguments, code, words in (
        (["--against", tmp_path / "bad.json"], 1, "bad.json is not JSON"),
        (["--against", tmp_path / "none.json"], 2, "There is no file"),
        (["--profile", "huge"], 2, "quick, full"),
    ):
        result = lab(*arguments)
        assert result.returncode == code and words in result.stderr and "Traceback" not in result.stderr


def test_benchmarks_name_columns_that_their_experiments_have():
    for one, experiment in zip(bench.BENCHMARKS, bench.experiments(), strict=True):
        names = {column.name for column in experiment.all_columns()}
        assert {*one.variant, one.value_ns, "threads", "round", "part"} <= names
        parts = experiment.plan("quick")
        assert parts and all({job[1] for job in part.arguments["jobs"]} == {1} for part in parts)
        assert all(part.rows == part.arguments["rounds"] * len(part.arguments["jobs"]) for part in parts)
        assert re.search("_ns", one.value_ns)


def test_a_document_goes_beside_the_runs_unless_told(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environ, "RSEQLAB_RUNS", str(tmp_path))
    assert bench.new_file("quick").parent == tmp_path
    bench.write(tmp_path / "new" / "bench.json", document(rseq=2.0))
    assert bench.read(tmp_path / "new" / "bench.json")["variants"][0]["variant"] == {"technique": "rseq"}
