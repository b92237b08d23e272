"""What several test files share: how a missing tool is treated, and a real browser."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Nothing of the browser's own housekeeping may reach the network or a sandbox that containers lack.
CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
NOT_RUN = pytest.StashKey[int]()
PATIENCE = int(os.environ.get("RSEQLAB_TEST_PATIENCE", 1))
"""Factor of the deadlines of what tests start: more where the machine is emulated. No deadline is a measurement."""


STAGES = {
    "unit": (),
    "native": (
        "native",
        "rseq",
        "percpu",
        "counted",
        "counts",
        "peers",
        "child",
        "experiments",
        "run",
        "bench",
        "builds",
    ),
    "attack": ("attack",),
    "options": ("options", "redefine", "costs", "layout"),
    "notebooks": ("notebooks", "cli", "compare", "judgement", "shipped", "explore", "design", "magic"),
    "browser": ("published", "report", "jupyterlab"),
    "kernels": ("vm", "guest_suite", "kernels_probe", "kernel_redefine", "slice"),
    "programs": ("workloads", "census_files", "census_live", "census_packages", "census_trace"),
    "package": ("wheels", "contributing", "doctests", "elsewhere"),
}
"""`--stage NAME` runs these files, in the order in which continuous integration does; all others are `unit`."""


def pytest_configure(config: pytest.Config) -> None:
    """Heed SIGINT: a shell that starts the tests in the background has them, and all they start, ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.pluginmanager.register(Workers)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two options: the stage, and whether only what is quick is run."""
    parser.addoption(
        "--stage", choices=tuple(STAGES), help="only the tests of this stage (tests/conftest.py)"
    )
    parser.addoption("--quick", action="store_true", help="without the tests that are marked thorough")


def stage_of(path: Path) -> str:
    """The stage of a test file."""
    name = path.stem.removeprefix("test_")
    return next((stage for stage, names in STAGES.items() if name in names), "unit")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only those of the stage, where one is named, and only the quick ones, where these are asked for."""
    wanted = config.getoption("--stage")
    if wanted is not None:
        others = [item for item in items if stage_of(item.path) != wanted]
        items[:] = [item for item in items if stage_of(item.path) == wanted]
        config.hook.pytest_deselected(items=others)
    if config.getoption("--quick"):
        thorough = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=thorough)
        config.stash[NOT_RUN] = len(thorough)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of xdist tells how many it left out; each of them collects all tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["not_run"] = session.config.stash.get(NOT_RUN, 0)


class Workers:
    """What xdist's workers tell as they end."""

    @staticmethod
    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(node: object) -> None:
        """The number of tests that were left out."""
        told = getattr(node, "workeroutput", {}).get("not_run", 0)
        node.config.stash[NOT_RUN] = max(told, node.config.stash.get(NOT_RUN, 0))


# In quotes, since the older pytest of the guests has no such name in public.
def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter", config: pytest.Config) -> None:
    """What was left out is said where the result is."""
    if count := config.stash.get(NOT_RUN, 0):
        terminalreporter.write_line(f"not run: {count} thorough tests; make test-all runs them")


def require_or_skip(present: bool, what: str, remedy: str) -> None:
    """Skip the test when `what` is missing; fail it where everything is required to be there.

    A check that is skipped everywhere checks nothing, so the build that sets RSEQLAB_REQUIRE_ALL
    must run them all.
    """
    if present:
        return
    message = f"{what} is missing; {remedy}"
    if os.environ.get("RSEQLAB_REQUIRE_ALL"):
        pytest.fail(f"{message} (RSEQLAB_REQUIRE_ALL is set)", pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """A headless Chromium, driven by playwright; the tests open their own contexts in it."""
    remedy = "install it with `make deps`"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        require_or_skip(False, "the Python package playwright", remedy)
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    require_or_skip(executable is not None, "the system package chromium", remedy)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def guests() -> None:
    """QEMU for both architectures and the default kernels and C libraries, cached between sessions."""
    from rseqlab.errors import LabError
    from rseqlab.vm import boot, stock

    require_or_skip(boot.missing() is None, "QEMU", "install it with `make deps`")
    try:
        stock.fetch(*stock.defaults())
    except LabError as error:
        require_or_skip(False, f"a kernel or C library for guests ({error})", "try `rseqlab kernels fetch`")
