"""A run bundle: run.json, machine.json, one table per experiment, and SHA256SUMS, in a directory or one packed file.

Rows are appended and flushed one by one, so a kill at any moment loses at most the row in flight; the
checksums are written last, so nothing half-written is taken for a result.
"""

import csv
import fcntl
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

from rseqlab.lab import archive, older
from rseqlab.lab.archive import BundleError, Files, Folder, files_of, sha256
from rseqlab.lab.experiment import Column, Experiment

VERSION = 2
"""Of run.json and machine.json as they are written. Version 1 is read too: lab/older.py says what it lacks."""
SUMS = "SHA256SUMS"
LONGEST_CELL = 20_000


class OldRows(BundleError):
    """A run of an older schema version has a table that this version has no use for: its columns meant other things."""


@cache
def schema(name: str) -> dict:
    """The JSON schema of one document, from the package."""
    return json.loads((resources.files("rseqlab.schemas") / f"{name}.json").read_text())


@cache
def _fits(name: str) -> Callable[[object], object]:
    import fastjsonschema  # not jsonschema, whose formats take seconds to load; the tests hold the two together

    return fastjsonschema.compile(schema(name), use_default=False)


def validate(document: object, name: str, where: str) -> None:
    """Raise BundleError, naming the place in the document, unless it fits its schema."""
    import fastjsonschema

    try:
        _fits(name)(document)
    except fastjsonschema.JsonSchemaValueException as error:
        place = "/".join(map(str, error.path[1:])) or "the document"
        told = error.message.removeprefix(f"{error.name} ")
        raise BundleError(f"{where}: {place}: {told[:200]}; it is {repr(error.value)[:100]}") from None


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
    files = Folder(directory)
    lines = [f"{sha256(files.read(name))}  {name}\n" for name in files.names() if name != SUMS]
    write_text(directory / SUMS, "".join(lines))
    return digest(directory)


def digest(path: Path) -> str:
    """The digest that names the bundle's content, packed or not: SHA-256 of its SHA256SUMS."""
    return sha256(files_of(path).read(SUMS))


class Bundle:
    """A finished run. What it says of itself is checked as it is opened, each table as it is first read.

    ``directory`` is where it lies: a directory, or the file of a packed run. ``tables`` has each experiment's rows by
    its name. :meth:`check` checks everything now.

    With ``only``, the tables of these experiments and no others are there, and those that lie in a directory have their
    checksums checked at once. With ``unfinished``, a run that did not end is opened as far as its experiments did; it
    has no checksums yet.
    """

    def __init__(
        self,
        directory: Path,
        catalogue: Mapping[str, Experiment],
        only: Collection[str] | None = None,
        unfinished: bool = False,
    ):
        self.directory = directory
        self.files = files_of(directory)
        self.run = _run(self.files)
        self.sealed = self.run["ended"] is not None
        if not self.sealed and not unfinished:
            raise BundleError(
                f"{directory}: this run is not finished; go on with: rseqlab run --resume --out {directory}"
            )
        self._sums = _sums(self.files) if self.sealed else {}
        if self.sealed:
            for name in ("run.json", "machine.json"):
                self._checked(name)
        self.machine = older.machine(_read_json(self.files, "machine"))
        validate(self.machine, "machine", str(directory / "machine.json"))
        self.tables: Mapping[str, list[dict]] = _Tables(self, self._names(catalogue, only), catalogue)
        if only is not None and isinstance(self.files, Folder):
            for name in self.tables:
                self._checked(f"{name}.csv")
        self.digest = sha256(self.files.read(SUMS)) if self.sealed else self._digest_so_far()

    def _names(self, catalogue: Mapping[str, Experiment], only: Collection[str] | None) -> list[str]:
        """The experiments that have a table here. Raises BundleError for one that should have and has not."""
        there, found = set(self._sums if self.sealed else self.files.names()), []
        for name, record in self.run["experiments"].items():
            if only is not None and name not in only:
                continue
            if name not in catalogue:
                raise BundleError(
                    f"{self.directory / 'run.json'}: {name} is not an experiment of this rseqlab"
                )
            if not self.sealed and record["status"] is None:
                continue  # it is being measured, or was cut short
            if f"{name}.csv" in there:
                found.append(name)
            elif record["rows"]:
                raise BundleError(
                    f"{self.directory / name}.csv: missing, but run.json counts {record['rows']} rows"
                )
        return found

    @property
    def name(self) -> str:
        """What the run is called where it lies: the directory's name, or the file's without its suffix."""
        return archive.name_at(self.directory)

    @property
    def rows(self) -> int:
        """Of all tables, as run.json counts them."""
        return sum(record["rows"] for record in self.run["experiments"].values())

    def check(self) -> "Bundle":
        """Check every file and every row of every table now; returns the bundle. Raises BundleError."""
        for name in self._sums:
            self._checked(name)
        return self.read()

    def read(self) -> "Bundle":
        """Read and check every table that is there now; returns the bundle. Raises BundleError.

        A table of an older schema version that cannot be read any more stays unread.
        """
        for name in self.tables:
            with suppress(OldRows):
                _ = self.tables[name]
        return self

    def _checked(self, name: str) -> bytes:
        """A file's content, which is what SHA256SUMS says; a run that is not finished has none to compare with."""
        data = self.files.read(name)
        if not self.sealed:
            return data
        found, told = sha256(data), self._sums.get(name)
        if told is None:
            raise BundleError(f"{self.directory / name}: not listed in {SUMS}")
        if found != told:
            raise BundleError(
                f"{self.directory / name}: its checksum is {found[:12]}, {SUMS} says {told[:12]}: damaged"
            )
        return data

    def _digest_so_far(self) -> str:
        """Names what a run that did not end holds of the experiments that are there."""
        names = ("machine.json", *(f"{name}.csv" for name in sorted(self.tables)))
        return sha256("".join(f"{sha256(self.files.read(name))}  {name}\n" for name in names).encode())

    def _table(self, experiment: Experiment) -> list[dict]:
        name = experiment.name
        text = _decoded(self._checked(f"{name}.csv"), self.directory / f"{name}.csv")
        record = self.run["experiments"][name]
        lacking = self.run["version"] < VERSION
        return list(_rows(text, self.directory / f"{name}.csv", experiment, record, lacking))


