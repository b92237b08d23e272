"""The set-up: three statements of the dependencies agree, and what is missing is named rightly."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from conftest import STAGES

import rseqlab

ROOT = Path(__file__).resolve().parents[1]
BOOTSTRAP = ROOT / "tools" / "bootstrap.py"
CONDA_NAMES = {
    "playwright": "playwright-python",
    "capstone": "python-capstone",
    "fastjsonschema": "python-fastjsonschema",
    "libarchive-c": "python-libarchive-c",
}
CONDA_ONLY = {"python", "pip", "make", "c-compiler", "libarchive"}

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()


def load_bootstrap():
    spec = importlib.util.spec_from_file_location("bootstrap", BOOTSTRAP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load_bootstrap()


def bounds(requirements):
    """{name: lower bound, as written}; the project states lower bounds only."""
    split = [one.partition(">=") for one in requirements if not one.startswith("rseqlab[")]
    return {name.strip().lower(): bound.strip() for name, _, bound in split}


def number(version):
    return tuple(int(part) for part in version.split("."))


def stated():
    project = PROJECT["project"]
    return bounds(project["dependencies"]) | bounds(chain(*project["optional-dependencies"].values()))


def locked():
    """[(name, version, number of hashes)]; a name repeats where Pythons need different versions."""
    entry = r"^([a-z0-9._-]+)==(\S+).*((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)*)"
    found = re.findall(entry, LOCK, re.MULTILINE)
    return [(name, version, hashes.count("--hash")) for name, version, hashes in found]


# --- dependencies ---------------------------------------------------------------------------------


def test_conda_environment_states_the_same_dependencies():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    environment = bounds([*(entry for entry in entries if isinstance(entry, str)), *from_pip])
    assert environment["python"] == PROJECT["project"]["requires-python"].removeprefix(">=")
    expected = {CONDA_NAMES.get(name, name): bound for name, bound in stated().items()}
    assert {name: bound for name, bound in environment.items() if name not in CONDA_ONLY} == expected


def test_every_stage_has_its_tests_and_is_run():
    files = {path.stem.removeprefix("test_") for path in (ROOT / "tests").glob("test_*.py")}
    named = [name for names in STAGES.values() for name in names]
    assert len(named) == len(set(named)) and set(named) < files
    order = re.search(r"^for part in (.*); do$", (ROOT / ".ci" / "run").read_text(), re.M)[1].split()
    assert order == list(STAGES)
    # In two words pytest takes a stage that is also a folder's name for the folder, and does not know the option.
    assert "--stage=$(STAGE)" in (ROOT / "Makefile").read_text()


def test_the_extra_all_is_every_other_extra():
    extras = dict(PROJECT["project"]["optional-dependencies"])
    assert extras.pop("all") == [f"rseqlab[{','.join(sorted(extras))}]"]
    assert set(extras["cluster"]) <= set(extras["test"]), "the tests need a cluster"


def test_the_version_stands_in_one_place_and_is_repeated_rightly():
    assert "version" not in PROJECT["project"] and "version" in PROJECT["project"]["dynamic"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == rseqlab.__version__ == importlib.metadata.version("rseqlab")
    newest = re.search(
        r"^## (\S+) \((not released|\d{4}-\d\d-\d\d)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert newest[1] == rseqlab.__version__


def test_the_citation_has_what_its_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == PROJECT["project"]["license"]
    assert citation["title"] and citation["message"] and citation["type"] == "software"
    assert all(author["name"] for author in citation["authors"])


def test_lock_covers_every_dependency_within_its_bounds():
    needed = bounds(PROJECT["build-system"]["requires"]) | stated()
    versions = {}
    for name, version, _ in locked():
        versions.setdefault(name, []).append(version)
    assert needed.keys() <= versions.keys()
    below = [(name, v) for name, bound in needed.items() for v in versions[name] if number(v) < number(bound)]
    assert not below, "make lock"


def test_every_locked_requirement_has_hashes():
    requirements = [line for line in LOCK.splitlines() if re.match(r"[a-zA-Z]", line)]
    assert len(locked()) == len(requirements) > 0
    assert all(hashes for _, _, hashes in locked())


def test_lock_names_no_host_and_no_path():
    # The "via" comments name packages; nothing else has a slash or an option other than --hash.
    assert "/" not in LOCK
    assert set(re.findall(r"--[a-z-]+", LOCK)) == {"--hash"}


# --- what is missing ------------------------------------------------------------------------------

BARE_DEBIAN = bootstrap.Machine(
    linux=True,
    compiler="x86_64-linux-gnu-gcc",
    has_compiler=False,
    has_libc_headers=False,
    has_python_headers=False,
    has_ensurepip=False,
    has_libarchive=False,
    python="/usr/bin/python3.13",
    system_python="/usr/bin/python3.13",
    version="3.13",
)


def packages(machine):
    return [need.package for need in bootstrap.missing(machine)]


def test_a_bare_debian_lacks_five_packages():
    assert packages(BARE_DEBIAN) == ["gcc", "libc6-dev", "python3-dev", "python3-venv", "libarchive13"]
    command = bootstrap.install_command(packages(BARE_DEBIAN))
    assert "\n" not in command and command.endswith(" gcc libc6-dev python3-dev python3-venv libarchive13")


def test_another_python_of_debian_has_packages_of_its_own():
    machine = BARE_DEBIAN._replace(python="/usr/bin/python3.11", version="3.11")
    assert packages(machine)[2:4] == ["python3.11-dev", "python3.11-venv"]


def test_a_python_from_elsewhere_has_no_package():
    machine = BARE_DEBIAN._replace(python="/opt/python/bin/python3.13", has_ensurepip=True)
    headers = bootstrap.missing(machine)[2]
    assert headers.package is None
    assert "/opt/python/bin/python3.13 was installed without it" in bootstrap.describe([headers], apt=True)


def test_the_compiler_is_the_one_this_python_was_built_for():
    assert packages(BARE_DEBIAN._replace(compiler="clang-19"))[0] == "clang"


def test_without_apt_the_names_elsewhere_are_told():
    text = bootstrap.describe(bootstrap.missing(BARE_DEBIAN), apt=False)
    assert "musl-dev" in text and "python3-devel" in text and "libc6-dev" not in text


def test_nothing_is_missing_where_everything_is():
    complete = {fact: True for fact in BARE_DEBIAN._fields if fact.startswith("has_")}
    assert bootstrap.missing(BARE_DEBIAN._replace(**complete)) == []


def test_outside_linux_nothing_is_compiled():
    assert packages(BARE_DEBIAN._replace(linux=False)) == ["python3-venv"]


# --- optional tools -------------------------------------------------------------------------------

POLICY = """\
qemu-user-static:
  Installed: (none)
  Candidate: (none)
  Version table:
