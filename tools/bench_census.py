#!/usr/bin/env python3
"""How fast the census of files is, beside reading the same bytes and beside readelf on each ELF file.

    .venv/bin/python tools/bench_census.py /usr --rounds 3 --out data/census/speed.json

Three ways, interleaved, each in processes of its own on the same CPUs, warm cache:

- census: `rseqlab census --json PATH --workers 2`, the whole command, archives included;
- floor: a walk that opens every file, reads the first 512 bytes, all bytes of each ELF file, and unpacks with the
  same libarchive each archive that the census opens, and does nothing with any of it, in two processes;
- readelf: `readelf -W -a FILE` on every EVERY-th ELF file, output thrown away, two at a time; `census-same` is the
  census of exactly these files.

CPU time (user and system, children included) is what is compared where other work shares the CPUs; elapsed time
stands beside it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rseqlab.census import archive, limits, walk
from rseqlab.census.files import HEAD_BYTES
from rseqlab.census.scan import scan

WORKERS = 2


def kinds(root: str) -> tuple[list[str], list[str], list[str]]:
    """ELF files, archives, others."""
    elf, archives, others = [], [], []
    for path, _ in walk.files([root], lambda *_: None):
        try:
            with open(path, "rb", buffering=0) as file:
                head = file.read(HEAD_BYTES)
        except OSError:
            continue
        is_archive = archive.is_archive(os.path.basename(path), head)
        (elf if head.startswith(b"\x7fELF") else archives if is_archive else others).append(path)
    return elf, archives, others


class Nothing:
    """Takes the place of a report and keeps nothing."""

    archives = read_bytes = 0

    def refuse(self, *_) -> None:
        pass


def read(paths: list[str]) -> None:
    buffer = bytearray(128 * 1024)
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:
            continue
        head = os.pread(descriptor, HEAD_BYTES, 0)
        if head.startswith(b"\x7fELF"):
            while os.readv(descriptor, [buffer]):
                pass
        elif archive.is_archive(os.path.basename(path), head):
            archive.examine(descriptor, Nothing(), lambda *_: None)
        os.close(descriptor)


def floor(root: str) -> None:
    parts, part = [], []
    with ProcessPoolExecutor(WORKERS) as pool:
        for path, _ in walk.files([root], lambda *_: None):
            part.append(path)
            if len(part) == 64:
                parts.append(pool.submit(read, part))
                part = []
        parts.append(pool.submit(read, part))
        for one in parts:
            one.result()


def readelf(paths: list[str]) -> None:
    """One process for each file, as a loop in a shell would."""
    one = 'exec readelf -W -a "$0" >/dev/null 2>&1'
    command = ["xargs", "-0", "-n", "1", "-P", str(WORKERS), "sh", "-c", one]
    subprocess.run(command, input=b"\0".join(map(os.fsencode, paths)), check=False)


def census_same(paths: list[str]) -> None:
    scan(paths, WORKERS)


def census(root: str) -> None:
    command = [sys.executable, "-m", "rseqlab.cli", "census", root, "--json", "--workers", str(WORKERS)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def timed(function, *arguments) -> dict:
    """Elapsed and CPU time of a child that does nothing else, and the most memory of any process in it."""
    started = time.monotonic()
    child = os.fork()
    if not child:
        try:
            function(*arguments)
        finally:
            os._exit(0)
    _, status, used = os.wait4(child, 0)
    if status:
        raise SystemExit(f"{function.__name__} failed: status {status}")
    return {
        "elapsed_s": round(time.monotonic() - started, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "max_rss_of_one_process_bytes": used.ru_maxrss * 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=20, help="readelf is given every so many-th ELF file")
    parser.add_argument(
        "--only-readelf", action="store_true", help="leave out the floor and the whole census"
    )
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    elf, archives, others = kinds(asked.root)
    rows = []
    for number in range(asked.rounds):
        ways = [("floor", floor, asked.root), ("census", census, asked.root)]
        if asked.only_readelf:
            ways = []
        ways += [("readelf", readelf, elf[:: asked.every]), ("census-same", census_same, elf[:: asked.every])]
        for name, function, argument in ways:
            rows.append(
                {"way": name, "round": number, "load": os.getloadavg()[0], **timed(function, argument)}
            )
            print(rows[-1], file=sys.stderr, flush=True)

    def ratio(way: str, to: str, what: str) -> float | None:
        least = {
            name: min((row[what] for row in rows if row["way"] == name), default=None) for name in (way, to)
        }
        return None if None in least.values() else round(least[way] / least[to], 2)

    record = {
        "command": f"tools/bench_census.py {asked.root} --rounds {asked.rounds}",
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "workers": WORKERS,
        "elf_files": len(elf),
        "elf_bytes": sum(os.path.getsize(path) for path in elf),
        "archives": len(archives),
        "other_files": len(others),
        "memory_limit_of_a_worker_bytes": limits.MEMORY_BYTES,
        "readelf_files": len(elf[:: asked.every]),
        "census_to_floor_cpu": ratio("census", "floor", "cpu_s"),
        "census_to_floor_elapsed": ratio("census", "floor", "elapsed_s"),
        "readelf_to_census_cpu": ratio("readelf", "census-same", "cpu_s"),
        "readelf_to_census_elapsed": ratio("readelf", "census-same", "elapsed_s"),
        "census_max_rss_of_one_process_bytes": max(
            row["max_rss_of_one_process_bytes"] for row in rows if row["way"].startswith("census")
        ),
        "rows": rows,
    }
    text = json.dumps(record, indent=1) + "\n"
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
