"""The notebooks: short cells, no stored outputs, no typed-in results, and they run."""

import re

import nbformat
import pytest

from rseqlab.study import notebook
from rseqlab.study.notebook import NotebookError
from rseqlab.study.run import reference_runs

PATHS = notebook.notebooks()
TYPED_IN = re.compile(r"\d+(?:[.,]\d+)?\s*(?:ns|µs|us|ms|s|%|x|times|bytes|instructions)\b", re.I)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_form(path):
    node = nbformat.read(path, as_version=4)
    nbformat.validate(node)
    for number, cell in enumerate(node.cells, 1):
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"cell {number} has stored outputs"
            assert len(cell.source.splitlines()) <= 10, f"cell {number} has more than ten lines"
        else:
            found = TYPED_IN.search(cell.source.replace("95 %", ""))
            assert not found, f"cell {number} has a typed-in result: {found[0]!r}"
    first = node.cells[0].source
    assert first.startswith("# ") and "**Question.**" in first
    assert any(cell.source.startswith("## Limits") for cell in node.cells)


def test_all_of_them_run_on_the_shipped_run_and_say_which_it_is():
    seen = []
    executed = dict(notebook.execute(PATHS, reference_runs()[-1], lambda *progress: seen.append(progress)))
    assert list(executed) == [path.stem for path in PATHS]
    for name, node in executed.items():
        text = "".join(
            str(output) for cell in node.cells if cell.cell_type == "code" for output in cell.outputs
        )
        assert "shipped reference run" in text, name
        reasons = ("No experiment of this release", "concurrency ids by themselves")
        if not reference_runs("kernels"):
            reasons += ("There is no run of kernels here",)
        missing = re.search(r"\[not measured\]|Not measured:|rl-not-measured", text)
        assert not missing or any(reason in text for reason in reasons), name
    assert seen[-1][1] == seen[-1][2]


def test_a_failing_cell_fails_the_build_by_name(tmp_path):
    node = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# x"),
            nbformat.v4.new_code_cell("1 + 1"),
            nbformat.v4.new_code_cell("1 / 0"),
        ]
    )
    path = tmp_path / "50_broken.ipynb"
    nbformat.write(node, path)
    with pytest.raises(NotebookError, match=r"50_broken\.ipynb: cell 3: ZeroDivisionError"):
        list(notebook.execute([path], reference_runs()[-1], lambda *progress: None))
