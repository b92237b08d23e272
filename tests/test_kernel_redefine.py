"""The definitions of libc's names in real guests: each glibc on both architectures, and what a hostile guest may not say."""

import os
from pathlib import Path

import pytest

from rseqlab.experiments import catalogue, kernel_redefine
from rseqlab.lab import runner
from rseqlab.lab.bundle import Bundle
from rseqlab.options import redefine
from rseqlab.study import claims, redefinition
from rseqlab.study.claims import HOLDS
from rseqlab.study.run import StudyRun
from rseqlab.vm import boot, kernels
from rseqlab.vm.guests import GuestError

LIBCS = 3
"""Of the default set: those that export the names."""


@pytest.fixture(scope="module")
def run(guests, tmp_path_factory) -> StudyRun:
    folder = tmp_path_factory.mktemp("redefine") / "run"
    before = dict(os.environ)
    try:
        kernels.choose(series=["newest"])
        runner.run([kernel_redefine.EXPERIMENT], "quick", folder, False, lambda *_: None)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return StudyRun(Bundle(folder, catalogue()), "test")


def test_each_libc_answers_on_both_architectures(run):
    rows = run.bundle.tables["kernel-redefine"]
    each = {(row["arch"], row["libc_file"]) for row in rows}
    assert len(each) == 2 * LIBCS and {arch for arch, _ in each} == set(kernels.ARCHS)
    assert len(rows) == 2 * LIBCS * len(redefine.cases()) * len(redefine.THREADS)
    for row in rows:
        assert row["libc_file"] == f"glibc-{row['libc']}"
        if row["definer"] == redefine.NOBODY:
            assert (row["ended"], row["registered"], row["libc_wrong"]) == ("exit 0", redefine.BY_LIBC, 0)


def test_the_claims_are_tested_by_old_and_new_libcs(run):
    for one in claims.judge(run, "O09", "O10", "O11", "O12"):
        assert one.finding.verdict == HOLDS, one
        assert "aarch64 and x86_64" in one.finding.measured
        assert one.reading.rows, one.claim.id
    assert "glibc 2.36" in redefinition.in_short(run)


CASE = redefine.Case(redefine.NOBODY, "none", redefine.NO_VALUE)
THREAD = (
    '{"thread":"new","names_found":1,"names_offset":-256,"names_size":28,"libc_offset":-256,"libc_size":28,'
)
THREAD += (
    '"ptrace_error":0,"registered":1,"registered_offset":-256,"registered_bytes":32,"again":22,"at_libc":16,'
)
THREAD += '"at_names":16}'
READ = '{"read":"new","readings":2,"libc_wrong":0,"libc_no_cpu":0,"reader_wrong":0,"reader_told":0,"reader_died":0}'
GOOD = ('{"run":0}', '{"libc":"2.41"}', THREAD, READ, '{"ended":0,"in_time":true}')


def rows(*lines: str) -> list[dict]:
    kernel = kernels.Kernel("6.12", "6.12.1", "x86_64", Path("image"), "user", None, "")
    text = "\n".join(lines).encode()
    outcome = boot.Outcome("done", None, 1.0, "tcg", "qemu 1", Path("console"), text, rseq=True)
    libc = type("Libc", (), {"name": "glibc-2.41"})()
    return list(kernel_redefine.rows(kernel, outcome, [(libc, CASE)]))


def test_a_guests_lines_become_its_rows():
    main, new = rows(*GOOD)
    assert main["registered"] is None and new["registered"] == redefine.BY_LIBC
    assert (new["registered_bytes"], new["at_libc"], new["ended"]) == (32, "EBUSY", "exit 0")
    assert rows('{"run":0}', '{"ended":139,"in_time":true}')[0]["ended"] == redefine.NOT_STARTED
    assert rows(*GOOD[:-1], '{"ended":139,"in_time":true}')[0]["ended"] == "SIGSEGV"
    assert rows(*GOOD[:-1], '{"ended":9,"in_time":false}')[0]["ended"] == "hung"


@pytest.mark.parametrize(
    "line",
    [
        '{"surprise":1}',
        '{"thread":"new"}',
        THREAD.replace('"new"', '"root"'),
        THREAD.replace("-256", "1e300"),
        THREAD.replace('"again":22', '"again":-1'),
        THREAD.replace('"registered":1', '"registered":true'),
        READ.replace('"readings":2', '"readings":65'),
        '{"libc":"<script>"}',
        '{"libc":"2.41","extra":1}',
        '{"run":0}',
        '{"run":7}',
        '{"step":"\\u001b[31m"}',
        "no JSON",
    ],
    ids=str,
)
def test_lines_that_its_programs_cannot_say_are_refused(line):
    with pytest.raises((GuestError, boot.RowsError)):
        rows(*GOOD[:-1], line, GOOD[-1])


def test_what_comes_before_a_run_and_a_run_without_an_end_are_refused():
    with pytest.raises(GuestError, match="before its first run"):
        rows(GOOD[1])
    with pytest.raises(GuestError, match="no end of its command 0"):
        rows(*GOOD[:-1])
