"""What is cited: who uses rseq, what happened when, where sources disagree. Read, and checked row by row.

The tables lie in data/ and are written by hand. Their schema is here; ``rseqlab usage --check`` and a test hold
them to it. What a row says is as good as its source: ``strength`` and ``checked`` say how good that is.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rseqlab import abi
from rseqlab.errors import LabError
from rseqlab.paths import project_root

ROLES = {
    "uses": "reads the area or runs sections",
    "registers": "registers areas for itself or for others",
    "tolerates": "lets others use it: a filter, a checkpoint, an emulator",
    "conflicts": "cannot live with another user, or breaks one",
    "disables": "switches somebody's registration off",
    "considered": "was discussed or tried; no merged code was found",
}
PURPOSES = {
    "per-CPU data": "sections on data of the current CPU",
    "CPU number": "the number of the current CPU, no sections",
    "slice extension": "a short reprieve from preemption",
    "registration": "an area for whoever wants one",
    "workaround": "a collision is avoided by switching somebody off",
    "compatibility": "programs with rseq are to run, be stopped or be restored",
    "test": "rseq itself is tested or measured",
}
STRENGTHS = {
    "code": "its source code says so",
    "file": "a built file has the symbols",
    "change": "a change that was merged says so",
    "statement": "its author says so, in an issue, a mail, an article or a change that is open",
    "second-hand": "somebody else says so",
}
"""How a row is known, strongest first."""
CHECKS = {
    "file": "the file was read again",
    "listed": "the path was seen in the repository's listing, the file was not read again",
    "thread": "the issue, change, mail or page was seen again",
    "no": "cited, not read again",
}
CHECKED_ON = "2026-11-24"
"""The day on which ``checked`` was filled in."""
CHECKED_AGAIN_ON = "2026-11-29"
"""The day on which the rows that data/SOURCES.md names were held against their sources again."""

CATEGORIES = (
    "allocator",
    "libc",
    "library",
    "database",
    "runtime",
    "tracer",
    "sandbox",
    "emulator",
    "debugger",
    "checkpoint",
    "test",
)
AREAS = ("libc", "own", "librseq", "none")
FIELDS = (*(field.name for field in abi.FIELDS), "none")

DATE = re.compile(r"20[12]\d(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")
COMMIT = re.compile(r"[0-9a-f]{7,40}")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
CLAIMS = re.compile(r"\w+(;\w+)*")


class SourceError(LabError):
    """A table in data/ does not fit its schema. The message names file, row and column."""


@dataclass(frozen=True)
class Field:
    """One column of a cited table."""

    name: str
    about: str
    choices: tuple[str, ...] = ()
    pattern: re.Pattern | None = None
    nullable: bool = False
    several: bool = False
    """Choices may stand side by side, with ``;`` between them."""

    def problem(self, value: str | None) -> str | None:
        """What is wrong with a value, and what is allowed; None where nothing is."""
        if value is None:
            return "the row ends before it"
        if not value:
            return None if self.nullable else f"is empty; it must say: {self.about}"
        if value != value.strip() or not value.isprintable():
            return f"{value!r} has white space around it, or characters that cannot be printed"
        parts = value.split(";") if self.several else [value]
        if self.choices and (unknown := [part for part in parts if part not in self.choices]):
            return f"{', '.join(map(repr, unknown))} is none of: {', '.join(self.choices)}"
        if self.pattern and not self.pattern.fullmatch(value):
            return f"{value!r} is not {self.about}"
        return None


Row = dict[str, str]


def _usage(row: Row) -> Iterator[str]:
    if row["checked"] in ("file", "listed") and not row["checked_at"]:
        yield "checked_at: a file was read or listed, and it does not say at which commit"
    if row["path"] and not row["repository"]:
        yield "path: there is a path, and no repository that it lies in"
    if "none" in row["fields"].split(";") and row["fields"] != "none":
        yield "fields: 'none' stands beside fields"


def _contradiction(row: Row) -> Iterator[str]:
    if (row["one"], row["one_source"]) == (row["other"], row["other_source"]):
        yield "other: it says what the first says, so that nothing is contradicted"


@dataclass(frozen=True)
class Table:
    """A cited table: its file in data/, its columns, what else holds for each row."""

    file: str
    fields: tuple[Field, ...]
    named_by: str
    """The column that tells a reader which row is meant."""
    rule: Callable[[Row], Iterator[str]] = lambda row: iter(())
    unique: str | None = None
    in_order: str | None = None

    @property
    def path(self) -> Path:
        return project_root() / "data" / self.file


USAGE = Table(
    "usage.csv",
    (
        Field("id", "a number of its own, like U001", pattern=re.compile(r"U\d{3}")),
        Field("project", "whose code, setting or plan it is"),
        Field("category", "what kind of program it is", CATEGORIES),
        Field("role", "what it does about rseq", tuple(ROLES)),
        Field("purpose", "what for, in a word", tuple(PURPOSES)),
        Field("what_for", "what for"),
        Field("repository", "owner/name", pattern=REPOSITORY, nullable=True),
        Field("path", "the file in the repository", nullable=True),
        Field("commit", "7 to 40 hexadecimal digits", pattern=COMMIT, nullable=True),
        Field("date", "a year, a month or a day, as 2026-11-24", pattern=DATE),
        Field("since", "the first release or commit that has it", nullable=True),
        Field("fields", "the fields that it reads or writes", FIELDS, several=True),
        Field("area", "whose area it uses", AREAS),
        Field("strength", "how it is known", tuple(STRENGTHS)),
        Field("checked", "how the row was checked", tuple(CHECKS)),
        Field("checked_at", "the commit or file that was read again", nullable=True),
        Field("note", "what else there is to know", nullable=True),
        Field("source", "where it is written"),
    ),
    "project",
    _usage,
    unique="id",
)
TIMELINE = Table(
    "timeline.csv",
    (
        Field("date", "a year, a month or a day, as 2026-11-24", pattern=DATE),
        Field(
            "component",
            "what changed",
            ("kernel", "glibc", "librseq", "tcmalloc", "mongodb", "clickhouse", "sandbox", "other"),
        ),
        Field("version", "the release, or the cycle it belongs to", nullable=True),
        Field("event", "what happened"),
        Field("effect", "what it changed in the ABI"),
        Field("mark", "a few words, where it is to stand in a figure", nullable=True),
        Field("checked", "how the row was checked", tuple(CHECKS)),
        Field("source", "where it is written"),
    ),
    "event",
    in_order="date",
)
CONTRADICTIONS = Table(
    "contradictions.csv",
    (
        Field("id", "a number of its own, like X01", pattern=re.compile(r"X\d{2}")),
        Field("about", "what is in dispute"),
        Field("one", "what one source says"),
        Field("one_source", "where"),
        Field("other", "what the other says"),
        Field("other_source", "where"),
        Field("how_it_could_be_settled", "what would have to be seen"),
        Field("claims", "ids of claims, with ; between them", pattern=CLAIMS, nullable=True),
    ),
    "about",
    _contradiction,
    unique="id",
)
TABLES = (USAGE, TIMELINE, CONTRADICTIONS)


def day(date: str) -> str:
    """A date of any precision as its last day, so that dates sort: 2026 after 2026-11.

    >>> day("2026"), day("2026-11")
    ('2026-99-99', '2026-11-99')
    """
    parts = date.split("-")
    return "-".join([*parts, *["99"] * (3 - len(parts))])


def problems(table: Table, path: Path | None = None) -> list[str]:
    """Everything that is wrong with a table, one sentence each; empty where nothing is."""
    path = path or table.path
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header, rows = reader.fieldnames, [(reader.line_num, row) for row in reader]
    except OSError as error:
        return [f"{table.file}: could not be read: {error.strerror}"]
    except (UnicodeDecodeError, csv.Error) as error:
        return [f"{table.file}: is no CSV in UTF-8: {error}"]
    wanted = [field.name for field in table.fields]
    if header != wanted:
        return [f"{table.file}: its columns are {header}; they must be {wanted}"]
    return [f"{table.file}, line {line}, {said}" for line, said in _in_rows(table, rows)]


def _in_rows(table: Table, rows: list[tuple[int, dict]]) -> Iterator[tuple[int, str]]:
    seen: dict[str, int] = {}
    last = ""
    for line, row in rows:
        name = f"({(row.get(table.named_by) or '?')[:40]})"
        if row.pop(None, None):
            yield line, f"{name}: it has more cells than there are columns"
        found = [(field.name, field.problem(row[field.name])) for field in table.fields]
        wrong = [(column, problem) for column, problem in found if problem]
        yield from ((line, f"{name}, column {column}: {problem}") for column, problem in wrong)
        if wrong:
            continue  # rules about whole rows may rest on what is wrong
        yield from ((line, f"{name}, column {problem}") for problem in table.rule(row))
        if table.unique and (first := seen.setdefault(row[table.unique], line)) != line:
            yield line, f"{name}, column {table.unique}: {row[table.unique]} stands in line {first} already"
        if table.in_order:
            if day(row[table.in_order]) < last:
                yield line, f"{name}, column {table.in_order}: it is earlier than the row before"
            last = day(row[table.in_order])


def check() -> dict[str, list[str]]:
    """File to its problems, for every cited table."""
    return {table.file: problems(table) for table in TABLES}


@cache
def read(table: Table) -> tuple[Row, ...]:
    """The rows. Raises SourceError that names every place that does not fit."""
    if found := problems(table):
        more = f"\nand {len(found) - 20} more" if len(found) > 20 else ""
        raise SourceError("\n".join(found[:20]) + more)
    with open(table.path, encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def summary(rows: Iterable[Row]) -> str:
    """How many rows of how many projects there are, and how each is known; computed."""
    rows = list(rows)
    known = Counter(row["strength"] for row in rows)
    checked = Counter(row["checked"] for row in rows)
    return (
        f"{len(rows)} rows of {len({row['project'] for row in rows})} projects, cited. Known by: "
        + ", ".join(f"{strength} {known[strength]}" for strength in STRENGTHS if known[strength])
        + f". Checked on {CHECKED_ON}, in part again on {CHECKED_AGAIN_ON}: "
        + ", ".join(f"{what} {checked[name]}" for name, what in CHECKS.items() if checked[name])
        + "."
    )
