"""Kernels for the report that are forks of one process, which imported the study and opened the run once for all.

Each notebook still has a process of its own, and none sees what another one did. What is shared is what every one of
them would do first, and takes longer than most of their cells. All of them stay in the process group of whoever
started them and die with the process that they were forked from, so that nothing is left behind.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Mapping
from multiprocessing import forkserver, process
from pathlib import Path
from typing import Any

from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import LocalProvisioner

AHEAD = "rseqlab.study.ahead"
"""What the process imports that kernels are forked from."""


def start_ahead() -> None:
    """Start that process; it works while this one goes on. Kernels that are asked for meanwhile wait for it."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([AHEAD])
    forkserver.ensure_running()


class Fork:
    """As much of subprocess.Popen as Jupyter asks of a kernel's process."""

    stdin = stdout = stderr = None

    def __init__(self, forked: process.BaseProcess) -> None:
        self.forked = forked
        self.pid = forked.pid

    def poll(self) -> int | None:
        return self.forked.exitcode

    def wait(self) -> int | None:
        self.forked.join()
        return self.forked.exitcode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def log_of(connection_file: str) -> Path:
    """Where a kernel's words go that belong to no cell, such as why it could not start."""
    return Path(connection_file).with_suffix(".log")


class Provisioner(LocalProvisioner):
    """Jupyter's way to start a kernel on this machine, by a fork instead of a new Python."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        words = cmd[cmd.index("-f") :]  # behind the interpreter and the module that it would run
        arguments = (words, dict(kwargs["env"]), str(kwargs["cwd"]), str(log_of(self.parent.connection_file)))
        forked = multiprocessing.get_context("forkserver").Process(target=run_kernel, args=arguments)
        forked.start()
        self.process, self.pid, self.cwd = Fork(forked), forked.pid, kwargs["cwd"]
        return self.connection_info


class Manager(AsyncKernelManager):
    """Jupyter's manager of one kernel, with that way to start it."""

    async def _async_pre_start_kernel(self, **kwargs: Any) -> Any:
        if self.provisioner is None:
            kernel_id = kwargs.get("kernel_id", self.kernel_id)
            self.provisioner = Provisioner(kernel_id=kernel_id, kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**kwargs)


def run_kernel(words: list[str], environment: Mapping[str, str], folder: str, log: str) -> None:
    """In the fork: be the kernel that these words ask for, until it is shut down."""
    from ipykernel.kernelapp import launch_new_instance

    from rseqlab.lab.child import die_with_parent

    die_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    launch_new_instance(argv=words)
