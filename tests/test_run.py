"""The command `run` on this machine: real experiments, killed, interrupted, resumed, out of space."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
from processes import stopped_when

from rseqlab.experiments import catalogue
from rseqlab.lab import bundle
from rseqlab.lab.bundle import Bundle

COMMAND = [sys.executable, "-m", "rseqlab.cli"]


def lab(*arguments, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, **options
    )


def stopped_with_rows(process: subprocess.Popen, table, count: int):
    """The run, stopped while it has more than so many rows and is not at its end."""
    return stopped_when(
        process,
        lambda: table.exists() and table.read_bytes().count(b"\n") > count,
        f"{table} has {count} rows",
    )


RUN = ("abort-cost", "percpu-counter", "registration-rules")
"""What the run of these tests measures; test_experiments.py goes through all experiments, a part of each."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """One complete quick run of some experiments."""
    folder = tmp_path_factory.mktemp("runs") / "quick"
    result = lab("run", *RUN, "--profile", "quick", "--out", folder, "--json")
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)


def test_a_run_is_a_sound_bundle_with_every_row_that_was_planned(quick):
    folder, document = quick
    assert {name: record["status"] for name, record in document["experiments"].items()} == dict.fromkeys(
        RUN, "pass"
    )
    found = Bundle(folder, catalogue())
    for name in RUN:
        planned = sum(part.rows for part in catalogue()[name].plan("quick") if not part.skip)
        assert len(found.tables[name]) == planned, f"{name} does not yield the rows that it plans"


def test_every_increment_of_every_batch_was_counted(quick):
    rows = Bundle(quick[0], catalogue()).tables["percpu-counter"]
    assert rows and all(row["sum"] == row["increments"] for row in rows)


def test_kernel_answers_are_the_documented_ones(quick):
    rows = Bundle(quick[0], catalogue()).tables["registration-rules"]
    odd = [row for row in rows if row["predicted"] not in (None, row["answer"])]
    assert not odd
    assert any(row["answer"] == "accepted" for row in rows) and any(row["answer"] == "EBUSY" for row in rows)


def test_no_name_of_this_host_or_user_or_folder_is_in_the_bundle(quick):
    folder, _ = quick
    text = "".join(path.read_text() for path in folder.iterdir())
    assert str(folder) not in text and os.path.expanduser("~") not in text
    host = os.uname().nodename
    assert len(host) < 4 or host not in text


def test_a_finished_run_is_resumed_without_measuring_again(quick):
    folder, _ = quick
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert lab("run", *RUN, "--profile", "quick", "--out", folder, "--resume").returncode == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_holds_a_run_is_not_overwritten(quick):
    result = lab("run", *RUN, "--profile", "quick", "--out", quick[0])
    assert result.returncode == 1 and "--resume" in result.stderr


def test_another_profile_does_not_mix_in(quick):
    result = lab("run", *RUN, "--profile", "full", "--out", quick[0], "--resume")
    assert result.returncode == 1 and "--profile quick" in result.stderr


@pytest.mark.parametrize(
    "name", ["registration-rules", pytest.param("cpu-id-read", marks=pytest.mark.thorough)]
)
def test_kill_minus_nine_loses_nothing_that_was_measured(name, tmp_path):
    folder = tmp_path / "killed"
    table = folder / f"{name}.csv"
    process = subprocess.Popen(
        [*COMMAND, "run", name, "--out", str(folder)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    with stopped_with_rows(process, table, 150):
        process.send_signal(signal.SIGKILL)
        process.wait()
    measured = table.read_bytes()
    unfinished = lab("bundle", "verify", folder)
    assert unfinished.returncode == 1 and "not finished" in unfinished.stderr

    with open(table, "ab") as file:
        file.write(b"libc-0,7,torn row with no en")  # what a kill inside a write leaves
    assert lab("run", name, "--out", folder, "--resume").returncode == 0
    whole = table.read_bytes()
    assert whole.startswith(measured[: measured.rfind(b"\n") + 1])
    assert lab("bundle", "verify", folder).returncode == 0


def test_ctrl_c_stops_cleanly_and_resume_goes_on(tmp_path):
    folder = tmp_path / "interrupted"
    process = subprocess.Popen(
        [*COMMAND, "run", "registration-rules", "--out", str(folder), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with stopped_with_rows(process, folder / "registration-rules.csv", 50):
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "--resume" in err and "Traceback" not in err
    assert json.loads(out)["kind"] == "interrupted"
    record = json.loads((folder / "run.json").read_text())
    assert record["ended"] is None and record["experiments"]["registration-rules"]["status"] is None
    assert lab("run", "registration-rules", "--out", folder, "--resume").returncode == 0


@pytest.mark.thorough
def test_two_sessions_do_not_write_into_one_bundle(tmp_path):
    folder = tmp_path / "one"
    first = subprocess.Popen(
        [*COMMAND, "run", "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with stopped_with_rows(first, folder / "cpu-id-read.csv", 5):
            second = lab("run", "--out", folder, "--resume")
        assert second.returncode == 1 and "Another rseqlab" in second.stderr
    finally:
        first.kill()
        first.wait()


@pytest.mark.thorough
def test_a_full_disk_is_an_error_and_leaves_whole_rows(tmp_path):
    """The kernel refuses to let any file grow past 20 kB, as a full disk would."""
    folder = tmp_path / "full"
    limit = 20_000
    result = lab(
        "run",
        "registration-rules",
        "--out",
        folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1 and "--resume" in result.stderr and "Traceback" not in result.stderr
    data = (folder / "registration-rules.csv").read_bytes()
    assert data.endswith(b"\n") and len(data) <= limit
    assert lab("bundle", "verify", folder).returncode == 1
    assert lab("run", "registration-rules", "--out", folder, "--resume").returncode == 0
    assert (folder / "registration-rules.csv").read_bytes().startswith(data)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file" / "run", "/proc/rseqlab"):
        result = lab("run", "registration-rules", "--out", place)
        assert (
            result.returncode == 1
            and "Could not create" in result.stderr
            and "Traceback" not in result.stderr
        )


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    result = lab("run", "registration-rules", "--out", tmp_path)
    assert result.returncode == 1 and "not empty" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]


def test_a_container_that_hides_sys_measures_all_the_same(tmp_path):
    """Counting needs the number of CPUs; /sys is one source of it, and not always there."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not make a mount namespace (unshare -m)")
    code = "from rseqlab import host; print(host.possible_cpus(), host.facts()[1]['cpus_possible'])"
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys && exec "$@"', "sh"]
    result = subprocess.run([*hidden, sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (
        int(result.stdout.split()[0]) == max(os.sched_getaffinity(0)) + 1 and "No such file" in result.stdout
    )


@pytest.mark.thorough
def test_an_experiment_that_crashed_is_tried_again_and_the_bundle_sealed_anew(tmp_path):
    folder = tmp_path / "crashed"
    assert lab("run", "registration-rules", "--out", folder).returncode == 0
    path = folder / "run.json"
    document = json.loads(path.read_text())
    record = document["experiments"]["registration-rules"]
    record |= {"status": "crash", "reason": "libc: killed by SIGSEGV"}
    record["parts"]["libc"] |= {"status": "crash", "reason": "killed by SIGSEGV"}
    path.write_text(json.dumps(document))
    table = folder / "registration-rules.csv"
    table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:200]))
    bundle.seal(folder)
    assert lab("run", "registration-rules", "--out", folder, "--resume").returncode == 0
    assert lab("bundle", "verify", folder).returncode == 0
    assert json.loads(path.read_text())["experiments"]["registration-rules"]["status"] == "pass"


