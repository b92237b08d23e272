"""Runs in the guest, as a program: pytest over the files that the kernel's command line names; one row per test.

Rows are lines of JSON on descriptor 3. ``kind`` is ``guest`` (what this guest is, first), ``test``, or ``count``
(how many tests pytest found, last): a test that never reported is thereby seen to be missing.
"""

import json
import os
import platform
import sys

ROWS_FD = 3
TESTS = "RSEQLAB_TESTS"
"""Environment variable: what pytest is asked to run, separated by commas."""

REASON_CHARACTERS = 1500


def printable(text: str) -> str:
    """One line without control characters, its end kept where it is long: the assertion is there."""
    line = " | ".join(filter(None, (part.strip() for part in text.splitlines())))
    line = "".join(character if character.isprintable() else "?" for character in line)
    return line if len(line) <= REASON_CHARACTERS else "... " + line[-REASON_CHARACTERS:]


class Rows:
    """A pytest plugin: what each test came to, as soon as that is known."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor
        self.seconds: dict[str, float] = {}
        self.outcomes: dict[str, tuple[str, str]] = {}

    def write(self, **row: object) -> None:
        """One line; a line is short enough to be written whole."""
        os.write(self.descriptor, json.dumps(row).encode() + b"\n")

    def pytest_runtest_logreport(self, report) -> None:
        """Called three times for each test (setup, call, teardown): the worst of them is the outcome."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        known = self.outcomes.get(report.nodeid)
        if (
            known is None
            or report.outcome == "failed"
            or (known[0] == "passed" and report.outcome == "skipped")
        ):
            self.outcomes[report.nodeid] = (report.outcome, self._reason(report))
        if report.when == "teardown" or report.when not in ("setup", "call"):  # a worker that died says "???"
            outcome, reason = self.outcomes[report.nodeid]
            self.write(
                kind="test",
                test=printable(report.nodeid),
                outcome=outcome,
                seconds_s=round(self.seconds[report.nodeid], 3),
                reason=reason or None,
            )

    def pytest_collectreport(self, report) -> None:
        """A file that cannot be imported is a test that failed."""
        if report.outcome == "failed":
            self.write(
                kind="test",
                test=printable(report.nodeid),
                outcome="failed",
                seconds_s=0.0,
                reason=printable(str(report.longrepr)),
            )

    @staticmethod
    def _reason(report) -> str:
        if report.outcome == "passed" or report.longrepr is None:
            return ""
        said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return printable(said.removeprefix("Skipped: "))


def main() -> int:
    """Exit status: pytest's own, 0 where every test passed or was skipped."""
    import pytest

    rows = Rows(ROWS_FD)
    rows.write(
        kind="guest",
        release=platform.release(),
        arch=platform.machine(),
        libc=os.confstr("CS_GNU_LIBC_VERSION"),
        python=platform.python_version(),
        pytest=pytest.__version__,
        cpus=len(os.sched_getaffinity(0)),
    )
    workers = ["-n", str(len(os.sched_getaffinity(0))), "--dist", "worksteal"]
    arguments = ["-p", "no:cacheprovider", "-q", *workers, *os.environ[TESTS].split(",")]
    return int(pytest.main(arguments, plugins=[rows]))


if __name__ == "__main__":
    sys.exit(main())
