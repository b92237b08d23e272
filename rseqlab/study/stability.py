"""Every claim's verdict over several runs: where it agrees, where it is contrary, and what in the world differs there.

A claim is contrary where it holds in one run and fails in another. Each such pair of runs must differ in something
that the claim is about; the rules of :data:`CAUSES` look for it in the facts of both machines. A pair in which none of
them finds anything is unexplained, whatever else differs: a compiler or a code layout is no cause of another price.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import product
from pathlib import Path

import pandas as pd

from rseqlab.errors import LabError, UsageError
from rseqlab.experiments import catalogue
from rseqlab.lab import bundle, verdict
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.exchange import members
from rseqlab.lab.stats import Interval
from rseqlab.lab.verdict import FAILS, HOLDS, INCONCLUSIVE, NOT_MEASURED
from rseqlab.microarchitecture import cpu_title
from rseqlab.paths import project_root
from rseqlab.study.claims import Claim, claims, judge
from rseqlab.study.rates import rates
from rseqlab.study.run import CHOSEN, NotMeasured, StudyRun
from rseqlab.study.samples import MEASURES
from rseqlab.study.tables import Sentences, Table

UNEXPLAINED = "unexplained"
SHIPPED = Path("data") / "reference" / "stability.csv"


# ---- what may be the cause ----

Cause = Callable[[Claim, dict, dict], str | None]
"""(claim, facts of the one machine, of the other) to what differs, in words; None where it explains nothing."""

CAUSES: list[Cause] = []


def _cause(rule: Cause) -> Cause:
    CAUSES.append(rule)
    return rule


def _differ(one: dict, other: dict, *names: str) -> str | None:
    """``a against b`` of the first of these facts that both machines know and that differs."""
    for name in names:
        here, there = one.get(name), other.get(name)
        if here is not None and there is not None and here != there:
            return f"{here} against {there}"
    return None


@_cause
def libc_size(claim: Claim, one: dict, other: dict) -> str | None:
    """Claims about the size that libc exports: it is another number."""
    if claim.rule != "libc_size_is_live_size":
        return None
    found = _differ(one, other, "rseq_libc_size")
    return found and f"__rseq_size is {found}"


LIBC_FUNCTIONS = {
    "sched_getcpu": "sched_getcpu()",
    "malloc": "malloc()",
    "nothing-more": "the start and end of a thread",
    "global-dynamic": "__tls_get_addr()",
    "descriptor": "the TLS descriptor's function",
}
"""What in a claim's rule is code of libc, and what a reader calls it."""


@_cause
def libc_function(claim: Claim, one: dict, other: dict) -> str | None:
    """Claims that time or execute a function of libc: its version differs."""
    called = [told for word, told in LIBC_FUNCTIONS.items() if word in claim.rule]
    found = _differ(one, other, "libc")
    return f"{' and '.join(called)} of {found}" if called and found else None


@_cause
def libc_itself(claim: Claim, one: dict, other: dict) -> str | None:
    """Claims about what this machine's loader says or its libc does to a program: its version differs."""
    about = claim.rule.startswith("loader_warns") or "this machine's libc" in claim.rule
    found = _differ(one, other, "libc")
    return f"the libc itself, {found}" if about and found else None


KERNEL_EXPERIMENTS = (
    "registration-rules",
    "registration-cost",
    "context-switch-cost",
    "abort-cost",
    "signal-storm",
    "takeover",
    "mm-cid",
    "option-legacy-writer",
    "option-ptrace",
    "thread-memory",
)
"""What they ask or time is done by the kernel."""
KERNEL_WAYS = ("vdso", "syscall")


@_cause
def kernel(claim: Claim, one: dict, other: dict) -> str | None:
    """Claims about what the kernel answers, or that time what it does: its release differs."""
    about = claim.experiment in KERNEL_EXPERIMENTS or any(way in claim.rule for way in KERNEL_WAYS)
    found = _differ(one, other, "kernel_release", "at_rseq_feature_size_bytes")
    return f"the kernel, {found}" if about and found else None


@_cause
def compiled_code(claim: Claim, one: dict, other: dict) -> str | None:
    """Claims that count instructions of compiled code: the compiler differs. It is no cause of another time."""
    found = _differ(one, other, "native_compiler")
    return f"the compiler's code, {found}" if claim.rule.startswith("instructions_") and found else None


@_cause
def processor(claim: Claim, one: dict, other: dict) -> str | None:
    """Claims about times: the CPU executes the same instructions at another price."""
    timed = claim.experiment in MEASURES or claim.experiment.startswith("workload-")
    differs = any(_differ(one, other, name) for name in CPU_FACTS)
    return f"the CPU, {cpu_title(one)} against {cpu_title(other)}" if timed and differs else None


CPU_FACTS = (
    "arch",
    "cpu_vendor",
    "cpu_family",
    "cpu_model_number",
    "cpu_implementer",
    "cpu_part",
    "cpu_model",
)
"""What tells one processor from another. A stepping or a microcode is no other one."""


# ---- rows ----


