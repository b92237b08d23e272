"""kernel-suite: does the package do on a real arm64 kernel what its tests say it does?

The package's own tests of registration, per-CPU operations and the attack run in a guest, whatever the machine
is: an aarch64 kernel of the distribution in QEMU, Python and the cross-built extensions inside. One row per test.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import LINUX, Column, Experiment, Need, Part, Task
from rseqlab.vm import boot, kernels, packages, python_image
from rseqlab.vm.guest_suite import TESTS

ARCH = python_image.ARCH
FILES = (
    "test_rseq.py",
    "test_percpu.py",
    "test_attack.py",
    "test_native.py",
    "test_abi.py",
    "test_layout.py",
)
SERIES = {"quick": ("newest",), "full": ("6.12", "newest")}
"""The oldest kernel whose area has mm_cid among the default set, and the newest one."""

SETTINGS = ("RSEQLAB_ATTACK_OPERATIONS=300000", "RSEQLAB_TEST_PATIENCE=4")
"""Environment of the tests: short attacks and long deadlines, as emulation takes its time. What the tests assert
stays the same."""

CPUS, MEMORY_MIB = 2, 1536
TIMEOUT_S = 900
BUILD_TIMEOUT_S = 900
"""The first time the image and the kernel come from the archive."""

OUTCOMES = ("passed", "skipped", "failed")
TYPICAL_TESTS = 110

COLUMNS = (
    Column("series", "text", "the kernel's release up to its second number"),
    Column("release", "text", "what the kernel calls itself, from inside"),
    Column("arch", "text", "what the kernel calls the machine, from inside", choices=(ARCH,)),
    Column("libc", "text", "the C library of the guest"),
    Column("python", "text", "the version of the guest's Python"),
    Column("cpus", "int", "virtual CPUs that the tests may run on", minimum=1),
    Column("accel", "text", "what executed the guest: kvm or tcg"),
    Column("test", "text", "file and name of the test, with its parameters"),
    Column("outcome", "text", "what it came to", choices=OUTCOMES),
    Column("seconds_s", "float", "set-up, test and clean-up in the guest's time"),
    Column("reason", "text", "why it was skipped, or how it failed", nullable=True),
)

GUEST = {"release": str, "arch": str, "libc": str, "python": str, "pytest": str, "cpus": int}
TEST = {"test": str, "outcome": str, "seconds_s": float, "reason": str | None}
LONGEST_TEXT = 2000


def plan(profile: str) -> list[Part]:
    """One guest for each kernel; what the user chose (series, or images of his own) replaces the profile's."""
    if os.environ.get(kernels.CHOSEN_KERNELS):
        wanted = [
            (one.release, {"image": str(one.image)}) for one in kernels.chosen_kernels() if one.arch == ARCH
        ]
    else:
        series = kernels.chosen_series() if os.environ.get(kernels.CHOSEN_SERIES) else SERIES[profile]
        wanted = [(one, {"series": one}) for one in series]
    skip = (
        None if ARCH in kernels.chosen_archs() else f"only {', '.join(kernels.chosen_archs())} was asked for"
    )
    mirror = {packages.MIRROR: os.environ[packages.MIRROR]} if packages.MIRROR in os.environ else {}
    return [
        Part(
            id=name,
            rows=TYPICAL_TESTS,
            timeout_s=(1 + boot.PATIENCE) * TIMEOUT_S + BUILD_TIMEOUT_S,
            environment=mirror,
            arguments={"timeout_s": TIMEOUT_S, "tests": list(FILES), **which},
            skip=skip,
        )
        for name, which in wanted
    ]


def measure(task: Task) -> Iterator[dict]:
    """Boots the guest and yields what its tests came to. A resumed part runs all of them again."""
    image = task.arguments.get("image")
    kernel = kernels.of_image(Path(image)) if image else kernels.fetch(task.arguments["series"], ARCH)
    initrd = python_image.build(FILES)
    tests = [f"tests/{name}" for name in task.arguments["tests"]]
    guest = boot.Guest(
        kernel,
        initrd,
        cpus=CPUS,
        memory_mib=MEMORY_MIB,
        append=(f"{TESTS}={','.join(tests)}", *SETTINGS),
        timeout_s=task.arguments["timeout_s"],
    )
    outcome = boot.boot(guest)
    if outcome.status != "done":
        raise Failed(f"The guest with kernel {kernel.release} ended with {outcome.status}: {outcome.reason}")
    facts, found = checked(boot.rows(outcome))
    for row in found:
        if task.pending(row["test"]):
            yield {"series": kernel.series, **facts, "accel": outcome.accel, **row}


def checked(rows: list[dict]) -> tuple[dict, list[dict]]:
    """(what the guest is, the tests' rows) of what a guest wrote. Raises Failed at the first row that cannot be.

    The guest is not trusted, and a suite that broke off must not look like one that passed.
    """
    if len(rows) < 3 or rows[0].get("kind") != "guest" or rows[-1].get("kind") != "end":
        raise Failed(
            f"A guest wrote {len(rows)} rows that do not begin with what it is and end with how it ended."
        )
    facts = _values(rows[0], GUEST)
    found = [_values(row, TEST) for row in rows[1:-1]]
    for row in found:
        if row["outcome"] not in OUTCOMES:
            raise Failed(
                f"A guest says that {row['test']} {row['outcome']}; allowed are {', '.join(OUTCOMES)}."
            )
        if row["seconds_s"] < 0 or not row["test"]:
            raise Failed(f"A guest's row has no test's name or a negative duration: {row}.")
        if (row["outcome"] == "passed") == bool(row["reason"]):
            raise Failed(
                f"A guest says that {row['test']} {row['outcome']}, with the reason {row['reason']!r}."
            )
    if len({row["test"] for row in found}) != len(found):
        raise Failed("A guest reports a test twice.")
    failed = any(row["outcome"] == "failed" for row in found)
    if rows[-1].get("status") != int(failed):  # pytest: 0 all well, 1 tests failed; all else it broke off
        raise Failed(
            f"pytest ended with {rows[-1].get('status')} in the guest, after {len(found)} tests; "
            f"{'1' if failed else '0'} was to be expected of them."
        )
    facts.pop("pytest")
    return facts, found


def _values(row: Mapping, shape: Mapping[str, type]) -> dict:
    """The values of these names, each of its type and of a bounded length."""
    values = {name: row.get(name) for name in shape}
    for name, kind in shape.items():
        value = values[name]
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if wrong or (isinstance(value, str) and len(value) > LONGEST_TEXT):
            raise Failed(
                f"A guest's row has {name} {str(value)[:100]!r}, which is not what this column holds."
            )
    return values


def _no_guest() -> str | None:
    return boot.missing(ARCH)


EXPERIMENT = Experiment(
    name="kernel-suite",
    question="Do the package's own tests of registration, per-CPU operations and attacks pass on a real arm64 kernel?",
    serves="every claim of this lab about arm64",
    columns=COLUMNS,
    key=("test",),
    needs=(
        LINUX,
        Need("a system emulator of aarch64", _no_guest),
        Need("the parts of the guest's image", python_image.missing),
    ),
    seconds={"quick": 300, "full": 600},
    plan=plan,
    measure=measure,
    group="kernels",
)
