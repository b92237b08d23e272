"""What becomes of libc's registrations where somebody else defines the names that it exports: rows into words.

The rows are those of option-redefine (this machine's libc) and kernel-redefine (several libcs, in guests).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from rseqlab.options import redefine
from rseqlab.study.run import NotMeasured, StudyRun

IN_GUESTS, HERE = EXPERIMENTS = ("kernel-redefine", "option-redefine")
REDIRECTS_SINCE = "2.41"
"""From this release of glibc on, libc.so finds its own offset through the dynamic symbol."""

HEARD = (redefine.BY_PROGRAM, redefine.LINKED, redefine.PRELOADED)
"""Definers that come before the loader, where libc looks the names up."""
BINDING = ("strong", "weak")
OWN_AREA = tuple(name for name, value in redefine.VALUES.items() if value.macro == "OWN_ZEROED")
NO_AREA = tuple(name for name, value in redefine.VALUES.items() if value.macro in ("SHIFTED", "FAR"))
LARGER_SIZE = tuple(name for name, value in redefine.VALUES.items() if value.only_size and value.bytes > 32)
AS_WITHOUT = "as without it"


@dataclass(frozen=True)
class Count:
    """Of ``all`` test cases under the named libcs, ``good`` ended in the way that was asked about."""

    good: int
    all: int
    where: str
    """Which libcs and architectures, in words."""
    how: str
    """What became of the others, and of these, in words."""


def tables(run: StudyRun) -> Iterator[pd.DataFrame]:
    """The rows of both experiments, as far as there are any. Raises NotMeasured where there is neither."""
    reasons = []
    for name in EXPERIMENTS:
        try:
            table = run.table(name)
        except NotMeasured as missing:
            reasons.append(str(missing.args[0]))
            continue
        yield table[table["libc"].notna()]
    if len(reasons) == len(EXPERIMENTS):
        raise NotMeasured(f"{reasons[0].rstrip('.')}; measure it with: rseqlab run {IN_GUESTS}")


def version(text: str) -> tuple[int, ...]:
    """A libc's version as one can compare it."""
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _chosen(run: StudyRun, newer: bool, values: tuple[str, ...]) -> list[pd.DataFrame]:
    """The new threads of the cases with these values by definers that are heard, by libc's age."""
    found = []
    for table in tables(run):
        since = table["libc"].map(lambda text: (version(text) >= version(REDIRECTS_SINCE)) == newer)
        found.append(
            table[
                since
                & (table["thread"] == redefine.NEW)
                & table["definer"].isin(HEARD)
                & table["binding"].isin(BINDING)
                & table["value"].isin(values)
            ]
        )
    if not sum(map(len, found)):
        age = f"of {REDIRECTS_SINCE} or newer" if newer else f"before {REDIRECTS_SINCE}"
        raise NotMeasured(f"No glibc {age} was tried; measure it with: rseqlab run {IN_GUESTS}")
    return found


def _counted(chosen: list[pd.DataFrame], good: list[pd.Series]) -> Count:
    """Sum up what was asked, where, and how the cases ended."""
    libcs = sorted({text for table in chosen for text in table["libc"]}, key=version)
    archs = sorted({arch for table in chosen for arch in table["arch"]})
    fates: dict[str, int] = {}
    for table in chosen:
        for row in table.to_dict("records"):
            fate = _fate_of_thread(row)
            fates[fate] = fates.get(fate, 0) + 1
    how = "; ".join(f"{fate} ({count})" for fate, count in sorted(fates.items(), key=lambda one: -one[1]))
    where = f"glibc {' and '.join(libcs)}, {' and '.join(archs)}"
    return Count(sum(int(one.sum()) for one in good), sum(map(len, chosen)), where, how)


def redirected(run: StudyRun) -> Count:
    """New threads that a newer libc registered in the definer's area instead of its own. Raises NotMeasured."""
    chosen = _chosen(run, True, OWN_AREA)
    return _counted(chosen, [table["registered"] == redefine.BY_DEFINITION for table in chosen])


def left_alone(run: StudyRun) -> Count:
    """New threads that an older libc registered in its own area all the same. Raises NotMeasured."""
    chosen = _chosen(run, False, tuple(set(OWN_AREA) | set(NO_AREA)))
    return _counted(chosen, [table["registered"] == redefine.BY_LIBC for table in chosen])


def killed(run: StudyRun) -> Count:
    """Programs that a newer libc ended because the offset names no place of an area. Raises NotMeasured."""
    chosen = _chosen(run, True, NO_AREA)
    return _counted(chosen, [table["ended"].str.startswith("SIG") for table in chosen])


