"""A scene as a row: what was set up, what the parties said, how it ended. Shared by the option experiments.

Nothing is judged here: rseqlab/options/criteria.py turns rows into outcomes.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from rseqlab.lab.compile import COMPILER, CompileError
from rseqlab.lab.experiment import LINUX, NATIVE, REGISTRATION, Column, Experiment, Need, Part, Task
from rseqlab.lab.probe import LIBC_LEAVES, LIBC_OWNS, libc_refusal
from rseqlab.options import parties
from rseqlab.options.parties import Consumer, Line, Scene, Setup
from rseqlab.options.schemes import LAYOUT, ORIGINAL, SCHEME

STARTS = {"none": LIBC_LEAVES, "libc": LIBC_OWNS}
"""Whether this machine's libc registers the threads: a program that plays libc needs it not to."""

NOT_BUILT, REFUSED_TO_BUILD = "not built", "refused to build"
NOT_STARTED = "not started"
"""Under another libc: nothing of this lab's starts there, or this test case needs symbols that this libc never had."""

LIBCS_OWN_VERSION = re.compile(r"version [`'\"]?GLIBC_[0-9.]+[`'\"]? not found")
"""The words of a loader whose libc is older than the one that the program was built with."""

COLUMNS = (
    Column("option", "text", "the way to extend struct rseq", choices=tuple(SCHEME)),
    Column(
        "criterion", "text", "what the scene is asked; `control` where it only shows that the scene works"
    ),
    Column("case", "text", "the scene, unique within option and criterion"),
    Column(
        "kernel",
        "text",
        "whether the real kernel registered, or its part was played",
        choices=("real", "played"),
    ),
    Column("provider", "text", "the layout that the provider was built with", nullable=True),
    Column("consumers", "text", "the layouts that the consumers were built with", nullable=True),
    Column("libc", "text", "the libc that ran the scene, as it calls itself", nullable=True),
    Column(
        "ended", "text", f"exit code, signal, `hung`, `{REFUSED_TO_BUILD}`, `{NOT_BUILT}` or `{NOT_STARTED}`"
    ),
    Column(
        "registered",
        "text",
        "the kernel's answer to the provider, each thread's where they differ",
        nullable=True,
    ),
    Column("parties", "int", "consumers that were to read the area"),
    Column("refused", "int", "consumers that found no registered area, and knew it"),
    Column("unaware", "int", "consumers that do without a field they know, as the option told them to"),
    Column("wrong", "int", "consumers that took something else for their CPU number or their newest field"),
    Column("live", "int", "consumers whose every read was right"),
    Column("overwritten_bytes", "int", "bytes outside the object that somebody overwrote"),
    Column(
        "overwritten_by",
        "text",
        "who: `kernel`, or `provider` in user space, which also sets the fields that no kernel has yet",
        nullable=True,
    ),
    Column("overwritten_at", "text", "where, from the object's first byte", nullable=True),
    Column("misaligned", "int", "times that an object lay at a smaller alignment than a party was built for"),
    Column("found_bytes", "int", "a size that the scene looked for", nullable=True),
    Column("found_count", "int", "a number that the scene looked for", nullable=True),
    Column("said", "text", "the compiler's, linker's or loader's own words", nullable=True),
    Column("found", "text", "what else the scene says", nullable=True),
)
LIBC_ITSELF, LIBC_ITSELF_FLAG = "libc", "-DLIBC=1"

KEY = ("option", "criterion", "case")


@dataclass(frozen=True)
class Case:
    """One scene to play, and the question that it answers."""

    criterion: str
    name: str
    setup: Setup
    start: str = "none"
    may_be_refused: bool = False
    """Whether a refusal of the compiler or linker is an answer; otherwise it is a fault of this lab."""
    more: Callable[[Scene], Mapping[str, object]] = field(default=lambda scene: {})
    """Columns that this case knows better than the common reading of a scene."""

    @property
    def option(self) -> str:
        """Which option the scene is about."""
        return self.setup.scheme.id


