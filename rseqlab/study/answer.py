"""The answer to the thread's question, in five sentences that the rows make."""

import html
from collections.abc import Callable
from dataclasses import dataclass

from rseqlab.options.criteria import CRITERIA
from rseqlab.options.matrix import WORKS, Cell
from rseqlab.study import kernels, redefinition, usage, workloads
from rseqlab.study.claims import (
    FAILS,
    HOLDS,
    INCONCLUSIVE,
    NOT_MEASURED,
    Finding,
    Tally,
    judge,
    linked,
    linked_notebook,
)
from rseqlab.study.matrix import matrix_of
from rseqlab.study.run import LOCAL, NotMeasured, StudyRun
from rseqlab.study.tables import Sentences

DEFINES = ("interpose-program", "interpose-library")
SURVIVE = [one for one in CRITERIA if not one.cost]


@dataclass(frozen=True)
class Answer:
    """One question of the thread with what this run says, how strong that is, and where its rows are."""

    question: str
    sentence: str
    strength: str
    claims: tuple[str, ...]
    notebook: str

    def __repr__(self) -> str:
        return f"{self.question} {self.sentence} ({self.strength}; {self.where})"

    @property
    def command(self) -> str:
        """What to run for the rows."""
        return f"rseqlab claims {' '.join(self.claims)}" if self.claims else "rseqlab options"

    @property
    def where(self) -> str:
        """What to run, and what to read."""
        return f"{self.command}; notebook {self.notebook}"

    def _repr_html_(self) -> str:
        question, strength = map(html.escape, (self.question, self.strength))
        where = f"rows: {linked(', '.join(self.claims))}; " if self.claims else ""
        return (
            f"<p class='rl-answer'><strong>{question}</strong> {linked(self.sentence)} "
            f"<span class='rl-source'>{strength}; {where}notebook {linked_notebook(self.notebook)}; "
            f"<code>{html.escape(self.command)}</code></span></p>"
        )


class Answers(list):
    """The five, one below the other."""

    def __repr__(self) -> str:
        return "\n".join(map(repr, self))

    def _repr_html_(self) -> str:
        return "".join(one._repr_html_() for one in self)


def answers(run: StudyRun) -> Answers:
    """The five answers on this run; what it does not hold is said to be not measured."""
    return Answers(one(run) for one in QUESTIONS)


QUESTIONS: list[Callable[[StudyRun], Answer]] = []


def _question(text: str, notebook: str, *claims: str):
    def declare(function):
        def ask(run: StudyRun) -> Answer:
            try:
                sentence, strength = function(run)
            except NotMeasured as missing:
                sentence, strength = str(missing), NOT_MEASURED
            return Answer(text, sentence, strength, claims, notebook)

        QUESTIONS.append(ask)
        return ask

    return declare


def _finding(run: StudyRun, claim: str) -> Finding:
    finding = judge(run, claim)[0].finding
    if finding.verdict == NOT_MEASURED:
        raise NotMeasured(f"{claim}: {finding.measured}")
    return finding


def _together(*parts: Callable[[], str], between: str = "; ") -> str:
    """What the parts say. One that is not measured says so and costs no other its words.

    Raises NotMeasured, with every reason, where none of them is measured.
    """
    told, missing = [], []
    for part in parts:
        try:
            told.append(part().rstrip("."))
        except NotMeasured as reason:
            missing.append(reason.args[0].rstrip("."))
    if not told:
        raise NotMeasured(f"{'; '.join(dict.fromkeys(missing))}.")
    if between.startswith("."):
        told = [f"{one[0].upper()}{one[1:]}" for one in told]
    said = between.join(told)
    return " ".join([f"{said[0].upper()}{said[1:]}.", *(f"Not measured: {one}." for one in missing)])


def _where(run: StudyRun, experiment: str) -> str:
    """On whose machine its rows were measured, as far as a reader of the study must know it."""
    shipped = run.sources and run.source(experiment).origin != LOCAL
    return "on the machine of the shipped rows" if shipped else "on this machine"


def _times(finding: Finding) -> str:
    effect = finding.effect
    return f"{effect.median:.3f} times [{effect.low:.3f} to {effect.high:.3f}]"


def _measured(cell: Cell) -> Cell:
    if cell.outcome == NOT_MEASURED:
        raise NotMeasured(f"{cell.option}/{cell.criterion}: {cell.sentence}")
    return cell


@_question("May the symbol grow?", "30_options", "C11", "O01", "O08")
def may_it_grow(run: StudyRun) -> tuple[str, str]:
    """From the scenes of grow-symbol: who refers to the object, and who defines it."""
    matrix = matrix_of(run)
    refers = _measured(matrix.cell("grow-symbol", "old-consumer"))
    defines = [_measured(matrix.cell("grow-symbol", criterion)) for criterion in DEFINES]
    bad, scenes = sum(cell.bad for cell in defines), sum(len(cell.rows) for cell in defines)
    if refers.outcome == WORKS and bad:
        manners = " and ".join(sorted({cell.manner for cell in defines if cell.manner}))
        told = {"SILENT": "without a word"}.get(manners.upper(), manners)
        sentence = (
            f"For whoever only refers to it, yes: {len(refers.rows)} of {len(refers.rows)} scenes read right; "
            f"for whoever defines it as well, no: {bad} of {scenes} scenes break, {told}"
        )
        warned = judge(run, "O08")[0].finding
        sentence += ", and the loader does not warn." if warned.verdict == FAILS else "."
    else:
        sentence = (
            f"Whoever refers to it: {refers.label}. Whoever defines it: {bad} of {scenes} scenes break."
        )
    return sentence, f"scenes executed {_where(run, 'option-skew')}"


