"""What the project says of the runs in data/reference: its front page's answer, two figures, the list of machines.

`make reference` writes all of it anew from the rows, so nothing of it can be typed in or grow old.
"""

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rseqlab.host import cpu_title
from rseqlab.lab.runner import identity
from rseqlab.study import figures, option_figures
from rseqlab.study.answer import answers
from rseqlab.study.claims import judge
from rseqlab.study.compare import Comparison, open_runs
from rseqlab.study.figures import Figure
from rseqlab.study.run import SHIPPED, StudyRun, open_run, reference_runs

PLACE = re.compile(r"(?<=<!-- answer -->\n).*?(?=<!-- /answer -->)", re.S)
"""Where the answer stands in the README."""


def answer_lines(run: StudyRun) -> str:
    """The five answers as Markdown, and on what run."""
    facts = run.machine()
    lines = [
        f"*{facts['CPU']}, Linux {facts['kernel']}, {facts['libc']}, digest `{run.runs[0].digest[:12]}`:*",
        *(
            f"- **{one.question}** {one.sentence} (`{one.command}`; [{one.notebook}](notebooks/{one.notebook}.ipynb))"
            for one in answers(run)
        ),
    ]
    return "\n".join((lines[0], "", *lines[1:], ""))


def with_answer(readme: str, run: StudyRun) -> str:
    """The README's text with the answer of this run in its place."""
    text, count = PLACE.subn(lambda _: answer_lines(run), readme)
    assert count == 1, "the README has no place for the answer"
    return text


def machines(runs: Sequence[StudyRun]) -> str:
    """The list of shipped runs, and how far two runs of one machine agree, as Markdown."""
    rows = [
        (
            f"`{run.bundle.directory.name}`",
            run.bundle.run["group"],
            cpu_title(run.facts),
            str(run.facts["kernel_release"]),
            str(run.facts["libc"]),
            run.bundle.run["profile"],
            run.bundle.run["started"][:10],
            f"`{run.bundle.digest[:12]}`",
        )
        for run in runs
    ]
    heads = ("run", "what", "CPU", "kernel", "libc", "profile", "measured", "digest")
    parts = [
        "# Runs that were measured so far",
        'Made by `make reference`; how to add yours stands in the README, "Add your machine".',
        _table(heads, rows),
        *_repeats([run for run in runs if run.bundle.run["group"] == "machine"]),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _repeats(runs: Sequence[StudyRun]) -> Iterable[str]:
    """For each machine with several runs: its newest against the others, and what the newest says of its own nulls."""
    by_machine: dict[str, list[StudyRun]] = {}
    for run in runs:
        by_machine.setdefault(repr(identity(run.bundle.machine)), []).append(run)
    for same in by_machine.values():
        newest = same[-1]
        yield f"## {newest.bundle.name}"
        yield f"A comparison of a thing with itself: {judge(newest, 'L50')[0].finding.measured}"
        if len(same) > 1:
            # Opened anew, without the runs of other groups: those are the same for both, and would agree with themselves.
            compared = Comparison(open_runs([run.bundle.directory for run in (newest, *same[:-1])]))
            folders = " ".join(
                f"--compare data/reference/{run.bundle.directory.name}" for run in compared.runs
            )
            yield f"Two runs of the machine: {compared.sentence()} `rseqlab report {folders}` shows all of it."
            differ = compared.effects[
                (compared.effects["verdicts"] == "differ") | (compared.effects["effects"] == "differ")
            ]
            columns = [name for name in differ if name != "sentence"]
            if len(differ):
                yield "What differs:"
                yield _table(columns, differ[columns].to_numpy().tolist())


def as_image(figure: Figure) -> str:
    """An SVG for a page of somebody else's: there is no text colour to take over there."""
    svg = figure.svg.replace("currentColor", "#57606a")
    return svg.replace("<svg", '<svg style="background:none"', 1)


def main(root: Path) -> None:
    """Write the README's answer, both figures and the list of machines below ``root``."""
    folders = [path for group in ("machine", "kernels", "workloads") for path in reference_runs(group)]
    run = open_run(SHIPPED)
    reference = root / "data" / "reference"
    (reference / "headline.svg").write_text(as_image(figures.counter(run)))
    (reference / "matrix.svg").write_text(as_image(option_figures.options_matrix(run)))
    (reference / "README.md").write_text(machines([open_run(folder) for folder in folders]))
    readme = root / "README.md"
    readme.write_text(with_answer(readme.read_text(), run))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
