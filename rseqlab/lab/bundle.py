"""A run bundle: a directory of run.json, machine.json, one table per experiment, and SHA256SUMS.

Rows are appended and flushed one by one, so a kill at any moment loses at most the row in flight; the
checksums are written last, so nothing half-written is taken for a result.
"""

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from pathlib import Path

from rseqlab.errors import LabError
from rseqlab.lab.experiment import Column, Experiment

VERSION = 1
SUMS = "SHA256SUMS"
LARGEST_BYTES = 1 << 28
"""Of one file of a bundle; larger is refused rather than read."""
LONGEST_CELL = 20_000


class BundleError(LabError):
    """A bundle cannot be written, or must not be believed. The message names the file and the row."""


@cache
def schema(name: str) -> dict:
    """The JSON schema of one document, from the package."""
    return json.loads((resources.files("rseqlab.schemas") / f"{name}.json").read_text())


def validate(document: object, name: str, where: str) -> None:
    """Raise BundleError, naming the place in the document, unless it fits its schema."""
    import jsonschema  # here: it takes longer to load than most experiments take, and no child validates

    try:
        jsonschema.validate(document, schema(name))
    except jsonschema.ValidationError as error:
        place = "/".join(map(str, error.absolute_path)) or "the document"
        raise BundleError(f"{where}: {place}: {error.message[:300]}") from None


def write_json(path: Path, document: Mapping) -> None:
    """Replace a JSON file as a whole: a reader sees the old one or the new one."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(_cannot("write", path, error)) from None


def _cannot(verb: str, path: Path, error: OSError) -> str:
    return f"Could not {verb} {path}: {error.strerror}. Choose a folder that is writable and has space (--out DIR)."


def printable(text: str) -> str:
    """Words from outside as a cell may hold them: what is no printable character becomes a space."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return " ".join(str(value).split()) if isinstance(value, str) else repr(value)


