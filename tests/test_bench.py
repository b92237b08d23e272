"""The benchmark's document, and what its comparison says and refuses to say."""

import copy
import json
import os
import re
import subprocess
import sys

import pytest

from rseqlab.errors import LabError
from rseqlab.lab import bundle
from rseqlab.study import bench

COMMAND = [sys.executable, "-m", "rseqlab.cli", "bench"]
MACHINE = {"arch": "x86_64", "kernel_release": "6.18"}


def rows(**values_ns):
    """Raw rows of eight processes of eight rounds: each technique's own time, the same in every batch up to 0.2 %."""
    return [
        {"part": f"p{process}", "round": number, "threads": threads, "technique": technique,
         "cpu_ns_per_operation": value * threads * (1 + (process + number) / 5000)}
        for technique, value in values_ns.items()
        for process in range(8)
        for number in range(8)
        for threads in (1, 2)
    ]  # fmt: skip


def document(**values_ns) -> dict:
    found = {
        "schema": "rseqlab/bench",
        "version": 1,
        "lab_version": "0",
        "profile": "quick",
        "started": "2026-01-01T00:00:00Z",
        "machine": MACHINE,
        "steal_percent": {"percpu-ops": 0.0},
        "variants": bench.summary(bench.Benchmark("percpu-ops", ("technique",), "cpu_ns_per_operation"),
                                  rows(**{re.sub("_again$", "-again", name): value for name, value in values_ns.items()})),
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
    assert (row["samples"], row["processes"], row["carries_a_verdict"]) == (64, 8, True)


@pytest.mark.parametrize(
    ("before_ns", "now_ns", "expected"),
    [(2.0, 1.5, "faster"), (2.0, 2.5, "slower"), (2.0, 2.0, "no difference")],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(before_ns, now_ns, expected):
    then, now = document(rseq=before_ns, mutex=5.0), document(rseq=now_ns, mutex=5.0)
    assert verdicts(now, then) == {"rseq": expected, "mutex": "no difference"}


def test_a_machine_that_runs_slower_now_is_no_slower_code():
    then, now = document(rseq=2.0, mutex=5.0), document(rseq=2.2, mutex=5.5)
    assert verdicts(now, then) == {"rseq": "undecided", "mutex": "undecided"}


def test_what_differs_from_itself_by_more_is_undecided():
    then, now = document(rseq=2.0, rseq_again=2.3), document(rseq=2.2, rseq_again=2.2)
    assert verdicts(now, then)["rseq"] == "undecided"


def test_few_samples_carry_no_verdict():
    then, now = document(rseq=2.0), document(rseq=4.0)
    then["variants"][0]["carries_a_verdict"] = False
    assert verdicts(now, then) == {"rseq": "undecided"}


def test_only_variants_that_both_have_are_compared():
    assert verdicts(document(rseq=2.0), document(rseq=2.0, mutex=5.0)) == {"rseq": "no difference"}


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
