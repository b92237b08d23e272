"""Which code makes an experiment's rows, found by what its module imports and which C it names.

Rows are stale when some of that code changed. Nothing is listed by hand: an import that is added is followed from
then on. Only content counts: a file may be moved, and comments, docstrings and import lines may change.
"""

import ast
import gc
import hashlib
import inspect
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rseqlab.lab.experiment import Experiment
from rseqlab.paths import PACKAGE

ROOT = "rseqlab"

ENTRY = "rseqlab.lab.child"
"""What every part begins with."""

RECORDS = tuple(
    f"{ROOT}.{name}"
    for name in (
        *("cli", "study", "progress", "doctor", "schemas", "errors", "paths"),
        *(f"lab.{one}" for one in ("runner", "bundle", "exchange", "fleet", "remote", "cluster", "stale")),
    )
)
"""Modules that start, write down or print: what they do with a row is no part of it, and what they import even less."""

PLAIN = ("rseqlab.host",)
"""What it finds out of the machine may decide a row; what it imports serves machine.json only."""

BY_NAME = ("rseqlab.lab.experiment",)
"""Everybody imports some words of it: of its own imports those count that the imported words use."""

EXTENSION = "rseqlab.native"
"""Whoever calls it runs what its build.py compiles."""
BUILD = f"{EXTENSION}.build"

COMPILED = (".c", ".h", ".S", ".cpp", ".java", ".map")
INCLUDED = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)".*$', re.M)
C_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|//[^\n]*|/\*.*?\*/', re.S)
PYTHON_COMMENT = re.compile(
    r'("""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\')|#[^\n]*',
    re.S,
)
HOLE = "\0"


def code_digest(experiment: Experiment) -> str:
    """16 hexadecimal digits that name the code that makes an experiment's rows. Other digits: the rows are stale."""
    return HERE.digest(Path(inspect.getfile(sys.modules[experiment.module])))


def stale(document: Mapping, experiments: Iterable[Experiment]) -> list[str]:
    """The names of those among these experiments that have rows of other code in a run (the text of its run.json)."""
    return [
        experiment.name
        for experiment in experiments
        if (record := document["experiments"].get(experiment.name))
        and record["code_digest"] != code_digest(experiment)
    ]


def _without(comments: re.Pattern, text: str) -> str:
    """The text without comments, blank lines and the ends of lines."""
    bare = comments.sub(lambda found: found[1] or "", text)
    return "\n".join(line.rstrip() for line in bare.splitlines() if line.strip())


def _of_package(module: str) -> bool:
    return module == ROOT or module.startswith(f"{ROOT}.")


@dataclass(frozen=True)
class _File:
    """What a file's content says: its digest, and what else it needs."""

    digest: bytes
    modules: frozenset[tuple[str, str]] = frozenset()
    """(module, name) of each import within the package; the name is empty where the module itself is imported."""
    strings: frozenset[str] = frozenset()
    """Words in text constants: names of files may be among them. HOLE stands for what is put in at run time."""
    used: Mapping[str, frozenset[tuple[str, str]]] = field(default_factory=dict)
    """Of a module of BY_NAME: each of its names to the imports that it uses."""


def _c(text: str) -> _File:
    """A C file, or one that a compiler or linker reads beside it."""
    bare = _without(C_COMMENT, INCLUDED.sub("", text))
    return _File(hashlib.sha256(bare.encode()).digest(), strings=frozenset(INCLUDED.findall(text)))