class Writer:
    """Appends rows to one experiment's table; opens what an earlier session left.

    A last line without its end is what a kill cut short: it is dropped. Every other row stays as it is,
    byte for byte.
    """

    def __init__(self, directory: Path, experiment: Experiment):
        self.path = directory / f"{experiment.name}.csv"
        self.experiment = experiment
        self.columns = [column.name for column in experiment.all_columns()]
        header = self._line(dict(zip(self.columns, self.columns, strict=True)))
        try:
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            data = self.path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            os.ftruncate(self.file, len(whole))
        except OSError as error:
            raise BundleError(_cannot("open", self.path, error)) from None
        if not whole:
            self._append(header)
        elif not whole.startswith(header):
            raise BundleError(
                f"{self.path}: its columns are not those of {experiment.name}; measure into another folder"
            )
        rows = csv.DictReader(io.StringIO(whole.decode(), newline=""))
        self.keys = {(row["part"], *(row[name] for name in experiment.key)) for row in rows}

    def done(self, part: str) -> list[list[str]]:
        """The keys of the part's rows that are there already."""
        return sorted(list(key[1:]) for key in self.keys if key[0] == part)

    def append(self, part: str, row: Mapping, key: tuple[str, ...]) -> None:
        """One row, on its way to the disk before this returns."""
        values = {"part": part, **row}
        self._append(self._line({name: _cell(values[name]) for name in self.columns}))
        self.keys.add((part, *(_cell(row[name]) for name in key)))

    def check(self, part: str, row: object) -> None:
        """Raise BundleError unless every reader of the bundle would take this row, which came from elsewhere."""
        where = f"{self.path.name}, a row of {part} from elsewhere"
        columns = self.experiment.columns
        if not isinstance(row, dict) or set(row) != {column.name for column in columns}:
            raise BundleError(f"{where}: not a row with the columns of {self.experiment.name}")
        for column in columns:
            value = row[column.name]
            allowed = str if column.kind == "text" else int | float
            if not (value is None or isinstance(value, allowed)) or len(_cell(value)) > LONGEST_CELL:
                raise BundleError(f"{where}: {column.name} is no cell of at most {LONGEST_CELL} characters")
            _value(column, _cell(value), where)
        key = (part, *(_cell(row[name]) for name in self.experiment.key))
        if key in self.keys:
            raise BundleError(f"{where}: the row {key} is there already")

    def _line(self, values: Mapping[str, str]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([values[name] for name in self.columns])
        return text.getvalue().encode()

    def _append(self, line: bytes) -> None:
        size = os.fstat(self.file).st_size
        try:
            written = os.write(self.file, line)
            if written != len(line):
                raise OSError(28, os.strerror(28))  # a short write is how a full disk begins (ENOSPC)
        except OSError as error:
            os.ftruncate(self.file, size)
            raise BundleError(
                f"Could not append to {self.path}: {error.strerror}. What was measured before is kept; make "
                f"space and go on with: rseqlab run --resume --out {self.path.parent}"
            ) from None

    def close(self) -> None:
        os.fsync(self.file)
        os.close(self.file)


def lock(directory: Path) -> int:
    """Keep a second session out of the bundle; held until the file descriptor is closed."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise BundleError(
            f"Another rseqlab is writing to {directory}; wait for it or choose another --out."
        ) from None
    return descriptor


def seal(directory: Path) -> str:
    """Write SHA256SUMS over every file of the bundle; returns the bundle's own digest."""
    lines = [f"{_sha256(path)}  {path.name}\n" for path in _members(directory)]
    write_text(directory / SUMS, "".join(lines))
    return digest(directory)


def digest(directory: Path) -> str:
    """The digest that names the bundle's content: SHA-256 of its SHA256SUMS."""
    return _sha256(directory / SUMS)


def _members(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in (".json", ".csv"))


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """A plain file of bearable size, or BundleError: a bundle may come from anywhere."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(
            f"Could not read {path}: {error.strerror}. Is this the folder of a finished run?"
        ) from None
    with open(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_BYTES:
            raise BundleError(f"{path}: not a plain file of at most {LARGEST_BYTES} bytes")
        yield file


def _text(path: Path) -> str:
    with _opened(path) as file:
        try:
            return file.read().decode()
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: not UTF-8 at byte {error.start}") from None


def _sha256(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Bundle:
    """A finished run, checked as it is opened: schema, checksums, every row of every table."""

    def __init__(self, directory: Path, catalogue: Mapping[str, Experiment]):
        self.directory = directory
        self.run = read_run(directory)
        if self.run["ended"] is None:
            raise BundleError(
                f"{directory}: this run is not finished; go on with: rseqlab run --resume --out {directory}"
            )
        _check_sums(directory)
        self.machine = _read_json(directory / "machine.json", "machine")
        self.digest = digest(directory)
        self.tables: dict[str, list[dict]] = {}
        for name, record in self.run["experiments"].items():
            if name not in catalogue:
                raise BundleError(f"{directory / 'run.json'}: {name} is not an experiment of this rseqlab")
            path = directory / f"{name}.csv"
            if path.exists():
                self.tables[name] = list(_rows(path, catalogue[name], record))
            elif record["rows"]:
                raise BundleError(f"{path}: missing, but run.json counts {record['rows']} rows")


def read_run(directory: Path) -> dict:
    """run.json of a finished or unfinished run, checked against its schema."""
    document = _read_json(directory / "run.json", "run")
    return {"group": "machine"} | document  # runs before there were groups are of the machine


def _read_json(path: Path, name: str) -> dict:
    try:
        document = json.loads(_text(path), parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    if isinstance(document, dict) and document.get("version") not in (None, VERSION):
        raise BundleError(
            f"{path}: schema version {document['version']}; this rseqlab reads version {VERSION}"
        )
    validate(document, name, str(path))
    return document


def _no_constant(word: str):
    raise ValueError(f"{word} is not a number")


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word} is not a finite number")
    return value


def _check_sums(directory: Path) -> None:
    path = directory / SUMS
    listed = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        found, _, name = line.partition("  ")
        if len(found) != 64 or not name or "/" in name:
            raise BundleError(f"{path}, line {number}: not `<sha256>  <file>`")
        listed[name] = found
    for member in _members(directory):
        if member.name not in listed:
            raise BundleError(f"{member}: not listed in {SUMS}")
    for name, found in listed.items():
        actual = _sha256(directory / name)
        if actual != found:
            raise BundleError(
                f"{directory / name}: its checksum is {actual[:12]}, {SUMS} says {found[:12]}: damaged"
            )


def _rows(path: Path, experiment: Experiment, record: Mapping) -> Iterator[dict]:
    columns = experiment.all_columns()
    names = [column.name for column in columns]
    seen = set()
    # By column, what its cells mean that were checked already: most words and many numbers come again.
    known: list[dict[str, object]] = [{} for _ in columns]
    number = 0
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        missing = [column for column in columns if column.name not in header]
        if {column.name for column in missing} == {"build", "process"}:  # rows of before there were builds
            columns = tuple(column for column in columns if column not in missing)
            names = [column.name for column in columns]
        if header != names:
            lacking = [name for name in names if name not in header]
            wrong = f"columns missing: {lacking}" if lacking else f"its columns are {header}, not {names}"
            raise BundleError(f"{path}: {wrong}")
        for number, cells in enumerate(reader, 1):
            where = f"{path}, row {number}"
            if len(cells) != len(names):
                raise BundleError(f"{where}: {len(cells)} cells, not {len(names)}")
            row: dict[str, object] = {column.name: None for column in missing}
            for column, checked, cell in zip(columns, known, cells, strict=False):
                if cell not in checked:
                    value = _value(column, cell, where)
                    if column.kind == "float":  # hardly one comes twice
                        row[column.name] = value
                        continue
                    checked[cell] = value
                row[column.name] = checked[cell]
            if row["part"] not in record["parts"]:
                raise BundleError(f"{where}: part {row['part']!r} is not in run.json")
            key = (row["part"], *(row[name] for name in experiment.key))
            if key in seen:
                raise BundleError(f"{where}: the row {key} is there twice")
            seen.add(key)
            yield row
    except csv.Error as error:
        raise BundleError(f"{path}, row {number + 1}: {error}") from None
    if number != record["rows"]:
        raise BundleError(f"{path}: {number} rows, run.json says {record['rows']}")


NUMBER = {"int": re.compile(r"-?\d{1,18}"), "float": re.compile(r"-?\d{1,18}(\.\d+)?(e[-+]?\d{1,3})?")}


def _value(column: Column, cell: str, where: str) -> object:
    if cell == "":
        if column.nullable:
            return None
        raise BundleError(f"{where}: {column.name} is empty")
    if column.kind == "text":
        if column.choices and cell not in column.choices:
            raise BundleError(f"{where}: {column.name} is {cell!r}; allowed are {', '.join(column.choices)}")
        if not cell.isprintable():
            raise BundleError(f"{where}: {column.name} has control characters: {cell!r}")
        return cell
    if not NUMBER[column.kind].fullmatch(cell):
        raise BundleError(
            f"{where}: {column.name} is {cell[:40]!r}, not a finite number of type {column.kind}"
        )
    value = int(cell) if column.kind == "int" else float(cell)
    if not column.minimum <= value < math.inf:
        raise BundleError(f"{where}: {column.name} is {cell[:40]}; allowed is {column.minimum:g} and more")
    return value
