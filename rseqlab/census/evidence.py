"""The classes of evidence, the rules that give them, and a row for each file that has any.

Every rule is stated here in words and handed out with every census: whoever doubts a row finds the rule by its
name, and the place in the file that it points at.
"""

from dataclasses import dataclass, field

OWN_SECTIONS = "own-sections"
REGISTERS = "registers"
READS_AREA = "reads-area"
THROUGH_LIBC = "through-libc"
MENTIONS = "mentions"

CLASSES = {
    OWN_SECTIONS: "has critical sections of its own",
    REGISTERS: "registers an area itself",
    READS_AREA: "reads, or offers, the area by its symbols",
    THROUGH_LIBC: "asks libc for its CPU, and profits where libc uses the area",
    MENTIONS: "mentions rseq, no more",
}
"""Strongest first; a file has the class of its strongest evidence."""


@dataclass(frozen=True)
class Rule:
    id: str
    gives: str
    confidence: str
    words: str


RULES = {
    one.id: one
    for one in (
        Rule(
            "descriptor-in-section",
            OWN_SECTIONS,
            "high",
            "A section named __rseq_cs holds a descriptor (32 bytes) which, once RELA and RELR relocations are "
            "applied, has version 0, flags below 8, a start and an end (start + post-commit offset, which is not 0) "
            "in one executable segment, and an abort address in an executable segment, outside the section, with "
            "the machine's abort signature in the four bytes before it.",
        ),
        Rule(
            "descriptor-by-pointer",
            OWN_SECTIONS,
            "high",
            "A section named __rseq_cs_ptr_array points at a descriptor for which the same holds.",
        ),
        Rule(
            "descriptor-by-shape",
            OWN_SECTIONS,
            "medium",
            "The file has no section of these names (it may have no section headers at all), and a value at an "
            "8-byte boundary of its data leads to an address behind an abort signature, and the 24 bytes before "
            "this value make it a descriptor for which the same holds.",
        ),
        Rule(
            "section-unverified",
            OWN_SECTIONS,
            "low",
            "A section named __rseq_cs or __rseq_cs_ptr_array is there, but no descriptor in it could be verified: "
            "as in an object file before it is linked.",
        ),
        Rule(
            "call-with-signature",
            REGISTERS,
            "high",
            "An instruction loads the number of the rseq system call (x86_64: 334, aarch64: 293) into the register "
            "of the number, or of the first argument where libc's syscall() is called; decoded from there, at most "
            "24 instructions without a return or an unconditional jump lead to the system call instruction, or to a "
            "call of syscall(), and none of them writes that register again; and an instruction within 256 bytes "
            "around loads the signature as an immediate into the register of the fourth argument (of the fifth "
            "where syscall() is called).",
        ),
        Rule(
            "call-near-signature",
            REGISTERS,
            "medium",
            "The same, but the signature is loaded into another register, or stands there as data.",
        ),
        Rule(
            "area-symbol-imported",
            READS_AREA,
            "high",
            "The dynamic symbol table imports __rseq_offset, __rseq_size, __rseq_flags or __rseq_abi.",
        ),
        Rule(
            "area-symbol-defined",
            READS_AREA,
            "high",
            "The dynamic symbol table defines one of them: the file offers the area, as a libc does, or has a copy of "
            "libc's by a copy relocation, as a program of fixed address.",
        ),
        Rule(
            "area-symbol-looked-up",
            READS_AREA,
            "medium",
            "The file imports dlsym (or dlvsym), and its read-only data hold __rseq_offset or __rseq_size as a "
            "whole string.",
        ),
        Rule(
            "area-symbol-linked-in",
            READS_AREA,
            "medium",
            "The static symbol table (where strip has left one) has one of them: libc was linked in, or the file "
            "has an area of its own.",
        ),
        Rule(
            "getcpu-imported",
            THROUGH_LIBC,
            "high",
            "The dynamic symbol table imports sched_getcpu or getcpu.",
        ),
        Rule(
            "getcpu-looked-up",
            THROUGH_LIBC,
            "medium",
            "The file imports dlsym (or dlvsym), and its read-only data hold sched_getcpu or getcpu as a whole "
            "string.",
        ),
        Rule(
            "getcpu-linked-in",
            THROUGH_LIBC,
            "low",
            "The static symbol table defines sched_getcpu in a file that imports nothing of that name: a static "
            "libc was linked in.",
        ),
        Rule(
            "word",
            MENTIONS,
            "low",
            "The letters rseq stand as a word, or as a part of a name between underscores, outside executable "
            "sections (segments, where there are no section headers).",
        ),
    )
}

KEPT_PLACES = 32
"""Of one rule in one file; more are counted."""


@dataclass
class Findings:
    """What was found in one file."""

    places: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, rule: str, offset_bytes: int, detail: str) -> None:
        kept = self.places.setdefault(rule, [])
        if len(kept) < KEPT_PLACES:
            kept.append((offset_bytes, detail))
        self.counts[rule] = self.counts.get(rule, 0) + 1

    @property
    def strongest(self) -> Rule | None:
        return min(map(RULES.get, self.counts), key=_rank, default=None)

    def document(self) -> list[dict]:
        return [
            {
                "rule": rule,
                "count": self.counts[rule],
                "places": [
                    {"offset_bytes": offset, "detail": detail} for offset, detail in self.places[rule]
                ],
            }
            for rule in sorted(self.counts, key=lambda name: _rank(RULES[name]))
        ]


def _rank(rule: Rule) -> tuple[int, int]:
    return list(CLASSES).index(rule.gives), list(RULES).index(rule.id)
