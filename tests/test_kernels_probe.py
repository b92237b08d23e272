"""The probe and the counts in real guests on both architectures, what a hostile guest may not do, and what is told of rows."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from rseqlab.experiments import kernel_costs, kernel_cpus, kernel_matrix
from rseqlab.lab import bundle as bundles
from rseqlab.lab import runner
from rseqlab.lab.bundle import Bundle
from rseqlab.study import claims, kernel_figures, kernels, notebook
from rseqlab.study.run import SHIPPED, NotMeasured, StudyRun, open_run
from rseqlab.vm import boot, matrix
from rseqlab.vm import kernels as images
from rseqlab.vm.guests import GuestError

SERIES = ("6.1", "newest")


@pytest.fixture(scope="module")
def bundle(guests, tmp_path_factory) -> Path:
    """A run of the matrix on two kernels of both architectures, of the counts and the smallest of the many CPUs on one."""
    folder = tmp_path_factory.mktemp("run") / "kernels"
    before = dict(os.environ)
    try:
        images.choose(series=list(SERIES))
        runner.run([kernel_matrix.EXPERIMENT], "quick", folder, False, lambda *_: None)
        images.choose(series=["newest"], archs=["x86_64"])
        runner.run([kernel_costs.EXPERIMENT], "quick", folder, True, lambda *_: None)
        kernel_cpus.CPUS["quick"], whole = kernel_cpus.CPUS["quick"][:1], kernel_cpus.CPUS["quick"]
        runner.run([kernel_cpus.EXPERIMENT], "quick", folder, True, lambda *_: None)
        kernel_cpus.CPUS["quick"] = whole
    finally:
        os.environ.clear()
        os.environ.update(before)
    return folder


@pytest.fixture(scope="module")
def run(bundle) -> StudyRun:
    from rseqlab.experiments import catalogue

    return StudyRun(Bundle(bundle, catalogue()), "test")


@pytest.fixture(scope="module")
def answers(run) -> dict[tuple, dict[str, str]]:
    """(series, arch, libc kind and version, mode) to (question, attempt) to answer."""
    found: dict[tuple, dict] = {}
    for row in run.bundle.tables["kernel-matrix"]:
        key = (row["series"], row["arch"], row["libc"], row["mode"])
        found.setdefault(key, {})[row["question"], row["attempt"]] = row["answer"]
    return found


@pytest.mark.thorough
def test_every_guest_libc_and_mode_answers(run, answers):
    assert run.bundle.run["experiments"]["kernel-matrix"]["status"] == "pass"
    assert not [row for row in run.bundle.tables["kernel-matrix"] if row["question"] == "boot"]
    assert {key[1] for key in answers} == {"x86_64", "aarch64"}
    for series in {key[0] for key in answers}:
        libcs = {key[2] for key in answers if key[0] == series}
        assert len(libcs) == 5, libcs
    for (_, _, _, mode), found in answers.items():
        expected = {matrix.ROWS[name] for name in ((mode, "no rseq") if mode == "libc" else (mode,))}
        assert len(found) in expected


@pytest.mark.thorough
def test_the_rules_of_lengths_are_those_that_are_documented(run):
    rows = [row for row in run.bundle.tables["kernel-matrix"] if row["predicted"]]
    assert len(rows) == 2 * 2 * 5
    assert all(row["answer"] == row["predicted"] for row in rows)


@pytest.mark.thorough
def test_old_and_new_kernels_differ_where_the_abi_grew(answers):
    for (series, arch, libc, mode), found in answers.items():
        if mode != "self-32":
            continue
        old = series == "6.1"
        where = f"{series} {arch} {libc}"
        assert (found["state", "AT_RSEQ_FEATURE_SIZE"] == "absent") is old, where
        assert found["live", "cpu_id on two CPUs"] == "live", where
        assert found["live", "mm_cid of two threads at once"] == ("never written" if old else "live"), where
        assert found["unregister", "length 64"] == "EINVAL", where
        assert found["descriptor", "whose abort handler has no signature"] == "SIGSEGV", where
        assert found["thread", "its memory is unmapped while registered"] == "SIGSEGV", where
        assert found["ptrace", "configuration"] == "length 32, flags 0, the usual signature", where


@pytest.mark.thorough
def test_each_libc_registers_as_its_release_does(answers):
    for (_, _, libc, mode), found in answers.items():
        if mode != "libc":
            assert found["state", "the thread at start"] == "unregistered", libc
            continue
        registers = libc.startswith("glibc") and libc != "glibc-2.31"
        assert found["state", "the thread at start"] == ("registered" if registers else "unregistered"), libc
        assert (found["state", "__rseq_size"] != "absent") is registers, libc


@pytest.mark.thorough
def test_counts_agree_within_the_mark_and_the_clock_counts(run):
    rows = [row for row in run.bundle.tables["kernel-costs"] if row["instructions_per_turn"]]
    known = [row for row in rows if row["measure"] == "calibration"]
    assert len(known) == kernel_costs.REPEATS
    for row in known:
        assert row["instructions_per_turn"] == pytest.approx(kernel_costs.CALIBRATION_INSTRUCTIONS, rel=1e-3)
    for measure in ("system-call", "page-fault", "signal"):
        values = [
            row["instructions_per_turn"]
            for row in rows
            if (row["measure"], row["registration"], row["section"]) == (measure, "32 bytes", "null")
        ]
        assert len(values) == kernel_costs.REPEATS
        assert max(values) / min(values) < 1 + kernels.MARK_PERCENT / 100, measure


@pytest.mark.thorough
def test_a_sections_abort_is_seen_in_the_counts(run):
    inside = [
        row
        for row in run.bundle.tables["kernel-costs"]
        if (row["measure"], row["registration"], row["section"]) == ("signal", "32 bytes", "inside")
    ]
    assert inside and all(row["aborted"] == row["turns"] * row["batches"] for row in inside)


@pytest.mark.thorough
def test_tables_figures_and_claims_show_rows_and_what_is_missing(run):
    for table in (kernels.compatibility, kernels.libcs, kernels.deduced, kernels.counted, kernels.operations):
        shown = table(run)
        assert not isinstance(shown, NotMeasured), shown
        assert len(shown.frame) > 3
        assert "<caption>" in shown._repr_html_()
    newest = kernels.all_series(run.table("kernel-matrix"))[-1]
    changed = kernels.differences(run, "6.1")
    assert f"differ between 6.1 and {newest}" in changed.caption
    assert "no kernel 4.19" in str(kernels.differences(run, "4.19"))
    assert newest in repr(kernels.headline(run))
    assert "agree within" in repr(kernels.repeats(run))
    assert "aria-label" in kernel_figures.switch_cost(run).svg
    judged = {one.claim.id: one.finding for one in claims.judge(run, "K01", "K03", "K04", "K06")}
    assert {finding.verdict for finding in judged.values()} <= {claims.HOLDS, claims.FAILS}


@pytest.mark.thorough
def test_ids_of_a_small_guest_are_rows_and_the_rest_is_drawn_as_computed(run):
    rows = run.bundle.tables["kernel-cpus"]
    assert [row["threads"] for row in rows] == list(kernel_cpus.THREADS)
    assert all(row["reason"] is None and row["mm_cids"] <= row["cpus"] == 2 for row in rows)
    assert "aria-label" in kernel_figures.ids(run).svg and len(kernels.ids(run).frame) == len(rows)
    shown = kernel_figures.memory(run).numbers
    assert set(shown["kind"]) == {"measured", "computed"}
    assert shown["cpus"].max() == kernel_figures.DRAWN_CPUS
    assert set(shown.loc[shown["kind"] == "measured", "cpus"]) == {2}
    assert isinstance(kernel_figures.memory(run, 3), NotMeasured)


def test_every_part_has_an_id_that_a_bundle_takes(guests, monkeypatch):
    form = re.compile(
        bundles.schema("run")["properties"]["experiments"]["additionalProperties"]["properties"]["parts"][
            "propertyNames"
        ]["pattern"]
    )
    for series in (images.SERIES, ("9.9",)):
        monkeypatch.setenv(images.CHOSEN_SERIES, os.pathsep.join(series))
        for experiment in (kernel_matrix, kernel_costs, kernel_cpus):
            parts = experiment.plan("full")
            assert parts and all(form.fullmatch(part.id) for part in parts)
            assert len({part.id for part in parts}) == len(parts)
            assert all("kernels fetch" in part.skip for part in parts if part.skip)


def test_without_a_run_of_guests_everything_says_so():
    reference = open_run(SHIPPED)
    if "kernels" in reference.others:
        reference = dataclasses.replace(reference, others={})
    shown = (
        kernels.compatibility,
        kernels.counted,
        kernels.headline,
        kernels.ids,
        kernel_figures.switch_cost,
    )
    assert all(isinstance(one(reference), NotMeasured) for one in (*shown, kernel_figures.memory))
    (judged,) = claims.judge(reference, "K01")
    assert judged.finding.verdict == claims.NOT_MEASURED


@pytest.mark.thorough
def test_the_notebook_runs_on_such_a_run(bundle):
    path = next(path for path in notebook.notebooks() if path.stem == "40_kernels")
    ((_, node),) = notebook.execute([path], bundle, lambda *_: None)
    text = "".join(str(output) for cell in node.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "What each kernel answers" in text and "Traceback" not in text


# ---- hostile guests ----


def outcome(*rows: dict | str) -> boot.Outcome:
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    return boot.Outcome("done", None, 1.0, "tcg", "qemu", Path(os.devnull), text.encode())


RUN = {"run": "musl", "mode": "none"}
END = {"ended": 0, "in_time": True}
GOOD = {"question": "flags", "attempt": "bit 2", "error": 22}


def runs(*first: dict) -> list[dict]:
    """All modes of one libc, the given rows in the first."""
    rows = []
    for mode in matrix.MODES:
        rows += [{"run": "musl", "mode": mode}, *(first if mode == "libc" else ()), END]
    return rows


def test_rows_that_were_asked_for_are_taken():
    (only,) = matrix.answers(outcome({"kernel": "6.1", "machine": "x"}, *runs(GOOD)), ["musl"])
    assert (only.libc, only.mode, only.question, only.attempt, only.answer) == (
        "musl",
        "libc",
        "flags",
        "bit 2",
        "EINVAL",
    )


@pytest.mark.parametrize(
    "row",
    [
        GOOD | {"question": "invented"},
        GOOD | {"attempt": "<b>" * 60},
        GOOD | {"attempt": 7},
        GOOD | {"error": -1},
        GOOD | {"error": True},
        GOOD | {"error": 1e300},
        GOOD | {"words": "two answers"},
        {"question": "flags", "attempt": "bit 2"},
        {"question": "length", "attempt": "x", "from": 0, "codes": "22*9999,0*9999"},
        {"question": "length", "attempt": "x", "from": 0, "codes": "0,,1"},
        {"question": "length", "attempt": "x", "from": 10**9, "codes": "0"},
        {"question": "flags", "attempt": "bit 2", "signal": 4096},
        {"run": "another libc", "mode": "none"},
        {"run": "musl", "mode": "root"},
        {"surprise": 1},
        "[1, 2]",
        '{"question": {"nested": 1}}',
        '{"words": "\\u001b[31m"}',
        "no JSON",
    ],
    ids=str,
)
def test_rows_that_were_not_asked_for_are_refused(row):
    with pytest.raises((GuestError, boot.RowsError)):
        matrix.answers(outcome(*runs(row)), ["musl"])


def test_an_answer_twice_and_a_run_missing_are_refused():
    with pytest.raises(GuestError, match="twice"):
        matrix.answers(outcome(*runs(GOOD, GOOD)), ["musl"])
    with pytest.raises(GuestError, match="no answers of 3 runs"):
        matrix.answers(outcome(RUN, GOOD, END), ["musl"])


def test_what_kills_the_probe_is_an_answer():
    rows = runs()
    rows[1] = {"ended": 11, "in_time": True}
    (only,) = matrix.answers(outcome(*rows), ["musl"])
    assert (only.question, only.answer) == ("boot", "SIGSEGV")


def test_a_guest_that_did_not_finish_is_a_row_without_this_machines_paths():
    kernel = images.Kernel("9.9", "9.9.0", "aarch64", Path("/k"), "user", None, "0")
    ended = boot.Outcome(
        "panic", "the kernel panicked: x; console: /home/me/c.txt", 1, "tcg", "qemu", Path("/")
    )
    (row,) = matrix.guest_rows(kernel, ended, [])
    assert row["answer"] == "panic: the kernel panicked: x"
    assert (row["question"], row["libc"]) == ("boot", "none")


@pytest.mark.parametrize(
    "row",
    [
        {"measure": "nothing", "repeat": 0},
        {"measure": "signal", "length": 32, "section": "null", "repeat": 99},
        {"measure": "signal", "length": 1 << 40, "section": "null", "repeat": 0},
        {"measure": "signal", "length": 0, "section": "null", "repeat": 0, "failed": 0, "turns": 0},
        {"operation": "x", "bytes": 10**9, "repeat": 0},
    ],
    ids=str,
)
def test_counts_that_make_no_sense_are_refused(row):
    with pytest.raises(GuestError):
        list(kernel_costs.checked(outcome(row)))


def test_a_length_that_the_kernel_refuses_is_said_for_each_measure():
    rows = list(kernel_costs.checked(outcome({"refused": 22, "length": 64, "repeat": 1})))
    assert len(rows) == 12
    assert all(row["instructions_per_turn"] is None and "errno 22" in row["reason"] for row in rows)


def test_ids_that_no_guest_can_have_are_refused():
    head = {"kernel": "7.3", "cpus": 8, "feature_size": 33}
    row = {"threads": 4, "wakes": 9, "most_cpu_id": 7, "cpu_ids": 5, "most_mm_cid": 3, "mm_cids": 4}
    assert kernel_cpus.checked(outcome(head, row), 8)[4]["reason"] is None
    assert "brought up 8 of 32" in kernel_cpus.checked(outcome(head, row), 32)[4]["reason"]
    assert "no mm_cid" in kernel_cpus.checked(outcome(head | {"feature_size": 0}, row), 8)[4]["reason"]
    for wrong in ({"threads": 10**6}, {"wakes": "many"}, {"most_cpu_id": -7}):
        with pytest.raises(GuestError):
            kernel_cpus.checked(outcome(head, row | wrong), 8)


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        ({n: 22 for n in range(3)}, "EINVAL: always"),
        ({0: 22, 1: 22, 2: 0}, "accepted: 2; EINVAL otherwise"),
        ({n: 0 if n % 32 == 0 else 22 for n in range(1, 257)}, "accepted: 32 to 256 by 32; EINVAL otherwise"),
        ({n: 524 if n in (1, 2) else 0 for n in range(9)}, "ENOTSUPP: 1, 2; accepted otherwise"),
    ],
)
def test_answers_in_ranges(codes, text):
    assert matrix.in_ranges(codes) == text


@pytest.mark.thorough
def test_the_matrix_can_be_asked_with_the_same_answers(run, answers):
    from rseqlab.study import explore

    known = explore.choices(run)
    series, arch = known["kernels"][-1], known["archs"][0]
    table = explore.kernel_answers(run, "none", "length", [series], [arch])
    libc = next(key[2] for key in answers if key[:2] == (series, arch) and key[3] == "none")
    told = answers[series, arch, libc, "none"]
    for row in table.frame.to_dict("records"):
        if not row[f"{series} {arch}"].startswith("varies"):
            assert row[f"{series} {arch}"] == told["length", row["attempt"]]
    box = explore.pick_kernels(run)
    for mode in known["modes"]:
        box.mode.value = mode
        for question in known[f"questions of {mode}"]:
            box.question.value = question
            assert question in box.shown.outputs[0]["data"]["text/plain"]
    differing = explore.kernel_answers(run, "none", "length", only_differing=True)
    assert f"{len(differing.frame)} of " in differing.caption
