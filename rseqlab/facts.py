"""How facts of a machine are found and kept: each is a value, or None with the reason why it is unknown."""

from collections.abc import Callable, Mapping
from pathlib import Path

from rseqlab.errors import LabError

Find = Callable[[], object]


class Unknown(Exception):
    """A fact cannot be had here; the message says why."""


class Facts(dict[str, Find]):
    """The facts of one subject by name, in the order in which they are stated, each with the function that finds it."""

    def fact(self, function: Find) -> Find:
        """States a fact that is named as the function is, without its underscores."""
        self[function.__name__.strip("_")] = function
        return function


def collect(subject: Mapping[str, Find]) -> tuple[dict[str, object], dict[str, str]]:
    """(values, reasons): every fact by name, None where unknown, and then the reason by the same name."""
    values: dict[str, object] = {}
    reasons: dict[str, str] = {}
    for name, find in subject.items():
        try:
            values[name] = find()
        except OSError as error:
            values[name], reasons[name] = None, f"{error.filename}: {error.strerror}"
        except (Unknown, ValueError, KeyError, TypeError, LabError) as error:
            values[name], reasons[name] = None, str(error) or type(error).__name__
    return values, reasons


def in_words(value: object) -> str:
    """A fact as one line of text: the parts of a list or a table one after another, ``unknown`` for None."""
    if value is None:
        return "unknown"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {in_words(one)}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(in_words, value)) or "none"
    return str(value)


def read(path: str) -> str:
    """The text of a small file, without what surrounds it. Raises OSError."""
    return Path(path).read_text(errors="replace").strip()


def parse_cpu_list(text: str) -> list[int]:
    """The kernel's list format, such as ``0-2,5``, as numbers.

    >>> parse_cpu_list("0-2,5")
    [0, 1, 2, 5]
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return cpus
