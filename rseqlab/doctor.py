"""What this machine is, what rseq is on it, and which experiments can run here. Measures nothing."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from rseqlab import host, native, rseq
from rseqlab.errors import LabError
from rseqlab.experiments import catalogue
from rseqlab.lab import probe

RSEQ_VALUES = (
    "owner",
    "rule",
    "feature_size",
    "align",
    "libc_size",
    "registered_size",
    "live_bytes",
    "live_rule",
    "flags",
    "cpu_id",
    "node_id",
    "mm_cid",
)

OPTIONAL_TOOLS = {
    "second compiler": ("clang",),
    "aarch64 cross compiler": ("aarch64-linux-gnu-gcc",),
    "aarch64 user emulator": ("qemu-aarch64", "qemu-aarch64-static"),
    "static ABI checker": ("abidiff",),
    "x86_64 machine emulator": ("qemu-system-x86_64",),
    "aarch64 machine emulator": ("qemu-system-aarch64",),
    "browser": ("chromium", "chromium-browser", "google-chrome"),
    "server under load": ("redis-server",),
}
"""What the optional parts use, and the commands of which one is enough; `make deps` installs them."""


def examine() -> dict:
    """The doctor's document: facts of the machine, rseq, experiments and optional tools."""
    values, reasons = host.facts()
    return {
        "schema": "rseqlab/doctor",
        "version": 1,
        "kernel": values["kernel_release"],
        "arch": values["arch"],
        "libc": values["libc"],
        "facts": values,
        "reasons": reasons,
        "native": {"available": native.unavailable() is None, "reason": native.unavailable()},
        "rseq": _rseq(),
        "experiments": [_experiment(experiment) for experiment in catalogue().values()],
        "tools": [_tool(name, commands) for name, commands in OPTIONAL_TOOLS.items()],
    }


def what_can_run(document: Mapping) -> list[str]:
    """In lines, of the doctor's document: the experiments that can run, and those that cannot, by reason."""
    able = [one["name"] for one in document["experiments"] if one["can_run"]]
    reasons: dict[str, list[str]] = {}
    for one in document["experiments"]:
        if not one["can_run"]:
            reasons.setdefault("; ".join(one["reasons"]), []).append(one["name"])
    return [
        f"{len(able)} of {len(document['experiments'])} experiments can run here: {', '.join(able) or 'none'}",
        *(f"cannot run: {', '.join(names)}: {reason}" for reason, names in reasons.items()),
    ]


def optional_tools(document: Mapping) -> list[str]:
    """In lines, of the doctor's document: the optional tools that are there, and one command for all that are not."""
    found = [f"{tool['name']} ({tool['found']})" for tool in document["tools"] if tool["found"]]
    missing = [tool for tool in document["tools"] if not tool["found"]]
    lines = [f"optional tools: {', '.join(found)}"] if found else []
    if missing:
        remedies = " && ".join(dict.fromkeys(tool["remedy"] for tool in missing))
        lines.append(
            f"optional tools that are missing: {', '.join(tool['name'] for tool in missing)}; install them with: "
            f"{remedies}"
        )
    return lines


@dataclass(frozen=True)
class NoArea:
    """Why the calling thread has no area of libc's to show."""

    reason: str

    def __repr__(self) -> str:
        return f"No area: {self.reason}"


def area() -> rseq.Area | NoArea:
    """libc's area of the calling thread, live, or why there is none. Never raises on a strange machine."""
    try:
        return rseq.attach()
    except LabError as error:
        return NoArea(str(error))


def _rseq() -> dict:
    """As a program started from here would find it; a tunable that is set here counts."""
    answer = probe.thread_as_started()
    if "failure" in answer:
        values, reasons = dict.fromkeys(RSEQ_VALUES), dict.fromkeys(RSEQ_VALUES, answer["failure"])
    else:
        values, reasons = answer["values"], answer["reasons"]
    refusal = probe.kernel_refusal()
    return {name: values[name] for name in RSEQ_VALUES} | {
        "registration_works": refusal is None,
        "refusal": refusal,
        "reasons": {name: reasons[name] for name in RSEQ_VALUES if values[name] is None and name in reasons},
    }


def _experiment(experiment) -> dict:
    unmet = experiment.unmet()
    return {"name": experiment.name, "can_run": not unmet, "reasons": unmet}


def _tool(name: str, commands: tuple[str, ...]) -> dict:
    found = next((command for command in commands if shutil.which(command)), None)
    return {"name": name, "found": found, "remedy": None if found else "make deps"}
