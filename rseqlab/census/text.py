"""Names and words from outside, as JSON and terminals may be given them."""

import os


def plain(name: str) -> str:
    """A file's name as text that every reader of JSON takes: bytes that are not UTF-8 become backslash escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(text: str) -> str:
    r"""Controls, line ends, what turns the direction of writing, and halves of surrogates, as escapes.

    >>> printable("red\x1b[31m")
    'red\\x1b[31m'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
