"""A kernel of one's own and the slice extension on it: everything but the minutes that a real build takes.

What needs the real kernel runs where one is cached, and is skipped by name elsewhere: it is not in the default run.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from built_runs import Rows
from conftest import require_or_skip

from rseqlab.errors import UsageError
from rseqlab.experiments import slice_extension, slice_registration
from rseqlab.lab import bundle, compile
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Task
from rseqlab.study import slice as study
from rseqlab.study.run import NotMeasured
from rseqlab.vm import own_kernel, slices

COMMAND = [sys.executable, "-m", "rseqlab.cli", "kernels", "build"]

TREE_MAKEFILE = """\
VERSION = 7
PATCHLEVEL = 9
tinyconfig:
	@echo CONFIG_MODULES=n > $(O)/.config
olddefconfig:
	@echo settled
bzImage Image:
	@echo '  CC      first.o'
	@$(WAIT)
	@mkdir -p $(O)/arch/x86/boot $(O)/arch/arm64/boot $(O)/include/config
	@date +%N > $(O)/arch/x86/boot/bzImage
	@cp $(O)/arch/x86/boot/bzImage $(O)/arch/arm64/boot/Image
	@echo 7.9.0-rseqlab-own > $(O)/include/config/kernel.release
"""


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """An empty cache of this test's own."""
    monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vm"


@pytest.fixture
def tree(tmp_path):
    """Stands for a tree of kernel source: make is real, what it makes takes no time."""
    reason = own_kernel.missing("x86_64")
    require_or_skip(reason is None, "what a kernel's build needs", str(reason))
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "Makefile").write_text(TREE_MAKEFILE.replace("$(WAIT)", "true"))
    (folder / "Kconfig").write_text("")
    return folder


# ---- the list of options ----


def test_every_option_is_named_once_and_says_why():
    names = [option.name for option in own_kernel.OPTIONS]
    assert len(set(names)) == len(names)
    for option in own_kernel.OPTIONS:
        assert re.fullmatch(r"[A-Z0-9_]+", option.name) and not option.name.startswith("CONFIG_")
        assert option.why.strip() and set(option.required) <= set(option.arch) | set(own_kernel.ARCHITECTURES)


def config(arch, *without):
    return "".join(
        f"CONFIG_{option.name}=y\n" for option in own_kernel.options(arch) if option.name not in without
    )


def test_a_configuration_that_lost_an_option_the_lab_needs_is_refused_with_what_it_is_for():
    with pytest.raises(own_kernel.BuildError, match=r"RSEQ_STATS \(rseq/stats in debugfs"):
        own_kernel.settle("x86_64", config("x86_64", "RSEQ_STATS"))
    with pytest.raises(own_kernel.BuildError, match=own_kernel.SLICE):
        own_kernel.settle("x86_64", config("x86_64", own_kernel.SLICE))


def test_what_an_architecture_may_go_without_is_recorded_as_dropped():
    on, dropped = own_kernel.settle("aarch64", config("aarch64", own_kernel.SLICE))
    assert dropped == (own_kernel.SLICE,) and "RSEQ_STATS" in on


# ---- refusals ----


def test_what_is_missing_is_named_with_the_command_that_adds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = own_kernel.missing("aarch64")
    assert "flex" in said and "aarch64-linux-gnu-gcc" in said
    assert re.search(r"apt-get install .*\bbison\b.*\bgcc-aarch64-linux-gnu\b", said)


def patch_is_there() -> None:
    require_or_skip(shutil.which("patch") is not None, "patch", "install it with `make deps`")


def test_a_patch_applies_or_is_refused_in_its_own_words(tmp_path):
    patch_is_there()
    (tmp_path / "kernel").mkdir()
    file = tmp_path / "kernel" / "rseq.c"
    file.write_text("one\ntwo\nthree\n")
    patch = "--- a/kernel/rseq.c\n+++ b/kernel/rseq.c\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n"
    own_kernel.apply(tmp_path, Path("good.patch"), patch)
    assert file.read_text() == "one\n2\nthree\n"
    for text, words in ((patch, "good.patch does not apply"), ("no patch at all\n", "Only garbage")):
        with pytest.raises(own_kernel.BuildError, match=words):
            own_kernel.apply(tmp_path, Path("good.patch"), text)
    assert file.read_text() == "one\n2\nthree\n" and os.listdir(tmp_path / "kernel") == ["rseq.c"]


