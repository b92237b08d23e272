"""`%rseqlab` in an IPython and in a real kernel: it runs, it completes, and an interrupt harms nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE
from IPython.core.completer import provisionalcompleter
from processes import children_of, processes_naming

from rseqlab.cli import magic
from rseqlab.experiments import catalogue
from rseqlab.study.run import SHIPPED, open_run, reference_runs


@pytest.fixture(scope="module")
def shell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.run_line_magic("load_ext", "rseqlab")
    yield shell
    shell.history_manager.end_session()


def completed(shell, text: str) -> set[str]:
    """The words that JupyterLab offers: what stands there with what would be put in, up to the cursor's word."""
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    begins = text.rfind(" ") + 1
    return {text[begins : one.start] + one.text for one in found}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("%rseqlab ru", {"run"}),
        ("%rseqlab run cpu-", {"cpu-id-read"}),
        ("%rseqlab run --prof", {"--profile"}),
        ("%rseqlab run --profile f", {"full"}),
        ("%rseqlab kernels li", {"list"}),
        ("%rseqlab claims C13", {"C13", "C13d", "C13i", "C13x"}),
        ("%rseqlab options grow-symbol/dl", {"grow-symbol/dlopen"}),
        ("%rseqlab claims --verdict fai", {"fails"}),
    ],
)
def test_tab_knows_what_the_command_line_knows(shell, text, wanted):
    assert completed(shell, text) == wanted


def test_tab_offers_every_experiment_but_those_that_are_named_already(shell):
    assert completed(shell, "%rseqlab run ") == set(catalogue())
    assert "cpu-id-read" not in completed(shell, "%rseqlab run cpu-id-read ")


def test_a_run_is_opened_by_name_and_tab_knows_the_names(shell):
    run = open_run(SHIPPED)
    shell.user_ns["run"] = run
    assert 'run["cpu-id-read' in completed(shell, 'run["cpu-')
    assert run["cpu-id-read"].equals(run.table("cpu-id-read"))
    assert set(run) == set(run._ipython_key_completions_()) and "cpu-id-read" in run


def test_what_the_command_says_is_shown_and_a_failure_is_one(shell, capfd, monkeypatch):
    monkeypatch.setenv("RSEQLAB_RUN", str(reference_runs()[-1]))
    assert magic.run_words(["claims", "C13", "--json"]) == 0
    (claim,) = json.loads(capfd.readouterr().out)["claims"]
    assert claim["id"] == "C13"
    with pytest.raises(magic.NotRun, match="exit code 2"):
        magic.run_line("run no-such-experiment")
    assert "No experiment is called 'no-such-experiment'" in capfd.readouterr().err


KERNEL = """
from jupyter_client.manager import start_new_kernel
import json, pathlib, sys, time
manager, client = start_new_kernel()
try:
    client.execute_interactive("%load_ext rseqlab", timeout=60)
    # Else what is asked soon after the interrupt may be answered "aborted", as what had waited for the cell is.
    asked, heard = client.execute("%rseqlab run percpu-counter --out " + sys.argv[1], stop_on_error=False), []
    while not any("Run:" in one for one in heard):
        message = client.get_iopub_msg(timeout=60)
        heard.append(message["content"].get("text", ""))
    while not list(pathlib.Path(sys.argv[1]).glob("*.csv")):  # what is measured has begun
        time.sleep(0.01)
    manager.interrupt_kernel()
    reply = client.get_shell_msg(timeout=60)
    while reply["parent_header"].get("msg_id") != asked:
        reply = client.get_shell_msg(timeout=60)
    said = []
    client.execute_interactive("print(6 * 7)", timeout=60, output_hook=lambda m: said.append(m["content"].get("text", "")))
    print(json.dumps({"status": reply["content"]["status"], "ename": reply["content"].get("ename"), "said": "".join(said)}))
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
"""


def test_an_interrupt_ends_the_command_keeps_its_rows_and_leaves_the_kernel_alive(tmp_path):
    folder = tmp_path / "run"
    said = subprocess.run(
        [sys.executable, "-c", KERNEL, str(folder)],
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
    )
    assert said.returncode == 0, said.stderr
    seen = json.loads(said.stdout.splitlines()[-1])
    assert (seen["status"], seen["ename"], seen["said"].strip()) == ("error", "KeyboardInterrupt", "42")
    assert json.loads((folder / "run.json").read_text())["ended"] is None  # and --resume goes on
    deadline = time.monotonic() + 10
    while left := processes_naming(str(folder)):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_child_dies_with_the_kernel():
    code = "import subprocess, sys\nfrom rseqlab.cli import magic\nmagic.run_words(['doctor'])"
    assert magic.ENTRY.startswith("from rseqlab.lab.child import die_with_parent; die_with_parent()")
    kernel = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30 * PATIENCE
        while not (children := children_of(kernel.pid)):
            assert time.monotonic() < deadline and kernel.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)
    finally:
        kernel.send_signal(signal.SIGKILL)
        kernel.wait()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
