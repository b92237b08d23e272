"""The extension options on a run, one by one: what the scenes say, in tables and computed sentences."""

import html
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from rseqlab.options.criteria import CRITERIA, CRITERION, outcome
from rseqlab.options.matrix import BREAKS, COSTS, NOT_MEASURED, WORKS, WORST_FIRST, Cell
from rseqlab.options.schemes import SCHEME, SCHEMES, SLICE, SPARE_USED, Layout
from rseqlab.study import redefinition
from rseqlab.study.matrix import matrix_of
from rseqlab.study.run import NotMeasured, StudyRun
from rseqlab.study.tables import Table

LATER_FIELDS = {"node_id": SPARE_USED, "mm_cid": SPARE_USED, "slice_ctrl": SLICE}
"""The fields that were in fact added after 2020, and the first layout that has each."""
ASKED_OF_THEM = (
    "old-consumer",
    "new-consumer",
    "room",
    "kernel-today",
    "interpose-program",
    "interpose-library",
)


@dataclass(frozen=True)
class Section:
    """What the run says of one option, in sentences that are computed."""

    option: str
    cells: tuple[Cell, ...]

    def lines(self) -> Iterable[tuple[str, str]]:
        """(heading, sentence): idea, outcome, what happened, cost, what was not measured."""
        scheme = SCHEME[self.option]
        yield "Idea", f"{scheme.idea} ({scheme.who}; {scheme.source})"
        scenes = [cell for cell in self.cells if not CRITERION[cell.criterion].cost]
        counts = [
            (word, [cell for cell in scenes if cell.outcome == word])
            for word in (WORKS, BREAKS, NOT_MEASURED)
        ]
        yield (
            "Verdict",
            f"Of {len(scenes)} criteria: {', '.join(f'{word} {len(found)}' for word, found in counts if found)}."
            + (
                " The kernel's part is played where a cell is in brackets."
                if scheme.kernel == "played"
                else ""
            ),
        )
        for cell in scenes:
            if cell.outcome == BREAKS:
                yield f"{CRITERION[cell.criterion].label}: {cell.short}", cell.sentence
        for cell in self.cells:
            if cell.outcome == COSTS:
                yield f"{CRITERION[cell.criterion].label}: {cell.short}", cell.sentence
        for cell in self.cells:
            if cell.outcome == NOT_MEASURED:
                yield f"{CRITERION[cell.criterion].label}: not measured", cell.sentence

    def __repr__(self) -> str:
        return "\n".join(f"{heading}. {sentence}" for heading, sentence in self.lines())

    def _repr_html_(self) -> str:
        return (
            "<dl class='rl-option'>"
            + "".join(
                f"<dt>{html.escape(heading)}</dt><dd>{html.escape(sentence)}</dd>"
                for heading, sentence in self.lines()
            )
            + "</dl>"
        )


def section(run: StudyRun, option: str) -> Section:
    """One option on this run: idea, verdict, what broke and how, what it costs."""
    return Section(option, tuple(matrix_of(run).of(option)))


def _missing(run: StudyRun, experiment: str) -> NotMeasured | None:
    try:
        run.table(experiment)
    except NotMeasured as missing:
        return missing
    return None


def scenes(run: StudyRun, option: str, criterion: str) -> Table | NotMeasured:
    """The rows behind one cell, with what each is worth."""
    cell = matrix_of(run).cell(option, criterion)
    if missing := _missing(run, cell.experiment):
        return missing
    rows = [
        row
        for row in run.bundle.tables[cell.experiment]
        if (row.get("option"), row.get("criterion")) == (option, criterion)
    ]
    frame = pd.DataFrame(
        [
            {
                "scene": row["case"],
                "libc's layout": row["provider"],
                "consumers": row["consumers"],
                "ended": row["ended"],
                "outcome": outcome(row).why,
            }
            for row in rows
        ]
    )
    return Table(frame, f"{option}, {CRITERION[criterion].label}: {cell.sentence}")


