"""Which rows a change of the code makes stale: found by imports and by the C that they name, in a copy of the package."""

import shutil
from pathlib import Path

import pytest

from rseqlab.experiments import catalogue
from rseqlab.lab import runner
from rseqlab.lab.stale import PACKAGE, Code, code_digest


@pytest.fixture
def copy(tmp_path):
    """The package, to be changed."""
    return Path(
        shutil.copytree(PACKAGE, tmp_path / "rseqlab", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    )


CODES: dict[Path, Code] = {}


def digests(package: Path, anew: bool = False) -> dict[str, str]:
    """Each experiment's digest, by the name of its file; ``anew`` where files were moved meanwhile."""
    if anew or package not in CODES:
        CODES[package] = Code(package)
    code = CODES[package]
    modules = sorted(path for path in (package / "experiments").rglob("*.py") if path.stem != "__init__")
    return {path.stem: code.digest(path) for path in modules}


def changed(package: Path, name: str, add: str) -> set[str]:
    """The experiments whose rows are stale after ``add`` is put at the end of a file."""
    before = digests(package)
    path = package / name
    path.write_text(path.read_text() + add)
    after = digests(package)
    return {one for one, digest in after.items() if digest != before[one]}


def test_the_digest_that_a_run_records_is_that_of_the_files():
    assert all(len(code_digest(one)) == 16 for one in catalogue().values())
    assert code_digest(catalogue()["usage-files"]) == digests(PACKAGE)["usage_files"]
    record = {
        "experiments": {name: {"code_digest": code_digest(catalogue()[name])} for name in ("cpu-id-read",)}
    }
    assert runner.stale(record, list(catalogue().values())) == []
    record["experiments"]["cpu-id-read"]["code_digest"] = "0" * 16
    assert runner.stale(record, list(catalogue().values())) == ["cpu-id-read"]


def test_a_classifier_that_changed_makes_the_rows_of_the_files_stale_and_no_others(copy):
    assert changed(copy, "census/evidence.py", "\nNEW_RULE = 1\n") == {"usage_files"}


def test_a_probe_that_changed_makes_rows_of_those_stale_who_ask_it(copy):
    found = changed(copy, "lab/probe.py", "\nNEW_PROBE = 1\n")
    assert {"cpu_id_read", "option_skew", "registration_rules", "workload_redis"} <= found
    assert not found & {"usage_files", "usage_live", "kernel_matrix", "slice_extension"}


def test_a_header_that_changed_makes_rows_of_those_stale_who_run_or_compile_it(copy):
    found = changed(copy, "native/arch/x86_64.h", "\n#define NEW 1\n")
    assert {"cpu_id_read", "percpu_ops", "percpu_peers", "kernel_costs", "percpu_instructions"} <= found
    assert not found & {"slice_extension", "slice_registration"}
    assert changed(copy, "vm/c/slice.c", "\nint new;\n") >= {"slice_extension", "slice_registration"}
    assert changed(copy, "experiments/c/access.h", "\n#define NEW 1\n") == {
        "option_access_cost",
        "option_access_count",
    }


def test_what_starts_and_prints_makes_nothing_stale(copy):
    for name in (
        "lab/runner.py",
        "lab/bundle.py",
        "study/claims.py",
        "cli/measure.py",
        "errors.py",
        "__init__.py",
    ):
        assert changed(copy, name, "\nNEW = 1\n") == set(), name


def test_comments_docstrings_and_imports_make_nothing_stale(copy):
    before = digests(copy)
    for name in ("lab/probe.py", "rseq.py", "experiments/cpu_id_read.py"):
        path = copy / name
        path.write_text('"""Other words."""\n# and more\n\nimport os\n' + path.read_text() + "\n# the end\n")
    header = copy / "native" / "sections.h"
    header.write_text("/* other words */\n" + header.read_text() + "\n// the end\n")
    assert digests(copy) == before


def test_a_file_that_moves_makes_nothing_stale(copy):
    """What imports it says so in its import lines; its text, and that of the C, stay as they are."""
    before = digests(copy)
    (copy / "census" / "classes").mkdir()
    (copy / "census" / "evidence.py").rename(copy / "census" / "classes" / "evidence.py")
    for path in copy.rglob("*.py"):
        text = path.read_text()
        moved = text.replace("rseqlab.census.evidence import", "rseqlab.census.classes.evidence import")
        moved = moved.replace(
            "from rseqlab.census import evidence, files",
            "from rseqlab.census import files\nfrom rseqlab.census.classes import evidence",
        )
        if moved != text:
            path.write_text(moved)
    (copy / "native" / "arch").rename(copy / "native" / "ports")
    for path in copy.rglob("*.[ch]"):
        path.write_text(path.read_text().replace('"arch/', '"ports/'))
    assert digests(copy, anew=True) == before
    assert changed(copy, "census/classes/evidence.py", "\nNEW = 1\n") == {"usage_files"}


def test_an_import_inside_a_function_counts(copy):
    path = copy / "experiments" / "usage_files.py"
    path.write_text(
        path.read_text() + "\n\ndef late():\n    from rseqlab.census import known\n\n    return known\n"
    )
    assert changed(copy, "census/known.py", "\nNEW = 1\n") == {"usage_files"}


@pytest.mark.parametrize(
    "name", ["option-skew", "percpu-ops", "kernel-matrix", "workload-jvm", "kernel-cpus"]
)
def test_the_c_that_an_experiment_compiles_is_among_its_files(name):
    experiment = catalogue()[name]
    found = {
        path.name
        for path in Code(PACKAGE).files(PACKAGE.parent / f"{experiment.module.replace('.', '/')}.py")
    }
    wanted = {
        "option-skew": {"provider.c", "consumer.c", "program.c", "scheme.h", "versions-all.map"},
        "percpu-ops": {"ops.c", "percpu.c", "sections.h", "x86_64.h", "aarch64.h", "core.cdef.h"},
        "kernel-matrix": {"probe.c", "libc_names.c", "bare.h", "matrix.c", "guest.h"},
        "workload-jvm": {"Allocate.java", "count_getcpu.c"},
        "kernel-cpus": {"cpus.c", "guest.h"},
    }
    assert wanted[name] <= found


def test_an_experiment_that_runs_tests_has_them_among_its_files():
    found = {path.name for path in Code(PACKAGE).files(PACKAGE / "experiments" / "kernel_suite.py")}
    assert {"test_rseq.py", "test_attack.py", "attack.c", "rseq.py", "percpu.py"} <= found
    others = Code(PACKAGE).files(PACKAGE / "experiments" / "percpu_peers.py")
    assert not [path for path in others if path.is_relative_to(PACKAGE.parent / "tests")]
