"""Who else defines the names that libc exports: what this machine's libc makes of it, by its version, and how it is told."""

import os
import subprocess
import sys

import pytest
from conftest import require_or_skip

from rseqlab.experiments import catalogue, option_redefine
from rseqlab.lab import compile, probe, runner
from rseqlab.lab.bundle import Bundle
from rseqlab.options import redefine
from rseqlab.options.redefine import Case
from rseqlab.study import claims, options, redefinition
from rseqlab.study.claims import HOLDS, NOT_MEASURED
from rseqlab.study.run import StudyRun

OWN = redefine.PLAIN_VALUE


@pytest.fixture(autouse=True, scope="module")
def _machine():
    require_or_skip(compile.missing() is None, "a C compiler", "`make setup` names it")
    refusal = probe.libc_refusal()
    require_or_skip(refusal is None, f"a libc that registers rseq ({refusal})", "use glibc 2.35 or newer")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in probe.LIBC_OWNS.items():
            patch.setenv(name, value)
        yield


def newer() -> bool:
    """Whether this libc finds its own offset through the dynamic symbol."""
    text = os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
    return redefinition.version(text) >= redefinition.version(redefinition.REDIRECTS_SINCE)


def new_thread(case: Case) -> dict:
    main, new = redefine.run(case, None)
    assert main["thread"] == redefine.MAIN and new["thread"] == redefine.NEW
    return new


@pytest.mark.parametrize(
    "case",
    [
        Case(redefine.NOBODY, "none", redefine.NO_VALUE),
        Case(redefine.REFERS, "none", redefine.NO_VALUE),
        Case(redefine.HIDDEN, "strong", OWN),
        Case(redefine.LATE, "strong", OWN),
        Case(redefine.LINKED, "weak", OWN, redefine.DYNAMIC_WEAK),
        Case(redefine.BY_PROGRAM, "strong", "libc's own values"),
    ],
    ids=lambda case: ", ".join(case.key),
)
def test_what_no_library_can_take_for_libcs_names_changes_nothing(case):
    for row in redefine.run(case, None):
        assert (row["ended"], row["registered"]) == ("exit 0", redefine.BY_LIBC)
        assert row["registered_offset_bytes"] == row["libc_offset_bytes"] == row["names_offset_bytes"]
        assert (row["again"], row["at_libc"]) == ("EINVAL", "EBUSY")
        wrong = ("libc_wrong", "reader_wrong", "reader_told", "reader_died")
        assert row["readings"] and not any(row[name] for name in wrong)


@pytest.mark.parametrize("binding", ["strong", "weak"])
@pytest.mark.parametrize("definer", [redefine.BY_PROGRAM, redefine.LINKED, redefine.PRELOADED])
def test_a_definition_that_is_found_first_redirects_a_newer_libc_and_no_older_one(definer, binding):
    row = new_thread(Case(definer, binding, OWN))
    assert row["ended"] == "exit 0"
    assert row["registered"] == (redefine.BY_DEFINITION if newer() else redefine.BY_LIBC)
    assert row["at_definition"] == ("EBUSY" if newer() else "EINVAL")


def test_an_offset_where_no_area_can_be_kills_under_a_newer_libc_and_says_what_it_did():
    row = new_thread(Case(redefine.BY_PROGRAM, "strong", "8 bytes beside its own area"))
    if newer():
        assert (row["ended"], row["registered"]) == ("SIGABRT", None)
        assert row["last_step"] == "main thread: pthread_create()" and "rseq" in row["said"]
    else:
        assert (row["ended"], row["registered"], row["last_step"]) == ("exit 0", redefine.BY_LIBC, None)


def test_a_reader_that_dies_of_the_names_is_told_from_a_libc_that_does():
    main, _ = redefine.run(Case(redefine.BY_PROGRAM, "strong", "offset 1 TiB"), None)
    if newer():
        assert main["ended"] == "SIGSEGV" and main["last_step"] == "main thread: sched_getcpu()"
    else:
        assert main["ended"] == "exit 0" and main["reader_died"] == main["readings"]


def test_a_thread_is_found_by_the_kernels_answers_where_the_debugger_may_not_ask():
    """The same program under a kernel without PTRACE_GET_RSEQ_CONFIGURATION; its lines are those of a real run."""
    line = {"ptrace_error": 5, "registered": 0, "libc_offset": -256, "names_offset": 64}
    for again, at_libc, at_names, where in (
        (22, 16, 22, redefine.BY_LIBC),
        (22, 16, 16, redefine.BY_LIBC),
        (22, 22, 16, redefine.BY_DEFINITION),
        (0, 0, 0, redefine.NOWHERE),
        (22, 22, 22, None),
    ):
        told = [{"libc": "2.41"}, {"thread": "new"} | line]
        told[1] |= {"again": again, "at_libc": at_libc, "at_names": at_names}
        case = Case(redefine.BY_PROGRAM, "strong", OWN)
        _, row = redefine.rows(case, told, "exit 0", None)
        assert row["registered"] == where and row["registered_bytes"] is None


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> StudyRun:
    folder = tmp_path_factory.mktemp("redefine") / "run"
    runner.run([option_redefine.EXPERIMENT], "quick", folder, False, lambda *_: None)
    return StudyRun(Bundle(folder, catalogue()), "test")


def test_every_case_is_a_row_for_each_thread(run):
    rows = run.bundle.tables["option-redefine"]
    assert run.bundle.run["experiments"]["option-redefine"]["status"] == "pass"
    assert {tuple(row[name] for name in redefine.KEY) for row in rows} == {
        (*case.key, thread) for case in redefine.cases() for thread in redefine.THREADS
    }


def test_claims_speak_of_the_libcs_that_were_tried_and_of_no_others(run):
    judged = claims.judge(run, *(f"O{number:02}" for number in range(9, 13)))
    verdicts = {one.claim.id: one.finding for one in judged}
    assert all("option-redefine" in one.evidence() for one in judged)
    tried, not_tried = (("O09", "O11"), ("O10",)) if newer() else (("O10",), ("O09", "O11"))
    for name in (*tried, "O12"):
        assert verdicts[name].verdict == HOLDS, verdicts[name]
    for name in not_tried:
        assert verdicts[name].verdict == NOT_MEASURED and "kernel-redefine" in verdicts[name].measured
    text = redefinition.in_short(run)
    assert ("Its names can be taken over: under glibc" in text) == newer()
    assert newer() or "not measured here (No glibc of 2.41 or newer was tried" in text


def test_the_table_has_every_definition_and_its_fate(run):
    frame = options.redefinitions(run).frame
    (where,) = [name for name in frame if name.endswith("here")]
    shown = set("; ".join(frame["who defines it"]).split("; "))
    assert shown == set(redefine.DEFINERS) and set(frame["what it says"]) == {
        redefine.NO_VALUE,
        *redefine.VALUES,
    }
    alone = frame[frame["who defines it"].str.startswith(redefine.NOBODY)]
    assert list(alone[where]) == [redefinition.AS_WITHOUT]
    taken = frame[
        frame["who defines it"].str.startswith(redefine.BY_PROGRAM + ";") & (frame["what it says"] == OWN)
    ]
    (words,) = taken[where]
    assert ("redirected" in words) == newer() and "nan" not in "; ".join(frame[where])


def test_another_libc_needs_a_folder_that_holds_one(tmp_path):
    command = [sys.executable, "-m", "rseqlab.cli", "run", "option-redefine", "--libc", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2 and "holds no dynamic loader" in result.stderr
