"""Each command, used rightly and wrongly, here and where rseq is denied."""

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import PATIENCE

from rseqlab.experiments import catalogue
from rseqlab.lab import bundle
from rseqlab.lab.experiment import REGISTRATION
from rseqlab.study.run import reference_runs

COMMAND = [sys.executable, "-m", "rseqlab.cli"]
SANDBOX = Path(__file__).with_name("sandbox.py")
NEED_RSEQ = {
    name for name, one in catalogue().items() if REGISTRATION in one.needs and one.group == "machine"
}


def lab(*arguments, denied=None, **environment) -> subprocess.CompletedProcess:
    command = [*COMMAND, *map(str, arguments)]
    if denied:
        command = [sys.executable, str(SANDBOX), "rseq", str(denied), *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


def document(result: subprocess.CompletedProcess) -> dict:
    found = json.loads(result.stdout)
    bundle.validate(found, found["schema"].removeprefix("rseqlab/"), "stdout")
    return found


@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        ["list"],
        ["claims", "--run", reference_runs()[-1]],
        ["bundle", "verify", reference_runs()[-1]],
    ],
)
def test_json_fits_its_schema_and_text_goes_to_stdout_too(command):
    result = lab(*command, "--json")
    assert result.returncode == 0, result.stderr
    assert document(result)["schema"] == f"rseqlab/{command[1] if command[0] == 'bundle' else command[0]}"
    assert lab(*command).stdout


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["run", "nonsense"], ["nonsense", "cpu-id-read", "registration-rules"]),
        (["run", "--profile", "huge"], ["huge", "quick, full"]),
        (["run", "--bogus"], ["--bogus"]),
        (["nonsense"], ["nonsense"]),
        (["bundle", "verify"], ["RUN"]),
    ],
)
def test_wrong_use_is_exit_2_and_lists_what_is_valid(command, words):
    result = lab(*command)
    assert result.returncode == 2 and not result.stdout
    for word in words:
        assert word in result.stderr
    assert document(lab(*command, "--json"))["kind"] == "usage"


def test_no_arguments_shows_the_commands_and_version_works():
    assert lab().returncode == 2
    assert "doctor" in lab("--help").stdout
    assert lab("--version").stdout.startswith("rseqlab ")


@pytest.mark.parametrize(
    "command",
    [
        ["report", "--run", "/nonexistent"],
        ["claims", "--run", "/nonexistent"],
        ["bundle", "verify", "/nonexistent"],
    ],
)
def test_a_run_that_is_not_there(command):
    result = lab(*command, "--json")
    assert (
        result.returncode == 1
        and "/nonexistent" in document(result)["message"]
        and "Traceback" not in result.stderr
    )


def test_doctor_knows_this_thread_from_the_kernel_itself():
    rseq = document(lab("doctor", "--json"))["rseq"]
    assert rseq["registration_works"]
    assert rseq["owner"] in ("libc", "none")
    if rseq["owner"] == "libc":
        assert rseq["registered_size"] >= 32 and rseq["live_bytes"] >= 20 and rseq["cpu_id"] >= 0


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_where_rseq_is_denied_the_doctor_says_so(error):
    result = lab("doctor", "--json", denied=error)
    found = document(result)
    assert result.returncode == 0
    assert found["rseq"]["owner"] == "none" and not found["rseq"]["registration_works"]
    assert errno.errorcode[error] in found["rseq"]["refusal"]
    assert all(
        not one["can_run"] and one["reasons"] for one in found["experiments"] if one["name"] in NEED_RSEQ
    )
    assert "cannot run" in lab("doctor", denied=error).stdout


