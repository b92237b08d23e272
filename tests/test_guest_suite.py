"""The package's own tests on a real arm64 kernel, the rows that such a guest may write, and the cross build."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import require_or_skip
from elftools.elf.elffile import ELFFile

from rseqlab.errors import LabError
from rseqlab.experiments import kernel_suite
from rseqlab.lab.child import Child, Failed
from rseqlab.lab.experiment import measure_part
from rseqlab.study import kernel_suite as shown
from rseqlab.study.run import SHIPPED, NotMeasured, open_run
from rseqlab.vm import boot, crossbuild, guest_suite, packages, python_image, stock

AT_LEAST = {
    "test_rseq.py": 25,
    "test_percpu.py": 7,
    "test_attack.py": 6,
    "test_native.py": 23,
    "test_layout.py": 10,
}
"""Tests that pass in the guest, by file; fewer would be a suite that has lost some on the way."""

MAY_SKIP = (
    "gcc is missing",
    "clang is missing",
    "cc is missing",
    "aarch64-linux-gnu-gcc is missing",
    "qemu-aarch64",
)
"""A guest has no compiler and no emulator in it; whatever else is skipped there has to be looked at."""


@pytest.mark.thorough
def test_the_packages_own_tests_pass_on_a_real_arm64_kernel():
    unmet = kernel_suite.EXPERIMENT.unmet()
    require_or_skip(not unmet, "what a guest needs", "; ".join(unmet))
    try:
        stock.fetch([("newest", kernel_suite.ARCH)], [])
        python_image.python()
    except LabError as error:
        require_or_skip(False, f"a kernel or the Python for guests ({error})", "try `rseqlab kernels fetch`")
    (part,) = kernel_suite.plan("quick")
    request = {"module": kernel_suite.__name__, "arguments": dict(part.arguments), "done": []}
    child = Child(measure_part, request, part.environment, part.timeout_s)
    rows = list(child)
    assert child.outcome.status == "pass", child.outcome.reason
    failed = [(row["test"], row["reason"]) for row in rows if row["outcome"] == "failed"]
    assert not failed, "\n".join(f"{test}: {reason}" for test, reason in failed)
    assert {row["arch"] for row in rows} == {"aarch64"} and {row["cpus"] for row in rows} == {2}
    for row in rows:
        assert row["outcome"] == "passed" or row["reason"].startswith(MAY_SKIP), row
    passed = Counter(Path(row["test"].partition("::")[0]).name for row in rows if row["outcome"] == "passed")
    for name, least in AT_LEAST.items():
        assert passed[name] >= least, passed


GUEST = {
    "kind": "guest",
    "release": "6.12.0",
    "arch": "aarch64",
    "libc": "glibc 2.41",
    "python": "3.13.5",
    "pytest": "8.3.5",
    "cpus": 2,
}
PASSED = {"kind": "test", "test": "tests/a.py::one", "outcome": "passed", "seconds_s": 0.5, "reason": None}
END = {"kind": "end", "status": 0}


def test_what_a_guest_may_write_becomes_rows():
    facts, rows = kernel_suite.checked([GUEST, PASSED, END])
    assert facts == {name: GUEST[name] for name in ("release", "arch", "libc", "python", "cpus")}
    assert rows == [{name: PASSED[name] for name in kernel_suite.TEST}]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [GUEST, END],
        [PASSED, PASSED, END],
        [GUEST, PASSED],
        [GUEST, PASSED, PASSED, END],
        [GUEST, PASSED, END | {"status": 1}],
        [GUEST, PASSED, END | {"status": -9}],
        [GUEST, PASSED | {"outcome": "failed", "reason": "it broke"}, END],
        [GUEST, PASSED | {"outcome": "skipped"}, END],
        [GUEST, PASSED | {"reason": "why"}, END],
        [GUEST, PASSED | {"outcome": "splendid"}, END],
        [GUEST, PASSED | {"seconds_s": -1.0}, END],
        [GUEST, PASSED | {"seconds_s": "1"}, END],
        [GUEST, PASSED | {"test": "x" * 5000}, END],
        [GUEST, PASSED | {"test": ""}, END],
        [GUEST | {"cpus": True}, PASSED, END],
        [GUEST | {"libc": None}, PASSED, END],
    ],
)
def test_what_no_suite_could_have_written_is_refused(rows):
    with pytest.raises(Failed):
        kernel_suite.checked(rows)


def test_the_suite_reports_every_outcome_in_rows_that_are_accepted(tmp_path):
    """The program of the guest, here: passed, skipped, failed, a crash of a worker, a file that is none."""
    (tmp_path / "test_some.py").write_text(
        "import ctypes, pytest\n"
        "def test_passes(): pass\n"
        "def test_skips(): pytest.skip('nothing \\x1b[31m here')\n"
        "def test_fails(): assert 1 == 2\n"
        "def test_crashes(): ctypes.string_at(0)\n"
        "def test_clean_up_fails(broken): pass\n"
        "@pytest.fixture\n"
        "def broken():\n    yield\n    raise ValueError('at the end')\n"
    )
    (tmp_path / "test_none.py").write_text("import no_such_module\n")
    read, write = os.pipe()
    program = (
        f"import os, sys; os.dup2({write}, 3); sys.argv = ['x']; import runpy; "
        f"runpy.run_path({guest_suite.__file__!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {guest_suite.TESTS: str(tmp_path), "PYTEST_ADDOPTS": ""},
        pass_fds=(write,),
        capture_output=True,
        timeout=120,
        cwd=tmp_path,
    )
    os.close(write)
    with open(read) as file:
        rows = [json.loads(line) for line in file]
    assert done.returncode == 1, done.stdout
    _, found = kernel_suite.checked([*rows, {"kind": "end", "status": done.returncode}])
    outcomes = {row["test"].rpartition("::")[2]: row for row in found}
    assert {name: row["outcome"] for name, row in outcomes.items()} == {
        "test_passes": "passed",
        "test_skips": "skipped",
        "test_fails": "failed",
        "test_crashes": "failed",
        "test_clean_up_fails": "failed",
        "test_none.py": "failed",
    }
    assert outcomes["test_skips"]["reason"].isprintable() and "1 == 2" in outcomes["test_fails"]["reason"]


def test_the_cross_built_extensions_are_stable_abi_for_aarch64():
    """As the guest gets them: every symbol of Python that they want is in the stable ABI, nothing of a libc newer than 2.34."""
    reason = python_image.missing() or packages.missing() or boot.missing("aarch64")
    require_or_skip(reason is None, "what a guest needs", str(reason))
    found = crossbuild.extensions("aarch64", python_image.python().include)
    assert set(found) == {"_core.abi3.so", "_own_tls.abi3.so"}
    for path in found.values():
        with open(path, "rb") as file:
            elf = ELFFile(file)
            assert elf["e_machine"] == "EM_AARCH64"
            versions = [
                one.name
                for _, needed in elf.get_section_by_name(".gnu.version_r").iter_versions()
                for one in needed
            ]
            assert versions and all(tuple(map(int, name[6:].split("."))) <= (2, 34) for name in versions), (
                versions
            )


def test_without_rows_the_study_says_so():
    run = open_run(SHIPPED)
    for function in (shown.summary, shown.exceptions):
        answer = function(run)
        assert isinstance(answer, NotMeasured) or len(answer.frame.columns) > 3
    assert shown.sentence(run)
