"""The evidence as plain text for a mailing list: ASCII, at most 75 columns, every number with the command that gives it.

Written in the manner of a patch's cover letter. Costs stand beside benefits, and what was not measured is said.
"""

import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import default
from email.utils import format_datetime, getaddresses, make_msgid

import pandas as pd

import rseqlab
from rseqlab.errors import UsageError
from rseqlab.lab import verdict
from rseqlab.options.matrix import LEGEND
from rseqlab.options.schemes import SCHEMES
from rseqlab.study import kernels as guests
from rseqlab.study import usage, workloads
from rseqlab.study.answer import answers, what_would_change
from rseqlab.study.claims import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NOT_MEASURED,
    VERDICTS,
    Judged,
    judge,
    weaknesses,
)
from rseqlab.study.kernel_counts import added
from rseqlab.study.matrix import matrix_of
from rseqlab.study.run import NotMeasured, StudyRun, count
from rseqlab.study.samples import MEASURES, alone, control, location, paired_ratio, samples

COLUMNS = 75
SUBJECT = "[RFC] rseq: what each way to extend struct rseq does, measured"
PLAIN = str.maketrans(
    {
        "–": "-",  # noqa: RUF001
        "—": "-",
        "‘": "'",  # noqa: RUF001
        "’": "'",  # noqa: RUF001
        "“": '"',
        "”": '"',
        "…": "...",
        "×": "x",  # noqa: RUF001
        "µ": "u",
        "≥": ">=",
        "≤": "<=",
        "→": "->",
        "±": "+/-",
    }
)


def plain(text: str) -> str:
    """ASCII without control characters: accents go, what has no likeness becomes a question mark."""
    text = unicodedata.normalize("NFKD", text.translate(PLAIN))
    text = "".join(sign for sign in text if not unicodedata.combining(sign))
    return "".join(sign if " " <= sign <= "~" or sign == "\n" else "?" for sign in text)


