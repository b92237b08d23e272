"""Who uses rseq, in tables and computed sentences; each says how strong its evidence is."""

from collections.abc import Iterable

import pandas as pd

from rseqlab.study import usage_figures
from rseqlab.study.claims import NOT_MEASURED, WHY_NOT, Tally
from rseqlab.study.run import StudyRun
from rseqlab.study.sources import CHECKS, CONTRADICTIONS, ROLES, STRENGTHS, TIMELINE, USAGE, read
from rseqlab.study.tables import Cited, Sentences, Table

CITED = "Evidence: cited."


def answer() -> Sentences:
    """Is rseq really used, by whom, for what, with which fields: what the cited rows say."""
    rows = read(USAGE)
    users = [row for row in rows if row["role"] in usage_figures.USERS and row["purpose"] != "test"]
    counted = usage_figures.before_and_after()
    before, after = (sum(one[place] for one in counted.values()) for place in (0, 1))
    fields = pd.Series([name for row in users for name in row["fields"].split(";")]).value_counts()
    strong = {row["project"] for row in users if row["strength"] in ("code", "file")}
    return Sentences(
        (
            f"{len({row['project'] for row in users})} projects use rseq or register areas, tests left out; of "
            f"{len(strong)} the source code or a built file was read, the others rest on a change or on words.",
            f"Counted by project and by whose area it uses, {before} first dates lie before glibc 2.35 registered and "
            f"{after} after it; in libc's area work "
            f"{counted['libc'][0]} of the first and {counted['libc'][1]} of the second.",
            "Fields, by the number of rows that read or write them: "
            + ", ".join(f"{name} {count}" for name, count in fields.items() if name != "none")
            + ".",
            _told("conflicts", "cannot live with another user, or break one")
            + " "
            + _told("disables", "switch somebody's registration off"),
            f"{CITED} What it gains them in real programs is another question, asked below.",
        )
    )


def _told(role: str, words: str) -> str:
    found = dict.fromkeys(row["project"] for row in read(USAGE) if row["role"] == role)
    return f"{len(found)} projects {words}: {'; '.join(found)}."


def users(*roles: str) -> Table:
    """The projects of these roles: for what, in whose area, with which fields, and how that is known."""
    rows = [row for row in read(USAGE) if row["role"] in roles]
    frame = pd.DataFrame(
        {
            "project": row["project"],
            "role": row["role"],
            "purpose": row["purpose"],
            "for what": row["what_for"],
            "area": row["area"],
            "fields": row["fields"].replace(";", ", "),
            "since": row["since"] or row["date"],
            "known by": f"{row['strength']}, {CHECKS[row['checked']]}",
            "note": row["note"],
            "source": row["source"],
        }
        for row in rows
    )
    meant = "; ".join(f"{role}: {ROLES[role]}" for role in roles)
    return Cited(frame, f"{len(rows)} rows. {meant}. {CITED}")


def strengths() -> Table:
    """How many rows of each role are known how, strongest first."""
    rows = pd.DataFrame(read(USAGE))
    counts = rows.groupby(["role", "strength"]).size().unstack(fill_value=0)
    frame = counts.reindex(index=list(ROLES), columns=list(STRENGTHS), fill_value=0)
    frame.columns = [f"{name}: {STRENGTHS[name]}" for name in frame]
    return Table(frame.reset_index().rename_axis(columns=None), f"How the cited rows are known. {CITED}")


def contradictions() -> Cited:
    """What two sources say differently. Neither is struck out."""
    frame = pd.DataFrame(
        {
            "about": row["about"],
            "one says": row["one"],
            "its source": row["one_source"],
            "another says": row["other"],
            "that one's source": row["other_source"],
            "what would settle it": row["how_it_could_be_settled"],
            "claims": row["claims"].replace(";", ", "),
        }
        for row in read(CONTRADICTIONS)
    )
    return Cited(frame, f"{len(frame)} matters on which sources differ. {CITED}")


def timeline(*components: str) -> Table:
    """What happened when, of these components or of all."""
    rows = [row for row in read(TIMELINE) if not components or row["component"] in components]
    frame = pd.DataFrame(rows)[["date", "component", "version", "event", "effect", "source"]]
    return Cited(frame, f"{len(frame)} events. {CITED}")


def totals(run: StudyRun) -> Sentences:
    """The ledger in short: the claims by verdict, and those that nothing can test by the kind of reason."""
    judged = usage_figures.judged(run)
    reasons = _reasons(judged)
    told = "; ".join(
        f"{words.lower()}: {len(reasons[kind])}" for kind, words in WHY_NOT.items() if kind in reasons
    )
    return Sentences((Tally(judged).sentence, f"Why claims have no rule: {told}."))


def _reasons(judged: Iterable) -> dict[str, list]:
    found: dict[str, list] = {}
    for one in judged:
        if one.claim.why_not:
            found.setdefault(one.claim.why_not.partition(": ")[0], []).append(one)
    return found


def not_measured(run: StudyRun) -> Table:
    """Every claim without a verdict on this run, and why."""
    rows = [one for one in usage_figures.judged(run) if one.finding.verdict == NOT_MEASURED]
    frame = pd.DataFrame(
        {
            "id": one.claim.id,
            "claim": one.claim.sentence,
            "not measured": one.finding.measured,
            "source": one.claim.source,
        }
        for one in rows
    )
    return Cited(frame, f"{len(rows)} claims without a verdict on this run, and why")
