"""What an experiment is: one question, its parts (child processes), its columns.

A module in rseqlab/experiments that defines ``EXPERIMENT`` is found by itself. Its ``measure`` is a
generator that runs in a child process and yields one dict per row.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rseqlab import native
from rseqlab.lab import probe

PLACE = ("build", "process")
"""Columns of which the part's arguments know the value (lab/builds.py)."""

PROFILES = ("quick", "full")
GROUPS = ("machine", "kernels", "workloads")
"""What an experiment is about: this machine, kernels in QEMU, or programs that the reader knows. Each group is
measured by a run of its own, as the last two take longer and need more; a run without names is of the machine."""


@dataclass(frozen=True)
class Column:
    """One column of an experiment's table. ``kind`` is int, float or text; a null is an empty cell.

    Numbers below ``minimum`` are no measurements and are refused.
    """

    name: str
    kind: str
    about: str
    nullable: bool = False
    choices: tuple[str, ...] = ()
    minimum: float = 0


@dataclass(frozen=True)
class Part:
    """One child process: its id within the experiment, environment, arguments and expected rows."""

    id: str
    rows: int
    timeout_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: Mapping[str, object] = field(default_factory=dict)
    skip: str | None = None
    """Why this part cannot be measured here; it is recorded, not run."""


def alike(size: Mapping, rows: int, timeout_s: float) -> list[Part]:
    """``size["processes"]`` equal parts, each told its seed; libc registers their threads, or they do it themselves."""
    start, environment = ("self", probe.LIBC_LEAVES) if probe.libc_refusal() else ("libc", probe.LIBC_OWNS)
    return [
        Part(
            id=f"{start}-{number}",
            rows=rows,
            timeout_s=timeout_s,
            environment=environment,
            arguments={"start": start, "seed": number, **size},
        )
        for number in range(size["processes"])
    ]


@dataclass(frozen=True)
class Task:
    """What ``measure`` is given in the child: its arguments, and the keys that are measured already."""

    arguments: Mapping[str, object]
    done: frozenset[tuple]

    def pending(self, *key: object) -> bool:
        """Whether the row with this key is still to be measured (a resumed run has some already)."""
        return tuple(str(part) for part in key) not in self.done


@dataclass(frozen=True)
class Need:
    """Something an experiment cannot do without. ``missing`` says why it is not there, or None."""

    name: str
    missing: Callable[[], str | None]


@dataclass(frozen=True)
class Experiment:
    """A question and how it is answered. ``key`` names the columns that tell one row of a part from another."""

    name: str
    question: str
    serves: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    needs: tuple[Need, ...]
    seconds: Mapping[str, float]
    plan: Callable[[str], list[Part]]
    measure: Callable[[Task], Iterator[dict]]
    group: str = "machine"
    """One of GROUPS."""

    prepare: Callable[[Mapping], str | None] | None = None
    """Called with a part's arguments before its deadline runs: makes what the part needs, and says why that cannot
    be made, or None. The part is then a skip with this reason."""

    @property
    def module(self) -> str:
        """Where the child finds ``measure``."""
        return self.measure.__module__

    def all_columns(self) -> tuple[Column, ...]:
        """The table's columns: the part's id, then the experiment's own."""
        return (Column("part", "text", "which child process measured this row"), *self.columns)

    def unmet(self) -> list[str]:
        """Why it cannot run here, each reason once; empty where it can."""
        return list(dict.fromkeys(reason for need in self.needs if (reason := need.missing())))


def measure_part(request: Mapping) -> Iterator[dict]:
    """Runs in the child: one part of the experiment in ``request["module"]``.

    Rows say the build and the process that the part's arguments name, where the table has these columns.
    """
    experiment = importlib.import_module(request["module"]).EXPERIMENT
    arguments = request["arguments"]
    place = {one.name: arguments.get(one.name) for one in experiment.columns if one.name in PLACE}
    for row in experiment.measure(Task(arguments, frozenset(map(tuple, request["done"])))):
        yield place | row


def _not_linux() -> str | None:
    return None if sys.platform == "linux" else f"rseq is a Linux system call; this is {sys.platform}"


LINUX = Need("Linux", _not_linux)
NATIVE = Need("the compiled layer", native.unavailable)
REGISTRATION = Need("rseq registration", probe.kernel_refusal)
