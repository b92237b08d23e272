"""Progress with remaining time, on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bar

LINE_EVERY_S = 5.0


def _remaining(seconds: float) -> str:
    return f"{seconds:.0f} s left" if seconds < 90 else f"{seconds / 60:.0f} min left"


class Progress:
    """Steps of known expected duration; what is left is scaled by how the machine does so far."""

    def __init__(self, expected_s: Iterable[tuple[str, float]], bar: Bar | None):
        self.expected_s = dict(expected_s)
        self.share = dict.fromkeys(self.expected_s, 0.0)
        self.found = dict.fromkeys(self.expected_s, 0.0)
        """Share that was there when first seen, as in a resumed run: it took no time now."""
        self.seen: set[str] = set()
        self.started = self.printed = time.monotonic()
        self.bar = bar
        self.task = bar.add_task("", total=sum(self.expected_s.values()) or 1, left="") if bar else None

    def __call__(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` of this step are there."""
        self.share[name] = done / total if total else 1.0
        if name not in self.seen:
            self.seen.add(name)
            self.found[name] = self.share[name]
        all_s = sum(self.expected_s.values())
        done_s = sum(self.expected_s[step] * self.share[step] for step in self.expected_s)
        worked_s = done_s - sum(self.expected_s[step] * self.found[step] for step in self.expected_s)
        elapsed = time.monotonic() - self.started
        pace = elapsed / worked_s if worked_s > 0.5 else 1.0
        left = _remaining(max(0.0, (all_s - done_s) * pace))
        if self.bar:
            self.bar.update(self.task, completed=done_s, description=name, left=left)
        elif time.monotonic() - self.printed >= LINE_EVERY_S or done >= total:
            self.printed = time.monotonic()
            print(f"{name}: {done} of {total}, {left}", file=sys.stderr, flush=True)


@contextmanager
def progress(expected_s: Iterable[tuple[str, float]]) -> Iterator[Progress]:
    """Shows progress while the block runs."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Progress(expected_s, None)
        return
    columns = (
        TextColumn("{task.description:<20}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        yield Progress(expected_s, bar)
