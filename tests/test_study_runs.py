"""The study that a reader sees is composed of runs: real ones of this machine, in a folder of their own, and shipped ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, require_or_skip
from runs import copy_of

from rseqlab import native
from rseqlab.experiments import catalogue
from rseqlab.lab import bundle, probe, runner
from rseqlab.study.answer import answers
from rseqlab.study.claims import NOT_MEASURED, judge, weaknesses
from rseqlab.study.matrix import matrix_of
from rseqlab.study.run import LOCAL, MIXED, REFERENCE, SHIPPED, NotMeasured, open_run, reference_runs

COMMAND = [sys.executable, "-m", "rseqlab.cli"]
PTRACE, SANDBOX = "option-ptrace", "option-sandbox"
OPTIONAL = ("abidiff", "qemu", "bpftrace", "aarch64-linux-gnu", "gdb", "clang", "llvm", "chromium")
"""What the names of optional tools begin with."""


def lab(runs: Path, *arguments, path: str | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | {"RSEQLAB_RUNS": str(runs)} | ({"PATH": path} if path else {})
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300 * PATIENCE,
        env=environment,
    )


def measured(runs: Path, folder: str, *arguments, **how) -> Path:
    done = lab(runs, "run", *arguments, "--out", runs / folder, **how)
    assert done.returncode == 0, done.stderr
    return runs / folder


@pytest.fixture(scope="module")
def measured_once(tmp_path_factory):
    """A full run of two experiments, and a later quick run of one of them."""
    missing = native.unavailable() or probe.kernel_refusal()
    require_or_skip(missing is None, f"rseq ({missing})", "run it where threads may register")
    runs = tmp_path_factory.mktemp("study") / "runs"
    for folder, names, profile, hour in (
        ("a-full", (PTRACE, SANDBOX), "full", 1),
        ("b-quick", (PTRACE,), "quick", 2),
    ):
        change(measured(runs, folder, *names, "--profile", profile), ended=f"2026-01-01T0{hour}:00:00Z")
    return runs


@pytest.fixture
def runs(measured_once, tmp_path, monkeypatch):
    """The same two, to be changed; they are the reader's."""
    folder = Path(shutil.copytree(measured_once, tmp_path / "runs"))
    monkeypatch.setenv("RSEQLAB_RUNS", str(folder))
    monkeypatch.delenv("RSEQLAB_RUN", raising=False)
    return folder


def change(folder: Path, experiment: str | None = None, **values) -> None:
    """Put values into run.json, or into the record of an experiment, and seal the bundle anew."""
    document = json.loads((folder / "run.json").read_text())
    (document["experiments"][experiment] if experiment else document).update(values)
    (folder / "run.json").write_text(json.dumps(document))
    bundle.seal(folder)


def where(run, name: str) -> str:
    return run.source(name).bundle.directory.name


def test_a_run_of_one_experiment_hides_nothing(runs):
    run = open_run()
    assert (where(run, PTRACE), where(run, SANDBOX)) == ("b-quick", "a-full")
    assert run.origin == MIXED and run.source("cpu-id-read").origin == REFERENCE
    assert len(run.table(PTRACE)) == len(open_run(runs / "b-quick").table(PTRACE))
    assert all(one.finding.verdict != NOT_MEASURED for one in judge(run, "C13", "K01", "O04"))


def test_the_banner_says_whose_rows_they_are_how_old_and_that_a_full_run_is_older(runs):
    run = open_run()
    for told in (repr(run), run._repr_html_()):
        assert "2 experiments have rows of this machine" in told
        ids = [json.loads((runs / name / "run.json").read_text())["run_id"] for name in ("a-full", "b-quick")]
        assert all(f"local run {one}" in told for one in ids)
        assert "profile quick" in told and "profile full" in told and "days ago" in told
        assert "shipped reference run" in told
        assert "newer than a full run: 1 experiment (option-ptrace) of a-full" in told
    assert f"--run {runs / 'a-full'}" in repr(run)


