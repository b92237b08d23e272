"""A damaged bundle is refused, with the file and the row."""

import json
import os

import pytest
import runs

from rseqlab.experiments import catalogue
from rseqlab.lab import bundle
from rseqlab.lab.bundle import Bundle, BundleError
from rseqlab.lab.experiment import GROUPS
from rseqlab.study.run import CHOSEN, NotMeasured, StudyRun, reference_runs

TABLE = "cpu-id-read.csv"


@pytest.fixture
def folder(tmp_path):
    """A copy of a shipped run, to be damaged."""
    return runs.renewed(runs.copy_of(reference_runs()[-1], tmp_path / "run"))


def edit(folder, name, change, seal=True):
    path = folder / name
    path.write_text(change(path.read_text()))
    if seal:
        bundle.seal(folder)


def refused(folder, *words):
    with pytest.raises(BundleError) as error:
        Bundle(folder, catalogue()).check()
    for word in words:
        assert word in str(error.value), error.value


def change_row(number, column, value):
    """Row ``number``, counted from 1 after the header; column by name."""

    def change(text):
        lines = text.split("\n")
        place = lines[0].split(",").index(column)
        cells = lines[number].split(",")
        cells[place] = value
        lines[number] = ",".join(cells)
        return "\n".join(lines)

    return change


def test_every_shipped_run_is_sound():
    for shipped in (folder for group in GROUPS for folder in reference_runs(group)):
        Bundle(shipped, catalogue()).check()


def test_a_changed_number_is_found_by_its_checksum(folder):
    edit(folder, TABLE, change_row(3, "elapsed_ns", "1"), seal=False)
    refused(folder, TABLE, "checksum", "damaged")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("ns_per_read", "nan", ["row 5", "ns_per_read", "nan"]),
        ("ns_per_read", "inf", ["row 5", "finite"]),
        ("elapsed_ns", "12.5", ["row 5", "elapsed_ns", "int"]),
        ("reader", "<script>", ["row 5", "reader", "allowed are"]),
        ("cpu", "", ["row 5", "cpu", "empty"]),
        ("part", "nowhere", ["row 5", "part", "nowhere"]),
        ("elapsed_ns", "1_0", ["row 5", "elapsed_ns"]),
        ("elapsed_ns", "9" * 4000, ["row 5", "elapsed_ns"]),
        ("elapsed_ns", "-5", ["row 5", "elapsed_ns", "allowed is 1"]),
        ("ns_per_read", "0.0", ["row 5", "ns_per_read"]),
        ("reason", "\x1b[31m", ["row 5", "control characters"]),
        ("reason", "x" * 200_000, ["row 5", "field"]),
    ],
)
def test_a_bad_cell_is_refused_by_row(folder, column, value, words):
    edit(folder, TABLE, change_row(5, column, value))
    refused(folder, TABLE, *words)


def test_a_missing_column(folder):
    edit(folder, TABLE, lambda text: "\n".join(line.rsplit(",", 1)[0] for line in text.split("\n")))
    refused(folder, TABLE, "columns missing", "reason")


def test_a_missing_column_is_null_in_a_run_of_an_older_schema(folder):
    edit(folder, TABLE, lambda text: "\n".join(line.rsplit(",", 1)[0] for line in text.split("\n")))
    edit(folder, "run.json", lambda text: json.dumps(json.loads(text) | {"version": 1}))
    rows = Bundle(folder, catalogue()).tables["cpu-id-read"]
    assert rows and all(row["reason"] is None for row in rows)


def test_a_table_of_an_older_schema_that_does_not_fit_any_more_is_not_measured(folder):
    """Such a table costs itself and no more: the run is sound, and its other tables are read."""
    for change in (
        lambda text: text.replace("elapsed_ns", "elapsed", 1),
        lambda text: text.replace("throughput", "thruput"),
    ):
        whole = (folder / TABLE).read_text()
        edit(folder, TABLE, change)
        edit(folder, "run.json", lambda text: json.dumps(json.loads(text) | {"version": 1}))
        run = StudyRun(Bundle(folder, catalogue()).check(), CHOSEN)
        with pytest.raises(
            NotMeasured, match=r"cpu-id-read: the rows of run .* were measured by an older release"
        ):
            run.table("cpu-id-read")
        assert len(run.table("option-dlopen"))
        edit(folder, TABLE, lambda _, whole=whole: whole)