def test_a_patch_cannot_reach_out_of_the_source(tmp_path):
    patch_is_there()
    (tmp_path / "tree").mkdir()
    (tmp_path / "victim").write_text("one\n")
    patch = "--- a/../victim\n+++ b/../victim\n@@ -1 +1 @@\n-one\n+two\n"
    with pytest.raises(own_kernel.BuildError):
        own_kernel.apply(tmp_path / "tree", Path("evil.patch"), patch)
    assert (tmp_path / "victim").read_text() == "one\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: (tree / "Makefile").unlink(), "Makefile could not be read"),
        (lambda tree: (tree / "Makefile").write_text("all:\n"), "states no VERSION"),
        (lambda tree: (tree / ".config").write_text(""), "make mrproper"),
    ],
)
def test_what_is_no_clean_tree_is_refused(tree, cached, change, words):
    change(tree)
    with pytest.raises(UsageError, match=words):
        own_kernel.build("x86_64", source=tree)
    assert not list(cached.rglob("record.json"))


def test_wrong_requests_are_refused_before_anything_is_fetched(tmp_path, cached):
    with pytest.raises(UsageError, match="x86_64, aarch64"):
        own_kernel.build("riscv64")
    with pytest.raises(UsageError, match="Could not read the patch"):
        own_kernel.build("x86_64", patches=[tmp_path / "nowhere.patch"])
    with pytest.raises(UsageError, match="apply the patches to it first"):
        own_kernel.build("x86_64", patches=[tmp_path / "nowhere.patch"], source=tmp_path)
    assert not cached.exists()


# ---- building, with a tree that takes no time ----


def test_the_same_is_built_once_and_something_else_anew(tree, cached):
    first = own_kernel.build("x86_64", source=tree)
    assert first.kernel.release == "7.9.0-rseqlab-own" and first.kernel.series == "7.9"
    assert first.kernel.origin == "built" and first.kernel.image.is_relative_to(cached)
    assert own_kernel.build("x86_64", source=tree) == first and own_kernel.newest("x86_64") == first
    (tree / "file.c").write_text("int one;\n")
    second = own_kernel.build("x86_64", source=tree)
    assert second.kernel.image != first.kernel.image and own_kernel.newest("x86_64") == second
    assert own_kernel.build("x86_64", source=tree) == second
    assert [one.kernel.image for one in own_kernel.built()] == [first.kernel.image, second.kernel.image]
    assert not list((cached / "partial").iterdir()) and not (tree / ".config").exists()


def test_a_damaged_image_is_not_found_and_is_built_again(tree, cached):
    first = own_kernel.build("x86_64", source=tree)
    first.kernel.image.write_bytes(b"something else")
    assert own_kernel.newest("x86_64") is None
    assert own_kernel.build("x86_64", source=tree).kernel.image == first.kernel.image
    assert own_kernel.newest("x86_64") is not None


def test_a_failed_build_says_the_compilers_words_and_keeps_nothing_but_its_log(tree, cached):
    (tree / "Makefile").write_text(TREE_MAKEFILE.replace("$(WAIT)", "echo 'x.c:1: error: no' && false"))
    with pytest.raises(own_kernel.BuildError, match=r"x\.c:1: error: no"):
        own_kernel.build("x86_64", source=tree)
    assert own_kernel.built() == [] and not list((cached / "partial").iterdir())
    assert "error: no" in (cached / "own-kernels" / "failed-build.log").read_text()


