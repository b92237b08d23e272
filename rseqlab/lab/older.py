"""What bundles of earlier schema versions lack, said in one place: they are read as if they said that it is unknown."""

from rseqlab import host

NOT_RECORDED = "not recorded: machine.json of schema version {version} did not have it"


def machine(document: object) -> object:
    """machine.json as the newest version has it: facts that were not asked then are null, with that reason.

    What is no machine.json at all comes back as it is; the schema says what is wrong with it.
    """
    if not isinstance(document, dict) or document.get("version") != 1:
        return document
    facts, reasons = document.get("facts"), document.get("reasons")
    if not isinstance(facts, dict) or not isinstance(reasons, dict):
        return document
    absent = [name for name in host.ADDED if name not in facts]
    return document | {
        "version": 2,
        "facts": facts | dict.fromkeys(absent),
        "reasons": reasons | dict.fromkeys(absent, NOT_RECORDED.format(version=1)),
    }
