"""A run on the hosts of a Dask cluster: a bundle for each host, in one study, its rows here as they are measured.

A host is one booted kernel (lab/remote.py), however many workers it has, and measures one part at a time. Its
bundle is that of a local run: it has the host's own machine.json, and it is resumed part by part and row by row.
What a worker says is believed no more than a bundle of a stranger. (Dask itself must be: its client unpickles.)
"""

import json
import os
import queue
import re
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import rseqlab
from rseqlab import microarchitecture
from rseqlab.errors import LabError
from rseqlab.lab import bundle, remote, runner
from rseqlab.lab.bundle import BundleError, Writer
from rseqlab.lab.experiment import Experiment

NOTES = ".fleet"
"""What the study keeps about the fleet, beside the bundles and in none: which host a bundle is of, and how it ended."""

ANSWER_S = 60
"""Within which a worker must say whose it is; a host has three times as long for its facts and plans."""

PATIENCE_S = 30
"""How long a host may be without a worker before it is lost: a nanny starts one anew within seconds."""

PART_GRACE_S = 60
"""Beyond a part's own deadline, which its host enforces; then the host does not answer any more."""

DEATHS = 2
"""A part is a crash when this many workers have ended while they measured it."""

LATE, LATE_S = 2, 10
"""A host is a straggler when it takes this many times as long as half of the hosts took, and these seconds more."""

LEAST_DEADLINE_S = 600
"""Of a fleet that nobody gave a deadline."""

MOST_ROWS = 100_000
"""Of one part."""

DONE, LOST, GIVEN_UP, REFUSED, INTERRUPTED = "done", "lost", "given up", "refused", "interrupted"
FAILED = "failed"
"""What went wrong is here, as a full disk is, and not on the host."""

WHOSE = (eval, "__import__('rseqlab.lab.remote', fromlist=['whose']).whose()")
"""The first question to a worker. A function of ours would end a worker without rseqlab as it is unpickled."""

STOP_S = 5
"""How long a worker is waited for that is told to stop."""

Show = Callable[[str, int, int], None]
Say = Callable[[str], None]


SCHEDULER_GONE = "the host was lost: the cluster's scheduler is gone"


class _Ended(Exception):
    """Nothing more is measured on this host: its state, and why."""

    def __init__(self, state: str, reason: str):
        super().__init__(reason)
        self.state, self.reason = state, reason


@dataclass
class Host:
    """A host of the fleet, its bundle, and how far it is."""

    key: str
    workers: list[str]
    surveyor: str = ""
    """The worker that said what the host is."""
    machine: dict = field(default_factory=dict)
    plans: dict = field(default_factory=dict)
    label: str = ""
    bundle_folder: Path | None = None
    """None where the host was refused before it got a bundle."""
    document: dict = field(default_factory=dict)
    state: str = ""
    reason: str | None = None
    seconds: float = 0.0
    straggled: bool = False
    rows: int = 0
    expected: int = 0
    intervals_ns: list[tuple[int, int]] = field(default_factory=list)
    """When each part was measured, by the host's own clock."""

    @property
    def folder(self) -> Path:
        """The bundle of a host that takes part."""
        assert self.bundle_folder is not None, "a host that was refused has no bundle"
        return self.bundle_folder


