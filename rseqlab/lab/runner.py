"""Runs experiments into a bundle: one child per part, every row kept as it comes, resumable."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import rseqlab
from rseqlab import host
from rseqlab.lab import builds, bundle, probe
from rseqlab.lab.bundle import BundleError, Writer
from rseqlab.lab.child import Child, Outcome
from rseqlab.lab.compile import CompileError
from rseqlab.lab.experiment import Experiment, Part, measure_part
from rseqlab.lab.stale import code_digest, stale
from rseqlab.paths import runs_folder, work_folder

Progress = Callable[[str, int, int], None]
"""Called with the experiment's name, its rows so far and its expected rows."""

RSEQ_FACTS = ("owner", "rule", "libc_size", "registered_size", "live_bytes")
UNFINISHED = "not finished; rseqlab run --resume goes on"


def machine() -> dict:
    """machine.json: every fact of this machine, each unknown one null with its reason.

    Facts that begin with ``rseq_`` are those of a thread that libc may register, asked in a child.
    """
    values, reasons = host.facts()
    answer = probe.thread_that_libc_may_own()
    if "failure" in answer:
        values["rseq_owner"], reasons["rseq_owner"] = None, answer["failure"]
    else:
        values |= {f"rseq_{name}": answer["values"][name] for name in RSEQ_FACTS}
        reasons |= {f"rseq_{name}": text for name, text in answer["reasons"].items() if name in RSEQ_FACTS}
    return {
        "schema": "rseqlab/machine",
        "version": bundle.VERSION,
        "facts": values,
        "reasons": _redacted(reasons),
    }


def identity(document: Mapping) -> dict:
    """What must agree before two sessions may measure into one bundle."""
    return {name: document["facts"].get(name) for name in host.IDENTITY}


def group_of(experiments: list[Experiment]) -> str:
    """The group of a run of these: that of the first, or the machine's where they are mixed."""
    groups = {one.group for one in experiments}
    return groups.pop() if len(groups) == 1 else "machine"


def new_folder(profile: str, group: str = "machine") -> Path:
    """A folder for a new run, named for its start."""
    about = "" if group == "machine" else f"-{group}"
    return runs_folder() / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}{about}-{profile}"


def runs_here(profile: str, group: str = "machine") -> list[Path]:
    """The local runs of this profile and group on this very machine, newest first by their start."""
    here = identity(machine())
    found = []
    for path in runs_folder().glob("*/run.json"):
        try:
            record = bundle.read_run(path.parent)
        except BundleError:
            continue
        if (record["profile"], record["group"], record["machine"]) == (profile, group, here):
            found.append((record["started"], path.parent))
    return [folder for _, folder in sorted(found, reverse=True)]


def go_on(profile: str, experiments: list[Experiment]) -> Path:
    """The folder that ``--resume`` without a folder goes on with.

    Of the runs of this profile on this machine: the one that has most of these experiments already, by code that did
    not change since; of several alike the newest. So a run of one experiment is not gone on with where a run of all
    lies beside it. Where some of the code changed, a new run that starts with the rows of the experiments whose code
    did not; the old one stays as it is.
    """
    group = group_of(experiments)
    runs = [(folder, bundle.read_run(folder)) for folder in runs_here(profile, group)]
    if not runs:
        return new_folder(profile, group)

    def kept(run: tuple[Path, Mapping]) -> int:
        other = stale(run[1], experiments)
        passed = (run[1]["experiments"].get(one.name, {}).get("status") == "pass" for one in experiments)
        return sum(passed) - sum(run[1]["experiments"][name]["status"] == "pass" for name in other)

    chosen, document = max(runs, key=kept)  # of equals the first, which is the newest
    other, wanted = stale(document, experiments), {one.name for one in experiments}
    changed = other_builds(document)
    if not other and not changed:
        return chosen
    folder = new_folder(profile, group)
    carried = {
        name: record
        for name, record in document["experiments"].items()
        if record["status"] == "pass" and name in wanted and name not in other
        if not (changed and any("build" in part for part in record["parts"].values()))
    }
    if document["ended"] and carried:
        started = _open(folder, profile, group, resume=False)
        for name in carried:
            shutil.copyfile(chosen / f"{name}.csv", folder / f"{name}.csv")
        started["experiments"] |= carried
        if "builds" in document and not changed:
            started["builds"] = document["builds"]
        save(folder, started)
    return folder


