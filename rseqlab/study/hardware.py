"""What machine.json says of a run's processor, kernel settings and compilers, as lines for a reader."""

from rseqlab import facts, host
from rseqlab.study.run import StudyRun

LEFT_OUT = (
    "microarchitecture",
    "chip",
    "cpu_vendor",
    "cpu_family",
    "cpu_model_number",
    "cpu_implementer",
    "cpu_part",
)
"""The title of the CPU says them."""


def hardware(run: StudyRun) -> dict[str, str]:
    """Label to value of the facts that are known of the run's machine; none of a run of the first schema."""
    return {
        name.replace("_", " "): facts.in_words(run.facts[name])
        for name in host.ADDED
        if run.facts.get(name) is not None and name not in LEFT_OUT
    }
