"""The front page says what the shipped rows say, and opening the lab without a run shows those."""

import shutil
from pathlib import Path

import pytest

from rseqlab.lab.archive import name_at
from rseqlab.study import shipped
from rseqlab.study.run import FRONT, SHIPPED, open_run, reference_runs

ROOT = Path(__file__).resolve().parents[1]
MADE = ("README.md", "data/reference/README.md", "data/reference/headline.svg", "data/reference/matrix.svg")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    (root / "data" / "reference").mkdir(parents=True)
    shutil.copyfile(ROOT / "README.md", root / "README.md")
    shipped.main(root)
    return root


@pytest.mark.parametrize("name", MADE)
def test_what_the_project_says_of_its_runs_is_computed_from_them(made, name):
    assert (ROOT / name).read_text() == (made / name).read_text(), "`make reference NAME=...` writes it"


def test_every_sentence_of_the_answer_was_measured():
    run = open_run(SHIPPED)
    told = shipped.answer_lines(run)
    assert told.count("\n- **") == 5 and "is not part of th" not in told and "not measured" not in told


def test_a_machine_more_does_not_change_the_front_page():
    front = (ROOT / "data" / "reference" / FRONT).read_text().split()
    for group in ("machine", "kernels", "workloads"):
        assert name_at(reference_runs(group)[-1]) in front
