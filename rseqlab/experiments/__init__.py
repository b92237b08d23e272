"""One module per question. Each defines ``EXPERIMENT``; a new file here is found by itself."""

import importlib
import pkgutil
from functools import cache

from rseqlab.errors import UsageError
from rseqlab.lab.experiment import Experiment


@cache
def catalogue() -> dict[str, Experiment]:
    """Every experiment by name, in the order in which a reader meets them."""
    found = [
        importlib.import_module(f"{__name__}.{module.name}").EXPERIMENT
        for module in pkgutil.iter_modules(__path__)
    ]
    return {experiment.name: experiment for experiment in sorted(found, key=lambda found: found.name)}


def select(names: list[str], group: str = "machine") -> list[Experiment]:
    """The named experiments, or all of the group. Raises UsageError that lists the valid names."""
    known = catalogue()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(
            f"No experiment is called {', '.join(map(repr, unknown))}. The experiments are: {', '.join(known)}."
        )
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    return [one for one in known.values() if one.group == group]
