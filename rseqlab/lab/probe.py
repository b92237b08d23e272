"""What this machine answers before anything is measured; asked in children, once."""

import os
from collections.abc import Iterator, Mapping
from functools import cache

from rseqlab import native, rseq
from rseqlab.lab.child import Child

LIBC_OWNS = {"GLIBC_TUNABLES": "glibc.pthread.rseq=1"}
LIBC_LEAVES = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
"""The two ways to start a process, as the environment of a child (glibc manual, "rseq Tunables")."""


def describe_thread(_: Mapping) -> Iterator[dict]:
    """In a child: the calling thread's registration, each value or None with a reason."""
    state = rseq.owner()
    feature_bytes, align_bytes = rseq.auxv()
    exported = rseq.libc()
    values = {
        "owner": state.owner,
        "rule": state.rule,
        "feature_size": feature_bytes or None,
        "align": align_bytes or None,
        "libc_size": exported.size_bytes if exported else None,
        "libc_offset": exported.offset_bytes if exported else None,
        "registered_size": None,
        "live_bytes": None,
        "live_rule": None,
        "flags": None,
        "cpu_id": None,
        "cpu_id_start": None,
        "node_id": None,
        "mm_cid": None,
    }
    reasons = {}
    for name in ("feature_size", "align"):
        if values[name] is None:
            reasons[name] = "the aux vector has no such entry: a kernel before 6.3"
    if exported is None:
        reasons["libc_size"] = reasons["libc_offset"] = (
            "this libc exports no __rseq_size (glibc does since 2.35)"
        )
    try:
        values["registered_size"] = rseq.configuration().size_bytes or None
        if values["registered_size"] is None:
            reasons["registered_size"] = "the kernel has no registration for this thread"
    except OSError as error:
        reasons["registered_size"] = str(error)
    try:
        area = rseq.attach()
        values["live_bytes"], values["live_rule"] = area.feature_bytes, area.active.rule
        for row in area.rows():
            if row["field"] in values:
                values[row["field"]] = row["value"]
                if row["value"] is None:
                    reasons[row["field"]] = row["reason"]
    except rseq.RegistrationError as error:
        for name in ("live_bytes", "live_rule", "flags", "cpu_id", "cpu_id_start", "node_id", "mm_cid"):
            reasons[name] = str(error)
    yield {"values": values, "reasons": reasons}


def try_to_register(_: Mapping) -> Iterator[dict]:
    """In a child that libc left alone: whether the kernel lets a thread register."""
    try:
        with rseq.register():
            yield {"refusal": None}
    except rseq.RegistrationError as error:
        yield {"refusal": str(error), "errno": error.errno_name}


def _ask(function, environment: Mapping[str, str]) -> dict:
    child = Child(function, {}, environment, timeout_s=20)
    rows = list(child)
    return (
        rows[0] if rows else {"failure": f"the probe ended with {child.ended.status}: {child.ended.reason}"}
    )


@cache
def thread_that_libc_may_own() -> dict:
    """:func:`describe_thread` in a process that tells libc to register."""
    return _describe(LIBC_OWNS)


def thread_as_started() -> dict:
    """:func:`describe_thread` in a process with the tunables that this one was started with."""
    return _describe({name: os.environ[name] for name in ("GLIBC_TUNABLES",) if name in os.environ})


def _describe(environment: Mapping[str, str]) -> dict:
    if reason := native.unavailable():
        return {"failure": reason}
    return _ask(describe_thread, environment)


@cache
def kernel_refusal() -> str | None:
    """Why a thread cannot register rseq on this machine, or None where it can."""
    if reason := native.unavailable():
        return reason
    answer = _ask(try_to_register, LIBC_LEAVES)
    return answer.get("failure") or answer["refusal"]


def libc_refusal() -> str | None:
    """Why libc does not own a thread's area even when asked to, or None where it does."""
    answer = thread_that_libc_may_own()
    if "failure" in answer:
        return answer["failure"]
    values = answer["values"]
    return None if values["owner"] == "libc" else f"libc registers nothing here: {values['rule']}"