qemu-user:
  Installed: (none)
  Candidate: 1:10.0.2+ds-2
  Version table:
     1:10.0.2+ds-2 500
"""


def test_only_packages_with_a_candidate_are_offered():
    assert bootstrap.offered(POLICY) == ["qemu-user"]


def test_a_release_candidate_is_not_offered():
    assert bootstrap.offered("python3.11:\n  Candidate: 3.11.0~rc1-1~22.04\n") == []


def test_of_two_names_the_one_that_exists_is_chosen():
    tools = bootstrap.wanted_tools("x86_64")
    chosen, without = bootstrap.choose(tools, ["clang", "qemu-user"])
    assert chosen == ["clang", "qemu-user"]
    assert "chromium" in [name for tool in without for name in tool.packages]


def test_an_aarch64_host_needs_no_cross_tools():
    names = [name for tool in bootstrap.wanted_tools("aarch64") for name in tool.packages]
    cross = [name for tool in bootstrap.OPTIONAL if tool.cross for name in tool.packages]
    assert cross and not set(cross) & set(names)
    assert {
        "clang",
        "abigail-tools",
        "chromium",
        "fonts-dejavu-core",
        "qemu-system-x86",
        "qemu-system-arm",
    } <= set(names)


def test_programs_from_pypi_are_pinned_and_no_dependency_of_the_lab():
    pins = [line for line in bootstrap.WHEELS.read_text().splitlines() if line and line[0] not in "# "]
    assert pins and all("==" in line for line in pins)
    for line in pins:
        assert line.partition("==")[0] not in (ROOT / "requirements.lock").read_text()


# --- an old Python --------------------------------------------------------------------------------


def test_an_old_python_can_parse_the_bootstrap():
    ast.parse(BOOTSTRAP.read_text(), feature_version=(3, 6))


def test_an_old_python_is_told_what_was_found():
    text = bootstrap.too_old({"python3": "3.9.2"}, [])
    assert "3.11 or newer" in text and "python3 is 3.9.2" in text
    text = bootstrap.too_old({"python3": "3.10.12"}, ["python3.11"])
    assert text.endswith(" python3.11 python3.11-dev python3.11-venv")


def old_python():
    found = bootstrap.installed_pythons()
    return next((name for name, version in found.items() if (3, 6) <= number(version) < (3, 11)), None)


@pytest.mark.skipif(old_python() is None, reason="no Python from 3.6 to 3.10 on this machine")
def test_an_old_python_stops_with_a_sentence():
    run = subprocess.run([old_python(), BOOTSTRAP], capture_output=True, text=True)
    assert run.returncode == 1
    assert "3.11 or newer" in run.stderr and "Traceback" not in run.stderr


# --- what is done again ---------------------------------------------------------------------------


def test_a_changed_part_takes_along_those_that_rest_on_it():
    wanted = {"venv": "a", "packages": "b", "project": "c", "native": "d"}
    assert bootstrap.outdated(wanted, wanted) == []
    assert bootstrap.outdated(wanted, {**wanted, "native": "old"}) == ["native"]
    assert bootstrap.outdated(wanted, {**wanted, "packages": "old"}) == ["packages", "project", "native"]
    assert bootstrap.outdated(wanted, {}) == list(wanted)


def test_a_part_is_made_from_what_it_should_be():
    assert list(bootstrap.parts()) == ["venv", "packages", "project", "native"]
    names = {path.name for path in bootstrap.native_sources()}
    assert "build.py" in names and {".c", ".h"} <= {Path(name).suffix for name in names}


# --- make -----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "target", ["help", "report", "test", "test-all", "lab", "setup", "deps", "lock", "clean"]
)
def test_make_knows_the_target(target):
    run = subprocess.run(
        ["make", "-n", target, f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_the_targets():
    run = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "make report" in run.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_clean_keeps_what_was_measured():
    run = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True)
    assert "runs" not in run.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_elsewhere_takes_only_a_user_that_was_given_to_it():
    def command(*words):
        run = subprocess.run(
            ["make", "-n", "elsewhere", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "USER": "alice"},
        )
        return run.stdout

    assert "tools/elsewhere.py trixie" in command("SUITE=trixie") and "alice" not in command("SUITE=trixie")
    assert '--user "reader"' in command("SUITE=trixie", "USER=reader")
    without = subprocess.run(["make", "elsewhere"], cwd=ROOT, capture_output=True, text=True)
    assert without.returncode == 2 and "SUITE=trixie" in without.stderr