def run(experiments: list[Experiment], profile: str, folder: Path, resume: bool, progress: Progress) -> dict:
    """Measure into ``folder``; returns run.json as it then stands. Ctrl-C keeps what was measured."""
    document = _open(folder, profile, group_of(experiments), resume)
    held = bundle.lock(folder)
    try:
        if other := stale(document, experiments):
            raise BundleError(
                f"The rows of {', '.join(other)} in {folder} were measured by other code; they stay as they are. "
                "Choose another --out."
            )
        wanted = _reopen(folder, document, experiments)
        for experiment in experiments:
            if experiment not in wanted:
                rows = document["experiments"][experiment.name]["rows"]
                progress(experiment.name, rows, rows)
        for experiment in wanted:
            _run_experiment(experiment, profile, folder, document, progress)
        if document["ended"] is None and all(one["status"] for one in document["experiments"].values()):
            document["ended"] = now()
            save(folder, document)
            bundle.seal(folder)
        return document
    finally:
        os.close(held)


def _open(folder: Path, profile: str, group: str, resume: bool) -> dict:
    here = machine()
    if (folder / "run.json").exists():
        if not resume:
            raise BundleError(
                f"{folder} holds a run already; add --resume to go on with it, or choose another --out."
            )
        document = bundle.read_run(folder)
        if document["profile"] != profile:
            raise BundleError(f"{folder} was measured with --profile {document['profile']}, not {profile}.")
        if document["machine"] != identity(here):
            changed = [
                name for name, value in identity(here).items() if document["machine"].get(name) != value
            ]
            raise BundleError(
                f"{folder} was measured under other conditions ({', '.join(changed)} differ); choose another --out."
            )
    else:
        document = start(folder, profile, group, here)
    if not (folder / "machine.json").exists():
        bundle.write_json(folder / "machine.json", here)
    return document


def start(folder: Path, profile: str, group: str, here: Mapping) -> dict:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.suffix != ".part" for path in folder.iterdir()):
            raise BundleError(f"{folder} is not empty and holds no run; choose another --out.")
    except OSError as error:
        raise BundleError(
            f"Could not create {folder}: {error.strerror}. Choose a folder that is writable and has space (--out DIR)."
        ) from None
    document = {
        "schema": "rseqlab/run",
        "version": bundle.VERSION,
        "lab_version": rseqlab.__version__,
        "run_id": f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{profile}",
        "profile": profile,
        "group": group,
        "command": f"rseqlab run --profile {profile}",
        "started": now(),
        "ended": None,
        "machine": identity(here),
        "experiments": {},
    }
    save(folder, document)  # before anything else: a folder with a run.json can be resumed
    return document


def _reopen(folder: Path, document: dict, experiments: list[Experiment]) -> list[Experiment]:
    """The experiments that are still to be measured; the bundle is unsealed where there are any."""
    records = document["experiments"]
    for experiment in experiments:
        new = new_record(None, UNFINISHED, code_digest(experiment), document["run_id"])
        records.setdefault(experiment.name, new)
    wanted = [experiment for experiment in experiments if not _settled(experiment, records[experiment.name])]
    if wanted:
        document["ended"] = None
        save(folder, document)  # first: whatever happens next, the run says that it is not finished
        (folder / bundle.SUMS).unlink(missing_ok=True)
    return wanted


def _settled(experiment: Experiment, record: Mapping) -> bool:
    """Whether measuring again would change nothing: it passed, or what kept it from running still does."""
    return record["status"] == "pass" or (record["status"] == "skip" and bool(experiment.unmet()))


