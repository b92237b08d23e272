"""What kernels answer and what they cost, from runs of guests: tables and sentences, all computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from rseqlab.experiments.kernel_costs import CALIBRATION_INSTRUCTIONS
from rseqlab.study.kernel_counts import added, all_series, by_release, counts
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Sentences, Table, _shows_missing
from rseqlab.vm.matrix import MODES

MARK_PERCENT = 0.1
"""Repeats of a count are to agree within this."""

REGISTERED = {"32 bytes": "self-32", "extended": "self-extended"}
VARIES = "varies: "


@dataclass(frozen=True)
class Fact:
    """One line of the compatibility matrix: how a reader calls it, and which answer it is."""

    label: str
    mode: str
    question: str
    attempt: str


FACTS = (
    Fact("AT_RSEQ_FEATURE_SIZE", "none", "state", "AT_RSEQ_FEATURE_SIZE"),
    Fact("AT_RSEQ_ALIGN", "none", "state", "AT_RSEQ_ALIGN"),
    Fact("lengths, of 0 to 256", "none", "length", "0 to 256"),
    Fact("places of 32 bytes", "none", "alignment", "32 bytes, 1 to 256 past a page"),
    Fact(
        "places of an extended area",
        "none",
        "alignment",
        "the smallest extended length, 1 to 256 past a page",
    ),
    Fact("node_id, 32 bytes", "self-32", "live", "node_id"),
    Fact("mm_cid, 32 bytes", "self-32", "live", "mm_cid of two threads at once"),
    Fact("mm_cid, extended", "self-extended", "live", "mm_cid of two threads at once"),
    Fact("cpu_id_start, scribbled, after a sleep, 32 bytes", "self-32", "user writes cpu_id_start", "sleep"),
    Fact(
        "cpu_id_start, scribbled, after a sleep, extended",
        "self-extended",
        "user writes cpu_id_start",
        "sleep",
    ),
    Fact(
        "cpu_id_start, scribbled, after a migration, extended",
        "self-extended",
        "user writes cpu_id_start",
        "migration",
    ),
    Fact("node_id, scribbled, migration, 32 bytes", "self-32", "user writes, then migrates", "node_id"),
    Fact("node_id, scribbled, migration, extended", "self-extended", "user writes, then migrates", "node_id"),
    Fact(
        "abort handler without signature, 32 bytes",
        "self-32",
        "descriptor",
        "whose abort handler has no signature",
    ),
    Fact(
        "abort handler without signature, extended",
        "self-extended",
        "descriptor",
        "whose abort handler has no signature",
    ),
    Fact(
        "the same, interrupted while it computes",
        "self-extended",
        "descriptor, while it computes",
        "whose abort handler has no signature",
    ),
    Fact("unregistering 32 with 64", "self-32", "unregister", "length 64"),
    Fact("slice extension, 32 bytes", "self-32", "slice", "prctl set"),
    Fact("slice extension, extended", "self-extended", "slice", "prctl set"),
    Fact("ptrace says", "self-32", "ptrace", "configuration"),
    Fact("membarrier, rseq fence", "none", "membarrier", "rseq fence of all CPUs"),
)


def agreed(answers: pd.Series) -> str:
    """The one answer, or that it varies and how."""
    found = sorted(set(answers))
    return found[0] if len(found) == 1 else VARIES + " or ".join(found)


def _answers(run: StudyRun) -> pd.DataFrame:
    table = run.table("kernel-matrix")
    found = table[table["question"] != "boot"]
    if found.empty:
        raise NotMeasured("; ".join(table["answer"].unique()))
    return found


@_shows_missing
def compatibility(run: StudyRun) -> Table:
    """The matrix: what each kernel answers, by architecture where the two differ, under every libc alike."""
    table = _answers(run)
    columns = [
        (series, arch) for series in all_series(table) for arch in sorted(table["arch"].unique())[::-1]
    ]
    keyed = table.groupby(["mode", "question", "attempt", "series", "arch"])["answer"].agg(agreed).to_dict()
    rows = [
        {"fact": fact.label}
        | {
            f"{series} {arch}": keyed.get(
                (fact.mode, fact.question, fact.attempt, series, arch), "not measured"
            )
            for series, arch in columns
        }
        for fact in FACTS
    ]
    return Table(
        pd.DataFrame(rows),
        f"What each kernel answers, under each of {table['libc'].nunique()} libcs alike where the cell has one answer",
    )


def by_series(run: StudyRun) -> list[tuple[str, str]]:
    """(fact, what each release answers, releases that answer alike together), both architectures. Raises NotMeasured."""
    table = _answers(run)
    keyed = table.groupby(["mode", "question", "attempt", "series"])["answer"].agg(agreed).to_dict()
    told = []
    for fact in FACTS:
        answers: dict[str, list[str]] = {}
        for series in all_series(table):
            answer = keyed.get((fact.mode, fact.question, fact.attempt, series), "not measured")
            answers.setdefault(answer, []).append(series)
        told.append(
            (fact.label, "; ".join(f"{', '.join(names)}: {answer}" for answer, names in answers.items()))
        )
    return told


@_shows_missing
def libcs(run: StudyRun) -> Table:
    """What each libc says it registered, and what the kernel says of it."""
    table = _answers(run)
    own = table[table["mode"] == "libc"]
    said = own.pivot_table(
        index=["libc", "arch", "series"], columns=["question", "attempt"], values="answer", aggfunc="first"
    )

    def cell(key: tuple) -> str:
        if key not in said.index:
            return "not measured"
        row = said.loc[key]
        size = row.get(("state", "__rseq_size"))
        if size == "absent":
            return f"no rseq; thread {row[('state', 'the thread at start')]}"
        words = row.get(("ptrace", "configuration"))
        kernel = f"the kernel: {words}" if isinstance(words, str) else "the kernel was not asked"
        if words == "EIO":
            kernel = "the kernel cannot be asked (EIO)"
        return f"size {size}, offset {row[('state', '__rseq_offset')]}; {kernel}"

    rows = [
        {"libc": libc, "arch": arch} | {series: cell((libc, arch, series)) for series in all_series(table)}
        for libc, arch in sorted(set(zip(own["libc"], own["arch"], strict=True)))
    ]
    return Table(pd.DataFrame(rows), "What each libc reports on each kernel, and what the kernel has of it")


@_shows_missing
def differences(run: StudyRun, before: str = "6.12", after: str = "") -> Table:
    """Every answer that changed between two releases (to the newest by default), under every libc and on both architectures."""
    table = _answers(run)
    after = after or all_series(table)[-1]
    for series in (before, after):
        if series not in set(table["series"]):
            raise NotMeasured(f"the run has no kernel {series}; it has {', '.join(all_series(table))}")
    changed, total = _changed(table[table["series"].isin([before, after])], "series", [before, after])
    return Table(changed, f"{len(changed)} of {total} answers differ between {before} and {after}")


def _changed(table: pd.DataFrame, by: str, columns: list[str]) -> tuple[pd.DataFrame, int]:
    """(the answers that are not the same in all columns, how many were compared), each under every libc."""
    asked_once = (table["question"] == "state") & (table["mode"] != "none")
    wide = (
        table[(table["mode"] != "libc") & ~asked_once]
        .groupby(["mode", "question", "attempt", by], sort=False)["answer"]
        .agg(agreed)
        .unstack(by)
        .dropna()
    )
    changed = wide[wide[columns].nunique(axis=1) > 1].reset_index()
    changed["mode"] = changed["mode"].map(MODES)
    return changed[["mode", "question", "attempt", *columns]], len(wide)


def guests(run: StudyRun) -> str:
    """The kernels that a run booted, in words. Raises NotMeasured."""
    found = _answers(run).groupby("series", sort=False)["arch"].unique()
    return "; ".join(f"Linux {series} on {' and '.join(archs)}" for series, archs in found.items())


def side_by_side(runs: Mapping[str, StudyRun]) -> Table:
    """Every answer that is not the same in all of these runs, by the runs' names. Raises NotMeasured."""
    table = pd.concat([_answers(run).assign(run=name) for name, run in runs.items()])
    changed, total = _changed(table, "run", list(runs))
    return Table(
        changed, f"{len(changed)} of {total} answers of the guests' kernels are not the same in all runs"
    )