def resized(run: StudyRun) -> Count:
    """New threads whose length follows a larger size that somebody else defined, under every libc. Raises NotMeasured."""
    chosen = []
    for newer in (False, True):
        try:
            chosen += _chosen(run, newer, LARGER_SIZE)
        except NotMeasured:
            continue
    if not chosen:
        _chosen(run, True, LARGER_SIZE)
    sizes = {name: redefine.VALUES[name].bytes for name in LARGER_SIZE}
    return _counted(
        chosen,
        [
            (table["registered_bytes"] == table["value"].map(sizes)) | table["ended"].str.startswith("SIG")
            for table in chosen
        ],
    )


def _fate_of_thread(row: dict) -> str:
    """What became of a new thread, in words."""
    if row["ended"].startswith("SIG") or row["ended"] == "hung":
        return f"{row['ended']} in the {row['last_step']}"
    length = row["registered_bytes"]
    size = "" if pd.isna(length) else f", with {length:.0f} bytes"
    return f"registered {row['registered']}{size}"


def in_short(run: StudyRun) -> str:
    """The sentence for the answer about offset and size; where nothing of it is measured, that it is not."""
    try:
        found = redirected(run)
    except NotMeasured as missing:
        return f"Whom a definition of its names by somebody else redirects: not measured here ({str(missing.args[0]).rstrip('.')})."
    sentence = (
        f"Its names can be taken over: under {found.where}, whoever else defines __rseq_offset redirects libc's own "
        f"registration of new threads in {found.good} of {found.all} test cases"
    )
    try:
        before = left_alone(run)
    except NotMeasured:
        return f"{sentence}."
    return f"{sentence}; under {before.where}, libc kept to its own area in {before.good} of {before.all}."


# ---- the table ----


def frame(run: StudyRun) -> pd.DataFrame:
    """One row for the definitions of one value that end alike, one column each libc and architecture, in words.

    Raises NotMeasured.
    """
    cells: dict[tuple[str, ...], dict[str, str]] = {case.key: {} for case in redefine.cases()}
    columns: dict[str, tuple] = {}
    for table in tables(run):
        for key, both in table.groupby(["arch", "libc", *redefine.KEY[:-1]], sort=False):
            arch, libc, *case = key
            here = "release" not in table
            where = f"glibc {libc}, {arch}" + (", here" if here else "")
            columns[where] = (arch, version(libc), here)
            cells.setdefault(tuple(case), {})[where] = fate(both)
    names = sorted(columns, key=columns.__getitem__)
    alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for case, found in cells.items():
        alike.setdefault((case[-1], *(found.get(name, "not measured") for name in names)), []).append(case)
    return pd.DataFrame(
        [
            {
                "who defines it": "; ".join(dict.fromkeys(case[0] for case in cases)),
                "binding": "; ".join(dict.fromkeys(case[1] for case in cases)),
                "what it says": value,
            }
            | dict(zip(names, found, strict=True))
            for (value, *found), cases in alike.items()
        ]
    )


READERS = {
    "reader_died": "readers die",
    "reader_wrong": "readers misled",
    "reader_told": "readers told of no area",
}
"""What a library that goes where the names say meets; the worst comes first."""


def fate(rows: pd.DataFrame) -> str:
    """What became of one program, both its threads together; the worst comes first."""
    by_thread = {row["thread"]: row for row in rows.to_dict("records")}
    main, new = (by_thread.get(thread, {}) for thread in redefine.THREADS)
    told = [word for word in (_ending(new or main), _registration(main, new)) if word]

    def seen(column: str) -> bool:
        return any((one.get(column) or 0) > 0 for one in (main, new))

    if seen("libc_wrong"):
        told.append("sched_getcpu() wrong")
    told += [words for column, words in READERS.items() if seen(column)][:1]
    return "; ".join(told) or AS_WITHOUT


def _ending(row: dict) -> str | None:
    """How the program ended and doing what, where it did not end well."""
    if row["ended"] == "exit 0":
        return None
    step = row["last_step"].rpartition(": ")[2] if row["last_step"] else ""
    return f"{row['ended']} in {step}" if step else row["ended"]


def _registration(main: dict, new: dict) -> str | None:
    """What is not as libc set it up of a new thread's registration; None too where it never was one."""
    where, sizes = new.get("registered"), [one.get("registered_bytes") for one in (main, new)]
    differ = not any(map(pd.isna, sizes)) and sizes[0] != sizes[1]
    length = f"with {sizes[1]:.0f} bytes, not {sizes[0]:.0f}" if differ else ""
    if pd.isna(where) or where == redefine.BY_LIBC:
        return f"new threads registered {length}" if length else None
    if where == redefine.BY_DEFINITION:
        return "new threads redirected" + (f", {length}" if length else "")
    return f"new threads registered {where}"