def _run_experiment(
    experiment: Experiment, profile: str, folder: Path, document: dict, progress: Progress
) -> None:
    if unmet := experiment.unmet():
        reason = redact("; ".join(unmet))
        document["experiments"][experiment.name] |= {"status": "skip", "reason": reason}
        save(folder, document)
        return
    record = document["experiments"][experiment.name]
    writer = Writer(folder, experiment)
    steal_before = steal()
    try:
        parts = experiment.plan(profile)
        expected = sum(part.rows for part in parts if not part.skip)
        note_builds(document, [part.arguments for part in parts], described)
        progress(experiment.name, len(writer.keys), expected)
        for part in parts:
            done = record["parts"].get(part.id)
            if done is None or done["status"] not in ("pass", "skip"):
                record["parts"][part.id] = _run_part(experiment, part, writer, expected, progress)
                record["rows"] = len(writer.keys)
                save(folder, document)
    finally:
        record["rows"] = len(writer.keys)
        writer.close()
    record["status"], record["reason"] = judge_parts(record["parts"])
    record["seconds"] = round(sum(part["seconds"] for part in record["parts"].values()), 3)
    record["steal_percent"] = steal_percent(steal_before, steal())
    save(folder, document)


def _run_part(experiment: Experiment, part: Part, writer: Writer, expected: int, progress: Progress) -> dict:
    if refusal := part.skip or (experiment.prepare(part.arguments) if experiment.prepare else None):
        outcome = Outcome("skip", refusal, 0.0)
    else:
        request = {"module": experiment.module, "arguments": part.arguments, "done": writer.done(part.id)}
        environment = {**part.environment, **builds.environment(part.arguments)}
        child = Child(measure_part, request, environment, part.timeout_s)
        for row in child:
            writer.append(part.id, row, experiment.key)
            progress(experiment.name, len(writer.keys), expected)
        outcome = child.ended
    return {
        "status": outcome.status,
        "reason": redact(outcome.reason) if outcome.reason else None,
        "rows": len(writer.done(part.id)),
        "seconds": round(outcome.seconds, 3),
        "environment": dict(part.environment),
        **build_of(part.arguments),
    }


def build_of(arguments: Mapping) -> dict:
    """What a part's record says of its build: nothing where the experiment has none."""
    return {"build": arguments["build"]} if "build" in arguments else {}


def described(number: int) -> dict:
    """What run.json says of a build."""
    record = builds.describe(number)
    return {
        name: [redact(one) for one in value] if isinstance(value, list) else value
        for name, value in record.items()
    }


def note_builds(document: dict, arguments: list[Mapping], describe: Callable[[int], Mapping]) -> None:
    """Put the builds of these parts into run.json. Raises BundleError where it has other ones of that number."""
    for number in sorted({one["build"] for one in arguments if one.get("build") is not None}):
        found = dict(describe(number))
        if document.setdefault("builds", {}).setdefault(str(number), found) != found:
            raise BundleError(
                f"Build {number} of this run was compiled otherwise (by {document['builds'][str(number)]['compiler']}, "
                f"now by {found['compiler']}, or with other flags); choose another --out."
            )


def other_builds(document: Mapping) -> bool:
    """Whether a run has builds that would be compiled otherwise now."""
    try:
        return any(described(int(number)) != one for number, one in document.get("builds", {}).items())
    except CompileError:
        return True


LEAST_BUILDS_SHARE = 0.5
"""With fewer of its builds measured, an experiment says nothing of builds, and has their failure as its status."""