def test_run_shows_exactly_one(runs):
    run = open_run(runs / "a-full")
    assert run.origin == LOCAL and run.runs == [run] and where(run, PTRACE) == "a-full"
    with pytest.raises(NotMeasured, match="cpu-id-read is not part of this run"):
        run.table("cpu-id-read")
    shown = json.loads(lab(runs, "options", "--json", "--run", runs / "a-full").stdout)
    assert [one["run_id"] for one in shown["runs"]] == [run.id] and shown["digest"] == run.digest
    assert open_run(SHIPPED).origin == REFERENCE


def test_a_command_says_of_each_run_what_it_gave(runs):
    shown = json.loads(lab(runs, "claims", "C13", "--json").stdout)
    given = {tuple(one["experiments"]): (one["origin"], one["profile"]) for one in shown["runs"]}
    assert given[PTRACE,] == (LOCAL, "quick") and given[SANDBOX,] == (LOCAL, "full")
    assert all(one["origin"] == REFERENCE for one in shown["runs"] if len(one["experiments"]) > 1)


def test_the_digest_names_the_content_of_all_of_it(runs):
    first = open_run()
    assert first.digest == open_run().digest != open_run(SHIPPED).digest
    shutil.rmtree(runs / "b-quick")
    assert open_run().digest != first.digest


def test_rows_of_another_machine_are_never_shown_as_this_ones(runs):
    document = json.loads((runs / "b-quick" / "run.json").read_text())
    change(runs / "b-quick", machine=document["machine"] | {"cpu_model": "Another CPU"})
    run = open_run()
    assert where(run, PTRACE) == "a-full"
    (note,) = run.notes
    assert "1 run in" in note and "cpu_model" in note and "b-quick" in note
    assert open_run(runs / "b-quick").origin != LOCAL


def test_a_damaged_run_is_named_and_the_others_are_shown(runs):
    table = runs / "b-quick" / f"{PTRACE}.csv"
    table.write_bytes(table.read_bytes().replace(b"exit 0", b"exit 1", 1))
    run = open_run()
    assert where(run, PTRACE) == "a-full"
    (note,) = run.notes
    assert "b-quick is passed over" in note and "damaged" in note and note.count("\n") == 0
    (runs / "a-full" / "run.json").write_text("{")
    run = open_run()
    assert len(run.notes) == 2 and run.origin == REFERENCE
    assert lab(runs, "options").stderr.count("passed over") == 2


def test_a_run_of_another_schema_is_named(runs):
    change(runs / "b-quick", version=99)
    run = open_run()
    assert where(run, PTRACE) == "a-full" and "99" in run.note and "b-quick" in run.note


def test_stale_rows_are_passed_over_and_the_command_is_said(runs):
    change(runs / "b-quick", PTRACE, code_digest="0" * 16)
    assert where(open_run(), PTRACE) == "a-full" and not open_run().notes
    change(runs / "a-full", PTRACE, code_digest="0" * 16)
    run = open_run()
    assert run.source(PTRACE).origin == REFERENCE and where(run, SANDBOX) == "a-full"
    (note,) = run.notes
    assert PTRACE in note and "rseqlab run --resume" in note


def test_of_an_interrupted_run_the_experiments_that_ended_are_shown(runs):
    folder = runs / "a-full"
    document = json.loads((folder / "run.json").read_text()) | {"ended": None}
    document["experiments"][PTRACE] |= {"status": None, "reason": "not finished"}
    (folder / "run.json").write_text(json.dumps(document))
    (folder / bundle.SUMS).unlink()
    run = open_run()
    assert where(run, SANDBOX) == "a-full" and where(run, PTRACE) == "b-quick" and "not finished" in repr(run)
    (runs / "b-quick" / "run.json").unlink()
    assert open_run().source(PTRACE).origin == REFERENCE, "what did not end is not shown"


def test_a_failure_is_told_and_no_shipped_rows_take_its_place(runs):
    change(runs / "b-quick", PTRACE, status="crash", reason="killed by SIGSEGV")
    run = open_run()
    assert where(run, PTRACE) == "a-full" and "SIGSEGV" in run.note
    change(runs / "a-full", PTRACE, status="fail", reason="it does not add up")
    run = open_run()
    with pytest.raises(NotMeasured, match="SIGSEGV"):
        run.table(PTRACE)
    assert any("SIGSEGV" in one for one in weaknesses(run))