@_shows_missing
def deduced(run: StudyRun) -> Table:
    """What was only read in sources so far, run: the calls that others' code makes, and the right ones beside them."""
    table = _answers(run)
    rows = table[
        (table["question"] == "deduced") | ((table["question"] == "ptrace") & (table["mode"] == "libc"))
    ]
    wide = (
        rows.groupby(["attempt", "libc", "series"], sort=False)["answer"]
        .agg(agreed)
        .unstack("series")
        .fillna("-")
    )
    wide = wide[all_series(table)].reset_index()
    wide["attempt"] = wide["attempt"].replace("configuration", "what libc registered, by ptrace")
    return Table(wide, "Findings that were deduced from sources, run on each kernel")


# ---- counts ----


@_shows_missing
def counted(run: StudyRun) -> Table:
    """Instructions per turn without registration, what each registration adds, and how far the repeats lie apart."""
    numbers = counts(run)
    numbers = numbers[~numbers["measure"].isin(["operation", "calibration"])]
    more = added(run).set_index(["series", "arch", "measure", "registration", "section"])[
        "added_instructions"
    ]
    rows = []
    for (series, arch, measure), group in numbers.groupby(["series", "arch", "measure"], sort=False):
        base = group[group["registration"] == "none"]
        row = {"kernel": series, "arch": arch, "a turn": measure}
        row["unregistered"] = f"{base['median'].iloc[0]:,.1f}" if len(base) else "not measured"
        for registration in REGISTERED:
            for section in ("null", "elsewhere", "inside"):
                value = more.get((series, arch, measure, registration, section))
                row[f"{registration}, {section}"] = "refused" if value is None else f"{value:+,.1f}"
        row["spread of repeats, %"] = f"{group['spread_percent'].max():.3f}"
        rows.append(row)
    rows.sort(key=lambda row: (by_release(row["kernel"]), row["arch"] != "x86_64"))
    return Table(
        pd.DataFrame(rows),
        "Instructions per turn, kernel and program; what each registration adds to an unregistered thread's, by what "
        "rseq_cs holds as the kernel is entered. A turn of context-switch is a round trip: two switches, four system calls",
    )