def refusals(run: StudyRun) -> Table | NotMeasured:
    """What compilers, linkers, loaders and libcs said, in their own words, and in how many scenes."""
    counts: dict[tuple[str, str], int] = {}
    experiments = dict.fromkeys(one.experiment for one in CRITERIA if not one.cost and one.id != "checker")
    measured = [name for name in experiments if not _missing(run, name)]
    if not measured:
        return NotMeasured("no scene was played in this run")
    for name in measured:
        for row in run.bundle.tables[name]:
            if row["said"]:
                key = (row["said"], row["ended"])
                counts[key] = counts.get(key, 0) + 1
    frame = pd.DataFrame(
        [
            {"scenes": count, "ended": ended, "words": said}
            for (said, ended), count in sorted(counts.items(), key=lambda item: -item[1])
        ]
    )
    return Table(frame, "What was said, by whoever said it")


def reserve(run: StudyRun) -> Table | NotMeasured:
    """How much static TLS one more library may have, by the loader's tunable."""
    if missing := _missing(run, "option-dlopen"):
        return missing
    rows = [row for row in run.bundle.tables["option-dlopen"] if row["criterion"] == "reserve"]
    frame = pd.DataFrame(
        [
            {
                "glibc.rtld.optional_static_tls": row["case"],
                "largest_accepted_bytes": row["found_bytes"],
                "words beyond it": row["said"],
            }
            for row in rows
        ]
    )
    return Table(frame, "Static TLS that one library opened late may have")


def redefinitions(run: StudyRun) -> Table | NotMeasured:
    """What becomes of libc's registrations where somebody else defines the names that it exports, by libc."""
    try:
        found = redefinition.frame(run)
    except NotMeasured as missing:
        return missing
    return Table(found, REDEFINITIONS)


REDEFINITIONS = (
    "A program or a library defines __rseq_offset and __rseq_size beside libc: what becomes of the program's threads "
    f"under each libc. {redefinition.AS_WITHOUT.capitalize()}: libc registers them where it says, and every reader reads right"
)


def later_fields(run: StudyRun) -> Table | NotMeasured:
    """What each option would have done to the fields that were in fact added later."""
    names = ("option-skew", "option-interposition")
    if missing := next(filter(None, (_missing(run, name) for name in names)), None):
        return missing
    rows = [row for name in names for row in run.bundle.tables[name] if row["criterion"] in ASKED_OF_THEM]
    found = [
        {"field": field, "first layout": layout.name}
        | {
            scheme.id: _fate([row for row in rows if row["option"] == scheme.id], layout)
            for scheme in SCHEMES
        }
        for field, layout in LATER_FIELDS.items()
    ]
    return Table(pd.DataFrame(found), CAPTION)


CAPTION = (
    "Scenes with the layout of each field that break, of all such scenes, and the worst way in which they do"
)


def _fate(rows: list, layout: Layout) -> str:
    """How many scenes of this layout break, and the worst manner."""
    known = [row for row in rows if layout.name in (row["provider"], *_layouts(row["consumers"]))]
    judged = [outcome(row) for row in known]
    bad = [one for one in judged if one.good is False]
    if not judged:
        return "not measured"
    manner = next((word for word in WORST_FIRST if word in {one.manner for one in bad}), None)
    return f"{len(bad)}/{len(judged)} {manner}" if bad else f"0/{len(judged)}"


def _layouts(consumers: str | None) -> list[str]:
    return [one.partition(" ")[0] for one in (consumers or "").split(", ")]


def standing(run: StudyRun) -> pd.DataFrame:
    """One row per option: criteria survived and broken, and what its read costs. Raises NotMeasured."""
    whole = matrix_of(run)
    found = []
    for scheme in SCHEMES:
        cells = whole.of(scheme.id)
        judged = [cell for cell in cells if cell.outcome in (WORKS, BREAKS)]
        access = whole.cell(scheme.id, "access")
        if access.outcome == NOT_MEASURED:
            raise NotMeasured(access.sentence)
        if not judged:
            raise NotMeasured(cells[0].sentence)
        found.append(
            {
                "option": scheme.id,
                "survived": sum(cell.outcome == WORKS for cell in judged),
                "criteria": len(judged),
                "silent": sum(cell.manner == "silent" and cell.outcome == BREAKS for cell in judged),
                "read_factor": access.factor,
                "emulated": scheme.kernel == "played",
            }
        )
    return pd.DataFrame(found)
