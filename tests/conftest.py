"""What several test files share: how a missing tool is treated, and a real browser."""

import os
import shutil
from collections.abc import Iterator

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