def test_where_rseq_is_denied_a_run_records_the_skip_and_is_no_result(tmp_path):
    result = lab("run", "--out", tmp_path / "denied", "--json", denied=errno.EPERM)
    found = document(result)
    assert result.returncode == 0
    records = [record for name, record in found["experiments"].items() if name in NEED_RSEQ]
    assert {one["status"] for one in records} == {"skip"}
    assert all("EPERM" in one["reason"] for one in records)
    judged = document(lab("claims", "--run", tmp_path / "denied", "--json"))["claims"]
    by_auxv = {"C19", "C20"}  # of what the kernel says without being asked by the system call
    verdicts = {
        one["verdict"] for one in judged if one["experiment"] in NEED_RSEQ and one["id"] not in by_auxv
    }
    assert verdicts == {"not measured"}


@pytest.mark.thorough
def test_where_rseq_is_denied_the_report_shows_shipped_rows_and_says_why(tmp_path):
    runs = tmp_path / "runs"
    assert lab("run", denied=errno.EPERM, RSEQLAB_RUNS=str(runs)).returncode == 0
    result = lab("report", "--out", tmp_path / "report", "--json", denied=errno.EPERM, RSEQLAB_RUNS=str(runs))
    shown = {name: one["origin"] for one in document(result)["runs"] for name in one["experiments"]}
    assert {shown[name] for name in NEED_RSEQ if name in shown} == {"shipped reference run"}, result.stderr
    page = (tmp_path / "report" / "index.html").read_text()
    assert "nothing could be measured" in page and "EPERM" in page


def test_without_a_local_run_the_shipped_one_is_read(tmp_path):
    found = document(lab("claims", "--json", denied=errno.ENOSYS, RSEQLAB_RUNS=str(tmp_path)))
    assert found["origin"] == "shipped reference run"


def test_progress_with_remaining_time_on_a_terminal(tmp_path):
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "run", "registration-rules", "--out", str(tmp_path / "run")],
        stderr=follower,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:  # how Linux reports that the last writer left
            break
        if not data:
            break
        shown += data
    os.close(leader)
    assert process.wait() == 0
    assert b" left" in shown and b"registration-rules" in shown


@pytest.mark.thorough
def test_ctrl_c_in_a_report_is_130_and_leaves_what_was_there(tmp_path):
    (tmp_path / "index.html").write_text("the report before")
    process = subprocess.Popen(
        [*COMMAND, "report", "--force", "--run", str(reference_runs()[-1]), "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stderr:  # it has begun: a first cell is done
        if ".ipynb" in line or "10_registration" in line:
            break
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60 * PATIENCE)[1]
    assert process.returncode == 130 and "Traceback" not in said and "Interrupted" in said, said
    assert (tmp_path / "index.html").read_text() == "the report before"


def test_doctor_sees_the_tunable_that_it_was_started_with():
    assert document(lab("doctor", "--json", GLIBC_TUNABLES="glibc.pthread.rseq=0"))["rseq"]["owner"] == "none"


def test_a_user_without_name_and_home_can_run_and_report(tmp_path):
    become = [
        "setpriv",
        "--reuid=54321",
        "--regid=54321",
        "--clear-groups",
        "env",
        "-u",
        "HOME",
        "-u",
        "PYTHONPATH",
    ]
    able = shutil.which("setpriv") and subprocess.run(
        [*become, sys.executable, "-c", "import rseqlab.cli"], capture_output=True, cwd="/"
    )
    if not able or able.returncode:
        pytest.skip("needs root, setpriv, and a checkout and a Python that every user may read")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o777)
        for command in (
            ["run", "registration-rules", "--out", folder / "run"],
            ["report", "--out", folder / "report"],
        ):
            run = [*become, f"RSEQLAB_RUNS={folder}", *COMMAND, *map(str, command)]
            result = subprocess.run(run, capture_output=True, text=True, cwd="/", timeout=120)
            assert result.returncode == 0, result.stderr
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["doctor"]])
def test_a_full_standard_output_is_an_error_in_words(command, unbuffered):
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, *command],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert result.returncode == 1 and "Traceback" not in result.stderr


def test_a_reader_that_leaves_is_no_traceback():
    result = subprocess.run(
        f"{sys.executable} -m rseqlab.cli list | head -1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.strip() == next(iter(catalogue())) and not result.stderr