class Fleet:
    """Experiments on every host of a cluster. :meth:`gather` finds the hosts, :meth:`run` measures."""

    def __init__(self, client, experiments: list[Experiment], profile: str, folder: Path, say: Say):
        self.client, self.experiments, self.profile, self.folder, self.say = (
            client,
            experiments,
            profile,
            folder,
            say,
        )
        self.hosts: list[Host] = []
        self.refused: list[Host] = []
        self.topic = f"rseqlab-{uuid.uuid4().hex}"
        self.inboxes: dict[str, queue.SimpleQueue] = {}
        self.alive: set[str] = set()
        self.known: set[str] = set()
        self.stop = threading.Event()
        self.guard = threading.Lock()

    # ---- who is there ----

    def gather(self, resume: bool) -> list[Host]:
        """Find the hosts, check that each has this very code, and open a bundle for each.

        Hosts that cannot take part are in ``refused`` with the reason. Raises LabError where none can.
        """
        _check_folder(self.folder, resume)
        self.alive = self.known = set(self.client.nthreads())
        said = self._ask(dict.fromkeys(sorted(self.alive), WHOSE), ANSWER_S)
        hosts: dict[str, Host] = {}
        for worker, answer in said.items():
            key, reason = _whose(answer)
            host = hosts.setdefault(key or worker, Host(key or worker, []))
            host.workers.append(worker)
            host.reason = host.reason or reason
        self._survey([one for one in hosts.values() if not one.reason])
        for host in hosts.values():
            if host.reason:
                host.state = REFUSED
                self.refused.append(host)
            else:
                self.hosts.append(host)
        if not self.hosts:
            reasons = "; ".join(dict.fromkeys(one.reason or "" for one in self.refused))
            raise LabError(f"No host of the cluster can take part: {reasons}")
        self._open(resume)
        return self.hosts

    def _ask(self, questions: Mapping[str, tuple], timeout_s: float) -> dict[str, object]:
        """What each worker answers to a function with arguments: text, or the error, or TimeoutError."""
        futures = {
            worker: self.client.submit(
                function, *arguments, workers=[worker], allow_other_workers=False, pure=False
            )
            for worker, (function, *arguments) in questions.items()
        }
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not all(one.done() for one in futures.values()):
            if self.stop.is_set():
                break
            time.sleep(0.05)
        return {worker: _answer(future, timeout_s) for worker, future in futures.items()}

    def _survey(self, hosts: list[Host]) -> None:
        asked = (remote.survey, [one.module for one in self.experiments], self.profile)
        said = self._ask({host.workers[0]: asked for host in hosts}, 3 * ANSWER_S)
        for host in hosts:
            host.surveyor = host.workers[0]
            try:
                host.machine, host.plans = self._surveyed(said[host.surveyor])
            except LabError as error:
                host.reason = str(error)

    def _surveyed(self, answer: object) -> tuple[dict, dict]:
        """(machine.json, plan of each experiment), checked. Raises LabError."""
        document = _document(answer, "fleet-survey", "a host's survey")
        bundle.validate(document["machine"], "machine", "a host's machine.json")
        for experiment in self.experiments:
            plan = document["plans"].get(experiment.name)
            if plan is None or plan["code_digest"] != runner.code_digest(experiment):
                raise LabError(
                    f"the code of {experiment.name} there is not the code here, though both are rseqlab "
                    f"{rseqlab.__version__}: install this very version on its workers"
                )
            ids = [part["id"] for part in plan["parts"]]
            if len(set(ids)) < len(ids):
                raise LabError(f"its plan of {experiment.name} has two parts of one name")
            used = {part["arguments"].get("build") for part in plan["parts"]} - {None}
            if not {str(number) for number in used} <= set(plan["builds"]):
                raise LabError(f"its plan of {experiment.name} has builds that it does not describe")
        return document["machine"], document["plans"]

    # ---- the study ----

    def _open(self, resume: bool) -> None:
        """A folder for each host: the one that it has from before, or a new one by what it is and a number."""
        labels = _read_notes(self.folder) if resume else {}
        try:
            (self.folder / NOTES).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BundleError(
                f"Could not create {self.folder}: {error.strerror}. Choose another --out."
            ) from None
        for host in self.hosts:
            host.label = next((label for label, key in labels.items() if key == host.key), "")
        for host in self.hosts:
            host.label = host.label or self._left_by(host, labels) or self._new_label(host, labels)
            labels[host.label] = host.key
        self.hosts.sort(key=lambda host: host.label)
        bundle.write_json(self.folder / NOTES / "hosts.json", labels)
        for host in self.hosts:
            host.bundle_folder = self.folder / host.label
            self._open_bundle(host)

    def _left_by(self, host: Host, labels: Mapping[str, str]) -> str | None:
        """The bundle that this host can only have left before it was booted anew; None where that is not certain."""
        here = runner.identity(host.machine)
        left = []
        for label, key in labels.items():
            if key not in [one.key for one in self.hosts] and (self.folder / label / "run.json").exists():
                record = bundle.read_run(self.folder / label)
                if record["machine"] == here and not self._settled(record, host):
                    left.append(label)
        new = [one for one in self.hosts if not one.label and runner.identity(one.machine) == here]
        return left[0] if len(left) == len(new) == 1 else None

    def _new_label(self, host: Host, labels: Mapping[str, str]) -> str:
        about = describe(host.machine)
        number = 1
        while f"{about}-{number}" in labels or (self.folder / f"{about}-{number}").exists():
            number += 1
        return f"{about}-{number}"

    def _open_bundle(self, host: Host) -> None:
        here, folder = host.machine, host.folder
        if (folder / "run.json").exists():
            document = bundle.read_run(folder)
            if document["profile"] != self.profile or document["machine"] != runner.identity(here):
                raise BundleError(
                    f"{folder} was measured with another profile or under other conditions than its host has now; "
                    "choose another --out."
                )
            if stale := runner.stale(document, self.experiments):
                raise BundleError(
                    f"The rows of {', '.join(stale)} in {folder} were measured by other code; choose another --out."
                )
        else:
            document = runner.start(folder, self.profile, runner.group_of(self.experiments), here)
            number = host.label.rpartition("-")[2]
            document["run_id"] += f"-{number}"
            document["command"] = f"rseqlab run --on ADDRESS --profile {self.profile}"
            runner.save(folder, document)
        if not (folder / "machine.json").exists():
            bundle.write_json(folder / "machine.json", here)
        for experiment in self.experiments:
            record = runner.new_record(
                None, runner.UNFINISHED, runner.code_digest(experiment), document["run_id"]
            )
            document["experiments"].setdefault(experiment.name, record)
            plan = host.plans[experiment.name]
            arguments = [part["arguments"] for part in plan["parts"]]
            described = {int(number): one for number, one in plan["builds"].items()}
            runner.note_builds(document, arguments, described.__getitem__)
        host.document = document
        plans = (host.plans[one.name] for one in self.experiments)
        host.expected = sum(part["rows"] for plan in plans for part in plan["parts"] if not part["skip"])

    def _settled(self, document: Mapping, host: Host) -> bool:
        """Whether measuring again would change nothing in this bundle."""
        records = [document["experiments"].get(one.name) for one in self.experiments]
        return all(
            record
            and (
                record["status"] == "pass"
                or (record["status"] == "skip" and host.plans[experiment.name]["unmet"])
            )
            for experiment, record in zip(self.experiments, records, strict=True)
        )

    # ---- measuring ----

    def run(self, show: Show, deadline_s: float) -> dict:
        """Measure; returns what became of each host. Ctrl-C keeps what was measured and ends what runs elsewhere."""
        self.client.subscribe_topic(self.topic, self._received)
        started = time.monotonic()
        threads = {}
        for host in self.hosts:
            arguments = (host, started, deadline_s, show)
            threads[host.label] = threading.Thread(target=self._host, args=arguments, daemon=True)
        try:
            for thread in threads.values():
                thread.start()
            self._watch(threads, started)
        finally:
            self.stop.set()  # after an interrupt: each thread ends its part over there
            for thread in threads.values():
                thread.join()
            with suppress(Exception):
                self.client.unsubscribe_topic(self.topic)
            document = self.outcome()
            bundle.write_json(self.folder / NOTES / "outcome.json", document)
        return document

    def _received(self, event: tuple) -> None:
        """On the client's own thread: rows of a part that is under way."""
        with suppress(
            ValueError, TypeError, KeyError, AttributeError
        ):  # who says nonsense is not listened to
            message = json.loads(event[1])
            self.inboxes[message["token"]].put(message)

    def _watch(self, threads: Mapping[str, threading.Thread], started: float) -> None:
        seen = time.monotonic()
        while any(thread.is_alive() for thread in threads.values()):
            time.sleep(0.5)
            try:
                alive = set(self.client.nthreads())
                seen = time.monotonic()
            except Exception:  # the scheduler does not answer: Dask raises whatever its transport does
                if time.monotonic() - seen < PATIENCE_S:
                    continue
                alive = set()
            self.alive = alive
            if new := alive - self.known:
                self.known = self.known | new
                threading.Thread(target=self._join, args=(new,), daemon=True).start()
            self._find_stragglers(time.monotonic() - started)

    def _join(self, workers: set[str]) -> None:
        """Workers that came later: those of a host that measures can go on with it."""
        with suppress(Exception):  # where the cluster is gone meanwhile, the hosts say so
            for worker, answer in self._ask(dict.fromkeys(workers, WHOSE), ANSWER_S).items():
                key, reason = _whose(answer)
                for host in self.hosts:
                    if host.key == key and not reason:
                        host.workers.append(worker)

    def _find_stragglers(self, elapsed_s: float) -> None:
        took = [host.seconds for host in self.hosts if host.state == DONE]
        if len(took) * 2 < len(self.hosts):
            return
        usual = statistics.median(took)
        for host in self.hosts:
            if not host.state and not host.straggled and elapsed_s > LATE * usual + LATE_S:
                host.straggled = True
                self.say(
                    f"{host.label} is behind: {host.rows} of {host.expected} rows after {elapsed_s:.0f} s; "
                    f"half of the hosts took {usual:.0f} s at most."
                )

    def _host(self, host: Host, started: float, deadline_s: float, show: Show) -> None:
        """A host's thread: all its experiments, into its bundle."""
        try:
            held = bundle.lock(host.folder)
            try:
                self._reopen(host)
                for experiment in self.experiments:
                    self._experiment(host, experiment, started + deadline_s, deadline_s, show)
                state, reason = DONE, None
            except _Ended as ended:
                state, reason = ended.state, ended.reason
            except LabError as error:
                state, reason = FAILED, _clean(str(error))
            finally:
                os.close(held)
            if state != INTERRUPTED:
                self._close(host, reason)
        except Exception as error:  # a fault here or a full disk must be said, not end one thread of many
            state, reason = FAILED, _clean(f"{type(error).__name__}: {error}")
        host.reason, host.seconds = reason, round(time.monotonic() - started, 3)
        host.state = state
        if state != DONE:
            self.say(f"{host.label}: {state}: {reason}")

    def _reopen(self, host: Host) -> None:
        if not self._settled(host.document, host):
            host.document["ended"] = None
            runner.save(host.folder, host.document)
            (host.folder / bundle.SUMS).unlink(missing_ok=True)

    def _close(self, host: Host, reason: str | None) -> None:
        """Seal the bundle. What is not measured as the host ended says so; --resume measures it."""
        if host.document["ended"]:
            return
        for record in host.document["experiments"].values():
            if record["status"] is None:
                record |= {"status": "fail", "reason": f"not measured: {reason or 'its host ended'}"}
        host.document["ended"] = runner.now()
        runner.save(host.folder, host.document)
        bundle.seal(host.folder)

    def _experiment(
        self, host: Host, experiment: Experiment, deadline: float, deadline_s: float, show: Show
    ) -> None:
        record, plan = host.document["experiments"][experiment.name], host.plans[experiment.name]
        if record["status"] == "pass" or (plan["unmet"] and not record["rows"]):
            if record["status"] != "pass":
                record |= {"status": "skip", "reason": _clean("; ".join(plan["unmet"]))}
                runner.save(host.folder, host.document)
            self._progress(host, show, record["rows"])
            return
        record |= {"status": None, "reason": runner.UNFINISHED}
        writer = Writer(host.folder, experiment)
        stolen = [0, 0]
        self._progress(host, show, len(writer.keys))
        ended = None
        try:
            for part in plan["parts"]:
                before = record["parts"].get(part["id"])
                if before is not None and before["status"] in ("pass", "skip"):
                    continue
                try:
                    outcome = self._part(host, experiment, part, writer, deadline, deadline_s, stolen, show)
                except _Ended as why:
                    ended = why
                    if why.state == INTERRUPTED:
                        raise
                    status = {LOST: "crash", GIVEN_UP: "timeout"}.get(why.state, "fail")
                    outcome = _outcome(status, why.reason, 0.0, part)
                outcome["rows"] = len(writer.done(part["id"]))
                record["parts"][part["id"]] = outcome
                record["rows"] = len(writer.keys)
                runner.save(host.folder, host.document)
                if ended:
                    break
        finally:
            record["rows"] = len(writer.keys)
            writer.close()
        record["status"], record["reason"] = runner.judge_parts(record["parts"])
        record["seconds"] = round(sum(part["seconds"] for part in record["parts"].values()), 3)
        record["steal_percent"] = runner.steal_percent((0, 0), (stolen[0], stolen[1]))
        runner.save(host.folder, host.document)
        if ended:
            raise ended

    def _part(self, host, experiment, part, writer, deadline, deadline_s, stolen, show) -> dict:
        """One part on the host, by a second worker where the first is lost. Raises _Ended."""
        if part["skip"]:
            return _outcome("skip", _clean(part["skip"]), 0.0, part)
        deaths = 0
        while True:
            if time.monotonic() > deadline:
                raise _Ended(GIVEN_UP, _too_late(deadline_s))
            worker = self._worker(host)
            if worker != host.surveyor:
                self._survey_again(host, worker)
            try:
                answer = self._attempt(host, worker, experiment, part, writer, deadline, deadline_s, show)
            except _WorkerLost:
                if self.client.status != "running":
                    raise _Ended(LOST, SCHEDULER_GONE) from None
                self.alive = self.alive - {worker}
                deaths += 1
                if deaths >= DEATHS:
                    self._worker(host)  # where none is left the host is lost, which says more
                    reason = f"{deaths} workers of the host ended while they measured it"
                    return _outcome("crash", reason, 0.0, part)
                continue
            if answer["state"] == "measured":
                break
            if answer["state"] == "other code":
                raise _Ended(REFUSED, f"the code of {experiment.name} there is not the code here any more")
            # busy: another client's part is measured there, and this one waits; stopped: nobody but us does that
        if answer["stolen_ticks"]:
            before, after = answer["stolen_ticks"]
            stolen[0] += max(0, after[0] - before[0])
            stolen[1] += max(0, after[1] - before[1])
        host.intervals_ns.append((answer["began_ns"], answer["ended_ns"]))
        said = _clean(answer["reason"]) if answer["reason"] else None
        return _outcome(answer["status"], said, answer["seconds"], part)

    def _worker(self, host: Host) -> str:
        """A worker of the host that is there; waits for one. Raises _Ended where none comes."""
        patience = time.monotonic() + PATIENCE_S
        while True:
            for worker in [host.surveyor, *host.workers]:
                if worker in self.alive:
                    return worker
            if self.stop.is_set():
                raise _Ended(INTERRUPTED, "interrupted")
            if time.monotonic() > patience:
                raise _Ended(LOST, f"the host was lost: for {PATIENCE_S:g} s the cluster had no worker of it")
            time.sleep(0.2)

    def _survey_again(self, host: Host, worker: str) -> None:
        """Another worker of the host may be confined otherwise: then its rows are of other conditions."""
        (answer,) = self._ask({worker: (remote.survey, *self._asked())}, 3 * ANSWER_S).values()
        if self.stop.is_set():
            raise _Ended(INTERRUPTED, "interrupted")
        try:
            machine, plans = self._surveyed(answer)
        except LabError as error:
            raise _Ended(LOST, f"the host was lost: of the worker that it has left, {error}") from None
        if runner.identity(machine) != runner.identity(host.machine) or plans != host.plans:
            raise _Ended(
                LOST, "the host was lost: the workers that it has left measure under other conditions"
            )
        host.surveyor = worker

    def _asked(self) -> tuple[list[str], str]:
        return [one.module for one in self.experiments], self.profile

    def _attempt(self, host, worker, experiment, part, writer, deadline, deadline_s, show) -> dict:
        """The worker's answer; rows are written as they come. Raises _WorkerLost or _Ended."""
        token = uuid.uuid4().hex
        request = {
            "token": token,
            "topic": self.topic,
            "module": experiment.module,
            "code_digest": host.plans[experiment.name]["code_digest"],
            "done": writer.done(part["id"]),
            "arguments": part["arguments"],
            "environment": part["environment"],
            "timeout_s": part["timeout_s"],
        }
        if self.client.status != "running":
            raise _Ended(LOST, SCHEDULER_GONE)
        inbox = self.inboxes[token] = queue.SimpleQueue()
        received = 0

        def take(first: int, rows: list) -> None:
            nonlocal received
            if first != received:
                return  # one message was lost: the answer has its rows
            if received + len(rows) > MOST_ROWS:
                raise _Ended(REFUSED, f"it sent more than {MOST_ROWS} rows of one part")
            for row in rows:
                received += 1
                try:
                    writer.check(part["id"], row)
                except BundleError as error:
                    raise _Ended(REFUSED, _clean(f"it sent what no bundle takes: {error}")) from None
                writer.append(part["id"], row, experiment.key)
                host.rows += 1
            self._progress(host, show)

        future = self.client.submit(
            remote.measure,
            json.dumps(request),
            key=f"rseqlab-{token}",
            workers=[worker],
            allow_other_workers=False,
            pure=False,
        )
        future.add_done_callback(lambda _: inbox.put(None))
        late = time.monotonic() + part["timeout_s"] + PART_GRACE_S
        answered = False
        try:
            while not future.done():
                with suppress(queue.Empty):
                    if message := inbox.get(timeout=0.5):
                        _checked(message, "fleet-rows", "rows of a part")
                        take(message["first"], message["rows"])
                if self.stop.is_set():
                    raise _Ended(INTERRUPTED, "interrupted")
                if time.monotonic() > deadline:
                    raise _Ended(GIVEN_UP, _too_late(deadline_s))
                if time.monotonic() > late:
                    raise _Ended(
                        LOST,
                        f"the host was lost: it did not answer for {PART_GRACE_S:g} s after a part's deadline",
                    )
                if worker not in self.alive:
                    raise _WorkerLost
            answer = _answer(future, ANSWER_S)
            if isinstance(answer, _WorkerLost):
                raise answer
            answer = _checked(answer, "fleet-part", "a part's answer")
            answered = True
            if answer["state"] == "measured":
                take(received, answer["rows"][received:])
            return answer
        finally:
            del self.inboxes[token]
            if not answered:
                self._abandon(future, worker, token)
            future.release()

    def _abandon(self, future, worker: str, token: str) -> None:
        """End a part over there. A worker that does not answer is not waited for."""

        def end() -> None:
            with suppress(Exception):
                self.client.cancel([future])
                self.client.run(remote.stop, token, workers=[worker], on_error="return")

        thread = threading.Thread(target=end, daemon=True)
        thread.start()
        thread.join(STOP_S)

    def _progress(self, host: Host, show: Show, more: int = 0) -> None:
        with self.guard:
            host.rows += more
            show(host.label, min(host.rows, host.expected), host.expected)

    def outcome(self) -> dict:
        """What became of each host."""
        return {
            "schema": "rseqlab/fleet",
            "version": 1,
            "folder": str(self.folder),
            "profile": self.profile,
            "hosts": [_row(host) for host in [*self.hosts, *self.refused]],
        }