@pytest.mark.thorough
def test_rows_of_other_code_are_kept_and_never_mixed(tmp_path):
    """After a change of the code: a sealed run stays, and a new one takes over what still holds."""
    runs = tmp_path / "runs"
    environment = os.environ | {"RSEQLAB_RUNS": str(runs)}
    names = "registration-rules", "cpu-id-read"
    assert lab("run", *names, "--resume", env=environment).returncode == 0
    old = next(runs.iterdir())
    path = old / "run.json"
    document = json.loads(path.read_text())
    document["experiments"]["registration-rules"]["code_digest"] = "0" * 16
    path.write_text(json.dumps(document))
    bundle.seal(old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}

    refused = lab("run", *names, "--out", old, "--resume")
    assert refused.returncode == 1 and "other code" in refused.stderr

    time.sleep(1.1)  # run ids are seconds
    result = lab("run", *names, "--resume", "--json", env=environment)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    records = json.loads(result.stdout)["experiments"]
    assert (
        records["cpu-id-read"]["measured_in"]
        == document["run_id"]
        != records["registration-rules"]["measured_in"]
    )
    new = next(folder for folder in runs.iterdir() if folder != old)
    assert (new / "cpu-id-read.csv").read_bytes() == before["cpu-id-read.csv"]
    assert lab("bundle", "verify", new).returncode == 0


@pytest.mark.thorough
def test_a_folder_with_only_a_begun_run_can_be_resumed(tmp_path):
    """What a disk that is full from the start, or a kill in the first moment, leaves."""
    folder = tmp_path / "begun"
    assert lab("run", "registration-rules", "--out", folder).returncode == 0
    for path in folder.iterdir():
        if path.name != "run.json":
            path.unlink()
    document = json.loads((folder / "run.json").read_text()) | {"ended": None, "experiments": {}}
    (folder / "run.json").write_text(json.dumps(document))
    assert lab("run", "registration-rules", "--out", folder, "--resume").returncode == 0
    assert lab("bundle", "verify", folder).returncode == 0


@pytest.mark.thorough
def test_other_cpus_do_not_mix_into_a_run(tmp_path):
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        pytest.skip("this machine has one CPU")
    folder = tmp_path / "run"
    assert lab("run", "registration-rules", "--out", folder).returncode == 0
    result = lab("run", "--out", folder, "--resume", preexec_fn=lambda: os.sched_setaffinity(0, {allowed[0]}))
    assert result.returncode == 1 and "cpus_allowed" in result.stderr


def test_a_failure_prints_one_json_document(tmp_path):
    """An experiment that cannot finish: the disk is full. One document, exit 1."""
    limit = 20_000
    result = lab(
        "run",
        "registration-rules",
        "--out",
        tmp_path / "run",
        "--json",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 1 and json.loads(result.stdout)["kind"] == "failed"