@_question("What does the pointer cost?", "30_options", "C13", "C13d", "C13x", "L40")
def what_does_the_pointer_cost(run: StudyRun) -> tuple[str, str]:
    """The dereference, overlapping and dependent, beside what finding the area costs."""

    def dereference() -> str:
        overlapping, dependent = (_finding(run, claim) for claim in ("C13", "C13d"))
        more = judge(run, "C13x")[0].finding
        instructions = "one instruction and " if more.verdict == HOLDS else ""
        return (
            f"it takes {instructions}{_times(overlapping)} as long to read a field where reads overlap, "
            f"{_times(dependent)} where each waits for the last"
        )

    def finding() -> str:
        return (
            "how a library finds the area matters more: by global-dynamic TLS it takes "
            f"{_times(_finding(run, 'L40'))} the pointer's time"
        )

    where = _where(run, "option-access-cost")
    return _together(dereference, finding), f"timed {where}, instructions counted under an emulator"


@_question("What did offset and size cost, and what did they buy?", "30_options", "L43", "O04", "O09", "O10")
def what_did_offset_and_size_buy(run: StudyRun) -> tuple[str, str]:
    """What was adopted, against a symbol that grew, on every criterion that is no cost."""

    def cost() -> str:
        return f"a read takes {_times(_finding(run, 'L43'))} a grown symbol's time"

    def bought() -> str:
        matrix, options = matrix_of(run), ("offset-size", "grow-symbol")
        cells = {one.id: [matrix.cell(option, one.id) for option in options] for one in SURVIVE}
        measured = {
            name: pair for name, pair in cells.items() if all(one.outcome != NOT_MEASURED for one in pair)
        }
        if not measured:
            raise NotMeasured(cells[SURVIVE[0].id][0].sentence)
        adopted, grown = (
            (
                sum(pair[place].outcome == WORKS for pair in measured.values()),
                sum(pair[place].manner == "silent" for pair in measured.values()),
            )
            for place in range(len(options))
        )
        missing = [name for name in cells if name not in measured]
        rest = f" (not measured: {', '.join(missing)})" if missing else ""
        return (
            f"of {len(measured)} things to survive it survives {adopted[0]} and fails {adopted[1]} without a word, "
            f"the grown symbol {grown[0]} and {grown[1]}{rest}"
        )

    def redefined() -> str:
        return redefinition.in_short(run)

    return _together(
        cost, bought, redefined, between=". "
    ), f"timed {_where(run, 'option-access-cost')}; executed scenes"


@_question("Who uses rseq?", "50_usage", "T07a", "C48")
def who_uses_it(run: StudyRun) -> tuple[str, str]:
    """The cited users, and what real programs gain where they were run."""
    cited = usage.answer().lines
    try:
        gained = workloads.in_short(run)
    except NotMeasured as missing:
        gained = f"What real programs gain: {missing}."
    return f"{cited[0]} {cited[1]} {gained}", "cited, each row with its source; programs timed"


@_question("What does an extension cost those who do not use it?", "40_kernels", "C41", "C21", "K01", "K02")
def what_do_others_pay(run: StudyRun) -> tuple[str, str]:
    """The context switch of registered threads: timed here, and counted by kernel release and registered size."""

    def timed() -> str:
        registered = _finding(run, "C41")
        return f"Two registered threads hand over to each other in {_times(registered)} the time of two unregistered ones."

    where = f"timed {_where(run, 'context-switch-cost')}; instructions counted in guests"
    return _together(timed, lambda: kernels.in_short(run), between=". "), where


class NamesClaims(Sentences):
    """Sentences that name claims."""

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{linked(line)}</li>' for line in self.lines)}</ul>"


def ledger(run: StudyRun) -> Sentences:
    """How many claims have which verdict on this run, and those that fail or stay open."""
    judged = judge(run)
    bad = [one for one in judged if one.finding.verdict in (FAILS, INCONCLUSIVE)]
    told = (f"{one.claim.id} {one.finding.verdict}: {one.claim.sentence}." for one in bad)
    return NamesClaims((Tally(judged).sentence, *told))


def what_would_change(run: StudyRun) -> Sentences:
    """What another result would have to look like, for each answer."""
    open_ones = [one for one in judge(run) if one.finding.verdict == INCONCLUSIVE]
    lines = [
        "A scene in which a program that defines the object lives with a larger one, or in which a program that only "
        "refers to it breaks: `rseqlab options grow-symbol/interpose-program` lists those that were played.",
        "A machine on which the dereference is hidden: `rseqlab run option-access-cost` measures it anywhere.",
        "A later field that offset and size cannot carry: the layouts that were tried stand in `rseqlab/layout.py`.",
    ]
    if open_ones:
        names = ", ".join(one.claim.id for one in open_ones)
        lines.append(f"This run leaves open, for want of a narrower interval: {names}.")
    return NamesClaims(tuple(lines))