class _WorkerLost(Exception):
    """The worker went away with the part in hand."""


def describe(machine: Mapping) -> str:
    """What a host is called: by what it is, never by its name."""
    facts = machine["facts"]
    try:
        cpus = f"{len(runner.host.parse_cpu_list(facts['cpus_allowed'] or ''))}cpu"
    except (ValueError, MemoryError):
        cpus = "cpu"
    kernel = ".".join(re.findall(r"\d+", facts["kernel_release"] or "")[:2])
    words = re.sub(r"\(.*?\)", "", facts["cpu_model"] or "")
    core = microarchitecture.core_of(facts)
    words = words[:30] + (f"-{core.name}" if core else "")
    text = f"{facts['arch']}-{words}-{cpus}-linux-{kernel}".lower()
    return re.sub(r"[^a-z0-9._]+", "-", text).strip("-._")[:90]


def _too_late(deadline_s: float) -> str:
    return f"it was not done within the fleet's deadline of {deadline_s:g} s"


def _outcome(status: str, reason: str | None, seconds: float, part: Mapping) -> dict:
    return {
        "status": status,
        "reason": reason,
        "rows": 0,
        "seconds": round(seconds, 3),
        "environment": dict(part["environment"]),
        **runner.build_of(part["arguments"]),
    }