def test_what_was_skipped_is_a_footnote_and_shipped_rows_stand_in(runs):
    reason = "abidiff was not found; `make deps` installs it"
    change(runs / "b-quick", PTRACE, status="skip", reason=reason)
    assert where(open_run(), PTRACE) == "a-full" and not open_run().footnote
    change(runs / "a-full", PTRACE, status="skip", reason=reason)
    run = open_run()
    assert run.source(PTRACE).origin == REFERENCE
    note = run.footnote
    assert (
        note.line.startswith("1 experiment could not")
        and note.stand_ins == [PTRACE]
        and "`make deps`" in note.line
    )
    assert note._repr_html_().count("<details") == 1 and reason in repr(note)
    assert not [one for one in weaknesses(run) if "abidiff" in one]
    for cell in (matrix_of(run).cell(option, "ptrace") for option in ("grow-symbol", "offset-size")):
        assert cell.outcome != NOT_MEASURED and "Rows of the shipped reference run" in cell.sentence


def test_resume_goes_on_with_the_run_that_has_most(runs):
    """A later run of one experiment is no reason to measure the others anew."""
    for folder in runs.iterdir():
        change(folder, profile="quick")
    both = [catalogue()[name] for name in (PTRACE, SANDBOX)]
    assert runner.go_on("quick", both).name == "a-full"
    change(runs / "b-quick", started="2099-01-01T00:00:00Z")
    assert runner.go_on("quick", both).name == "a-full" and runner.go_on("quick", both[:1]).name == "b-quick"


@pytest.fixture(scope="module")
def bare_path(tmp_path_factory) -> str:
    """Every command of this machine but the optional ones."""
    folder = tmp_path_factory.mktemp("bin")
    for place in os.environ["PATH"].split(os.pathsep):
        for command in Path(place).iterdir() if Path(place).is_dir() else ():
            if not command.name.startswith(OPTIONAL) and not (folder / command.name).exists():
                (folder / command.name).symlink_to(command)
    return str(folder)


def test_without_the_optional_tools_every_answer_and_every_cell_has_content(runs, bare_path):
    names = ("option-checker", "kernel-matrix", "kernel-costs", "percpu-instructions", PTRACE)
    measured(runs, "c-bare", *names, path=bare_path)
    records = json.loads((runs / "c-bare" / "run.json").read_text())["experiments"]
    missing = [name for name in names if records[name]["status"] == "skip"]
    assert {"option-checker", "kernel-matrix", "kernel-costs"} <= set(missing)
    run = open_run()
    assert [one.strength for one in answers(run) if one.strength == NOT_MEASURED] == []
    assert not [one for one in answers(run) for name in missing if name in one.sentence]
    lost = [cell for cell in matrix_of(run).cells.values() if cell.outcome == NOT_MEASURED]
    assert not [cell for cell in lost if cell.experiment in missing]
    note = run.footnote
    assert set(missing) <= set(note.stand_ins) and note.line.count("make deps") == 1
    told = lab(runs, "evidence", path=bare_path)
    assert (
        told.returncode == 0
        and " ".join(told.stdout.split()).count("could not, or not wholly, be measured") == 1
    )


def test_one_run_without_a_tool_loses_a_cell_and_no_answer(tmp_path):
    """Also where nothing stands in: the answer counts what was measured, and says what was not."""
    folder = copy_of(reference_runs()[-1], tmp_path / "run")
    (folder / "option-checker.csv").unlink()
    change(folder, "option-checker", status="skip", reason="abidiff was not found", rows=0)
    run = open_run(folder)
    told = {one.question: one for one in answers(run)}
    assert all(one.strength != NOT_MEASURED for one in told.values())
    third = told["What did offset and size cost, and what did they buy?"].sentence
    assert "(not measured: checker)" in third and "survives" in third
    lost = [cell for cell in matrix_of(run).cells.values() if cell.outcome == NOT_MEASURED]
    assert {cell.criterion for cell in lost} == {"checker"}