def libc_itself(setup: Setup) -> Setup:
    """The same scene with this process's real libc in the place of the library that plays it."""
    return replace(setup, everywhere=(LIBC_ITSELF_FLAG, *setup.everywhere))


def _by_libc(setup: Setup) -> bool:
    return LIBC_ITSELF_FLAG in setup.everywhere


GIVEN_LIBC = "RSEQLAB_LIBC"
"""The variable that names the folder of a libc whose own loader is to run every scene."""


def given_libc(task: Task) -> Path | None:
    """The libc that this part is to run under, where one was named."""
    folder = task.arguments.get("libc")
    return Path(str(folder)) if folder else None


def base(case: Case) -> dict:
    """What a row says of its case before it is played."""
    setup = case.setup
    return {
        "option": case.option,
        "criterion": case.criterion,
        "case": case.name,
        "kernel": setup.kernel or setup.scheme.kernel,
        "provider": LIBC_ITSELF if _by_libc(setup) else setup.provider.name,
        "consumers": ", ".join(f"{one.layout.name} ({one.how})" for one in setup.consumers) or None,
    }


def row(case: Case, libc: Path | None) -> dict:
    """Plays the case; whatever happens is a row."""
    try:
        scene = replace(case.setup, libc=libc).play()
        if libc and not scene.of("start", "program") and (said := _does_not_start(case, scene, libc)):
            scene = Scene((), NOT_STARTED, said)
    except CompileError as error:
        ended = REFUSED_TO_BUILD if case.may_be_refused else NOT_BUILT
        scene = Scene((), ended, parties.words(error.said or str(error)))
    return base(case) | read(scene, len(case.setup.consumers)) | dict(case.more(scene))


def _does_not_start(case: Case, scene: Scene, libc: Path) -> str | None:
    """The loader's words where the test program as such does not start under this libc, whatever the case; or None."""
    if scene.said and LIBCS_OWN_VERSION.search(scene.said):
        return scene.said
    return _bare_program_refused(libc, _by_libc(case.setup))


@cache
def _bare_program_refused(libc: Path, by_libc: bool) -> str | None:
    """What is said of the test program that has no consumers; ``by_libc``: that asks libc itself for the area."""
    bare = Setup(SCHEME["offset-size"], ORIGINAL, ())
    scene = replace(libc_itself(bare) if by_libc else bare, libc=libc).play()
    return None if scene.of("start", "program") else scene.said or scene.ended


def read(scene: Scene, consumers: int) -> dict:
    """The common columns of what a scene said."""
    start = scene.of("start", "program")
    answers = list(dict.fromkeys(parties.errno_name(line.number("answer")) for line in scene.of("register")))
    heard: dict[str, list[Line]] = {
        name: [] for name in dict.fromkeys(line.who for line in scene.of("attach"))
    }
    for line in scene.of("read"):
        heard.setdefault(line.who, []).append(line)
    states = [_state(scene, name, lines) for name, lines in heard.items()]
    return {
        "libc": start[0].facts["libc"] if start else None,
        "ended": scene.ended,
        "registered": ", ".join(answers) or None,
        "parties": consumers,
        "refused": states.count("refused"),
        "unaware": states.count("unaware"),
        "wrong": states.count("wrong"),
        "live": states.count("live"),
        **overwritten(scene),
        "misaligned": sum(
            line.number("seen_align") < line.number("align")
            for line in (*scene.of("describe"), *scene.of("attach"))
        ),
        "found_bytes": None,
        "found_count": None,
        "said": scene.said,
        "found": _pointer(scene),
    }


def _pointer(scene: Scene) -> str | None:
    """Whether the kernel left the pointer alone that the area holds."""
    broken = any(line.facts["intact"] == "0" for line in scene.of("pointer"))
    return "the kernel overwrote the pointer in the area as it registered it" if broken else None


