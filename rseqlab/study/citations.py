"""The sources of claims as links: mails, commits and files, each where it can be read."""

import html
import re
from collections.abc import Iterator
from functools import cache

from rseqlab.study.sources import TIMELINE, read

THREAD = "https://lore.kernel.org/r/131549905.11442.1594731035989.JavaMail.zimbra@efficios.com"
"""The mail that asked what this study answers."""

_CITED = re.compile(
    r"(?P<url>https?://[^\s),;]+)"
    r"|(?P<mail>[\w.-]+/[\w.-]+):m@(?P<mail_commit>[0-9a-f]+)"
    r"|(?P<of>[\w.-]+/[\w.-]+):commit (?P<id>[0-9a-f]{7,40})"
    r"|(?P<tagged>[\w.-]+/[\w.-]+):tag (?P<tag>[\w.-]*\w)"
    r"|(?P<repository>[\w.-]+/[\w.-]+):(?P<path>[\w./-]*\w)(?:@(?P<at>[0-9a-f]+))?"
    r"|glibc bug (?P<bug>\d+)"
    r"|(?P<commit>\b[0-9a-f]{12}\b)(?P<tcmalloc> of TCMalloc)?"
    r"|(?P<thread>the thread(?: that this study answers)?)"
    r"|(?P<same>the same(?: mail| proposal)?)"
)


@cache
def _of_glibc() -> tuple[str, ...]:
    """The commits that the timeline says are glibc's; a bare id is otherwise one of the kernel."""
    return tuple(
        re.findall(r"glibc:commit ([0-9a-f]{12})", " ".join(row["source"] for row in read(TIMELINE)))
    )


def _address(found: re.Match, before: str) -> str:
    """Where a citation can be read; ``before`` is where the source before this one could."""
    part = found.groupdict()
    if part["url"]:
        return re.sub("^http:", "https:", part["url"])
    if part["mail"]:
        return f"https://github.com/{part['mail']}/blob/{part['mail_commit']}/m"
    if part["id"]:
        return f"https://github.com/{part['of']}/commit/{part['id']}"
    if part["tag"]:
        return f"https://github.com/{part['tagged']}/tree/{part['tag']}"
    if part["repository"]:
        return f"https://github.com/{part['repository']}/blob/{part['at'] or 'HEAD'}/{part['path']}"
    if part["bug"]:
        return f"https://sourceware.org/bugzilla/show_bug.cgi?id={part['bug']}"
    if part["tcmalloc"]:
        return f"https://github.com/google/tcmalloc/commit/{part['commit']}"
    if part["commit"] in _of_glibc():
        return f"https://sourceware.org/git/?p=glibc.git;a=commit;h={part['commit']}"
    if part["commit"]:
        return f"https://git.kernel.org/torvalds/c/{part['commit']}"
    return THREAD if part["thread"] else before


def pieces(source: str, before: str = "") -> Iterator[tuple[str, str]]:
    """A source in pieces, each with its address, or with none where it is but text."""
    place = 0
    for found in _CITED.finditer(source):
        yield source[place : found.start()], ""
        yield found[0], _address(found, before)
        place = found.end()
    yield source[place:], ""


def addresses(sources: list[str]) -> list[str]:
    """For each source the first address of the one before it that has any: what "the same mail" means there."""
    found, before = [], ""
    for source in sources:
        found.append(before)
        before = next((address for _, address in pieces(source, before) if address), before)
    return found


def _short(text: str) -> str:
    """An address without what every one of its kind has; a mail is named by its message id."""
    return re.sub(r"^https?://(lore\.kernel\.org/(r|all)/|www\.)?", "", text)


def linked(source: str, before: str = "") -> str:
    """A source as HTML."""
    return "".join(
        f"<a href='{html.escape(address)}'>{html.escape(_short(text))}</a>" if address else html.escape(text)
        for text, address in pieces(source, before)
    )
