"""The campaign of the census: mutated ELF files and archives through the real command's own workers.

    .venv/bin/python tests/fuzz_census.py --count 100000 --seed 1 --out data/census/fuzz.json

The mutants depend on the seed, and on the compilers that built what is mutated. A worker that dies or is too
slow is contained by the pool, and still counts against the census here: `contained` must be 0.
"""

import argparse
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import census_samples as made

import rseqlab
from rseqlab.census.scan import scan
from rseqlab.lab.bundle import validate

ROUND = 5000
MEMORY_FOLDER = "/dev/shm"
"""Where the inputs lie, if it is there: a disk would be what the campaign waits for."""

TIMEOUT_S = 20.0
MEMORY_BYTES = 2 << 30
EDGES = (0, 1, 7, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
CONTAINED = (
    "the process that read it",
    "reading it took more than",
    "it needs more",
    "a fault of the census",
)


def seeds(folder: Path) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """ELF files, and archives of them."""
    elf = []
    for machine in made.COMPILERS:
        if made.compiler(machine):
            built = [made.build(machine, sample, folder) for sample in made.samples(machine)]
            elf += [(path.name, path.read_bytes()) for path in built if path]
    few = dict(elf[:2] + elf[-2:])
    return elf, list(made.archives(few).items())


def mutate(draw: random.Random, data: bytes, others: list[tuple[str, bytes]]) -> bytes:
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not data:
            break
        kind, at = draw.randrange(9), draw.randrange(len(data))
        if draw.random() < 0.5:  # where headers are
            at = draw.randrange(min(len(data), 1024))
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at] = draw.randrange(256)
        elif kind in (2, 3, 4):
            width = draw.choice((2, 4, 8))
            at -= at % width
            value = draw.choice((*EDGES, len(data), len(data) - 1, len(data) + 1, draw.getrandbits(64)))
            data[at : at + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            other = draw.choice(others)[1]
            begin = draw.randrange(len(other))
            data[at : at + 256] = other[begin : begin + draw.randrange(1, 4096)]
        elif kind == 7:
            data[at : at + draw.randrange(1, 512)] = bytes(draw.randrange(1, 512))
        else:
            data += data[at : at + draw.randrange(1, 4096)]
    return bytes(data)


def campaign(count: int, seed: int, workers: int, show=print) -> dict:
    draw = random.Random(seed)
    outcomes, contained, reasons = Counter(), [], Counter()
    memory = MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK) else None
    started, done, elf_inputs = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory() as scratch:
        elf, archives = seeds(Path(scratch))
        everything = elf + archives
        while done < count:
            with tempfile.TemporaryDirectory(dir=memory) as folder:
                inputs = {}
                for number in range(min(ROUND, count - done)):
                    what = draw.random()
                    if what < 0.6:  # an ELF file
                        name, data = draw.choice(elf)
                        data = mutate(draw, data, everything)
                        elf_inputs += 1
                    elif what < 0.85:  # an archive whose own bytes are hurt
                        name, data = draw.choice(archives)
                        data = mutate(draw, data, everything)
                    else:  # a sound archive of a hurt file, and of a hurt archive
                        inner = {
                            one: mutate(draw, data, everything) for one, data in draw.sample(everything, 2)
                        }
                        name = draw.choice(("sample.tar", "sample.whl", "libsample.a", "sample.rpm"))
                        pack = {"sample.tar": made.tar, "sample.whl": made.zipped, "libsample.a": made.ar}
                        data = pack.get(name, made.rpm)(inner)
                    path = Path(folder, f"{number:06}-{name}")
                    path.write_bytes(data)
                    inputs[str(path)] = data
                document = scan([folder], workers, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
                validate(document, "census", "a round of the campaign")
                assert document["totals"]["files"] == len(inputs), document["totals"]
                refused = {row["path"] for row in document["refused"]}
                rows = {row["path"] for row in document["files"]}
                for path in inputs:
                    outcomes[
                        "refused" if path in refused else "classified" if path in rows else "no evidence"
                    ] += 1
                for row in document["refused"]:
                    reasons["".join(c for c in row["reason"].split(":")[0] if not c.isdigit())[:60]] += 1
                    if row["reason"].startswith(CONTAINED):
                        contained.append({"reason": row["reason"], "bytes": inputs[row["path"]].hex()[:64]})
                        keep = Path(
                            tempfile.gettempdir(), f"census-fuzz-{seed}-{done}-{Path(row['path']).name}"
                        )
                        keep.write_bytes(inputs[row["path"]])
                        show(f"contained: {row['reason']}: {keep}")
            done += len(inputs)
            show(f"{done} inputs, {time.monotonic() - started:.0f} s, {dict(outcomes)}")
    most = [
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return {
        "schema": "rseqlab/census-fuzz",
        "version": 1,
        "rseqlab": rseqlab.__version__,
        "python": platform.python_version(),
        "libarchive": libarchive_version(),
        "command": f"python tests/fuzz_census.py --count {count} --seed {seed} --workers {workers}",
        "seed": seed,
        "inputs": done,
        "elf_inputs": elf_inputs,
        "archive_inputs": done - elf_inputs,
        "seconds": round(time.monotonic() - started, 1),
        "outcomes": dict(sorted(outcomes.items())),
        "refusals": dict(reasons.most_common(20)),
        "contained": len(contained),
        "max_rss_of_the_command_bytes": most[0],
        "max_rss_of_a_worker_bytes": most[1],
        "timeout_s": TIMEOUT_S,
        "worker_memory_bytes": MEMORY_BYTES,
    }


def libarchive_version() -> str | None:
    try:
        from libarchive import ffi
    except (ImportError, OSError, TypeError, AttributeError):
        return None
    number = ffi.version_number()
    return f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    record = campaign(
        asked.count, asked.seed, asked.workers, lambda text: print(text, file=sys.stderr, flush=True)
    )
    text = json.dumps(record, indent=1) + "\n"
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(text)
    print(text)
    sys.exit(1 if record["contained"] else 0)


if __name__ == "__main__":
    main()
