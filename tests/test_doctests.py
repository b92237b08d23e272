"""The examples in docstrings are true, and the reference that is made of docstrings holds every module."""

import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rseqlab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rseqlab"
WITH_EXAMPLES = sorted(path for path in PACKAGE.rglob("*.py") if "    >>> " in path.read_text())


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 5


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_examples_are_true(path):
    found = doctest.testmod(importlib.import_module(module_name(path)))
    assert found.attempted > 0 and found.failed == 0


@pytest.mark.thorough
def test_the_reference_is_made_of_docstrings(tmp_path):
    command = [sys.executable, ROOT / "tools" / "api.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "rseqlab" / "lab" / "stats.html").read_text()
    assert "no independent evidence" in page and "&gt;&gt;&gt;" in page
    rooms = {
        module.name for module in pkgutil.iter_modules(rseqlab.__path__) if not module.name.startswith("_")
    }
    made = {path.stem for path in (tmp_path / "rseqlab").glob("*.html")}
    assert rooms <= made
    texts = "".join(path.read_text() for path in tmp_path.rglob("*.html"))
    assert str(ROOT) not in texts, "no path of this machine"
