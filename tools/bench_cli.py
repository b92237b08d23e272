#!/usr/bin/env python3
"""How long the commands that only read take, each as a whole process, with a warm page cache.

    .venv/bin/python tools/bench_cli.py [--rounds 5] [--json FILE]

Every command runs once to warm the caches and then ROUNDS times, interleaved with the others. The table has the
fastest, the middle and the slowest time beside the time that a reader may expect. A time above that is marked and
changes no exit status: timing is a benchmark and no test. A command that fails ends this one with status 1.
"""

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import NamedTuple

RSEQLAB = Path(sys.executable).parent / "rseqlab"
LIBRARIES = Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or "")


class Command(NamedTuple):
    """One command line and the seconds within which a reader expects its answer (None: nothing was promised)."""

    words: tuple[str, ...]
    expected_s: float | None


COMMANDS = (
    *(
        Command((*words, *last), expected_s)
        for words, expected_s in (
            (("doctor",), 1),
            (("list",), 1),
            (("options",), 1),
            (("options", "grow-symbol/interpose-program"), 1),
            (("usage",), 1),
            (("claims", "C12"), 1),
            (("claims",), 2),
            (("evidence",), 3),
            (("kernels", "list"), 1),
        )
        for last in ((), ("--json",))
    ),
    Command(("census", str(LIBRARIES), "--json"), None),
)


def seconds(words: tuple[str, ...]) -> float:
    """The elapsed seconds of one process. Ends this program where it fails."""
    started = time.perf_counter()
    ended = subprocess.run([str(RSEQLAB), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    elapsed = time.perf_counter() - started
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        sys.exit(f"rseqlab {' '.join(words)} ended with {ended.returncode}: {last}")
    return elapsed


def readelf_seconds() -> float:
    """What `readelf -Ws` takes on each library of the folder that the census reads, one after another."""
    started = time.perf_counter()
    for path in sorted(LIBRARIES.glob("*.so*")):
        if path.is_file() and not path.is_symlink():
            subprocess.run(
                ["readelf", "-Ws", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
    return time.perf_counter() - started


def main() -> None:
    """Measure, print the table, and write the figures where --json names a file."""
    parser = argparse.ArgumentParser(description="Time the commands that only read.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error(f"--rounds is {asked.rounds}; at least 1")
    for command in COMMANDS:
        seconds(command.words)
    taken: dict[Command, list[float]] = {command: [] for command in COMMANDS}
    for _ in range(asked.rounds):
        for command in COMMANDS:
            taken[command].append(seconds(command.words))
    print(f"{'fastest':>8} {'middle':>8} {'slowest':>8} {'expected':>9}  command")
    rows = []
    for command, found in taken.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        late = command.expected_s is not None and middle > command.expected_s
        expected = "-" if command.expected_s is None else f"{command.expected_s:g} s"
        print(
            f"{low:6.2f} s {middle:6.2f} s {high:6.2f} s {expected:>9}  rseqlab {' '.join(command.words)}"
            + ("  LATE" if late else "")
        )
        rows.append({"command": command.words, "expected_s": command.expected_s, "elapsed_s": found})
    print(f"{'':8} {readelf_seconds():6.2f} s {'':8} {'':>9}  readelf -Ws on each library of the same folder")
    if asked.json:
        asked.json.write_text(json.dumps({"rounds": asked.rounds, "commands": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
