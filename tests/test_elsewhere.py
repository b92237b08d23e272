"""`make elsewhere`: a real root of Debian, entered and left; whatever ends it, nothing is left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PATIENCE, require_or_skip

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "elsewhere.py"
ROOTS = ROOT / "build" / "elsewhere"
SUITE = "bookworm"


def elsewhere(*arguments, before=(), **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*before, sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=900, **options
    )


@pytest.fixture(scope="module")
def able():
    """Root, mmdebstrap, and the right to make namespaces and mounts."""
    tools = shutil.which("mmdebstrap") and shutil.which("unshare") and shutil.which("git")
    require_or_skip(bool(tools), "mmdebstrap", "install it with `make deps`")
    may = (
        os.geteuid() == 0
        and subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode
        == 0
    )
    require_or_skip(may, "the right to make mount and PID namespaces", "run the tests as root, in no sandbox")


def roots() -> list[Path]:
    return list(ROOTS.glob("*.root"))


def inside(pid: int) -> list[int]:
    """The processes whose root is one of this process's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/root"):
        try:
            if f"-{pid}.root" in os.readlink(path):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["Trixie!"], "SUITE is 'Trixie!'"),
        (["trixie", "--user", "a b"], "USER is 'a b'"),
        (["trixie", "--commands", " "], "COMMANDS is empty"),
        (["trixie", "--commands", "test 'STAGE=native"], "No closing quotation"),
        (["trixie", "--limit-s", "0"], "above 0"),
    ],
)
def test_wrong_use_says_what_is_allowed(arguments, word):
    told = elsewhere(*arguments)
    assert told.returncode == 2 and word in told.stderr and not told.stdout


def test_a_missing_tool_is_named_with_the_command_that_adds_it(tmp_path):
    told = elsewhere("trixie", env=os.environ | {"PATH": str(tmp_path)})
    assert told.returncode == 1 and "Traceback" not in told.stderr
    assert "mmdebstrap was not found" in told.stderr and "apt-get install" in told.stderr


def test_who_is_not_root_is_told():
    before = ["unshare", "--user"] if os.geteuid() == 0 else []
    able = not before or subprocess.run([*before, "true"], capture_output=True).returncode == 0
    require_or_skip(able and bool(shutil.which("mmdebstrap")), "mmdebstrap", "install it with `make deps`")
    told = elsewhere("trixie", before=before)
    assert told.returncode == 1 and "sudo" in told.stderr and "Traceback" not in told.stderr


@pytest.mark.thorough
def test_a_root_that_cannot_be_made_is_one_line_and_leaves_nothing(able):
    told = elsewhere("nosuchsuite")
    assert told.returncode == 1 and "Traceback" not in told.stderr
    last = told.stderr.splitlines()[-1]
    assert "no root of 'nosuchsuite' could be made" in last and "does not have a Release file" in last
    assert not list(ROOTS.glob("nosuchsuite*"))


@pytest.mark.thorough
def test_the_commit_is_checked_out_on_a_bare_system_and_the_root_is_removed(able):
    before = roots()
    told = elsewhere(SUITE, "--commands", "help", "--json")
    assert told.returncode == 0, told.stderr
    summary = json.loads(told.stdout)
    assert summary["passed"] and summary["suite"] == SUITE and summary["kept_root"] is None
    assert [(step["command"], step["status"]) for step in summary["steps"]] == [("make help", 0)]
    assert roots() == before


@pytest.mark.thorough
def test_a_command_that_fails_there_fails_here(able):
    told = elsewhere(SUITE, "--commands", "no-such-target", "--quiet", "--json")
    assert told.returncode == 1 and "no-such-target" in told.stderr
    assert json.loads(told.stdout)["passed"] is False


@pytest.mark.thorough
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_behind_however_it_ends(able, how):
    command = [sys.executable, TOOL, SUITE, "--commands", "setup"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as tool:
        for line in tool.stderr:
            if "Reading the package lists" in line or "Making .venv" in line:
                break
        running = inside(tool.pid)
        tool.send_signal(how)
        said = tool.stderr.read()
        status = tool.wait(timeout=60 * PATIENCE)
    assert status == (-how if how == signal.SIGKILL else 130) and "Traceback" not in said, said
    assert running, "the command never ran in the root"
    deadline = time.monotonic() + 60 * PATIENCE
    while inside(tool.pid) or list(ROOTS.glob(f"*-{tool.pid}.root")):
        assert time.monotonic() < deadline, (inside(tool.pid), roots())
        time.sleep(0.1)
    assert f"-{tool.pid}.root" not in Path("/proc/self/mountinfo").read_text()
