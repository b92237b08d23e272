"""What a worker of a cluster does for a fleet: it says whose it is, surveys its host, measures one part, and stops.

Each answer is JSON text, for lab/fleet.py to check. Whatever the clients and however many the workers, one part is
measured on a host at a time: the file that is locked meanwhile is the host's, and a killed worker unlocks it.
"""

import fcntl
import hashlib
import importlib
import json
import os
import selectors
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rseqlab
from rseqlab.lab import builds, runner
from rseqlab.lab.child import Child
from rseqlab.lab.experiment import measure_part

HOST = "RSEQLAB_HOST"
"""Variable of a worker's environment: what its host is to be taken for, where that is not one kernel's boot."""

WAIT_FOR_HOST_S = 20
SEND_EVERY_S = 1.0
"""Rows are sent together for about this long: sending costs the host time while it measures."""

_stops: dict[str, int] = {}
_guard = threading.Lock()


def host() -> str:
    """Tells hosts apart, and says nothing else of them: a digest of what the kernel drew when it was booted.

    All containers of one host are that host. A worker that is told another name by $RSEQLAB_HOST is of that host.
    """
    name = os.environ.get(HOST) or Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(b"rseqlab host " + name.strip().encode()).hexdigest()[:32]


def whose() -> str:
    """Which host this worker is of, and which rseqlab it has."""
    return json.dumps({"version": rseqlab.__version__, "host": host()})


def survey(modules: list[str], profile: str) -> str:
    """The host's facts, and of each experiment: its code, what keeps it from running, its parts and their builds."""
    plans = {}
    for module in modules:
        experiment = importlib.import_module(module).EXPERIMENT
        unmet = experiment.unmet()
        parts = [] if unmet else experiment.plan(profile)
        used = {part.arguments["build"] for part in parts if part.arguments.get("build") is not None}
        plans[experiment.name] = {
            "code_digest": runner.code_digest(experiment),
            "unmet": [runner.redact(reason) for reason in unmet],
            "parts": [
                {
                    "id": part.id,
                    "rows": part.rows,
                    "timeout_s": part.timeout_s,
                    "environment": dict(part.environment),
                    "arguments": dict(part.arguments),
                    "skip": runner.redact(part.skip) if part.skip else None,
                }
                for part in parts
            ],
            "builds": {str(number): runner.described(number) for number in sorted(used)},
        }
    return json.dumps({"machine": runner.machine(), "plans": plans})


class _StoppableChild(Child):
    """A child that ends with :class:`Stopped` as soon as the other end of ``stopped`` is closed."""

    stopped: int

    def _ready(self, selector: selectors.BaseSelector, deadline: float) -> bool:
        if self.stopped not in selector.get_map():
            selector.register(self.stopped, selectors.EVENT_READ)
        ready = [key.fd for key, _ in selector.select(max(0.0, deadline - time.monotonic()))]
        if self.stopped in ready:
            raise Stopped
        return bool(ready)


class Stopped(Exception):
    """Whoever asked for the part does not want it any more."""


def measure(request: str) -> str:
    """One part: how its child ended, all its rows, and the host's stolen ticks meanwhile.

    Its rows are sent on the way as well, as events of the topic ``request["topic"]``: where this worker is lost,
    they are what is left.
    """
    asked = json.loads(request)
    experiment = importlib.import_module(asked["module"]).EXPERIMENT
    if runner.code_digest(experiment) != asked["code_digest"]:
        return json.dumps({"state": "other code"})
    arguments = {key: asked[key] for key in ("module", "arguments", "done")}
    environment = asked["environment"] | builds.environment(asked["arguments"])
    child = _StoppableChild(measure_part, arguments, environment, asked["timeout_s"])
    rows: list[dict] = []
    with _stoppable(asked["token"]) as child.stopped:
        try:
            with _alone() as mine:
                if not mine:
                    return json.dumps({"state": "busy"})
                if refusal := experiment.prepare(asked["arguments"]) if experiment.prepare else None:
                    return json.dumps(_unmeasured(refusal))
                began_ns, steal = time.monotonic_ns(), runner.steal()
                for row in _sending(child, rows, asked["token"], asked["topic"]):
                    rows.append(row)
                stolen = [steal, runner.steal()] if steal else None
                ended_ns = time.monotonic_ns()
        except Stopped:
            return json.dumps({"state": "stopped"})
    outcome = child.ended
    return json.dumps(
        {
            "state": "measured",
            "status": outcome.status,
            "reason": runner.redact(outcome.reason) if outcome.reason else None,
            "seconds": outcome.seconds,
            "began_ns": began_ns,
            "ended_ns": ended_ns,
            "stolen_ticks": stolen,
            "rows": rows,
        }
    )


def _unmeasured(refusal: str) -> dict:
    """The answer where what a part needs cannot be made on this host."""
    now_ns = time.monotonic_ns()
    return {
        "state": "measured",
        "status": "skip",
        "reason": runner.redact(refusal),
        "seconds": 0.0,
        "began_ns": now_ns,
        "ended_ns": now_ns,
        "stolen_ticks": None,
        "rows": [],
    }


def _sending(child: Child, rows: list[dict], token: str, topic: str) -> Iterator[dict]:
    """The child's rows; those in ``rows`` that were not sent yet go to whoever listens, now and then."""
    from distributed import get_worker

    worker, sent, last = get_worker(), 0, time.monotonic()
    for row in child:
        yield row
        if time.monotonic() - last >= SEND_EVERY_S:
            worker.log_event(topic, json.dumps({"token": token, "first": sent, "rows": rows[sent:]}))
            sent, last = len(rows), time.monotonic()


@contextmanager
def _stoppable(token: str) -> Iterator[int]:
    """A file descriptor that becomes readable when :func:`stop` is called with this token."""
    readable, writable = os.pipe()
    with _guard:
        _stops[token] = writable
    try:
        yield readable
    finally:
        with _guard:
            if (left := _stops.pop(token, None)) is not None:
                os.close(left)
        os.close(readable)


def stop(token: str) -> bool:
    """End the part that is measured under this token, child and all. Returns whether there was one."""
    with _guard:
        writable = _stops.pop(token, None)
        if writable is not None:
            os.close(writable)
    return writable is not None


@contextmanager
def _alone() -> Iterator[bool]:
    """Whether the host is ours for the block; False where another part is measured on it for too long."""
    path = f"/tmp/rseqlab-{os.getuid()}-{host()}.lock"  # not $TMPDIR, which two workers may have different
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + WAIT_FOR_HOST_S
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = True
                break
            except BlockingIOError:
                mine = False
            if time.monotonic() >= deadline:
                break
            time.sleep(0.1)
        yield mine
    finally:
        os.close(file)
