"""option-sandbox: a seccomp filter denies the call, as sandboxes of browsers and containers have: who lives, who knows?

The filter is there before the program starts (it is put on, then the program replaces itself), or comes
after the first thread was registered, and a second thread starts under it.
"""

from collections.abc import Iterator, Mapping

from rseqlab.lab.experiment import Task
from rseqlab.options import scenes
from rseqlab.options.parties import Consumer, Scene, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import ORIGINAL, SCHEME, SCHEMES, SPARE_USED

ANSWERS = ("EPERM", "ENOSYS", "kill")
TIMES = {"sandbox": "from the start", "sandbox-later": "after the first thread"}


def reported(scene: Scene) -> Mapping[str, object]:
    """What libc says of itself after the call was denied, thread by thread."""
    sizes = [line.facts["bytes"] for line in scene.of("describe")]
    cpus = dict.fromkeys(line.facts["cpu"] for line in scene.of("read"))
    return {"found": f"__rseq_size {', then '.join(sizes)}; cpu_id {', '.join(cpus)}" if sizes else None}


def cases(_: str) -> list[Case]:
    """Each answer, at each time; `played` options ask no kernel, so the real one is used."""
    found = []
    for answer in ANSWERS:
        for scene, words in TIMES.items():
            for scheme in SCHEMES:
                layout = ORIGINAL if scheme.kernel == "played" else SPARE_USED
                setup = Setup(scheme, layout, (Consumer("one", layout),), f"{scene}:{answer}", kernel="real")
                found.append(Case("sandbox", f"{answer} {words}", setup))
            consumer = (Consumer("one", SPARE_USED),)
            setup = Setup(SCHEME["offset-size"], SPARE_USED, consumer, f"{scene}:{answer}")
            libc = scenes.libc_itself(setup)
            name = f"{answer} {words}, this machine's libc"
            found.append(Case("sandbox", name, libc, start="libc", more=reported))
    return found


def measure(task: Task) -> Iterator[dict]:
    """One row per scene."""
    yield from scenes.rows(task, cases(task.arguments["profile"]))


EXPERIMENT = scenes.experiment(
    "option-sandbox",
    "A seccomp filter denies the call: does everybody live, and does everybody know?",
    "all options: sandboxes that answer EPERM or ENOSYS, or kill",
    cases,
    3,
    measure,
)
