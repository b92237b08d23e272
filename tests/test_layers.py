"""Imports go one way, and everything but what uses the native layer works without it."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "rseqlab"

LAYERS = [
    {"errors", "paths"},
    {"native", "facts"},
    {"microarchitecture"},
    {"hardware", "software"},
    {"abi", "host", "layout", "rseq", "percpu"},
    {"lab"},
    {"options", "vm", "census"},
    {"experiments"},
    {"doctor", "progress"},
    {"study"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SIBLINGS = {
    ("host", "abi"),
    ("layout", "abi"),
    ("abi", "layout"),
    ("rseq", "abi"),
    ("percpu", "host"),
    ("percpu", "rseq"),
}
"""Within a level only these: abi is the dictionary of its own level (and hands out layouts), structures run in an area."""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_go_down(path):
    relative = path.relative_to(PACKAGE)
    here = relative.parts[0].removesuffix(".py")
    if here == "__init__" or relative.name == "build.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rseqlab"):
            names = [
                f"{node.module}.{alias.name}" if node.module == "rseqlab" else node.module
                for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("rseqlab.")]
        for name in names:
            there = room(name)
            if there in ("", "__version__", here) or there not in LEVEL:
                continue
            assert LEVEL[there] < LEVEL[here] or (here, there) in SIBLINGS, f"{relative} imports {name}"


def test_every_room_has_a_level():
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms - {"__init__", "schemas"} == set(LEVEL)


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=180
    )


def test_importing_the_package_is_light():
    result = run("""
        import sys, rseqlab
        heavy = {"matplotlib", "pandas", "numpy", "scipy", "cffi", "rich", "typer"} & set(sys.modules)
        assert not heavy, heavy
    """)
    assert result.returncode == 0, result.stderr


def test_all_rooms_import_without_the_compiled_layer_and_say_what_is_missing():
    result = run("""
        import sys
        sys.modules["rseqlab.native._core"] = sys.modules["rseqlab.native._own_tls"] = None  # as if never built
        import rseqlab.cli, rseqlab.doctor, rseqlab.lab.runner, rseqlab.study.publish, rseqlab.study.figures
        from rseqlab.experiments import catalogue
        for experiment in catalogue().values():
            if any(need.name == "the compiled layer" for need in experiment.needs):
                assert any("make setup" in reason for reason in experiment.unmet()), experiment.unmet()
        document = rseqlab.doctor.examine()
        assert not document["native"]["available"] and document["rseq"]["owner"] is None
        assert "make setup" in document["rseq"]["reasons"]["owner"]
        print(rseqlab.doctor.area())
    """)
    assert result.returncode == 0, result.stderr
    assert "make setup" in result.stdout