def _row(host: Host) -> dict:
    records = host.document.get("experiments", {})
    folder = host.bundle_folder
    sealed = folder is not None and (folder / bundle.SUMS).exists()
    return {
        "label": host.label or None,
        "folder": str(folder) if folder else None,
        "workers": len(host.workers),
        "state": host.state or INTERRUPTED,
        "reason": host.reason,
        "straggled": host.straggled,
        "seconds": host.seconds,
        "digest": bundle.digest(folder) if folder and sealed else None,
        "experiments": {
            name: {key: record[key] for key in ("status", "reason", "rows")}
            for name, record in records.items()
        },
    }


def _check_folder(folder: Path, resume: bool) -> None:
    if (folder / "run.json").exists():
        raise BundleError(f"{folder} holds the run of one machine; choose another --out for a study of many.")
    if folder.exists() and not resume and any(folder.iterdir()):
        raise BundleError(
            f"{folder} is not empty; add --resume to go on with its study, or choose another --out."
        )


def _read_notes(folder: Path) -> dict[str, str]:
    path = folder / NOTES / "hosts.json"
    if not path.exists():
        return {}
    try:
        labels = json.loads(path.read_text())
        if not all(isinstance(one, str) for one in [*labels, *labels.values()]):
            raise ValueError("not text")
    except (ValueError, AttributeError) as error:
        raise BundleError(
            f"{path} does not say which bundle is of which host ({error}); choose another --out."
        ) from None
    return {label: key for label, key in labels.items() if re.fullmatch(r"[a-z0-9][a-z0-9._-]*", label)}


