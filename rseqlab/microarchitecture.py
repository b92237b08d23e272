"""Which core it is that a CPU's numbers stand for, from a table with the source of each row; what to call a CPU."""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from rseqlab.facts import parse_cpu_list
from rseqlab.paths import project_root

TABLE = "microarchitectures.csv"

MODEL_NUMBER = re.compile(r"\b(?!\d+(?:\.\d+)?\s*[GM]Hz)[A-Za-z]*-?\d{3,}\w*")
"""In a CPU's name: what tells it from others of its maker, such as 7763, E5-2680 or i7-8550U. Never a frequency."""


@dataclass(frozen=True)
class Core:
    """A row of the table."""

    arch: str
    vendor: str
    """What the CPU says of its maker: the CPUID vendor, or the implementer's code on arm64."""
    family: int | None
    """None on arm64, which has none."""
    models: frozenset[int]
    """x86_64: models of the family; arm64: part numbers."""
    steppings: frozenset[int]
    """Empty where all of them are this core."""
    microarchitecture: str
    chip: str
    """What the maker calls the product around it; empty where the name of the core says it."""
    source: str

    @property
    def name(self) -> str:
        """Core and chip, in words: ``Zen 5 Turin``."""
        return f"{self.microarchitecture} {self.chip}".strip()


def _numbers(text: str) -> frozenset[int]:
    """Of a cell: ``0-15,17`` in decimal, or one hexadecimal part number."""
    return frozenset([int(text, 16)] if text.startswith("0x") else parse_cpu_list(text))


@cache
def table() -> tuple[Core, ...]:
    """Every row of data/microarchitectures.csv. Raises OSError where it is not there."""
    with open(project_root() / "data" / TABLE, encoding="utf-8", newline="") as file:
        return tuple(
            Core(
                arch=row["arch"],
                vendor=row["vendor"],
                family=int(row["family"]) if row["family"] else None,
                models=_numbers(row["models"]),
                steppings=_numbers(row["steppings"]),
                microarchitecture=row["microarchitecture"],
                chip=row["chip"],
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )


def find(vendor: object, family: object, model: object, stepping: object = None) -> Core | None:
    """The core with these numbers; ``model`` is the part on arm64, where ``family`` is None. None where unknown.

    A row that names the stepping goes before one that is for all of them.
    """
    found = [
        core
        for core in table()
        if core.vendor == vendor
        and core.family == family
        and model in core.models
        and (not core.steppings or stepping in core.steppings)
    ]
    return min(found, key=lambda core: not core.steppings, default=None)


def core_of(facts: Mapping[str, object]) -> Core | None:
    """The core of the machine with these facts, as the table has it now."""
    if facts.get("cpu_implementer"):
        return find(facts["cpu_implementer"], None, facts.get("cpu_part"))
    return find(
        facts.get("cpu_vendor"),
        facts.get("cpu_family"),
        facts.get("cpu_model_number"),
        facts.get("cpu_stepping"),
    )


def cpu_title(facts: Mapping[str, object]) -> str:
    """What to call the CPU of a machine.json's facts: its name and its core, and its numbers where the name has none.

    ``AMD EPYC (Zen 5 Turin, family 26 model 2)``, ``AMD EPYC 7763 64-Core Processor (Zen 3 Milan)``. Where the core
    is unknown, the title says why.
    """
    name = str(facts.get("cpu_model") or facts.get("arch") or "unknown CPU")
    implementer = facts.get("cpu_implementer")
    if implementer:
        part = facts.get("cpu_part")
        numbers = f"implementer {implementer} part {part:#x}" if isinstance(part, int) else ""
    elif facts.get("cpu_family") is not None:
        numbers = f"family {facts['cpu_family']} model {facts['cpu_model_number']}"
    else:
        numbers = ""
    core = core_of(facts)
    kind = core.name if core else " ".join(filter(None, (facts.get("microarchitecture"), facts.get("chip"))))
    if not numbers and not kind:
        return f"{name} (microarchitecture not recorded)"
    said = [kind or "microarchitecture not in the lab's table"]
    if numbers and numbers not in name and (not kind or not MODEL_NUMBER.search(name)):
        said.append(numbers)
    return f"{name} ({', '.join(said)})"