def command(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_end_in_mid_build_leaves_no_process_and_nothing_cached(tree, cached, number, code):
    mark = tree.parent / "pid"
    wait = f"echo $$$$ > {mark}; exec sleep 600"
    (tree / "Makefile").write_text(TREE_MAKEFILE.replace("$(WAIT)", wait))
    process = subprocess.Popen([*COMMAND, "--source", str(tree)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (mark.exists() and mark.read_text().strip()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=60) == code
    finally:
        process.kill()
    pid = int(mark.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    assert own_kernel.built() == [] and not list((cached / "partial").iterdir())


def test_the_command_prints_the_image_and_says_what_is_in_it(tree, cached):
    text = command("--source", tree)
    assert text.returncode == 0 and Path(text.stdout.strip()).is_file(), text.stderr
    found = json.loads(command("--source", tree, "--json").stdout)
    bundle.validate(found, "kernels-build", "stdout")
    (kernel,) = found["kernels"]
    assert kernel["image"] == text.stdout.strip() and kernel["slice_extension"] and not kernel["dropped"]


def test_the_command_says_what_is_wrong_as_text_and_as_json(tree, cached):
    (tree / "Makefile").unlink()
    result = command("--source", tree, "--json")
    found = json.loads(result.stdout)
    bundle.validate(found, "error", "stdout")
    assert result.returncode == 2 and "no tree of kernel source" in found["message"]


# ---- the experiments ----


@pytest.mark.parametrize("arch", own_kernel.ARCHITECTURES)
def test_the_guests_program_compiles(arch):
    reason = compile.missing(slices.counted.compiler(arch))
    require_or_skip(reason is None, f"a compiler for {arch}", str(reason))
    assert slices.program(arch).stat().st_size


@pytest.mark.parametrize("experiment", [slice_extension.EXPERIMENT, slice_registration.EXPERIMENT])
def test_without_a_kernel_the_experiments_say_which_command_makes_one(cached, experiment):
    (reason,) = experiment.unmet()
    assert "`rseqlab kernels build` makes one" in reason
    assert all("`rseqlab kernels build" in part.skip for part in experiment.plan("quick"))


ROW = {
    "kernel_counts": True,
    "requests": 100,
    "kept": 90,
    "yielded": 6,
    "late_yields": 1,
    "taken_back": 3,
    "kernel_granted": 10,
    "kernel_expired": 1,
    "kernel_revoked": 3,
    "kernel_yielded": 6,
    "kernel_aborted": 1,
}


def test_counts_that_agree_and_counts_that_do_not():
    assert slices.accounts(ROW) == "agree"
    assert slices.accounts(ROW | {"kernel_granted": 11}) == "granted: 10 here, 11 by the kernel"
    assert "requests: 100 here, 101 ends of requests" in slices.accounts(ROW | {"kept": 91})
    assert "no rseq/stats" in slices.accounts(ROW | {"kernel_counts": False})


def require_built() -> None:
    """Not in the default run: the kernel takes minutes to build, so where none is cached these are skipped."""
    reason = own_kernel.no_slices("x86_64") or slices.missing("x86_64")
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def registration_rows():
    require_built()
    arguments = ({"arch": "x86_64", "boot": boot} for boot in slice_registration.BOOTS)
    return [row for one in arguments for row in slice_registration.EXPERIMENT.measure(Task(one, frozenset()))]


def test_only_an_extended_registration_may_use_the_extension(registration_rows):
    rows = {(row["boot"], row["how"], row["registered_bytes"]): row for row in registration_rows}
    assert len(rows) == len(registration_rows) == 2 * slice_registration.ROWS
    old = rows["default", "registered", 32]
    assert (old["available"], old["enabled_after"]) == (0, 0) and old["prctl_errno"] != 0
    new = rows["default", "registered", 33]
    assert (new["available"], new["enabled_before"], new["prctl_errno"], new["enabled_after"]) == (1, 0, 0, 1)
    assert rows["default", "registered, on by flag", 33]["enabled_before"] == 1
    off = rows["rseq_slice_ext=0", "registered", 33]
    assert (off["available"], off["enabled_after"]) == (0, 0) and off["prctl_errno"] != 0


def test_a_resumed_part_boots_for_the_missing_rows_only():
    require_built()
    done = frozenset(
        ("default", how, str(size)) for how in slice_registration.HOW for size in (0, 28, 32, 64, 256)
    )
    rows = slice_registration.EXPERIMENT.measure(Task({"arch": "x86_64", "boot": "default"}, done))
    assert {row["registered_bytes"] for row in rows} == {33}


@pytest.fixture(scope="module")
def extension_rows():
    require_built()
    task = Task({"arch": "x86_64", "seed": 1, "checked": 0, "rounds": 1}, frozenset())
    return list(slice_extension.EXPERIMENT.measure(task))


def test_slices_are_granted_to_those_who_enabled_them_and_both_counts_agree(extension_rows):
    for row in extension_rows:
        asked = row["way"] in ("asked-only", "with")
        assert bool(row["requests"]) == asked and bool(row["kernel_granted"]) == (row["way"] == "with"), row
        if row["way"] == "asked-only":  # what became of a request that nobody was entitled to cannot be seen
            assert (row["accounts"] == "agree") == (row["taken_back"] == 0), row
        else:
            assert row["accounts"] == "agree", row
    ends = {row["section"]: row for row in extension_rows if row["way"] == "with"}
    assert ends["fits"]["kernel_yielded"] and not ends["fits"]["kernel_aborted"]
    assert ends["too long"]["kernel_expired"] and ends["with a system call"]["kernel_aborted"]


def test_what_nobody_disturbs_takes_the_same_instructions_every_time(extension_rows):
    for section in slice_extension.SECTIONS:
        rows = [row for row in extension_rows if row["section"] == section]
        assert len({row["alone_instructions"] for row in rows}) == 1
        plain = {row["hold_p50_instructions"] for row in rows if row["way"] in ("without", "without-again")}
        assert len(plain) == 1 and plain.pop() >= rows[0]["section_instructions"]


def test_a_guest_that_gives_up_is_a_failure_with_its_reason():
    require_built()
    with pytest.raises(Failed, match="RSEQLAB_SLICE must be"):
        slices.run("x86_64", ("nonsense",))


# ---- what a reader is shown ----


SHOWN = (
    study.effects_table,
    study.disturbance_table,
    study.accounts_table,
    study.registration_table,
    study.effects_figure,
)


@pytest.mark.parametrize("show", SHOWN)
def test_rows_that_are_missing_are_shown_as_not_measured(show):
    assert isinstance(show(Rows()), NotMeasured)


def test_the_sentence_without_rows_says_so():
    assert study.in_a_sentence(Rows()).startswith("Not measured")


def invented(with_factor):
    """Batches of eight boots of eight rounds whose times with the extension are this factor of those without."""
    rows = []
    for boot in range(8):
        for number in range(8):
            for section in slice_extension.SECTIONS:
                for way in slice_extension.WAYS:
                    factor = with_factor if way == "with" else 1
                    times = {
                        f"{what}_{figure}_instructions": int(10_000 * factor + boot + number)
                        for what in slice_extension.MEASURED
                        for figure in slice_extension.FIGURES
                    }
                    rows.append(
                        {"part": f"x86_64-{boot}", "arch": "x86_64", "kernel": "7.9.0", "checked": 0, "round": number,
                         "section": section, "way": way, "section_instructions": 2000, "slice_ns": 5000,
                         "sections": 1000, "disturbed": 3, "waits": 100, "contended": 2, **times, **ROW,
                         "accounts": slices.accounts(ROW)}
                    )  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, "shorter"), (1, "no difference shown"), (1.5, "longer")]
)
def test_a_verdict_needs_the_whole_interval_and_the_null(factor, verdict):
    run = Rows(slice_extension=invented(factor))
    assert set(study.effects(run)["verdict"]) == {verdict}
    assert verdict in study.in_a_sentence(run) and "5 µs" in study.in_a_sentence(run)
    assert "aria-label" in study.effects_figure(run).svg
    assert study.accounts_table(run).frame["batches_in_which_both_agree"].eq("64 of 64").all()
    assert len(study.disturbance_table(run).frame) == 3 * len(slice_extension.SECTIONS)


def test_too_few_boots_carry_no_verdict():
    rows = [row for row in invented(0.5) if row["part"] == "x86_64-0"]
    assert set(study.effects(Rows(slice_extension=rows))["verdict"]) == {"no verdict"}


def test_errors_of_registrations_are_shown_by_their_names(registration_rows):
    frame = study.registration_table(Rows(slice_registration=registration_rows)).frame
    row = frame[(frame["boot"] == "default") & (frame["registered_bytes"] == 32)].iloc[0]
    assert row["prctl_errno"] == "ENOTSUPP" and row["available"] == "no"
