"""CONTRIBUTING.md, followed to the letter in a copy of the project: its files written, its changes made, its commands run."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, require_or_skip

from rseqlab import native
from rseqlab.lab import probe

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("rseqlab", "data", "notebooks", "pyproject.toml")
BLOCK = re.compile(r"(?:^`(?P<file>[^`]+)`:\n\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.M | re.S)


@pytest.fixture
def rseq_works():
    """The guides measure."""
    missing = native.unavailable() or probe.kernel_refusal()
    require_or_skip(missing is None, f"rseq ({missing})", "run it where threads may register")


def guide(title: str) -> str:
    """One section of the file."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    return found


def follow(title: str, copy: Path) -> list[str]:
    """Do what the guide says, in its order; what its commands printed."""
    require_or_skip((ROOT / ".venv").exists(), "the .venv that the guide's commands name", "run `make setup`")
    require_or_skip(shutil.which("git") is not None, "git", "install it")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, copy / name)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"PYTHONPATH": str(copy), "COLUMNS": "200", "LC_ALL": "C.UTF-8"}
    printed = []
    for block in BLOCK.finditer(guide(title)):
        kind, text = block["kind"], block["text"]
        if kind == "python":
            path = copy / block["file"]
            assert not path.exists() and path.parent.is_dir()
            path.write_text(text)
            continue
        command = ["git", "apply", "-"] if kind == "diff" else ["sh", "-e"]
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            cwd=copy,
            env=environment | {"GIT_CEILING_DIRECTORIES": str(copy.parent)},
            timeout=300 * PATIENCE,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        printed += [done.stdout] if kind == "sh" else []
    return printed


def table(copy: Path, name: str) -> list[dict]:
    (path,) = (copy / "runs").glob(f"*/{name}.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_experiment_of_the_guide_runs(rseq_works, tmp_path):
    printed = follow("Add an experiment", tmp_path)
    assert "yield-moves" in printed[0]
    rows = table(tmp_path, "yield-moves")
    assert len(rows) == 20 and all(0 <= int(row["moves"]) <= int(row["yields"]) for row in rows)


@pytest.mark.thorough
def test_the_option_of_the_guide_has_cells(rseq_works, tmp_path):
    printed = follow("Add an option", tmp_path)
    rows = [row for row in table(tmp_path, "option-ptrace") if row["option"] == "reserve-symbol"]
    assert len(rows) == 1 and rows[0]["ended"] == "exit 0", rows
    cell = next(line for line in printed[0].splitlines() if line.startswith("reserve-symbol, ptrace: "))
    assert "not measured" not in cell.lower()


def test_the_guides_files_pass_the_linter(tmp_path):
    for number, block in enumerate(BLOCK.finditer(guide("Add an experiment"))):
        if block["kind"] == "python":
            (tmp_path / f"block{number}.py").write_text(block["text"])
    shutil.copyfile(ROOT / "pyproject.toml", tmp_path / "pyproject.toml")
    for words in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *words, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * PATIENCE)
        assert done.returncode == 0, done.stdout + done.stderr
