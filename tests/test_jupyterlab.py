"""A real JupyterLab in a real browser, worked by keyboard: the designer, the magic, completion, an interrupt."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import PATIENCE, require_or_skip

from rseqlab.lab import compile, probe
from rseqlab.study.run import SHIPPED

PATIENCE_MS = 90_000 * PATIENCE
SETTINGS = (
    "--no-browser",
    "--allow-root",
    "--ServerApp.port=0",
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)


def notebook(*cells: str) -> nbformat.NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in cells], metadata={"kernelspec": kernel}
    )


NOTEBOOKS = {
    "design": notebook("from rseqlab.study import explore\nexplore.designer()"),
    "magic": notebook(
        "from rseqlab.study.run import open_run\nrun = open_run()\n%load_ext rseqlab\nprint('loa' + 'ded')",
        "",
        "",
        "",
    ),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own: nothing of this user's settings, nothing left behind. Gives an address by notebook."""
    home = tmp_path_factory.mktemp("lab")
    for name, node in NOTEBOOKS.items():
        nbformat.write(node, home / f"{name}.ipynb")
    environment = os.environ | {
        "HOME": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "IPYTHONDIR": str(home / "ipython"),
        "RSEQLAB_RUN": SHIPPED,
        "RSEQLAB_RUNS": str(home / "runs"),
    }
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *SETTINGS],
            cwd=home,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 60 * PATIENCE
        while not (found := list((home / "runtime").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
            time.sleep(0.1)
        told = json.loads(found[0].read_text())
        yield lambda name: f"{told['url']}doc/tree/{name}.ipynb?token={told['token']}"
    finally:
        server.send_signal(signal.SIGINT)
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture
def opened(browser, lab):
    """Opens a notebook, waits until its kernel is there and runs its first cell."""
    contexts = []

    def open_notebook(name: str):
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.goto(lab(name))
        page.locator(".jp-CodeCell .cm-content").first.wait_for()
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(state="attached")
        run_first(page)
        return page

    yield open_notebook
    for context in contexts:
        context.close()


def run_first(page) -> None:
    """Run the first cell. JupyterLab drops what is run before its session is ready, and shows an idle kernel already."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while (prompt := page.locator(".jp-InputPrompt").first.inner_text().strip()) != "[1]:":
        assert time.monotonic() < deadline, "the first cell was never run"
        if prompt == "[ ]:":
            page.locator(".jp-CodeCell .cm-content").first.click()
            page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(500)


def write(page, number: int, text: str) -> None:
    """Type into a code cell, by its number."""
    page.locator(".jp-CodeCell .cm-content").nth(number).click()
    page.keyboard.type(text)


def test_a_struct_is_designed_and_played_by_keyboard(opened):
    require_or_skip(compile.missing() is None, "cc", "install gcc")
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", f"{probe.kernel_refusal()}")
    page = opened("design")
    page.get_by_label("begins as Linux").select_option("4.18")
    field = page.get_by_label("new field")
    field.focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("wide")
    page.keyboard.press("Tab")
    page.keyboard.press("Control+A")
    page.keyboard.type("64")
    for _ in range(2):  # the alignment, then the button
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Add the field"
    page.keyboard.press("Space")
    page.get_by_text("AT_RSEQ_FEATURE_SIZE is 84, AT_RSEQ_ALIGN 128").first.wait_for()
    page.get_by_text("wide lies on 2 cache lines").first.wait_for()
    page.get_by_text("the object is 96 bytes smaller").first.wait_for()
    page.get_by_role("button", name="Play its scenes").focus()
    page.keyboard.press("Space")
    page.get_by_text("Each ended as the layouts say.").first.wait_for()
    assert page.get_by_text("breaks, silent").count()


def test_the_magic_completes_runs_and_is_interrupted(opened):
    page = opened("magic")
    page.get_by_text("loaded", exact=True).wait_for()
    write(page, 1, 'run["cpu-id')
    page.keyboard.press("Tab")
    cell = page.locator(".jp-CodeCell .cm-content")
    chosen(page, cell.nth(1), "cpu-id-read")
    page.keyboard.press("Control+A")
    page.keyboard.type("%rseqlab run null-rep")
    page.keyboard.press("Tab")
    chosen(page, cell.nth(1), "%rseqlab run null-repeats")
    page.keyboard.press("Shift+Enter")
    page.get_by_text(re.compile(r"^Run: ")).wait_for()
    page.keyboard.press("Escape")
    page.keyboard.press("i")
    page.keyboard.press("i")
    page.get_by_text("KeyboardInterrupt").first.wait_for()
    write(page, 2, "print('still', 6 * 7)")
    page.keyboard.press("Shift+Enter")
    page.get_by_text("still 42", exact=True).wait_for()


def chosen(page, cell, wanted: str) -> None:
    """Wait until the completion stands in the cell: at once where there is one, else taken from the list."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while wanted not in cell.inner_text():
        assert time.monotonic() < deadline, cell.inner_text()
        if page.locator(".jp-Completer-item").first.is_visible():
            page.keyboard.press("Enter")
        page.wait_for_timeout(200)
