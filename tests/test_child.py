"""Children: whatever happens to one becomes a record, and none outlives whoever started it."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from children import crash, fail, finish, hang, leave_a_grandchild, raise_something, talk
from processes import children_of

from rseqlab.lab.child import Child, in_fork


@pytest.fixture(autouse=True)
def _children_are_found(monkeypatch):
    """A child imports its function by name, and those of children.py lie beside this file."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    )


def outcome(function, timeout_s=20.0, **arguments):
    child = Child(function, arguments, {}, timeout_s)
    rows = list(child)
    return rows, child.outcome


def test_rows_and_a_clean_end():
    rows, end = outcome(finish, count=3)
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert end.status == "pass" and end.reason is None


def test_a_crash_is_a_record_with_the_signal_and_keeps_the_rows_before_it():
    rows, end = outcome(crash)
    assert rows == [{"number": 0}]
    assert end.status == "crash" and "SIGSEGV" in end.reason


def test_an_exception_is_a_crash_that_names_what_was_raised():
    _, end = outcome(raise_something)
    assert end.status == "crash" and end.reason == "exit code 1: ValueError: no such thing"


def test_a_failed_check_is_not_a_crash():
    _, end = outcome(fail)
    assert end.status == "fail" and end.reason == "the sum is wrong"


def test_a_hang_ends_at_its_deadline():
    started = time.monotonic()
    rows, end = outcome(hang, timeout_s=1.5)
    assert end.status == "timeout" and rows == [{"number": 0}]
    assert time.monotonic() - started < 10


def test_what_a_child_prints_is_not_mistaken_for_rows():
    rows, end = outcome(talk)
    assert rows == [{"number": 0}] and end.status == "pass"


def test_only_the_stated_environment_reaches_the_child(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
    monkeypatch.setenv("SECRET", "1")
    rows, _ = outcome(finish, count=1)
    assert "GLIBC_TUNABLES" not in rows[0]["environment"] and "SECRET" not in rows[0]["environment"]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_leaving_early_kills_the_child_and_what_it_started():
    for row in Child(leave_a_grandchild, {}, {}, 60):
        pids = row["child"], row["grandchild"]
        break
    assert all(map(gone, pids))


def test_killing_the_parent_kills_the_child():
    code = textwrap.dedent("""
        from children import hang
        from rseqlab.lab.child import Child
        for row in Child(hang, {}, {}, 600):
            print(row.get("pid", ""), flush=True)
    """)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    children = children_of(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert children and all(map(gone, children))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: 7, (7, None, False)),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), (None, "SIGKILL", False)),
        (lambda: time.sleep(60), (None, None, True)),
    ],
)
def test_attempts_in_a_fork(function, expected):
    ended = in_fork(function, timeout_s=0.5)
    assert (ended.value, ended.signal_name, ended.hung) == expected
