"""What could not be measured here, in one footnote: what is optional and missing must not push the results away."""

import html
from collections.abc import Mapping
from dataclasses import dataclass

DEPS = "make deps"
"""Installs every optional tool that a distribution has."""


@dataclass(frozen=True)
class Footnote:
    """Why experiments, or parts of them, could not be measured; in Jupyter it is folded. Empty where all could be."""

    reasons: dict[str, list[str]]
    """Reason to the experiments."""
    stand_ins: list[str]
    """The experiments of which rows that were not measured here are shown instead."""

    def __bool__(self) -> bool:
        return bool(self.reasons)

    @property
    def line(self) -> str:
        """One sentence: how many, what stands in for them, and the command that installs what is missing."""
        if not self:
            return ""
        names = list(dict.fromkeys(name for some in self.reasons.values() for name in some))
        some = f"{len(names)} experiment{'s' * (len(names) > 1)} could not, or not wholly, be measured here"
        shown = f"; shipped rows stand in for {len(self.stand_ins)}" if self.stand_ins else ""
        tools = any(DEPS in reason for reason in self.reasons)
        return f"{some}{shown}." + (
            f" `{DEPS}` installs the optional tools that are missing." if tools else ""
        )

    @property
    def lines(self) -> list[str]:
        """Each reason with its experiments."""
        return [f"{', '.join(names)}: {reason}" for reason, names in self.reasons.items()]

    def __repr__(self) -> str:
        return "\n".join([self.line, *(f"  {line}" for line in self.lines)] if self else [])

    def _repr_html_(self) -> str:
        if not self:
            return ""
        items = "".join(f"<li>{html.escape(line)}</li>" for line in self.lines)
        return f"<details class='rl-footnote'><summary>{html.escape(self.line)}</summary><ul>{items}</ul></details>"


def footnote(skipped: Mapping[str, str], stand_ins: list[str]) -> Footnote:
    """Of experiments that were skipped, or partly, each with its reason; ``stand_ins`` are shown by other rows."""
    reasons: dict[str, list[str]] = {}
    for name, reason in skipped.items():
        reasons.setdefault(reason.removeprefix("partly not measured: ").rstrip("."), []).append(name)
    return Footnote(reasons, stand_ins)