@_shows_missing
def operations(run: StudyRun) -> Table:
    """Instructions of each per-CPU operation in a whole guest, on a registered area, by kernel and architecture."""
    numbers = counts(run)
    shown = numbers[numbers["measure"] == "operation"]
    if shown.empty:
        raise NotMeasured("kernel-costs has no operations")
    shown = shown.assign(guest=shown["series"] + " " + shown["arch"])
    wide = shown.pivot_table(index="operation", columns="guest", values="median", sort=False)
    order = sorted(wide, key=lambda name: (name.split()[1] != "x86_64", by_release(name.split()[0])))
    frame = wide[order].map(lambda value: "" if pd.isna(value) else f"{value:.2f}").reset_index()
    return Table(
        frame, "Instructions of an operation with its loop, of the median batch; the index is cpu_id"
    )


@_shows_missing
def calibration(run: StudyRun) -> Table:
    """What the guest's clock says of a loop whose instructions are known."""
    numbers = counts(run)
    shown = numbers[numbers["measure"] == "calibration"]
    frame = pd.DataFrame(
        {
            "kernel": shown["series"],
            "arch": shown["arch"],
            "repeats": shown["size"],
            "boots": shown["boots"],
            "instructions_per_turn": [f"{value:.4f}" for value in shown["median"]],
            "spread_percent": [f"{value:.4f}" for value in shown["spread_percent"]],
        }
    )
    return Table(
        frame, f"A loop of {CALIBRATION_INSTRUCTIONS} instructions a turn, as the guest's clock counts it"
    )


def _sentences(function: Callable[[StudyRun], list[str]]) -> Callable[[StudyRun], Sentences | NotMeasured]:
    def told(run: StudyRun) -> Sentences | NotMeasured:
        try:
            return Sentences(tuple(function(run)))
        except NotMeasured as missing:
            return missing

    told.__doc__ = function.__doc__
    return told


