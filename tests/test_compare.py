"""Two runs side by side: what agrees is counted, what differs is shown first, on one page."""

import csv
import json
import subprocess
import sys

import pytest
import runs
from built_runs import in_builds

from rseqlab.errors import UsageError
from rseqlab.lab import bundle
from rseqlab.study.compare import Comparison, letters_of, open_runs
from rseqlab.study.run import reference_runs

COMMAND = [sys.executable, "-m", "rseqlab.cli", "report"]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The shipped rows, as if they had been measured in several builds."""
    return in_builds(tmp_path_factory.mktemp("here") / "run")


@pytest.fixture(scope="module")
def other(here, tmp_path_factory):
    """The same as another machine would have measured it: libc's sched_getcpu() four times as slow."""
    folder = runs.copy_of(here, tmp_path_factory.mktemp("other") / "run")
    lines = (folder / "cpu-id-read.csv").read_text().splitlines()
    place = {name: at for at, name in enumerate(lines[0].split(","))}
    changed = [lines[0]]
    for line in lines[1:]:
        cells = line.split(",")
        if cells[place["reader"]] == "sched_getcpu" and cells[place["start"]] == "libc":
            cells[place["elapsed_ns"]] = str(4 * int(cells[place["elapsed_ns"]]))
            cells[place["ns_per_read"]] = str(4 * float(cells[place["ns_per_read"]]))
        changed.append(",".join(cells))
    (folder / "cpu-id-read.csv").write_text("\n".join(changed) + "\n")
    bundle.seal(folder)
    return folder


@pytest.fixture(scope="module")
def compared(here, other):
    return Comparison(open_runs([here, other]))


def test_what_differs_is_counted_and_comes_first(compared):
    differ = compared.effects[compared.effects["effects"] == "differ"]
    assert {"C42a", "C63", "C66"} <= set(differ["claim"])
    assert {"C42a"} == set(compared.effects[compared.effects["verdicts"] == "differ"]["claim"])
    assert not {"C31", "C13", "L16"} & set(differ["claim"])
    assert compared.claims().frame["claim"].iloc[0] in set(differ["claim"])
    assert f" of {len(compared.effects)} claims" in compared.sentence()
    assert "1 have contrary verdicts" in compared.sentence()
    assert len(compared.options().frame) == 0


def test_one_page_for_both(compared, here, other, tmp_path):
    arguments = [
        "--compare",
        str(here),
        "--compare",
        str(other),
        "--out",
        str(tmp_path),
        "--json",
    ]
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    bundle.validate(document, "compare", "stdout")
    page = (tmp_path / "compare.html").read_text()
    for run in compared.runs:
        assert run.bundle.digest[:12] in page
    assert "Side by side" in page and "<svg" in page and "none was run" not in page


@pytest.mark.thorough
def test_any_number_of_runs_stands_on_one_page(here, other, tmp_path):
    """Seven: a run, five of the same machine again, and the other machine."""
    folders = [here, other]
    for number in range(5):
        folder = runs.copy_of(here, tmp_path / f"again-{number}")
        record = json.loads((folder / "run.json").read_text())
        record["run_id"] += f"-{number}"
        (folder / "run.json").write_text(json.dumps(record))
        bundle.seal(folder)
        folders.append(folder)
    many = Comparison(open_runs(folders))
    assert many.letters == list("ABCDEFG") and letters_of(26) == "AA" and letters_of(53) == "BB"
    claims = many.claims().frame
    assert 50 < len(claims) < len(many.effects) and len(claims.columns) < len(many.runs) + 2
    (differs,) = claims[claims["claim"] == "C42a"].to_dict("records")
    assert differs["verdicts"] == "differ" and "A, C, D, E, F, G" in differs["verdict by run"]
    assert "(B)" in differs["lowest and highest effect"]
    machines = many.machines()
    assert len(machines.frame) == 7 and "digest" in machines.frame
    forest = many.forest()
    assert set(forest.numbers["run"]) == set("ABCDEFG")
    assert many.identity().run_id.endswith("6 more")


def test_runs_of_kernels_are_told_apart_by_what_their_kernels_answer(tmp_path):
    shipped = reference_runs("kernels")[-1]
    other = runs.copy_of(shipped, tmp_path / "other")
    with open(other / "kernel-matrix.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["question"] == "unregister" and row["attempt"] == "length 64" and row["mode"] == "self-32":
            row["answer"] = "accepted"
    with open(other / "kernel-matrix.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    bundle.seal(other)
    compared = Comparison(open_runs([shipped, other]))
    (changed,) = compared.kernels().frame.to_dict("records")
    assert (changed["attempt"], changed["A"], changed["B"]) == ("length 64", "EINVAL", "accepted")
    page = compared.notebook()
    assert "Linux 5.10 on" in str(page) and "no scene of the options was played on all runs" in str(page)


def test_one_run_is_no_comparison():
    with pytest.raises(UsageError, match="two or more"):
        open_runs([reference_runs()[-1], reference_runs()[-1]])