def _state(scene: Scene, name: str, reads: list[Line]) -> str:
    """What became of one consumer: live, unaware, refused, wrong, or silent (it never read)."""
    attached = scene.of("attach", name)
    if any(line.number("answer") for line in attached):
        return "refused"
    if not reads:
        return "silent"
    if any("0" in (line.facts["newest_right"], line.facts["start_right"]) for line in reads):
        return "wrong"
    if not all(line.facts["cpu_right"] == "1" for line in reads):
        # -1 and -2 are the ABI's own words for `not registered`; a consumer that reads them knows.
        knew = all(line.facts["cpu_right"] == "1" or line.facts["cpu"] in ("-1", "-2") for line in reads)
        return "refused" if knew else "wrong"
    if any(line.facts["knows"] == "1" and line.facts["extended"] == "0" for line in attached):
        return "unaware"
    return "live"


def overwritten(scene: Scene) -> dict:
    """The ground around every party's object, and at which step it first changed."""
    most, by, at = 0, None, None
    for line in scene.of("ground"):
        count = line.number("overwritten")
        if count > most:
            by = by or line.facts["when"]
            most, at = count, f"{line.facts['first']} to {line.facts['last']} of the {line.who}'s object"
    return {"overwritten_bytes": most, "overwritten_by": by, "overwritten_at": at}


def experiment(
    name: str,
    question: str,
    serves: str,
    cases: Callable[[str], list[Case]],
    seconds: float,
    measure: Callable[[Task], Iterator[dict]],
    extra_rows: Callable[[str], int] = lambda profile: 0,
    needs: tuple[Need, ...] = (),
) -> Experiment:
    """An experiment of scenes: one part for each way to start a process that it has cases for.

    ``measure`` must be a function of the experiment's own module; the child finds it there.
    """

    def plan(profile: str) -> list[Part]:
        given = os.environ.get(GIVEN_LIBC)
        return [
            Part(
                f"{start}-given-libc" if given else start,
                len(found) + (extra_rows(profile) if start == "none" else 0),
                300,
                STARTS[start],
                {"start": start, "profile": profile, "libc": given},
                skip=libc_refusal() if start == "libc" and not given else None,
            )
            for start in STARTS
            if (found := [case for case in cases(profile) if case.start == start])
        ]

    return Experiment(
        name=name,
        question=question,
        serves=serves,
        columns=COLUMNS,
        key=KEY,
        needs=(LINUX, NATIVE, REGISTRATION, COMPILER, *needs),
        seconds={"quick": seconds, "full": 2 * seconds},
        plan=plan,
        measure=measure,
    )


def rows(task: Task, cases: Iterable[Case]) -> Iterator[dict]:
    """One row per case of this part that is still to be played, several scenes at a time."""
    wanted = [
        case
        for case in cases
        if case.start == task.arguments["start"] and task.pending(case.option, case.criterion, case.name)
    ]
    libc = given_libc(task)
    yield from parties.side_by_side(lambda case: row(case, libc), wanted)


def play_one(arguments: Mapping) -> Iterator[dict]:
    """In a child: the row of one scene that a reader put together, by the names of its parts."""
    scheme, provider, layout = (
        SCHEME[arguments["option"]],
        LAYOUT[arguments["libc"]],
        LAYOUT[arguments["library"]],
    )
    if arguments["align"] != AS_ITS_SIZE:
        provider = replace(provider, align_bytes=int(arguments["align"]))
    model = (f'-DTLS_MODEL="{arguments["tls_model"]}"',)
    library = Consumer("one", layout, arguments["how"], model)
    consumers: tuple[Consumer, ...] = (library,)
    if binding := BINDINGS[arguments["defines"]]:
        consumers = (Consumer("program", ORIGINAL, "program", (f'-DDEFINES="{binding}"',)), library)
    first = arguments["order"] == "libc first"
    setup = Setup(scheme, provider, consumers, provider_first=first)
    yield row(Case("interpose-program" if binding else "two-libraries", "the reader's", setup), None)


AS_ITS_SIZE = "as its size"
BINDINGS = {"nobody else": None, "the program, strongly": "globl", "the program, weakly": "weak"}
"""Who defines the object beside libc, and the binding of that definition."""