@_sentences
def headline(run: StudyRun) -> list[str]:
    """What an extension costs those who do not use it: a context switch, by release, size and architecture."""
    found = added(run)
    found = found[(found["measure"] == "context-switch") & (found["section"] == "null")]
    lines = []
    for series in all_series(found):
        for arch in ("x86_64", "aarch64"):
            here = found[(found["series"] == series) & (found["arch"] == arch)].set_index("registration")
            told = [
                f"{name} {here.loc[name, 'added_instructions']:+,.0f} ({here.loc[name, 'added_percent']:+.2f} %)"
                for name in REGISTERED
                if name in here.index
            ]
            if not told:
                continue
            refused = [name for name in REGISTERED if name not in here.index]
            lines.append(
                f"Linux {series}, {arch}: a round trip of two switches is {here['unregistered'].iloc[0]:,.0f} "
                f"instructions unregistered; registered, with no section announced: {', '.join(told)}"
                + (f"; {' and '.join(refused)}: refused." if refused else ".")
            )
    return lines


def in_short(run: StudyRun, arch: str = "x86_64") -> str:
    """What registering adds to a round trip of two switches, by release and size, in one sentence. Raises NotMeasured."""
    found = added(run)
    found = found[
        (found["measure"] == "context-switch") & (found["section"] == "null") & (found["arch"] == arch)
    ]
    told = []
    for series in all_series(found):
        rows = found[found["series"] == series].set_index("registration")["added_percent"]
        told.append(
            f"Linux {series} "
            + ", ".join(f"{name} {rows[name]:+.1f} %" for name in REGISTERED if name in rows)
        )
    if not told:
        raise NotMeasured(f"kernel-costs has no context switches of {arch}.")
    return f"Counted in guests, registering adds to a round trip ({arch}): {'; '.join(told)}."


@_sentences
def repeats(run: StudyRun) -> list[str]:
    """How far repeats lie apart, and where they miss the mark."""
    numbers = counts(run)
    kinds = numbers.groupby("measure", sort=False)["spread_percent"].max()
    missed = numbers[numbers["spread_percent"] > MARK_PERCENT]
    lines = [
        f"{len(numbers)} counts of {int(numbers['size'].min())} repeats and more: {len(numbers) - len(missed)} agree "
        f"within {MARK_PERCENT:g} %, {len(missed)} do not.",
        "The widest spread: " + ", ".join(f"{name} {value:.3f} %" for name, value in kinds.items()) + ".",
    ]
    lines += [
        f"Missed: {row.series} {row.arch}, {row.measure}, {row.registration}, {row.section}: "
        f"{row.min:,.1f} to {row.max:,.1f} instructions ({row.spread_percent:.3f} %)."
        for row in missed.itertuples()
    ]
    return lines


@_sentences
def not_finished(run: StudyRun) -> list[str]:
    """Guests that did not end as they should, in all three experiments, with the reason."""
    lines = []
    for name in ("kernel-matrix", "kernel-costs", "kernel-cpus"):
        try:
            table = run.table(name)
        except NotMeasured as missing:
            lines.append(str(missing))
            continue
        reasons = (
            table["answer"].where(table["question"] == "boot") if name == "kernel-matrix" else table["reason"]
        )
        for (series, arch, reason), group in (
            table.assign(why=reasons).dropna(subset=["why"]).groupby(["series", "arch", "why"])
        ):
            lines.append(f"{name}, {series} {arch}: {reason} ({len(group)} rows).")
    return lines or ["Every guest finished, and every row was measured."]


# ---- many CPUs ----


@_shows_missing
def ids(run: StudyRun) -> Table:
    """The largest cpu_id and mm_cid that the threads of a process read, and how many different ones, or why not."""
    table = run.table("kernel-cpus")
    rows = [
        {
            "kernel": row.series,
            "arch": row.arch,
            "CPUs": row.cpus,
            "threads": row.threads,
            "largest cpu_id": row.most_cpu_id,
            "largest mm_cid": row.most_mm_cid,
            "cpu_ids": row.cpu_ids,
            "mm_cids": row.mm_cids,
            "reason": row.reason,
        }
        for row in table.sort_values(["cpus", "arch", "threads"], kind="stable").itertuples()
    ]
    frame = pd.DataFrame(rows).astype(
        {name: "Int64" for name in ("largest cpu_id", "largest mm_cid", "cpu_ids", "mm_cids")}
    )
    return Table(
        frame, "Ids that the threads of one process read as they slept and woke; its creator is a thread more"
    )