def test_a_row_twice_a_row_too_few_and_a_short_row(folder):
    whole = (folder / TABLE).read_text()
    lines = whole.split("\n")
    edit(folder, TABLE, lambda _: "\n".join([*lines[:3], lines[2], *lines[3:]]))
    refused(folder, TABLE, "row 3", "twice")
    edit(folder, TABLE, lambda _: "\n".join([*lines[:3], *lines[4:]]))
    refused(folder, TABLE, "run.json says")
    edit(folder, TABLE, lambda _: "\n".join([*lines[:3], "libc-0,1", *lines[4:]]))
    refused(folder, TABLE, "row 3", "cells")


def test_a_missing_table_an_extra_table_and_missing_sums(folder):
    (folder / "stray.csv").write_text("a\n1\n")
    refused(folder, "stray.csv", "not listed")
    (folder / "stray.csv").unlink()
    (folder / TABLE).unlink()
    refused(folder, TABLE)
    bundle.seal(folder)
    refused(folder, TABLE, "missing")
    (folder / bundle.SUMS).unlink()
    refused(folder, bundle.SUMS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: run | {"version": 99}, ["version 99", "reads version 1 to 2"]),
        (lambda run: run | {"profile": "huge"}, ["profile", "huge"]),
        (lambda run: {name: run[name] for name in run if name != "started"}, ["started"]),
        (lambda run: run | {"surprise": 1}, ["surprise"]),
        (
            lambda run: (
                run | {"experiments": run["experiments"] | {"made-up": run["experiments"]["cpu-id-read"]}}
            ),
            ["made-up"],
        ),
    ],
)
def test_a_wrong_run_document(folder, change, words):
    edit(folder, "run.json", lambda text: json.dumps(change(json.loads(text))))
    refused(folder, "run.json", *words)


def test_not_json_and_a_nan_in_json(folder):
    edit(folder, "machine.json", lambda text: text[:50])
    refused(folder, "machine.json", "not JSON")
    edit(folder, "machine.json", lambda _: '{"facts": {"x": NaN}}')
    refused(folder, "machine.json", "NaN")


def test_sums_that_point_elsewhere(folder):
    edit(folder, bundle.SUMS, lambda text: text + "0" * 64 + "  ../../etc/passwd\n", seal=False)
    refused(folder, bundle.SUMS, "line")


def test_files_that_are_not_plain_files(folder):
    for make in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")):
        make(folder / "x.csv")
        with open(folder / bundle.SUMS, "a") as sums:
            sums.write("0" * 64 + "  x.csv\n")
        refused(folder, "x.csv")
        (folder / "x.csv").unlink()


def test_bytes_that_are_not_text(folder):
    path = folder / TABLE
    path.write_bytes(path.read_bytes().replace(b"throughput", b"\xff", 1))
    bundle.seal(folder)
    refused(folder, TABLE, "UTF-8")
    (folder / bundle.SUMS).write_bytes(b"\xff\xfe")
    refused(folder, bundle.SUMS, "UTF-8")


@pytest.mark.parametrize(
    ("text", "words"),
    [("[" * 100_000, ["machine.json", "not JSON"]), ('{"facts": {"x": 1e400}}', ["machine.json", "finite"])],
)
def test_json_made_to_break_a_reader(folder, text, words):
    edit(folder, "machine.json", lambda _: text)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("fact", "value"), [("at_rseq_feature_size_bytes", "<b>"), ("cpu_model", "\x1b[2J"), ("surprise", 1)]
)
def test_a_fact_of_the_wrong_kind(folder, fact, value):
    edit(
        folder,
        "machine.json",
        lambda text: json.dumps((found := json.loads(text)) | {"facts": found["facts"] | {fact: value}}),
    )
    refused(folder, "machine.json", "facts")
