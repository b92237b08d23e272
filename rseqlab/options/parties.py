"""Builds the parties of a scene (who plays libc, who plays a library, the program) and runs it.

Everything is built once, into the lab's cache; a scene's libraries are put side by side under the names
that they were linked with, in a folder of the cache that their content names. Nothing else is written.
"""

import errno
import hashlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rseqlab.lab import compile
from rseqlab.lab.compile import CompileError, Target
from rseqlab.options.schemes import Layout, Scheme

SOURCES = Path(__file__).resolve().parent / "c"
PROVIDER = "libprovider.so.1"
RUN_TIMEOUT_S = 10
LONGEST_SAID = 400
SHARED = ("-shared", "-fPIC")
NEEDED = ("-Wl,--no-as-needed",)
"""Debian's and others' linkers drop libraries that the program does not name: here they are the scene."""

_locks: dict[Target, threading.Lock] = {}
_guard = threading.Lock()


def made(target: Target) -> Path:
    """The built file; threads that want the same wait for one compiler."""
    with _guard:
        lock = _locks.setdefault(target, threading.Lock())
    with lock:
        return compile.build(target)


def target(name: str, source: str, scheme: Scheme, layout: Layout, *flags: str, kernel: str = "") -> Target:
    """One party's compiler call."""
    told = (
        f"-DOPTION={scheme.macro}",
        f"-DKERNEL={(kernel or scheme.kernel).upper()}",
        f"-DNEWER={int(layout.fields_bytes > 20)}",
        *layout.macros(),
    )
    return Target(
        name,
        (SOURCES / source,),
        ("-O2", "-Wall", "-Wextra", *told, *flags),
        depends=tuple(sorted(SOURCES.glob("*.h")) + sorted(SOURCES.glob("*.map"))),
    )


def provider(scheme: Scheme, layout: Layout, *flags: str, kernel: str = "") -> Path:
    """The library that plays libc."""
    if scheme.id == "version-symbol":
        script = SOURCES / ("versions-new.map" if layout.fields_bytes > 20 else "versions-old.map")
        flags += (f"-Wl,--version-script={script}",)
    return made(
        target(
            PROVIDER, "provider.c", scheme, layout, *SHARED, f"-Wl,-soname,{PROVIDER}", *flags, kernel=kernel
        )
    )


def consumer(name: str, scheme: Scheme, layout: Layout, linked: Path, *flags: str) -> Path:
    """An unrelated library, linked against the provider of its own time."""
    file = f"lib{name}.so"
    folder = stage({PROVIDER: linked})
    link = (*NEEDED, f"-L{folder}", f"-l:{PROVIDER}")
    return made(
        target(
            file,
            "consumer.c",
            scheme,
            layout,
            f"-DNAME={name}",
            *SHARED,
            f"-Wl,-soname,{file}",
            *flags,
            *link,
        )
    )


def program(
    scheme: Scheme, layout: Layout, libraries: Mapping[str, Path], *flags: str, own_consumer: bool = False
) -> Path:
    """The executable, linked with these libraries in this order."""
    folder = stage(libraries)
    link = (*NEEDED, f"-L{folder}", *(f"-l:{name}" for name in libraries), "-ldl", "-pthread")
    call = target("program", "program.c", scheme, layout, "-rdynamic", *flags, *link)
    if own_consumer:
        call = Target(
            call.name,
            (*call.sources, SOURCES / "consumer.c"),
            ("-DNAME=program", *call.flags),
            depends=call.depends,
        )
    return made(call)


def stage(files: Mapping[str, Path]) -> Path:
    """A folder of the cache in which each file has the name that it is looked for under."""
    total = hashlib.sha256(repr(sorted((name, path.name) for name, path in files.items())).encode())
    folder = compile.cache_folder() / f"{total.hexdigest()[:16]}-stage"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        place = folder / name
        if not place.exists():
            part = folder / f"{name}.{os.getpid()}.{threading.get_ident()}.part"
            os.link(path, part)
            os.replace(part, place)
    return folder


@dataclass(frozen=True)
class Line:
    """One line of what a scene says: who, what, and its facts."""

    who: str
    what: str
    facts: Mapping[str, str]

    def number(self, name: str) -> int:
        """A fact that is a number, decimal or hexadecimal."""
        return int(self.facts[name], 0)


@dataclass(frozen=True)
class Scene:
    """What a program said before it ended, and how it ended: an exit code, a signal's name or ``hung``."""

    lines: tuple[Line, ...]
    ended: str
    said: str | None

    def of(self, what: str, who: str | None = None) -> list[Line]:
        """The lines of one kind, of one party or of all."""
        return [line for line in self.lines if line.what == what and who in (None, line.who)]


def play(
    executable: Path,
    steps: Sequence[str],
    libraries: Mapping[str, Path],
    environment: Mapping[str, str] | None = None,
    libc: Path | None = None,
) -> Scene:
    """Run a scene's program. Never raises for what it does: a crash, a hang and garbage are its outcome."""
    folder = stage(libraries) if libraries else executable.parent
    command = [str(executable), *steps]
    variables = dict(os.environ) | (environment or {})
    if libc:
        command = [str(loader(libc)), "--library-path", f"{folder}:{libc}", *command]
    else:
        variables["LD_LIBRARY_PATH"] = str(folder)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=variables,
        cwd=folder,
        start_new_session=True,
    )
    try:
        told, errors = process.communicate(timeout=RUN_TIMEOUT_S)
        code = process.returncode
        ended = signal.Signals(-code).name if code < 0 else f"exit {code}"
    except subprocess.TimeoutExpired:
        ended = "hung"
        os.killpg(process.pid, signal.SIGKILL)
        told, errors = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = tuple(parse(told.decode(errors="replace")))
    refusals = [line.facts["said"] for line in lines if "said" in line.facts]
    return Scene(lines, ended, words(" ".join([errors.decode(errors="replace"), *refusals])))


def parse(text: str) -> Iterator[Line]:
    """Lines of ``who what name=value ...``; ``said=`` takes the rest of its line. Others are passed over."""
    for line in text.splitlines():
        rest, _, said = line.partition(" said=")
        first, *facts = rest.split(" ")
        if not facts or not all("=" in fact for fact in facts[1:]):
            continue
        values = dict(fact.split("=", 1) for fact in facts[1:])
        yield Line(first, facts[0], values | ({"said": said} if said else {}))


def words(text: str) -> str | None:
    """A compiler's, linker's or loader's own words, without this machine's folders and build names."""
    text = re.sub(r"(?<![\w.])(?:\.{0,2}/)[^\s:'`\"]*/", "", text)
    text = re.sub(r"\b[0-9a-f]{16}-", "", text)
    text = re.sub(r"\bcc\w{6}\.o\b", "<object>", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:LONGEST_SAID] or None


def errno_name(answer: int) -> str:
    """``accepted``, or the errno's name."""
    return errno.errorcode.get(answer, f"errno {answer}") if answer else "accepted"


def loader(libc: Path) -> Path:
    """The dynamic loader of the libc in this folder. Raises CompileError's sibling where there is none."""
    for pattern in ("ld-linux-*.so.*", "ld.so", "ld-musl-*.so.1", "ld-*.so*"):
        found = sorted(libc.glob(pattern))
        if found:
            return found[0]
    raise CompileError(f"{libc} holds no dynamic loader (ld.so); give the folder that has it and libc.so.6.")


def side_by_side(function, cases: Iterable) -> Iterator:
    """The cases' results in their order, as many at a time as there are CPUs: each waits for a compiler."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(function, cases)