def paragraph(text: str, indent: str = "", first: str | None = None) -> str:
    """Wrapped; a word longer than a line (an address) keeps its line for itself."""
    return textwrap.fill(
        plain(text),
        COLUMNS,
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def columns(head: Sequence[str], rows: Iterable[Sequence[str]], gap: str = "  ") -> str:
    """A table; the first column is text, the others are numbers, to the right."""
    lines = [[plain(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(head))]
    made = []
    for line in lines:
        first, *others = (
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        made.append(gap.join([f"  {first}", *others]).rstrip())
    return "\n".join(made)


def heading(text: str) -> str:
    return f"{text}\n{'-' * len(text)}"


# ---- sections ----

REASONS = {
    "": "not part of these runs",
    "report": "a report of what was said or done",
    "opinion": "a demand or an opinion",
    "nobody": "nobody outside can repeat it",
    "hardware": "needs other hardware",
    "software": "needs software that is not to be had",
    "kernels": "needs other kernels",
    "no experiment": "no experiment yet",
}
"""Why a claim has no rule, in the words of a list; the kinds are those of claims.WHY_NOT."""
NULLS = "L50"
"""The claim that says how often the lab gives a verdict on nothing."""

SECTIONS: dict[str, Callable[[StudyRun], list[str]]] = {}


def _section(function):
    SECTIONS[function.__name__] = function
    return function


def _introduction(run: StudyRun) -> list[str]:
    return [
        paragraph(
            "In July 2020 the glibc maintainers were asked whether the symbol __rseq_abi may grow in size and "
            "alignment between two releases, or whether an extended struct rseq must sit behind a pointer, which is "
            "slightly less efficient. This is what an executable study of that question says on one machine. Its numbers "
            "were measured by the commands below; only who uses rseq is cited, from the sources that those rows name."
        ),
        *([paragraph(f"Whose rows: {run.whose}; the list is under Environment.")] if run.sources else []),
        heading("Answers"),
        *(
            paragraph(f"{one.question} {one.sentence}", "   ", f"{number}. ")
            for number, one in enumerate(answers(run), 1)
        ),
        heading("Method"),
        paragraph(
            "Each question is an experiment in child processes that register for real. Timed: calibrated batches of "
            "the ways to compare, interleaved in random order on one CPU, the same way twice as an A/A control; ratios of "
            "pairs of one build, process and round, with 95 % intervals over builds of different code layout (exact "
            "signed-rank). A printed interval is the one that is judged: it is widened by the A/A control. Each batch "
            "checks that its work was done. Instructions: counted under an emulator, twice."
        ),
    ]


def _environment(run: StudyRun) -> list[str]:
    facts = [paragraph(f"{label}: {value}", "    ", "  ") for label, value in run.machine().items()]
    made = []
    for one in run.runs:
        profile, shown = one.bundle.run["profile"], count(run.shown_of(one))
        said = f"run: {one.id} ({one.origin}, profile {profile}), {shown}"
        made += [paragraph(said, "    ", "  "), f"  digest: {one.digest}"]
    if len(run.runs) > 1:
        made.append(paragraph(f"Digest of all: {run.digest}", "  "))
    made += [paragraph(f"Note: {text}", "  ") for text in run.notes]
    if run.footnote:
        made.append(paragraph(f"Note: {run.footnote.line}", "  "))
    weak = [paragraph(f"Note: {text}", "  ") for text in weaknesses(run)]
    return [heading("Environment"), "\n".join([*facts, *made]), *weak]


@_section
def costs(run: StudyRun) -> list[str]:
    """What the ways to read a field and to count cost, medians with intervals, costs beside benefits."""
    return [
        heading("Costs beside benefits"),
        *_timed(run, "cpu-id-read", "Reading the CPU number, ns, reads overlap", "throughput", "libc"),
        *_timed(run, "percpu-counter", "One increment, CPU ns, one thread", "1", "libc"),
        *_timed(run, "context-switch-cost", "Two threads hand over, ns a round trip", None, None),
    ]


def _timed(run: StudyRun, experiment: str, title: str, condition: str | None, start: str | None) -> list[str]:
    measure = MEASURES[experiment]
    try:
        table = run.table(experiment)
    except NotMeasured as missing:
        return [paragraph(f"{title}: {missing}")]
    table = table.dropna(subset=[measure.value])
    condition = condition or str(table[measure.condition].iloc[0])
    start = start or str(table["start"].iloc[0])
    chosen = table[(table[measure.condition].astype(str) == condition) & (table["start"] == start)]
    first = measure.null[1]
    rows = []
    for way in chosen.groupby(measure.way)[measure.value].median().sort_values().index:
        values = samples(run, experiment, way, condition, start)
        ratio = verdict.widened(
            paired_ratio(
                values,
                samples(run, experiment, first, condition, start),
                alone=alone(experiment, condition),
            ),
            control(run, experiment, condition, start),
        )
        rows.append(
            (
                way,
                f"{location(values).median:.3f}",
                verdict.number(ratio.median),
                verdict.ends(ratio),
                ratio.samples,
            )
        )
    return [
        paragraph(f"{title} (ratios are taken within a build: two times need not divide to them):"),
        columns(("", "median", f"x {first}"[:24], "95 %", "pairs"), rows),
        _command(run, experiment),
    ]


def _command(run: StudyRun, *experiments: str) -> str:
    profile = run.source(experiments[0]).bundle.run["profile"]
    return f"  $ rseqlab run --profile {profile} {' '.join(experiments)}"


@_section
def options(run: StudyRun) -> list[str]:
    """The matrix of the ways to extend, in letters."""
    matrix = matrix_of(run)
    letters = "ABCDEFG"
    legend = [
        paragraph(f"{letter}  {scheme.id}: {scheme.idea}", "     ", "  ")
        for letter, scheme in zip(letters, SCHEMES, strict=True)
    ]
    grid = matrix.grid()
    for counted in (True, False):  # in so many of its scenes, where there is room to say it
        rows = [(label, *(_in_short(cell.short, counted) for cell in cells)) for label, cells in grid]
        table = columns(("", *letters[: len(SCHEMES)]), rows, " ")
        if max(map(len, table.splitlines())) <= COLUMNS:
            break
    words = LEGEND
    for word, short in SHORT.items():
        words = words.replace(f"{word}:", f"{short} ({word}):").replace(f"{word};", f"{short};")
    return [
        heading("Options"),
        "\n".join(legend),
        table,
        paragraph(words.replace("works-:", "ok-:")),
        "  $ rseqlab run --profile full; rseqlab options [OPTION/CRITERION]",
    ]


SHORT_VERDICT = {workloads.NULL: "none shown", workloads.FEW: "no verdict"}
SHORT = {"works": "ok", "SILENT": "S", "CRASH": "C", "refused": "r"}


def _in_short(text: str, counted: bool) -> str:
    for word, short in SHORT.items():
        text = text.replace(word, short)
    word, space, count = text.partition(" ")
    return f"{word}{count}" if counted or not space else word + ")" * count.count(")")


@_section
def kernels(run: StudyRun) -> list[str]:
    """What each kernel release answers, and what a registration adds to a context switch there."""
    parts = [heading("Kernels, booted in QEMU")]
    try:
        facts = guests.by_series(run)
        guest = run.source("kernel-matrix").facts
        parts += [
            paragraph(
                f"On x86_64 and aarch64, under every libc alike unless it says that it varies (host: {guest['arch']}):"
            ),
            "\n".join(paragraph(f"{label}: {answers}", "    ", "  ") for label, answers in facts),
            "  $ rseqlab kernels run --only kernel-matrix",
        ]
    except NotMeasured as missing:
        parts.append(paragraph(f"What each answers: {missing}"))
    try:
        found = added(run)
    except NotMeasured as missing:
        return [*parts, paragraph(f"Counted costs: {missing}")]
    found = found[(found["measure"] == "context-switch") & (found["section"] == "null")]
    wide = found.pivot_table(
        index=["series", "arch", "unregistered"],
        columns="registration",
        values="added_instructions",
        sort=False,
    )
    rows = [
        (
            f"Linux {series} {arch}",
            f"{base:,.0f}",
            *("refused" if pd.isna(row[name]) else f"{row[name]:+,.0f}" for name in wide),
        )
        for (series, arch, base), row in wide.iterrows()
    ]
    return [
        *parts,
        paragraph(
            "Instructions of a round trip (two switches, four system calls), and what registering adds to it:"
        ),
        columns(("", "unregistered", *wide.columns), rows),
        f"  $ rseqlab kernels run --only kernel-costs --profile {run.source('kernel-costs').bundle.run['profile']}",
    ]


@_section
def census(run: StudyRun) -> list[str]:
    """Who uses rseq, cited, and what real programs gain, timed."""
    parts = [heading("Users, and what they gain"), *(paragraph(line) for line in usage.answer().lines)]
    parts.append("  $ rseqlab usage")
    try:
        found = workloads.effects(run)
    except NotMeasured as missing:
        return [*parts, paragraph(f"What programs gain: {missing}")]
    rows = [
        (
            one.workload,
            verdict.number(one.ratio.median),
            verdict.ends(one.ratio),
            one.ratio.samples,
            SHORT_VERDICT.get(one.verdict, one.verdict),
        )
        for one in found
    ]
    return [
        *parts,
        paragraph("Work per second with libc's registration, as a multiple of that without, interleaved:"),
        columns(("", "x off", "95 %", "pairs", "effect"), rows),
        paragraph(workloads.control_rate(found)),
        *(paragraph(line) for line in workloads.sentences(run).lines if "Envoy" in line),
        "  $ make workloads && rseqlab run --profile full workload-NAME...",
    ]


@_section
def claims(run: StudyRun) -> list[str]:
    """What people said, with what each was judged by: what holds and what fails here, null results, what nobody measured."""
    return _claims(run, whole=TITLES)


def _claims_in_short(run: StudyRun) -> list[str]:
    """The same where nobody asked for all of it: what goes against somebody is told whole, the rest by its sentence."""
    more = "What each of these was judged by, or why it was not, with the sources: rseqlab evidence --claims."
    return [*_claims(run, whole=(FAILS, INCONCLUSIVE)), paragraph(more)]


TITLES = {
    FAILS: "What fails here",
    INCONCLUSIVE: "Null results: no verdict either way",
    HOLDS: "What holds here",
    NOT_MEASURED: "Not measured",
}


def _claims(run: StudyRun, whole: Collection[str]) -> list[str]:
    judged, references = judge(run), References()
    counts = ", ".join(f"{name} {sum(one.finding.verdict == name for one in judged)}" for name in VERDICTS)
    parts = [heading("Claims"), paragraph(f"{len(judged)} claims: {counts}.")]
    for outcome, title in TITLES.items():
        chosen = [one for one in judged if one.finding.verdict == outcome]
        if not chosen:
            parts.append(f"{title}: none.")
        elif outcome in whole:
            parts += [f"{title}:", *(_claim(one, references) for one in chosen)]
        else:
            said = (f"{one.claim.sentence}." for one in chosen)
            lines = (
                paragraph(text, "        ", f"  {one.claim.id:<5} ")
                for one, text in zip(chosen, said, strict=True)
            )
            parts += [f"{title}:", "\n".join(lines)]
    return [*parts, "  $ rseqlab claims [ID]...", references.text()]


class References:
    """Addresses are longer than a line, so they stand in a list, each once; the text has their numbers."""

    LORE = "https://lore.kernel.org/r/"

    def __init__(self):
        self.numbers: dict[str, int] = {}

    def numbered(self, text: str) -> str:
        """``text`` with the number of each address in its place."""
        return re.sub(
            r"https?://[^\s),;]+|[\w.-]+/[\w.-]+:[\w./-]+@[\w.]+|[\w.-]+/[\w.-]+:m@\w+", self._number, text
        )

    def _number(self, found: re.Match) -> str:
        return f"[{self.numbers.setdefault(found[0], len(self.numbers) + 1)}]"

    def text(self) -> str:
        """The list. A message of the archive is named by its id, and a long address goes on after a slash."""
        lines = [f"References (a message id is found at {self.LORE}ID):"]
        for address, number in self.numbers.items():
            start, rest = f"  [{number}] ", plain(address.removeprefix(self.LORE))
            while len(start + rest) > COLUMNS and (place := rest.rfind("/", 0, COLUMNS - len(start)) + 1):
                lines.append(start + rest[:place])
                start, rest = " " * len(start), rest[place:]
            lines.append(start + rest)
        return "\n".join(lines)


def _claim(one: Judged, references: References) -> str:
    said = paragraph(f"{one.claim.sentence}. {one.finding.measured}", "        ", f"  {one.claim.id:<5} ")
    source = paragraph(f"({references.numbered(one.claim.source)})", "        ")
    return f"{said}\n{source}"


def _null_results(run: StudyRun) -> list[str]:
    """What was looked for and not seen, what the lab's own method does on nothing, and what nobody measured."""
    judged = judge(run)
    unclear = [one for one in judged if one.finding.verdict == INCONCLUSIVE]
    missing = [one.claim for one in judged if one.finding.verdict == NOT_MEASURED]
    reasons = Counter(REASONS[claim.why_not.partition(": ")[0]] for claim in missing)
    lines = [f"A thing compared with itself: {one.finding.measured}" for one in judge(run, NULLS)]
    try:
        lines.append(workloads.in_short(run))
    except NotMeasured as reason:
        lines.append(f"Programs with rseq and without: {reason}")
    lines += [f"No verdict on {one.claim.id}: {one.claim.sentence}." for one in unclear]
    counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    lines.append(f"{len(missing)} of {len(judged)} claims are not measured: {counted or 'none'}.")
    return [
        heading("Null results, and what was not measured"),
        *(paragraph(line, "  ", "- ") for line in lines),
        "  $ rseqlab claims --verdict inconclusive\n  $ rseqlab claims --verdict 'not measured'",
    ]


def _reproduce(run: StudyRun) -> list[str]:
    profile = run.bundle.run["profile"]
    return [
        heading("What would change the answers"),
        *(paragraph(line, "  ", "- ") for line in what_would_change(run).lines),
        heading("To redo it"),
        paragraph(
            f"rseqlab {rseqlab.__version__}; it needs git, make and Python 3.11 on Debian or Ubuntu. In its checkout:"
        ),
        "\n".join(
            [
                "  $ make deps && make setup",
                f"  $ .venv/bin/rseqlab run --profile {profile}",
                "  $ .venv/bin/rseqlab evidence",
            ]
        ),
        paragraph(
            "`rseqlab bundle export DIR` makes the archive of a run, which others check and read without measuring."
        ),
    ]


def text(run: StudyRun, sections: Sequence[str] = ()) -> str:
    """The text, or that of the named sections between introduction and instructions; named, claims come whole."""
    if unknown := [name for name in sections if name not in SECTIONS]:
        raise UsageError(
            f"No section is called {', '.join(unknown)}. The sections are: {', '.join(SECTIONS)}."
        )
    made = {**SECTIONS, "claims": SECTIONS["claims"] if sections else _claims_in_short}
    parts = [*_introduction(run), *_environment(run)]
    for name, section in made.items():
        if not sections or name in sections:
            parts += section(run)
    return "\n\n".join([*parts, *_null_results(run), *_reproduce(run)]) + "\n"


# ---- a message ----


def message(
    body: str,
    when,
    sender: str,
    to: Sequence[str] = (),
    in_reply_to: str | None = None,
    subject: str = SUBJECT,
) -> EmailMessage:
    """An RFC 5322 message of the text. Raises UsageError that names the address or id that is none."""
    # Ids may be longer than a folded line and must never be encoded, so lines are as long as RFC 5322 lets them be.
    mail = EmailMessage(policy=default.clone(max_line_length=998))
    mail["From"] = _addresses("--from", [sender])
    if to:
        mail["To"] = _addresses("--to", to)
    subject = subject or SUBJECT
    if not subject.isprintable():
        raise UsageError(f"--subject {subject!r} must be one line without control characters.")
    mail["Subject"] = f"Re: {subject}" if in_reply_to and not subject.lower().startswith("re:") else subject
    mail["Date"] = format_datetime(when)
    mail["Message-ID"] = make_msgid(domain="rseqlab.invalid")
    if in_reply_to:
        identifier = _identifier(in_reply_to)
        mail["In-Reply-To"] = identifier
        mail["References"] = identifier
    mail.set_content(body, charset="us-ascii", cte="7bit")
    return mail


def _addresses(option: str, texts: Sequence[str]) -> list[Address]:
    found = []
    for name, address in getaddresses(list(texts)) if all(map(str.isprintable, texts)) else ():
        user, at, domain = address.rpartition("@")
        if not (user and at and domain) or any(map(str.isspace, address)):
            raise UsageError(
                f"{option} {', '.join(texts)!r} is no address; give it as user@domain or Name <user@domain>."
            )
        found.append(Address(display_name=name, username=user, domain=domain))
    if not found:
        raise UsageError(
            f"{option} {', '.join(texts)!r} is no address; give it as user@domain or Name <user@domain>."
        )
    return found


def _identifier(text: str) -> str:
    inside = text.strip().removeprefix("<").removesuffix(">")
    if (
        not inside.isascii()
        or not inside.isprintable()
        or " " in inside
        or inside.count("@") != 1
        or set(inside) & set("<>")
    ):
        raise UsageError(
            f"--in-reply-to {text!r} is no message id; give it as it stands in the message's Message-ID."
        )
    return f"<{inside}>"


def mbox(mail: EmailMessage) -> str:
    """One message as a file in mbox format: what mail readers open and `git send-email` sends."""
    head, _, body = mail.as_string().partition("\n\n")
    quoted = re.sub(r"^(>*From )", r">\1", body, flags=re.MULTILINE)
    return f"From rseqlab Mon Sep 17 00:00:00 2001\n{head}\n\n{quoted}"
