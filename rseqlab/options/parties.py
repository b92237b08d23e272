"""Builds the parties of a scene (who plays libc, who plays a library, the program) and runs it.

Everything is built once, into the lab's cache; a scene's libraries are put side by side under the names
that they were linked with, in a folder of the cache that their content names. Nothing else is written.
"""

import contextlib
import errno
import hashlib
import os
import re
import resource
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rseqlab.errors import UsageError
from rseqlab.lab import compile
from rseqlab.lab.compile import Target
from rseqlab.options.schemes import ORIGINAL, SCHEMES, Layout, Scheme

SOURCES = Path(__file__).resolve().parent / "c"
PROVIDER = "libprovider.so.1"
RUN_TIMEOUT_S = 10
MEMORY_BYTES, OUTPUT_BYTES = 1 << 30, 1 << 20
"""What a scene's program may map, and write: more ends it, by the kernel's doing, and that is its outcome."""
LONGEST_SAID = 400
FILLER_BYTES = tuple(2**power for power in range(13, 3, -1))
LATE_BYTES = {"unload": 1024, "audit": 0}
"""Static TLS of the library that these scenes open at their end: enough to lie where an area was, or none."""
SHARED = ("-shared", "-fPIC")
NEEDED = ("-Wl,--no-as-needed",)
"""Debian's and others' linkers drop libraries that the program does not name: here they are the scene."""

ASIDE = re.compile(r": [Ii]n function |warning: Using '|^In file included|^\s+(\d+ )?\|")
"""Lines of a compiler or linker that say where, or warn of what every static program is warned of."""

_locks: dict[Target, threading.Lock] = {}
_made: dict[Target, Path] = {}
_guard = threading.Lock()


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


def made(target: Target) -> Path:
    """The built file; threads that want the same wait for one compiler."""
    with _guard:
        lock = _locks.setdefault(target, threading.Lock())
    with lock:
        if target not in _made:
            _made[target] = compile.build(target)
        return _made[target]


def target(
    name: str, sources: tuple[str, ...], scheme: Scheme, layout: Layout, *flags: str, kernel: str = ""
) -> Target:
    """One party's compiler call."""
    told = (
        f"-DOPTION={scheme.macro}",
        f"-DKERNEL={(kernel or scheme.kernel).upper()}",
        f"-DNEWER={int(layout.fields_bytes > 20)}",
        *layout.macros(),
    )
    depends = (*sorted(SOURCES.glob("*.h")), *sorted(SOURCES.glob("*.map")))
    paths = tuple(SOURCES / source for source in sources)
    return Target(name, paths, ("-O2", "-Wall", "-Wextra", *told, *flags), depends=depends)


def provider(scheme: Scheme, layout: Layout, *flags: str, kernel: str = "") -> Path:
    """The library that plays libc."""
    if "-DSCRIPT=1" in flags:
        flags += (f"-Wl,--version-script={SOURCES / 'versions-all.map'}",)
    elif scheme.id == "version-symbol":
        script = "versions-new.map" if layout.fields_bytes > 20 else "versions-old.map"
        flags += (f"-Wl,--version-script={SOURCES / script}",)
    soname = f"-Wl,-soname,{PROVIDER}"
    return made(target(PROVIDER, ("provider.c",), scheme, layout, *SHARED, soname, *flags, kernel=kernel))


def consumer(name: str, scheme: Scheme, layout: Layout, linked: Path, *flags: str, kernel: str = "") -> Path:
    """An unrelated library, linked against the provider of its own time."""
    file = f"lib{name}.so"
    link = (*NEEDED, f"-L{stage({PROVIDER: linked})}", f"-l:{PROVIDER}")
    code = consumer_object(name, scheme, layout, *flags, "-fPIC", kernel=kernel)
    return made(Target(file, (code,), ("-shared", f"-Wl,-soname,{file}", *link)))


def consumer_object(name: str, scheme: Scheme, layout: Layout, *flags: str, kernel: str = "") -> Path:
    """A consumer's code before it is linked with anything."""
    told = (f"-DNAME={name}", "-c", *flags)
    return made(target(f"{name}.o", ("consumer.c",), scheme, layout, *told, kernel=kernel))


def program_object(*flags: str) -> Path:
    """The stage's code; it knows no layout, so one serves every scene."""
    return made(target("program.o", ("program.c",), SCHEMES[0], ORIGINAL, "-c", *flags))


def filler(name: str, tls_bytes: int, *flags: str) -> Path:
    """A library with this much static TLS of its own."""
    made_with = ("-O2", "-Wall", "-Wextra", f"-DBYTES={tls_bytes}", *SHARED, f"-Wl,-soname,{name}", *flags)
    return made(Target(name, (SOURCES / "filler.c",), made_with))


def fillers() -> dict[str, Path]:
    """Pieces of static TLS, each half of the one before: together they use any reserve up."""
    return {f"libfill{size}.so": filler(f"libfill{size}.so", size) for size in FILLER_BYTES}


