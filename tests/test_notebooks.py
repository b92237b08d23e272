"""The notebooks: short cells, no stored outputs, no typed-in results, and they run."""

import re
import time
from pathlib import Path

import nbformat
import pytest

from rseqlab.study import notebook
from rseqlab.study.claims import WHY_NOT
from rseqlab.study.notebook import NotebookError
from rseqlab.study.run import SHIPPED, reference_runs

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


@pytest.mark.thorough
def test_all_of_them_run_on_the_shipped_run_and_say_which_it_is():
    seen = []
    executed = dict(notebook.execute(PATHS, SHIPPED, lambda *progress: seen.append(progress)))
    assert list(executed) == [path.stem for path in PATHS]
    for name, node in executed.items():
        text = "".join(
            str(output) for cell in node.cells if cell.cell_type == "code" for output in cell.outputs
        )
        assert "shipped reference run" in text, name
        lacks = (
            "is not part of these runs",
            "There is no run of",
        )  # of experiments that are newer than the run
        reasons = (*WHY_NOT.values(), *lacks, "concurrency ids by themselves")
        missing = re.search(r"\[not measured\]|Not measured:|rl-not-measured", text)
        assert not missing or any(reason in text for reason in reasons), name
    assert seen[-1][1] == seen[-1][2]


def written(folder, **cells):
    """Notebooks by name, each of these cells."""
    paths = []
    for name, sources in cells.items():
        paths.append(folder / f"{name}.ipynb")
        made = [nbformat.v4.new_markdown_cell("# x"), *map(nbformat.v4.new_code_cell, sources)]
        nbformat.write(nbformat.v4.new_notebook(cells=made), paths[-1])
    return paths


def run(paths, progress=lambda *progress: None):
    return list(notebook.execute(paths, reference_runs()[-1], progress))


def gone(pid):
    """Whether the process ended, within a while: a kill takes effect when the kernel gets to it."""
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or ") Z" in Path(f"/proc/{pid}/stat").read_text():
            return True
        time.sleep(0.05)
    return False


WAIT = """
import time, pathlib
while not pathlib.Path({!r}).exists():
    time.sleep(0.05)
"""


def test_a_failing_cell_fails_the_build_by_name_and_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "lanes", lambda: 2)
    pid, fails = tmp_path / "pid", [WAIT.format(str(tmp_path / "pid")), "1 / 0"]
    waits = [f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid()))", "time.sleep(600)"]
    paths = written(tmp_path, a_waits=waits, b_broken=fails)
    with pytest.raises(NotebookError, match=r"^b_broken\.ipynb: cell 3: ZeroDivisionError"):
        run(paths)
    assert gone(int(pid.read_text()))


@pytest.mark.thorough
def test_a_kernel_that_dies_fails_the_build_by_name(tmp_path):
    with pytest.raises(NotebookError, match=r"^dies\.ipynb: cell 2: the kernel died"):
        run(written(tmp_path, dies=["import os; os.kill(os.getpid(), 9)"]))


@pytest.mark.thorough
def test_the_order_is_that_of_the_names_and_no_notebook_sees_another(tmp_path, monkeypatch):
    """The first goes on only when the second is through: they are executed at the same time."""
    monkeypatch.setattr(notebook, "lanes", lambda: 2)
    done, seen = str(tmp_path / "done"), []
    first = [WAIT.format(done), "import os; os.getpid(), 'left' in dir()"]
    second = ["left = 1; import os; os.getpid(), 'left' in dir()", f"open({done!r}, 'w').close()"]
    executed = run(written(tmp_path, a=first, b=second), lambda *progress: seen.append(progress))
    assert [name for name, _ in executed] == ["a", "b"] and seen[-1] == ("a", 2, 2)
    (slow, _), (quick, left) = (
        eval(next(out for cell in node.cells[1:] for out in cell.outputs)["data"]["text/plain"])
        for _, node in executed
    )
    assert slow != quick and left and "False" in str(executed[0][1])


def test_an_interruption_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "lanes", lambda: 2)
    cells = [
        f"import os, time; open('{tmp_path}/%s', 'w').write(f'{{os.getpid()}} {{os.getppid()}}')",
        "time.sleep(600)",
    ]

    def interrupt(*progress):
        if (tmp_path / "pid-a").exists() and (tmp_path / "pid-b").exists():
            raise KeyboardInterrupt

    paths = written(tmp_path, a=[cells[0] % "pid-a", *cells[1:]], b=[cells[0] % "pid-b", *cells[1:]])
    with pytest.raises(KeyboardInterrupt):
        run(paths, interrupt)
    for name in ("pid-a", "pid-b"):
        assert all(map(gone, (tmp_path / name).read_text().split()))