def judge_parts(parts: Mapping[str, Mapping], all_ran: bool = True) -> tuple[str, str | None]:
    """The experiment's status: the worst of its parts', and why.

    A build that does not compile, crashes or hangs costs only its own parts, as long as most builds are there: then
    the reason names it. Where parts never ran (not ``all_ran``), what kept them from running is no fault of a build.
    """
    built = {part.get("build") for part in parts.values() if part.get("build") is not None}
    whole = {part.get("build") for part in parts.values() if part["status"] == "pass"} - _lost(parts)
    if all_ran and _lost(parts) and len(whole) > LEAST_BUILDS_SHARE * len(built):
        rest = {name: part for name, part in parts.items() if part.get("build") not in _lost(parts)}
        status, reason = _judge(rest)
        return status, "; ".join(filter(None, (reason, *_why_lost(parts))))
    status, reason = _judge(parts)
    if status == "pass" and any(part.get("build", 0) is None for part in parts.values()):
        one = f"measured in one build, the installed extension: {builds.missing() or 'no compiler was there'}"
        reason = "; ".join(filter(None, (reason, one)))
    return status, reason


def _lost(parts: Mapping[str, Mapping]) -> set:
    """The builds of which a part crashed, hung, or could not be built where others of its start could."""
    ended = {part.get("build") for part in parts.values() if part["status"] in ("crash", "timeout")}
    skips: dict[str, set] = {}
    for part in parts.values():
        if part["status"] == "skip":
            skips.setdefault(part["reason"], set()).add(part.get("build"))
    every = {part.get("build") for part in parts.values()}
    return (ended | {build for which in skips.values() if which != every for build in which}) - {None}


def _why_lost(parts: Mapping[str, Mapping]) -> list[str]:
    """One line for each way in which builds were lost."""
    whys: dict[str, dict] = {}
    for part in parts.values():
        if part.get("build") in _lost(parts) and part["status"] in ("crash", "timeout", "skip"):
            whys.setdefault(f"{part['status']}: {part['reason']}", {})[part["build"]] = None
    return [
        f"build{'s' * (len(which) > 1)} {', '.join(map(str, sorted(which)))}: {why}"
        for why, which in whys.items()
    ]


def _judge(parts: Mapping[str, Mapping]) -> tuple[str, str | None]:
    for status in ("crash", "timeout", "fail"):
        names: dict[str, list[str]] = {}
        for name, part in parts.items():
            if part["status"] == status:
                names.setdefault(part["reason"], []).append(name)
        if names:
            return status, "; ".join(f"{', '.join(which)}: {reason}" for reason, which in names.items())
    skipped = {part["reason"] for part in parts.values() if part["status"] == "skip"}
    if skipped and all(part["status"] == "skip" for part in parts.values()):
        return "skip", "; ".join(sorted(skipped))
    return "pass", f"partly not measured: {'; '.join(sorted(skipped))}" if skipped else None


def new_record(status: str | None, reason: str | None, code: str, run_id: str) -> dict:
    return {
        "status": status,
        "reason": reason,
        "rows": 0,
        "seconds": 0.0,
        "steal_percent": None,
        "code_digest": code,
        "measured_in": run_id,
        "parts": {},
    }


def save(folder: Path, document: Mapping) -> None:
    bundle.write_json(folder / "run.json", document)


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def steal() -> tuple[int, int] | None:
    try:
        return host.steal_ticks()
    except (OSError, ValueError, IndexError):
        return None


def steal_percent(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    if before is None or after is None or after[1] == before[1]:
        return None
    return round(100 * (after[0] - before[0]) / (after[1] - before[1]), 3)


def private_words(text: str) -> str:
    """``text`` without host name, home and places on this machine's disk: a bundle may be mailed."""
    for found, put in ((str(work_folder()), "."), (sys.prefix, "<python>"), (os.path.expanduser("~"), "~")):
        if len(found) > 2:
            text = text.replace(found, put)
    if len(platform.node()) > 3:
        text = re.sub(rf"(?<![\w-]){re.escape(platform.node())}(?![\w-])", "<host>", text)
    return re.sub(r"/home/[^/\s]+", "~", text)


def redact(text: str) -> str:
    return " ".join(private_words(text).split())


def _redacted(reasons: Mapping[str, str]) -> dict[str, str]:
    return {name: redact(reason) for name, reason in reasons.items()}