@dataclass(frozen=True)
class Consumer:
    """One consumer of a scene. ``how`` it comes in: linked, load, isolate, program, preload or audit."""

    name: str
    layout: Layout
    how: str = "linked"
    flags: tuple[str, ...] = ()
    linked_with: tuple[str, ...] | None = None
    """The flags of the provider that it was linked against, where they are not the scene's."""


NO_GROUND = ("-DNO_GROUND=1",)
"""For a scene about how much room a library takes: its objects have no canaries around them."""


@dataclass(frozen=True)
class Setup:
    """One scene before it is built.

    ``program`` is the layout that the program itself was compiled with: that of the newest consumer that
    it is linked with, where nothing else is said.
    """

    scheme: Scheme
    provider: Layout
    consumers: tuple[Consumer, ...]
    scene: str = "plain"
    program: Layout | None = None
    provider_flags: tuple[str, ...] = ()
    program_flags: tuple[str, ...] = ()
    kernel: str = ""
    provider_first: bool = False
    fill: bool = False
    static: bool = False
    late: tuple[tuple[str, Path], ...] = ()
    """Libraries that the program opens, in this order, before it plays."""
    linked_flags: tuple[str, ...] | None = None
    """The flags of the provider that the program was linked against, where they are not the scene's."""
    everywhere: tuple[str, ...] = ()
    """Flags of every party."""
    environment: tuple[tuple[str, str], ...] = ()
    libc: Path | None = None

    def play(self) -> Scene:
        """Build what is not built yet, and run it. Raises CompileError where something cannot be built."""
        files, linked = {PROVIDER: self._provider(self.provider)}, []
        own = next((one for one in self.consumers if one.how == "program"), None)
        there = [one.layout for one in self.consumers if one.how in ("linked", "program")]
        layout = self.program or max(there, key=lambda known: known.fields_bytes, default=self.provider)
        steps = ["fill"] if self.fill else []
        for one in self.consumers:
            file = f"lib{one.name}.so"
            if one.how != "program":
                files[file] = self._consumer(one)
            if one.how in ("linked", "preload"):
                linked.append(file) if one.how == "linked" else None
            steps += [f"{one.how}={file}"] if one.how in ("load", "isolate") else []
            steps += [one.name] if one.how != "audit" else []
        for name, path in self.late:
            files[name] = path
            steps.append(f"open={name}")
        scene, _, fill = self.scene.partition(":")
        if scene in LATE_BYTES:
            flags = (f"-DFILL={fill}",) if fill else ()
            files["libfiller.so"] = filler("libfiller.so", LATE_BYTES[scene], *flags)
        if self.fill:
            files |= fillers()
        variables = dict(self.environment)
        for how, variable in (("preload", "LD_PRELOAD"), ("audit", "LD_AUDIT")):
            if found := [f"lib{one.name}.so" for one in self.consumers if one.how == how]:
                variables[variable] = ":".join(found)
        executable = self._static() if self.static else self._program(layout, linked, files, own)
        libc = None if self.static else self.libc
        return play(executable, [*steps, f"scene={self.scene}"], files, variables, libc)

    def _provider(self, layout: Layout, flags: tuple[str, ...] | None = None) -> Path:
        flags = self.provider_flags if flags is None else flags
        return provider(self.scheme, layout, *flags, *self.everywhere, kernel=self.kernel)

    def _consumer(self, one: Consumer) -> Path:
        linked = self._provider(one.layout, one.linked_with)
        flags = (*one.flags, *self.everywhere)
        return consumer(one.name, self.scheme, one.layout, linked, *flags, kernel=self.kernel)

    def _consumer_object(self, one: Consumer) -> Path:
        flags = (*one.flags, *self.everywhere)
        return consumer_object(one.name, self.scheme, one.layout, *flags, kernel=self.kernel)

    def _program(
        self, layout: Layout, linked: list[str], files: Mapping[str, Path], own: Consumer | None
    ) -> Path:
        """Linked with what was there in its time: a provider of its own layout."""
        names = [PROVIDER, *linked] if self.provider_first else [*linked, PROVIDER]
        folder = stage(
            {name: files[name] for name in linked} | {PROVIDER: self._provider(layout, self.linked_flags)}
        )
        code = [program_object(*self.program_flags)]
        if own:
            code.append(self._consumer_object(own))
        link = (*NEEDED, f"-L{folder}", *(f"-l:{name}" for name in names), "-ldl", "-pthread")
        return made(Target("program", tuple(code), ("-rdynamic", *link)))

    def _static(self) -> Path:
        """Everything in one file."""
        own = next(one for one in self.consumers if one.how == "program")
        flags = ("-c", *self.provider_flags, *self.everywhere)
        libc = target("provider.o", ("provider.c",), self.scheme, self.provider, *flags, kernel=self.kernel)
        code = (
            program_object("-DSTATIC=1", *self.program_flags),
            self._consumer_object(own),
            made(libc),
        )
        return made(Target("program", code, ("-static", "-pthread")))