class _Tables(Mapping[str, list[dict]]):
    """The tables of a bundle; each is read, checked and kept when it is first asked for."""

    def __init__(self, bundle: Bundle, names: list[str], catalogue: Mapping[str, Experiment]):
        self._bundle, self._names, self._catalogue = bundle, names, catalogue
        self._read: dict[str, list[dict]] = {}

    def __getitem__(self, name: str) -> list[dict]:
        if name not in self._read:
            if name not in self._names:
                raise KeyError(name)
            self._read[name] = self._bundle._table(self._catalogue[name])
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_run(path: Path) -> dict:
    """run.json of a finished or unfinished run, packed or not, checked against its schema."""
    return _run(files_of(path))


def _run(files: Files) -> dict:
    document = _read_json(files, "run")
    validate(document, "run", str(files.path / "run.json"))
    return {"group": "machine", "builds": {}} | document  # what the first runs did not say yet


def _decoded(data: bytes, where: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BundleError(f"{where}: not UTF-8 at byte {error.start}") from None


def _read_json(files: Files, name: str) -> dict:
    """A document of a version that is read here; not checked against its schema yet."""
    path = files.path / f"{name}.json"
    try:
        text = _decoded(files.read(f"{name}.json"), path)
        document = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    if isinstance(document, dict) and document.get("version") not in (None, *range(1, VERSION + 1)):
        raise BundleError(
            f"{path}: schema version {str(document['version'])[:40]}; this rseqlab reads version 1 to {VERSION}"
        )
    return document


def _no_constant(word: str):
    raise ValueError(f"{word} is not a number")


def _finite(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word} is not a finite number")
    return value


def _sums(files: Files) -> dict[str, str]:
    """Checksum by file, as listed; the files that are there are those that are listed."""
    path = files.path / SUMS
    there = files.names()
    listed = {}
    for number, line in enumerate(_decoded(files.read(SUMS), path).splitlines(), 1):
        found, _, name = line.partition("  ")
        if len(found) != 64 or not name or "/" in name:
            raise BundleError(f"{path}, line {number}: not `<sha256>  <file>`")
        if name not in there:
            raise BundleError(f"{files.path / name}: missing, but {SUMS} lists it")
        listed[name] = found
    for name in there:
        if name not in listed and name != SUMS:
            raise BundleError(f"{files.path / name}: not listed in {SUMS}")
    return listed


def _rows(text: str, path: Path, experiment: Experiment, record: Mapping, lacking: bool) -> Iterator[dict]:
    """The rows of a table. With ``lacking``, one of an older schema: a column that may be null need not be there, and is
    null then; raises OldRows where the table does not fit its experiment any more."""
    columns = experiment.all_columns()
    names = [column.name for column in columns]
    seen = set()
    number = 0
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    absent: dict[str, object] = {}
    try:
        header = next(reader, [])
        if lacking:
            absent = {one.name: None for one in columns if one.nullable and one.name not in header}
            columns = tuple(one for one in columns if one.name not in absent)
            names = [column.name for column in columns]
        if header != names:
            missing = [name for name in names if name not in header]
            wrong = f"columns missing: {missing}" if missing else f"its columns are {header}, not {names}"
            raise (OldRows if lacking else BundleError)(f"{path}: {wrong}")
        # By column, what its cells mean that were checked already: most words and many numbers come again.
        known: list[dict[str, object]] = [{} for _ in columns]
        for number, cells in enumerate(reader, 1):
            where = f"{path}, row {number}"
            if len(cells) != len(names):
                raise BundleError(f"{where}: {len(cells)} cells, not {len(names)}")
            row = dict(absent)
            for column, checked, cell in zip(columns, known, cells, strict=True):
                if cell not in checked:
                    if lacking and column.choices and cell and cell not in column.choices:
                        raise OldRows(
                            f"{where}: {column.name} is {ascii(cell)[:40]}, which it no longer can be"
                        )
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
