"""The C programs of those tests that run in guests, too: a guest has no compiler, so its cache is filled before.

python programs.py COMPILER

builds all of them with this compiler into $RSEQLAB_CACHE, as what ``cc`` would have built there, and prints the
name of each file that was made.
"""

import json
import sys
from pathlib import Path

from rseqlab import native
from rseqlab.lab import compile

HERE = Path(__file__).parent
NATIVE = Path(native.__file__).parent
MUTANTS = ("NO_COMPARE", "NO_DESCRIPTOR", "COMMIT_OUTSIDE")
STRICT = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}")
HEADERS = tuple(sorted(NATIVE.rglob("*.h")))


def attack(*options: str, compiler: str = "cc") -> compile.Target:
    """Threads that run every section under attack."""
    sources = (NATIVE / "rseq.c", NATIVE / "percpu.c", NATIVE / "percpu_calls.c", HERE / "c" / "attack.c")
    flags = (*STRICT, "-DRSEQLAB_ATTACK", *options, "-ldl", "-lpthread")
    return compile.Target("attack", sources, flags, compiler, HEADERS)


def mutant(name: str, compiler: str = "cc") -> compile.Target:
    """The attack on a section with a known fault."""
    return attack(f"-DRSEQLAB_MUTANT_{name}", compiler=compiler)


def plain(compiler: str = "cc") -> compile.Target:
    """Assembly of one section, built as users build it."""
    source = HERE / "c" / "plain_section.c"
    return compile.Target("plain.s", (source,), ("-O2", f"-I{NATIVE}", "-S"), compiler, HEADERS)


def sections(compiler: str = "cc") -> compile.Target:
    """Every section once, its result printed."""
    sources = (*sorted(NATIVE.glob("[!_]*.c")), HERE / "c" / "sections_check.c")
    return compile.Target("sections", sources, (*STRICT, "-ldl", "-lpthread"), compiler, HEADERS)


def every(compiler: str) -> list[compile.Target]:
    """All of them."""
    mutants = [mutant(name, compiler) for name in MUTANTS]
    return [attack(compiler=compiler), *mutants, plain(compiler), sections(compiler)]


if __name__ == "__main__":
    made = [compile.build(target).name for target in every(sys.argv[1])]
    record = compile.cache_folder() / compile.FILLED_BY
    record.write_text(json.dumps({"cc": compile.compiler_id(sys.argv[1])}))
    print(*made, record.name, sep="\n")
