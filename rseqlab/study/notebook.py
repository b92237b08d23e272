"""Executes notebooks, in order and strictly: any cell that raises fails the build, by name.

They run in a child process: Ctrl-C, a dead kernel or a hang ends that child and nothing else.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import nbformat

from rseqlab.errors import LabError
from rseqlab.lab.child import Child, Failed
from rseqlab.lab.runner import project_root, runs_folder

CELL_TIMEOUT_S = 120
NOTEBOOK_TIMEOUT_S = 600


class NotebookError(LabError):
    """A notebook did not run through. The message names it, the cell, and what was raised."""


def notebooks() -> list[Path]:
    """The study's notebooks, in reading order."""
    return sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))


def execute(
    paths: list[Path], run_folder: Path, progress: Callable[[str, int, int], None]
) -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """(name, executed notebook), one after another, all of them reading the run in ``run_folder``."""
    for path in paths:
        with tempfile.TemporaryDirectory() as scratch:
            # The kernel's files stay out of the user's home, which may not be writable, or not there.
            environment = {
                "HOME": scratch,
                "IPYTHONDIR": scratch,
                "RSEQLAB_RUN": str(run_folder),
                "RSEQLAB_RUNS": str(runs_folder().resolve()),
                "RSEQLAB_PAGE": "1",  # for a page: controls that nobody could move stay out
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            }
            arguments = {"path": str(path.resolve()), "scratch": scratch}
            child, node = Child(execute_in_child, arguments, environment, NOTEBOOK_TIMEOUT_S), None
            for message in child:
                if "node" in message:
                    node = nbformat.from_dict(message["node"])
                else:
                    progress(path.stem, message["done"], message["total"])
        if child.outcome.status != "pass" or node is None:
            raise NotebookError(f"{path.name}: {child.outcome.reason}")
        yield path.stem, node


def execute_in_child(arguments: Mapping) -> Iterator[dict]:
    """In a child: how many cells are done, as they are, then the executed notebook."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    path, scratch = Path(arguments["path"]), Path(arguments["scratch"])
    node = nbformat.read(path, as_version=4)
    total = sum(cell.cell_type == "code" for cell in node.cells)
    # Sockets in a private folder: TCP ports would be open to every user of the machine.
    manager = {
        "transport": "ipc",
        "ip": str(scratch / "socket"),
        "connection_file": str(scratch / "kernel.json"),
    }
    client = NotebookClient(
        node,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        config=Config({"KernelManager": manager}),
    )
    number = done = 0
    try:
        with client.setup_kernel(env=dict(os.environ)):
            for number, cell in enumerate(node.cells, 1):
                client.execute_cell(cell, number - 1)
                if cell.cell_type == "code":
                    done += 1
                    yield {"done": done, "total": total}
            client.set_widgets_metadata()
    except CellExecutionError as error:
        raise Failed(f"cell {number}: {error.ename}: {error.evalue}") from None
    except CellTimeoutError:
        raise Failed(f"cell {number}: still running after {CELL_TIMEOUT_S} s") from None
    except DeadKernelError:
        raise Failed(f"cell {number}: the kernel died") from None
    except (RuntimeError, NoSuchKernel) as error:
        raise Failed(f"no kernel could be started to execute it: {error}") from None
    yield {"node": node}