def stage(files: Mapping[str, Path]) -> Path:
    """A folder of the cache in which each file has the name that it is looked for under."""
    total = hashlib.sha256(repr(sorted((name, path.name) for name, path in files.items())).encode())
    folder = compile.cache_folder() / f"{total.hexdigest()[:16]}-stage"
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        with contextlib.suppress(FileExistsError):
            os.link(path, folder / name)  # whole at once: the folder's name says what it holds
    return folder


def play(
    executable: Path,
    steps: Sequence[str],
    libraries: Mapping[str, Path],
    environment: Mapping[str, str] | None = None,
    libc: Path | None = None,
) -> Scene:
    """Run a scene's program. Never raises for what it does: a crash, a hang and garbage are its outcome.

    It stays in this process's group, so whatever ends the experiment's child ends it too.
    """
    folder = stage(libraries) if libraries else executable.parent
    ended, told, errors = execute([str(executable), *steps], folder, environment or {}, libc)
    lines = tuple(parse(told))
    refusals = [line.facts["said"] for line in lines if "said" in line.facts]
    return Scene(lines, ended, words(" ".join([errors, *refusals])))


def execute(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], libc: Path | None
) -> tuple[str, str, str]:
    """Run a program in a folder with its libraries, within a deadline and bounds: how it ended, what it said, its errors.

    ``libc``: by the loader of the libc in that folder, which the variable SCENE_LOADER then tells the program.
    """
    variables = {**os.environ, **environment}
    if libc:
        by = [str(loader(libc)), "--library-path", f"{folder}:{libc}"]
        command = [*by, *command]
        variables["SCENE_LOADER"] = "\x1f".join(by)
    else:
        variables["LD_LIBRARY_PATH"] = str(folder)
    with tempfile.TemporaryFile() as told_to, tempfile.TemporaryFile() as errors_to:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=told_to, stderr=errors_to, env=variables, cwd=folder
        )
        try:
            resource.prlimit(process.pid, resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))
            ended = how_it_ended(process.wait(RUN_TIMEOUT_S))
        except ProcessLookupError:  # before it could be limited
            ended = how_it_ended(process.wait())
        except subprocess.TimeoutExpired:
            ended = "hung"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        told_to.seek(0)
        errors_to.seek(0)
        told, errors = told_to.read(OUTPUT_BYTES), errors_to.read(OUTPUT_BYTES)
    return ended, told.decode(errors="replace"), errors.decode(errors="replace")


def how_it_ended(code: int) -> str:
    """The signal that killed it, or ``exit`` and its code."""
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


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
    text = "\n".join(line for line in text.splitlines() if not ASIDE.search(line))
    text = re.sub(r"(?<![\w.])(?:\.{0,2}/)[^\s:'`\"]*/", "", text)
    text = re.sub(r"\b[0-9a-f]{16}-", "", text)
    text = re.sub(r"\bcc\w{6}\.o\b", "<object>", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:LONGEST_SAID] or None


def errno_name(answer: int) -> str:
    """``accepted``, or the errno's name."""
    return errno.errorcode.get(answer, f"errno {answer}") if answer else "accepted"


def loader(libc: Path) -> Path:
    """A dynamic loader that can be executed, of the libc in this folder. Raises UsageError where there is none.

    Libraries are often kept without the permission to execute them; then it is a copy in the lab's cache.
    """
    for pattern in ("ld-linux-*.so.*", "ld.so", "ld-musl-*.so.1", "ld-*.so*"):
        for found in sorted(libc.glob(pattern)):
            return found if os.access(found, os.X_OK) else _executable(found)
    raise UsageError(f"{libc} holds no dynamic loader (ld.so); give the folder that has it and libc.so.6.")


def _executable(file: Path) -> Path:
    """A copy that may be executed, under the file's own name, in a folder that its content names."""
    content = file.read_bytes()
    copy = compile.cache_folder() / f"{hashlib.sha256(content).hexdigest()[:16]}-loader" / file.name
    if not copy.exists():
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as partial:
            partial.write(content)
        os.chmod(partial.name, 0o755)
        os.replace(partial.name, copy)
    return copy


def used_object(storage: str, linked_bytes: int, there_bytes: int) -> Scene:
    """A program that was linked with an object of one size meets it in another: what does anybody say?"""
    name = "libobject.so"

    def library(size: int) -> Path:
        flags = (
            "-O2",
            f"-DSTORAGE={storage}",
            f"-DBYTES={size}",
            "-DDEFINES=1",
            *SHARED,
            f"-Wl,-soname,{name}",
        )
        return made(Target(name, (SOURCES / "object.c",), flags))

    link = (f"-L{stage({name: library(linked_bytes)})}", f"-l:{name}")
    flags = ("-O2", f"-DSTORAGE={storage}", f"-DBYTES={linked_bytes}", *link)
    executable = made(Target("program", (SOURCES / "object.c",), flags))
    return play(executable, (), {name: library(there_bytes)})


def side_by_side(function, cases: Iterable) -> Iterator:
    """The cases' results in their order, as many at a time as there are CPUs: each waits for a compiler."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(function, cases)
