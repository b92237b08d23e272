"""Executes notebooks, in order and strictly: any cell that raises fails the build, by name.

They run in a child process, as many at a time as there are CPUs: Ctrl-C, a dead kernel or a hang ends that child
and what it started, and nothing else.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import nbformat

from rseqlab import host
from rseqlab.errors import LabError
from rseqlab.lab.child import Child, Failed
from rseqlab.lab.runner import runs_folder
from rseqlab.paths import project_root

CELL_TIMEOUT_S = 120
NOTEBOOK_TIMEOUT_S = 600
MOST_LANES = 4
"""Each notebook's kernel holds a few hundred megabytes."""


class NotebookError(LabError):
    """A notebook did not run through. The message names it, the cell, and what was raised."""


def notebooks() -> list[Path]:
    """The study's notebooks, in reading order."""
    return sorted((project_root() / "notebooks").glob("[0-9]*.ipynb"))


def lanes() -> int:
    """How many notebooks are executed at a time: one for each CPU of this process, at most MOST_LANES."""
    return min(len(host.allowed_cpus()), MOST_LANES)


def execute(
    paths: list[Path], run: str | Path | None, progress: Callable[[str, int, int], None]
) -> Iterator[tuple[str, nbformat.NotebookNode]]:
    """(name, executed notebook) in the order of ``paths``, all of them reading what ``run`` names (see open_run).

    Some are executed at a time, each in a kernel of its own; the first that fails ends all of them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # The kernels' files stay out of the user's home, which may not be writable, or not there.
        environment = {
            "HOME": scratch,
            "IPYTHONDIR": scratch,
            "RSEQLAB_RUN": _absolute(run),
            "RSEQLAB_RUNS": str(runs_folder().resolve()),
            "RSEQLAB_PAGE": "1",  # for a page: controls that nobody could move stay out
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "OPENBLAS_NUM_THREADS": "1",  # there is a notebook on each CPU already; it has no part in the results
        }
        arguments = {"paths": [str(path.resolve()) for path in paths], "scratch": scratch, "lanes": lanes()}
        child = Child(execute_in_child, arguments, environment, NOTEBOOK_TIMEOUT_S * max(1, len(paths)))
        nodes: dict[int, nbformat.NotebookNode] = {}
        given = 0
        for message in child:
            at = message["at"]
            if "node" in message:
                nodes[at] = nbformat.from_dict(message["node"])
            else:
                progress(paths[at].stem, message["done"], message["total"])
            while given in nodes:
                yield paths[given].stem, nodes[given]
                given += 1
    if child.ended.status != "pass":
        open_ones = [path.name for at, path in enumerate(paths) if at not in nodes]
        named = any((child.ended.reason or "").startswith(f"{name}: ") for name in open_ones)
        which = "" if named else f"{', '.join(open_ones)}: "
        raise NotebookError(f"{which}{child.ended.reason}")


def _absolute(run: str | Path | None) -> str:
    """The same for a process in another folder; empty for the study."""
    return str(Path(run).resolve()) if run and Path(run).exists() else str(run or "")


def execute_in_child(arguments: Mapping) -> Iterator[dict]:
    """In a child: how many cells are done, as they are, then the executed notebook, each with its place in the list."""
    from rseqlab.study import forked

    forked.start_ahead()
    messages: asyncio.Queue[dict | None] = asyncio.Queue()
    with asyncio.Runner() as runner:
        work = runner.get_loop().create_task(_all(arguments, messages))
        while (message := runner.run(messages.get())) is not None:
            yield message
        runner.run(_outcome(work))


async def _outcome(work: asyncio.Task) -> None:
    await work


async def _all(arguments: Mapping, messages: asyncio.Queue) -> None:
    """Every notebook, so many at a time. The first that fails ends the others; None is the last message."""
    free = asyncio.Semaphore(arguments["lanes"])

    async def one(at: int, path: Path) -> None:
        async with free:
            scratch = Path(arguments["scratch"]) / str(at)
            scratch.mkdir()
            await _one(path, scratch, lambda message: messages.put_nowait({"at": at, **message}))

    try:
        async with asyncio.TaskGroup() as group:
            for at, path in enumerate(map(Path, arguments["paths"])):
                group.create_task(one(at, path))
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        messages.put_nowait(None)


async def _one(path: Path, scratch: Path, tell: Callable[[dict], None]) -> None:
    """One notebook in a kernel of its own. Raises Failed, which names the notebook, the cell and what was raised."""
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    from rseqlab.study import forked

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
        kernel_manager_class=forked.Manager,
    )
    environment = os.environ | {"HOME": str(scratch), "IPYTHONDIR": str(scratch)}
    number = done = 0
    try:
        async with asyncio.timeout(NOTEBOOK_TIMEOUT_S), client.async_setup_kernel(env=environment):
            for number, cell in enumerate(node.cells, 1):
                await client.async_execute_cell(cell, number - 1)
                if cell.cell_type == "code":
                    done += 1
                    tell({"done": done, "total": total})
            client.set_widgets_metadata()
    except CellExecutionError as error:
        raise Failed(f"{path.name}: cell {number}: {error.ename}: {error.evalue}") from None
    except CellTimeoutError:
        raise Failed(f"{path.name}: cell {number}: still running after {CELL_TIMEOUT_S} s") from None
    except DeadKernelError:
        raise Failed(f"{path.name}: cell {number}: the kernel died") from None
    except TimeoutError:
        raise Failed(f"{path.name}: cell {number}: not done after {NOTEBOOK_TIMEOUT_S} s") from None
    except (RuntimeError, NoSuchKernel) as error:
        log = forked.log_of(manager["connection_file"])
        said = log.read_text(errors="replace").strip().rpartition("\n")[2] if log.exists() else ""
        raise Failed(
            f"{path.name}: no kernel could be started to execute it: {error} {said}".strip()
        ) from None
    tell({"node": node})
