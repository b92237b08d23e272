"""Prose that is computed."""

import html
from dataclasses import dataclass


@dataclass(frozen=True)
class Sentences:
    """Prose whose numbers are computed, one sentence below the other."""

    lines: tuple[str, ...]

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in self.lines)}</ul>"