def _python(text: str, by_name: bool) -> _File:
    """A Python file. Its imports are found wherever they stand, in functions as well.

    ``by_name``: which of them each of its own names uses is found out, too.
    """
    tree = ast.parse(text)
    lines = text.splitlines()
    imports: list[tuple[str, str, str]] = []  # the name in this file, module, name there
    strings: set[str] = set()
    attributes: dict[str, set[str]] = {}
    for node in _nodes(tree):
        if isinstance(node, ast.ImportFrom | ast.Import | ast.Expr) and _says_nothing(node):
            _blank(lines, node)
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            imports += [
                (one.asname or one.name, module, one.name) for one in node.names if _of_package(module)
            ]
        elif isinstance(node, ast.Import):
            imports += [(one.asname or one.name, one.name, "") for one in node.names if _of_package(one.name)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.update(node.value.split())
        elif isinstance(node, ast.JoinedStr):
            parts = [one.value if isinstance(one, ast.Constant) else HOLE for one in node.values]
            strings.update("".join(map(str, parts)).split())
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.setdefault(node.value.id, set()).add(node.attr)
    bare = _without(PYTHON_COMMENT, "\n".join(lines))
    found = {name: (module, there) for name, module, there in imports}
    for name, place in list(found.items()):
        if place == (ROOT, "native") and attributes.get(name) == {"__file__"}:
            del found[name]  # it wants to know where the C lies, and runs none of it
    return _File(
        hashlib.sha256(bare.encode()).digest(),
        frozenset(found.values()),
        frozenset(strings),
        _used(tree, found) if by_name else {},
    )


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node, as ast.walk gives them, in half its time: all experiments together have a few 100,000."""
    wanted = [tree]
    while wanted:
        node = wanted.pop()
        yield node
        for value in vars(node).values():
            if isinstance(value, ast.AST):
                wanted.append(value)
            elif isinstance(value, list):
                wanted += [one for one in value if isinstance(one, ast.AST)]


def _says_nothing(node: ast.stmt) -> bool:
    """Whether it is an import or a text that stands by itself: what they say is followed, or told to people."""
    return not isinstance(node, ast.Expr) or (
        isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )


def _blank(lines: list[str], node: ast.stmt) -> None:
    """Take a statement out, where its lines hold nothing else."""
    assert node.end_lineno is not None and node.end_col_offset is not None  # as the parser leaves them
    first, last = lines[node.lineno - 1], lines[node.end_lineno - 1]
    after = last.encode()[node.end_col_offset :].decode().strip()
    if not first[: node.col_offset].strip() and (not after or after.startswith("#")):
        lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)


def _used(tree: ast.Module, imports: Mapping[str, tuple[str, str]]) -> dict[str, frozenset[tuple[str, str]]]:
    """Each name that a module defines to the imports that its definition uses, directly and by other names of it."""
    words: dict[str, set[str]] = {}
    for node in tree.body:
        inside = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            words.setdefault(node.name, set()).update(inside)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in [
                one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)
            ]:
                words.setdefault(name, set()).update(inside)
    found = {}
    for name in words:
        reached, wanted = set(), {name}
        while wanted:
            reached |= wanted
            wanted = {word for one in wanted for word in words.get(one, ())} - reached
        found[name] = frozenset(imports[word] for word in reached if word in imports)
    return found


@dataclass(frozen=True)
class Code:
    """The package below ``root``, as far as it was looked at; what was read is read again only where it changed."""

    root: Path

    @cached_property
    def _read(self) -> dict[Path, tuple[tuple[int, int], _File]]:
        return {}

    @property
    def _tests(self) -> Path:
        """A checkout's tests: an experiment that names some of them runs them."""
        return self.root.parent / "tests"

    @cached_property
    def _compiled(self) -> dict[str, list[Path]]:
        """File name to the files of the package, and of its tests, that a compiler or linker reads."""
        found: dict[str, list[Path]] = {}
        for folder in (self.root, self._tests):
            for path in sorted(folder.rglob("*")):
                if path.suffix in COMPILED:
                    found.setdefault(path.name, []).append(path)
        return found

    def digest(self, module: Path) -> str:
        """Names all code that makes the rows of the experiment in this file."""
        digests = sorted({self._file(path).digest for path in self.files(module)})
        return hashlib.sha256(b"".join(digests)).hexdigest()[:16]

    def files(self, module: Path) -> list[Path]:
        """The files of that code, in the order of their names."""
        reached: dict[Path, None] = {}
        wanted = [module, *self._reached(ENTRY, "")]
        while wanted:
            path = wanted.pop()
            if path not in reached:
                reached[path] = None
                wanted += self._imported(path)
        words = {word for path in reached for word in self._file(path).strings}
        compiled: dict[Path, None] = {}
        named = [one for path in reached for one in self._named(path, words)]
        while named:
            path = named.pop()
            if path not in compiled:
                compiled[path] = None
                named += self._named(path, words)
        return sorted({*reached, *compiled})

    def _imported(self, path: Path) -> Iterator[Path]:
        """The files that this one imports; of those that everybody imports, what the imported words use."""
        if path in [self._module(name) for name in (*PLAIN, *BY_NAME)]:
            return
        for module, name in self._file(path).modules:
            yield from self._reached(module, name)
            place = self._module(module)
            if module in BY_NAME and place:
                used = self._file(place).used
                for more in used.get(name, ()):
                    yield from self._reached(*more)
        tests = (self._tests / name for name in self._file(path).strings if name.endswith(".py"))
        yield from (one for one in tests if one.parent == self._tests and one.is_file())

    def _reached(self, module: str, name: str) -> Iterator[Path]:
        """The file that an import names, and what is run by it."""
        whole = f"{module}.{name}" if name and self._module(f"{module}.{name}") else module
        if whole == ROOT or any(whole == one or whole.startswith(f"{one}.") for one in RECORDS):
            return
        for one in (whole, BUILD) if whole == EXTENSION else (whole,):
            if path := self._module(one):
                yield path

    @cached_property
    def _modules(self) -> dict[str, Path]:
        """Each module's name to its file."""
        found = {}
        for path in self.root.rglob("*.py"):
            parts = path.relative_to(self.root).with_suffix("").parts
            found[".".join([ROOT, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
        return found

    def _module(self, name: str) -> Path | None:
        return self._modules.get(name)

    def _named(self, path: Path, words: Collection[str]) -> Iterator[Path]:
        """The files for a compiler that this file names; ``words`` may be what is put into the holes of a name."""
        for text in self._file(path).strings:
            if not text.endswith(COMPILED):
                continue
            place, _, name = text.rpartition("/")
            folder = place.rpartition("/")[2]
            if HOLE not in name:
                fits = self._compiled.get(name, [])
            else:  # made at run time, of what lies beside it
                pattern = re.compile(re.escape(name).replace(re.escape(HOLE), r"(\w+)"))
                fits = [
                    one
                    for known, some in self._compiled.items()
                    if (found := pattern.fullmatch(known)) and set(found.groups()) <= set(words)
                    for one in some
                    if one.is_relative_to(path.parent)
                ]
            for one in fits:
                apart = one.is_relative_to(self._tests) and not path.is_relative_to(self._tests)
                if not apart and (folder in ("", ".", "..", one.parent.name) or HOLE in folder):
                    yield one

    def _parsed(self, path: Path, text: str) -> _File:
        if path.suffix != ".py":
            return _c(text)
        collects = gc.isenabled()
        gc.disable()  # it would look through a growing tree again and again: two thirds of the time
        try:
            return _python(text, path in [self._module(name) for name in BY_NAME])
        finally:
            if collects:
                gc.enable()

    def _file(self, path: Path) -> _File:
        facts = path.stat()
        state = (facts.st_mtime_ns, facts.st_size)
        if path not in self._read or self._read[path][0] != state:
            text = path.read_text(encoding="utf-8")
            self._read[path] = (state, self._parsed(path, text))
        return self._read[path][1]


HERE = Code(PACKAGE)