def _answer(future, timeout_s: float) -> object:
    """A finished future's text, or what went wrong as an exception."""
    try:
        if not future.done():
            future.cancel()
            return TimeoutError("it did not answer; is it busy with something else?")
        if future.status == "error":
            error = future.exception(timeout=timeout_s)
            return _WorkerLost() if type(error).__name__ == "KilledWorker" else error
        if future.status != "finished":
            return _WorkerLost()
        return future.result(timeout=timeout_s)
    except Exception as error:  # Dask raises what its transport does
        return error if not isinstance(error, TimeoutError | OSError) else _WorkerLost()


def _whose(answer: object) -> tuple[str | None, str | None]:
    """(host, why it cannot take part) of a worker's answer."""
    try:
        said = _document(answer, "fleet-worker", "a worker's answer")
    except LabError as error:
        return None, str(error)
    if said["version"] != rseqlab.__version__:
        return said["host"], (
            f"its worker has rseqlab {_clean(said['version'])}, this is {rseqlab.__version__}: install this very "
            "version there"
        )
    return said["host"], None


def _document(answer: object, schema: str, where: str) -> dict:
    """A worker's answer as the document that it must be. Raises LabError."""
    if isinstance(answer, ImportError):
        raise LabError(
            f"its worker cannot load rseqlab ({_clean(str(answer))[:200]}): install rseqlab {rseqlab.__version__} in "
            "the worker's Python"
        )
    if isinstance(answer, _WorkerLost):
        raise LabError("its worker went away before it answered")
    if not isinstance(answer, str):
        raise LabError(f"{where}: {type(answer).__name__}: {_clean(str(answer))[:300]}")
    try:
        document = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: not JSON: {error}") from None
    return _check(document, schema, where)


def _check(document: dict, schema: str, where: str) -> dict:
    bundle.validate(document, schema, where)
    return document


def _checked(answer: object, schema: str, where: str) -> dict:
    """What a host sends while it measures. Raises _Ended."""
    try:
        return _check(answer, schema, where) if isinstance(answer, dict) else _document(answer, schema, where)
    except LabError as error:
        raise _Ended(REFUSED, _clean(f"it sent what is no answer: {error}")) from None


def _clean(text: str) -> str:
    """One line of bearable length that a terminal and a bundle take."""
    return " ".join(bundle.printable(text).split())[:2000]
