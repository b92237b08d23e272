"""What an option must survive, and what it costs: each criterion with the rows that answer it and the rule.

A rule looks at one row and says what it is worth; :mod:`rseqlab.options.matrix` puts the rows together.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from rseqlab.options.scenes import NOT_BUILT, NOT_STARTED, REFUSED_TO_BUILD
from rseqlab.options.schemes import LAYOUT, ORIGINAL

SILENT, CRASH, REFUSED, WITHOUT = "silent", "crash", "refused", "without"
"""How it breaks, worst first: nobody notices, a process dies, somebody is told no. And how it works:
without the new field, as its user was told."""


@dataclass(frozen=True)
class Criterion:
    """One row of the matrix. ``cost`` where the answer is a factor and not an outcome."""

    id: str
    label: str
    question: str
    experiment: str
    cost: bool = False


CRITERIA = (
    Criterion(
        "old-consumer",
        "old library, new libc",
        "Does a library built for the original struct work with a libc that has a later one?",
        "option-skew",
    ),
    Criterion(
        "new-consumer",
        "new library, old libc",
        "Does a library built for a later struct see that this libc has only the original?",
        "option-skew",
    ),
    Criterion(
        "room",
        "room to grow",
        "Can the option carry each later layout at all?",
        "option-skew",
    ),
    Criterion(
        "kernel-today",
        "kernel of today",
        "Does it live with a kernel that writes node_id and mm_cid into the spare bytes?",
        "option-skew",
    ),
    Criterion(
        "interpose-program",
        "program defines it",
        "The program defines the original object itself: is anything overwritten or misread?",
        "option-interposition",
    ),
    Criterion(
        "interpose-library",
        "library defines it",
        "A linked or preloaded library defines the original object itself: the same question.",
        "option-interposition",
    ),
    Criterion(
        "short-definition",
        "defined without padding",
        "Somebody defines the five fields without the spare bytes: does the kernel write beyond them?",
        "option-interposition",
    ),
    Criterion(
        "visibility",
        "protected, -Bsymbolic",
        "libc binds its own symbol to itself: does everybody still mean the same object?",
        "option-interposition",
    ),
    Criterion(
        "two-libraries",
        "unrelated libraries",
        "Do two and three unrelated libraries of different times share the area, in every order?",
        "option-two-libraries",
    ),
    Criterion(
        "versions",
        "symbol versions",
        "Does a symbol version that comes, goes or changes keep everybody on one area?",
        "option-two-libraries",
    ),
    Criterion(
        "dlopen",
        "dlopen",
        "Does a library that is opened late find the area, under each TLS model?",
        "option-dlopen",
    ),
    Criterion(
        "static-tls",
        "static TLS used up",
        "And when the loader's reserve of static TLS is used up?",
        "option-dlopen",
    ),
    Criterion(
        "namespaces",
        "dlmopen, LD_AUDIT",
        "Does a library in a namespace of its own find the registered area?",
        "option-namespaces",
    ),
    Criterion(
        "static",
        "static program",
        "Does a static program, and what it opens, find the area?",
        "option-static",
    ),
    Criterion(
        "alignment",
        "alignment honoured",
        "Does the object lie at the alignment that it asks for, in programs, libraries and threads?",
        "option-alignment",
    ),
    Criterion(
        "signals",
        "first use in a handler",
        "Is a first use from a signal handler safe, at the worst moments?",
        "option-signals",
    ),
    Criterion(
        "lifecycle",
        "fork, exec, thread end",
        "Do fork, exec, the end of threads, cancellation and dlclose leave everybody right?",
        "option-lifecycle",
    ),
    Criterion(
        "vfork",
        "vfork child",
        "Does a vfork child read a CPU number that is right?",
        "option-lifecycle",
    ),
    Criterion(
        "legacy-writer",
        "cpu_id_start overwritten",
        "What does a user that keeps its own word in cpu_id_start do to the others?",
        "option-legacy-writer",
    ),
    Criterion(
        "ptrace",
        "found by a debugger",
        "Does PTRACE_GET_RSEQ_CONFIGURATION find the area, and all of it?",
        "option-ptrace",
    ),
    Criterion(
        "sandbox",
        "call denied",
        "Under filters that answer EPERM or ENOSYS, or kill: does everybody live, and know?",
        "option-sandbox",
    ),
    Criterion(
        "checker",
        "abidiff agrees",
        "Does a static ABI checker say what really happens to an old library?",
        "option-checker",
    ),
    Criterion(
        "access",
        "reading a field",
        "What does a read of the field cost, against the cheapest option?",
        "option-access-cost",
        cost=True,
    ),
    Criterion(
        "memory",
        "bytes per thread",
        "How many bytes does a thread need?",
        "thread-memory",
        cost=True,
    ),
    Criterion(
        "registration",
        "registration",
        "What does registering a thread cost?",
        "registration-cost",
        cost=True,
    ),
    Criterion(
        "switch",
        "context switch",
        "What does a context switch cost?",
        "context-switch-cost",
        cost=True,
    ),
)
CRITERION = {criterion.id: criterion for criterion in CRITERIA}


@dataclass(frozen=True)
class Outcome:
    """What one row is worth: ``good`` is None where the scene could not be built or started."""

    good: bool | None
    manner: str | None
    why: str


def outcome(row: Mapping) -> Outcome:
    """What a row is worth under the rule of its criterion."""
    return RULES.get(row["criterion"], everybody_reads)(row)


def _ended(row: Mapping) -> Outcome | None:
    """The outcome of a scene that did not end as it should; None where it did."""
    ended, said = row["ended"], row["said"]
    if ended == NOT_BUILT:
        return Outcome(None, None, f"could not be built: {said}")
    if ended == NOT_STARTED:
        return Outcome(None, None, f"the test program itself does not start under this libc: {said}")
    if ended == REFUSED_TO_BUILD:
        return Outcome(False, REFUSED, f"the compiler or linker refuses: {said}")
    if ended == "hung":
        return Outcome(False, CRASH, "the program hangs")
    if ended.startswith("SIG"):
        cause = said or row["found"]
        return Outcome(False, CRASH, f"the program dies of {ended}" + (f": {cause}" if cause else ""))
    if ended != "exit 0":
        why = f"the loader refuses: {said}" if said else f"the program ends with {ended}"
        return Outcome(False, REFUSED, why)
    return None


def _harm(row: Mapping) -> Outcome | None:
    """The outcome of a scene in which memory or a value is not what somebody takes it for."""
    if row["overwritten_bytes"]:
        who = "the played kernel" if row["kernel"] == "played" else "the kernel"
        by = who if row["overwritten_by"] == "kernel" else "the library that plays libc"
        return Outcome(
            False,
            SILENT,
            f"{by} overwrites {row['overwritten_bytes']} bytes that are not the area's ({row['overwritten_at']})",
        )
    if row["wrong"]:
        who = f"{row['wrong']} of {row['parties']} consumers" if row["parties"] > 1 else "the consumer"
        return Outcome(False, SILENT, f"{who} took a wrong value for a right one")
    return None


def everybody_reads(row: Mapping) -> Outcome:
    """Every party reads what is there, and nobody writes where nothing is."""
    if found := _ended(row) or _harm(row):
        return found
    if row["registered"] not in (None, "accepted"):
        return Outcome(False, REFUSED, f"the kernel answers {row['registered']} to libc's registration")
    if row["refused"]:
        who = f"{row['refused']} of {row['parties']} consumers" if row["parties"] > 1 else "the consumer"
        return Outcome(False, REFUSED, f"{who} cannot have a registered area")
    if row["live"] + row["unaware"] < row["parties"]:
        return Outcome(False, REFUSED, "a consumer never got to read")
    if row["unaware"]:
        return Outcome(True, WITHOUT, "a consumer knows that it must do without the new field")
    return Outcome(True, None, "every read is right")


def events_survived(row: Mapping) -> Outcome:
    """As :func:`everybody_reads`; once its library is gone, a consumer need not read, only harm nobody."""
    if row["case"].startswith("unload"):
        return _ended(row) or _harm(row) or Outcome(True, None, "nobody writes where the library was")
    return everybody_reads(row)


def everybody_knows(row: Mapping) -> Outcome:
    """The process lives, and whoever has no registered area knows it."""
    if found := _ended(row) or _harm(row):
        return found
    if row["refused"]:
        return Outcome(True, WITHOUT, "the process lives, and the consumer knows that it has no area")
    return everybody_reads(row)


def lies_as_asked(row: Mapping) -> Outcome:
    """No party met its object at a smaller alignment than it was built for."""
    if found := _ended(row):
        return found
    if row["misaligned"]:
        return Outcome(False, SILENT, f"{row['misaligned']} times the object lay at a smaller alignment")
    return Outcome(True, None, "the object lay as it was asked to")


def no_allocation(row: Mapping) -> Outcome:
    """As :func:`everybody_reads`, and the handler did not allocate."""
    if not _ended(row) and row["found_count"]:
        return Outcome(
            False, SILENT, f"the first touch allocates {row['found_count']} times inside the handler"
        )
    return everybody_reads(row)


def found_whole(row: Mapping) -> Outcome:
    """The kernel told the debugger the right address and every byte of the object."""
    if found := _ended(row):
        return found
    layout = LAYOUT.get(row["provider"] or "", ORIGINAL)
    if row["found_bytes"] is None:
        return Outcome(False, REFUSED, "the debugger got no answer")
    if not row["found_bytes"]:
        return Outcome(False, REFUSED, f"the debugger finds nothing ({row['found']})")
    if row["found_bytes"] < layout.bytes:
        why = f"the debugger finds {row['found_bytes']} of {layout.bytes} bytes and cannot know of the rest"
        return Outcome(False, SILENT, why)
    return Outcome(True, None, f"the debugger finds all {row['found_bytes']} bytes")


RULES = {
    "lifecycle": events_survived,
    "sandbox": everybody_knows,
    "alignment": lies_as_asked,
    "signals": no_allocation,
    "ptrace": found_whole,
}
"""The criteria whose question is not the common one."""