@dataclass(frozen=True)
class Row:
    """One claim on one run, as data/reference/stability.csv has it."""

    claim: str
    run: str
    distribution: str
    libc: str
    compiler: str
    cpu: str
    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    cause: str

    @property
    def short(self) -> str:
        """Verdict and effect, in a cell."""
        if self.effect is None or self.low is None or self.high is None:
            return self.verdict
        shown = Interval(self.effect, self.low, self.high, 1)
        return f"{self.verdict} {verdict.number(self.effect)} {verdict.ends(shown)}"


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Stability:
    """Claims over runs. ``reliability`` has what each run says of the rule itself."""

    rows: tuple[Row, ...]
    reliability: tuple[str, ...] = ()

    @cached_property
    def by_claim(self) -> dict[str, list[Row]]:
        """The rows of every claim that some run measured, by its id, in the order of the runs."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.claim, []).append(row)
        return {
            claim: rows for claim, rows in found.items() if any(row.verdict != NOT_MEASURED for row in rows)
        }

    @property
    def runs(self) -> list[str]:
        """The runs by their ids."""
        return list(dict.fromkeys(row.run for row in self.rows))

    @property
    def contrary(self) -> dict[str, str]:
        """Claim to its cause, or ``unexplained``, where it holds in one run and fails in another."""
        return {claim: rows[0].cause for claim, rows in self.by_claim.items() if _is_contrary(rows)}

    @property
    def unexplained(self) -> list[str]:
        """The contrary claims that no rule explains for every pair of runs."""
        return [claim for claim, cause in self.contrary.items() if UNEXPLAINED in cause]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims agree, are inconclusive somewhere, carry no verdict anywhere, or are contrary."""
        kinds = Counter(_kind(rows) for rows in self.by_claim.values())
        return {kind: kinds[kind] for kind in KINDS}

    def sentence(self) -> str:
        """How far the runs agree, counted."""
        counts, causes = self.counts, self.contrary
        told = [f"{count} {kind}" for kind, count in counts.items()]
        return (
            f"{len(self.by_claim)} claims over {len(self.runs)} runs: {', '.join(told)}; of the contrary "
            f"{len(causes) - len(self.unexplained)} have a named cause and {len(self.unexplained)} none."
        )

    def lines(self) -> Sentences:
        """The count, each contrary claim with its cause, and the rates of the rule."""
        told = (f"{claim} is contrary: {cause}." for claim, cause in self.contrary.items())
        return Sentences((self.sentence(), *told, *self.reliability))

    def machines(self) -> Table:
        """The runs: distribution, libc, compiler, CPU, and which repeat of the same it is."""
        seen: Counter[tuple] = Counter()
        rows = []
        for place, name in enumerate(self.runs):
            row = next(row for row in self.rows if row.run == name)
            world = (row.distribution, row.libc, row.compiler, row.cpu)
            seen[world] += 1
            names = ("distribution", "libc", "compiler", "cpu")
            rows.append(
                {
                    "": letters_of(place),
                    "run": name,
                    **dict(zip(names, world, strict=True)),
                    "repeat": seen[world],
                }
            )
        return Table(pd.DataFrame(rows), "The runs")

    def table(self) -> Table:
        """Every measured claim: its verdict and effect on each run, contrary ones first."""
        letters = {name: letters_of(place) for place, name in enumerate(self.runs)}
        rows = []
        for claim, found in sorted(self.by_claim.items(), key=lambda one: KINDS[::-1].index(_kind(one[1]))):
            cells = {letters[row.run]: row.short for row in found}
            row = {"claim": claim} | {name: cells.get(name, "") for name in letters.values()}
            rows.append(row | {"over the runs": _kind(found), "cause": found[0].cause})
        frame = pd.DataFrame(rows, columns=["claim", *letters.values(), "over the runs", "cause"])
        return Table(
            frame, "Each claim's verdict on each run, with its effect and 95 % interval as they were judged"
        )

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, (self.lines(), self.machines(), self.table())))

    def _repr_html_(self) -> str:
        parts = (self.lines(), self.machines(), self.table())
        return "".join(part._repr_html_() for part in parts)

    def document(self) -> dict:
        """The table as JSON."""
        return {
            "schema": "rseqlab/stability",
            "version": 1,
            "runs": self.runs,
            "sentence": self.sentence(),
            "reliability": list(self.reliability),
            "counts": self.counts,
            "contrary": self.contrary,
            "unexplained": self.unexplained,
            "rows": [asdict(row) for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """The rows as CSV. Raises BundleError where it cannot be written."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows(asdict(row).values() for row in self.rows)
        bundle.write_text(path, text.getvalue())


KINDS = AGREES, OPEN, NO_VERDICT, CONTRARY = (
    "agree",
    "agree or are inconclusive",
    "carry no verdict",
    "are contrary",
)


def _kind(rows: Sequence[Row]) -> str:
    given = {row.verdict for row in rows} - {NOT_MEASURED}
    if _is_contrary(rows):
        return CONTRARY
    if given == {INCONCLUSIVE}:
        return NO_VERDICT
    return OPEN if INCONCLUSIVE in given else AGREES


def _is_contrary(rows: Iterable[Row]) -> bool:
    return {HOLDS, FAILS} <= {row.verdict for row in rows}


def letters_of(place: int) -> str:
    """A to Z, AA to AZ, and so on, as spreadsheets name columns."""
    before, last = divmod(place, 26)
    return (letters_of(before - 1) if before else "") + chr(65 + last)


# ---- from runs ----


def open_runs(paths: Sequence[Path]) -> list[StudyRun]:
    """The runs in these folders or files, each once. Raises UsageError for none, BundleError for a damaged one."""
    found = [StudyRun(Bundle(path, catalogue()), CHOSEN) for given in paths for path in members(given)]
    runs = list({run.bundle.digest: run for run in found}.values())
    if not runs:
        raise UsageError(
            "stability was given no run; name folders or packed files of runs, as `rseqlab run --out` made them."
        )
    return runs


def stability(runs: Sequence[StudyRun]) -> Stability:
    """Every claim with a rule on every run, with the cause where it is contrary."""
    tested = [claim for claim in claims() if claim.rule]
    judged = [judge(run, *(claim.id for claim in tested)) for run in runs]
    names = _names(runs)
    rows = []
    for place, claim in enumerate(tested):
        found = [one[place].finding for one in judged]
        cause = _causes(claim, list(zip((one.verdict for one in found), runs, strict=True)))
        for run, name, finding in zip(runs, names, found, strict=True):
            effect = finding.effect
            rows.append(
                Row(
                    claim.id,
                    name,
                    *world(run),
                    finding.verdict,
                    effect and effect.median,
                    effect and effect.low,
                    effect and effect.high,
                    cause,
                )
            )
    return Stability(
        tuple(rows), tuple(_reliability(run, name) for run, name in zip(runs, names, strict=True))
    )


def _names(runs: Sequence[StudyRun]) -> list[str]:
    """The runs' ids; where two have one, their digests tell them apart."""
    times = Counter(run.id for run in runs)
    return [run.id if times[run.id] == 1 else f"{run.id}-{run.bundle.digest[:8]}" for run in runs]


def world(run: StudyRun) -> tuple[str, str, str, str]:
    """(distribution, libc, compiler of the timed loops, CPU) of a run's machine."""
    facts = run.facts
    known = (facts.get("distribution"), facts.get("libc"), compiler(run), cpu_title(facts))
    distribution, libc, built_by, cpu = (str(fact) if fact else "unknown" for fact in known)
    return distribution, libc, built_by, cpu


VERSION = re.compile(r"(?<=version )\d+(\.\d+)+|(?<=\) )\d+(\.\d+)+")


def compiler(run: StudyRun) -> str | None:
    """What compiled the timed loops: of the run's builds where it has any, else of the installed extension."""
    for build in run.bundle.run["builds"].values():
        line = str(build["compiler"])
        found = VERSION.search(line)
        return f"{'clang' if 'clang' in line else 'gcc'} {found[0]}" if found else line
    return run.facts.get("native_compiler")


def _causes(claim: Claim, found: Sequence[tuple[str, StudyRun]]) -> str:
    """What differs wherever the claim holds in one run and fails in another; ``unexplained`` where nothing does."""
    hold, fail = ([run.facts for said, run in found if said == wanted] for wanted in (HOLDS, FAILS))
    contrary = list(product(hold, fail))
    for rule in CAUSES:  # one that explains every pair is the cause
        told = [rule(claim, *pair) for pair in contrary]
        if told and all(told):
            return "; ".join(dict.fromkeys(one for one in told if one))
    words = [
        next((said for rule in CAUSES if (said := rule(claim, *pair))), UNEXPLAINED) for pair in contrary
    ]
    return "; ".join(dict.fromkeys(words))


def _reliability(run: StudyRun, name: str) -> str:
    try:
        found = rates(run)
    except NotMeasured as missing:
        return f"{name}: how often the rule is wrong is not measured: {missing.args[0].rstrip('.')}."
    return f"{name}: {found.alike_sentence()} {found.different_sentence()}"


# ---- the shipped table ----


def read(path: Path) -> Stability:
    """The rows of such a CSV. Raises LabError where it is none."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise LabError(f"{path}: its columns are {reader.fieldnames}, not {', '.join(COLUMNS)}")
            return Stability(tuple(_row(cells) for cells in reader))
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError) as error:
        raise LabError(
            f"Could not read {path}: {error}. `rseqlab stability --out` writes such a file."
        ) from None


def _row(cells: dict[str, str]) -> Row:
    numbers = {name: float(cells[name]) if cells[name] else None for name in ("effect", "low", "high")}
    return Row(**{name: cells[name] for name in COLUMNS} | numbers)


def shipped() -> Stability | NotMeasured:
    """The table of data/reference, over the distributions, compilers and CPUs that the lab was run on."""
    path = project_root() / SHIPPED
    if not path.exists():
        return NotMeasured(
            f"{SHIPPED} is not there; `rseqlab stability RUN... --out FILE` makes such a table"
        )
    return read(path)
