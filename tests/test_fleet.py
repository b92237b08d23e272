"""The command `run --on`: real Dask workers, taken for two hosts by $RSEQLAB_HOST, killed, halted, lying, outdated."""

import contextlib
import csv
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import PATIENCE, require_or_skip
from processes import stopped_when

from rseqlab import native
from rseqlab.errors import LabError
from rseqlab.experiments import catalogue, select
from rseqlab.lab import bundle, cluster, fleet, remote, runner
from rseqlab.lab.bundle import Bundle, BundleError, Writer

COMMAND = [sys.executable, "-m", "rseqlab.cli", "run"]
WORKER = "from distributed.cli.dask_worker import main; main()"
NAME = "abort-cost"
"""Eight parts in a few seconds: what is killed and halted here."""

AT_ONCE = "from rseqlab.lab import remote; remote.SEND_EVERY_S = 0"
"""Has a worker send each row as it comes: a part of a quick run is over within a second."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A scheduler without workers."""
    require_or_skip(
        importlib.util.find_spec("distributed") is not None,
        "the Python package distributed",
        "install rseqlab[cluster]",
    )
    require_or_skip(native.unavailable() is None, "the compiled layer", "run `make setup`")
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as one:
        yield one.scheduler_address


@pytest.fixture
def client(address):
    from distributed import Client

    with Client(address, set_as_default=False) as one:
        yield one


@pytest.fixture
def workers(client, address, tmp_path):
    """Starts workers of the named hosts, and waits until the scheduler knows them, and at the end until it does not."""
    processes: list[subprocess.Popen] = []

    def start(*hosts: str, before: str = AT_ONCE) -> list[subprocess.Popen]:
        count = len(client.nthreads()) + len(hosts)
        options = ["--nthreads=1", "--no-dashboard", "--no-nanny", "--host=127.0.0.1", "--local-directory"]
        new = [
            subprocess.Popen(
                [sys.executable, "-c", f"{before}\n{WORKER}", address, *options, str(tmp_path / "dask")],
                env=os.environ | {"RSEQLAB_HOST": host},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for host in hosts
        ]
        processes.extend(new)
        client.wait_for_workers(count, timeout=60 * PATIENCE)
        return new

    yield start
    for process in processes:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    until(lambda: not client.nthreads(), "the scheduler forgot the workers")


def until(true, what: str) -> None:
    deadline = time.monotonic() + 60 * PATIENCE
    while not true():
        assert time.monotonic() < deadline, f"not within a minute: {what}"
        time.sleep(0.05)


def measure(client, folder, names, resume=False, deadline_s=300, show=lambda *_: None, said=None):
    """(outcome, the fleet)."""
    study = fleet.Fleet(
        client, select(names), "quick", folder, said.append if said is not None else lambda _: None
    )
    study.gather(resume)
    document = study.run(show, deadline_s)
    bundle.validate(document, "fleet", "the outcome")
    return document, study


def by_host(document, study, name):
    """What became of the host that has this name here."""
    key = fleet_key(name)
    label = next(host.label for host in study.hosts if host.key == key)
    return next(host for host in document["hosts"] if host["label"] == label)


def fleet_key(name: str) -> str:
    before = os.environ.get(remote.HOST)
    os.environ[remote.HOST] = name
    try:
        return remote.host()
    finally:
        if before is None:
            del os.environ[remote.HOST]
        else:
            os.environ[remote.HOST] = before


def keys(folder, name) -> set[tuple]:
    """Which rows there are, whatever they say."""
    with open(folder / f"{name}.csv", newline="") as file:
        return {
            (row["part"], *(row[column] for column in catalogue()[name].key)) for row in csv.DictReader(file)
        }


def test_each_host_has_a_bundle_like_a_local_one_and_measures_one_part_at_a_time(client, workers, tmp_path):
    workers("a", "a", "b")
    document, study = measure(client, tmp_path / "study", [NAME])
    assert [host["state"] for host in document["hosts"]] == ["done", "done"]
    assert {by_host(document, study, name)["workers"] for name in "ab"} == {1, 2}
    runner.run(select([NAME]), "quick", tmp_path / "local", False, lambda *_: None)
    local = Bundle(tmp_path / "local", catalogue())
    for host in study.hosts:
        found = Bundle(host.folder, catalogue())
        assert found.machine["facts"].keys() == local.machine["facts"].keys()
        assert found.run["machine"] == local.run["machine"]
        mine, other = (one.run["experiments"][NAME] for one in (local, found))
        for what in ("status", "reason", "rows", "code_digest"):
            assert other[what] == mine[what]
        assert list(other["parts"]) == list(mine["parts"])
        assert keys(host.folder, NAME) == keys(tmp_path / "local", NAME)
        text = "".join(path.read_text() for path in host.folder.iterdir())
        assert "127.0.0.1" not in text and host.key not in text and str(tmp_path) not in text
        assert len(host.intervals_ns) > 2
        ordered = sorted(host.intervals_ns)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ordered))
    assert len({host["digest"] for host in document["hosts"]}) == 2


@pytest.mark.thorough
def test_two_parts_that_two_clients_want_of_one_host_are_measured_one_after_the_other(client, workers):
    workers("a", "a")
    experiment = catalogue()["abort-cost"]
    part = experiment.plan("quick")[0]
    futures = [
        client.submit(
            remote.measure,
            json.dumps(
                {
                    "token": f"{number:032x}",
                    "topic": "rseqlab-test",
                    "module": experiment.module,
                    "code_digest": runner.code_digest(experiment),
                    "done": [],
                    "arguments": dict(part.arguments),
                    "environment": dict(part.environment),
                    "timeout_s": part.timeout_s,
                }
            ),
            workers=[worker],
            pure=False,
        )
        for number, worker in enumerate(client.nthreads())
    ]
    answers = [json.loads(one.result(timeout=60 * PATIENCE)) for one in futures]
    assert [one["status"] for one in answers] == ["pass", "pass"]
    first, second = sorted(answers, key=lambda one: one["began_ns"])
    assert first["ended_ns"] <= second["began_ns"]


def at_rows(study_folder, count, act):
    """Something to call as progress: acts once, when a host's table has so many rows on this disk."""
    done = []

    def show(label, rows, expected):
        table = study_folder / label / f"{NAME}.csv"
        if not done and table.exists() and table.read_bytes().count(b"\n") > count and act(label):
            done.append(label)

    return show


@pytest.mark.thorough
def test_a_host_that_is_killed_is_lost_with_what_it_measured_kept_and_goes_on_later(
    client, workers, tmp_path, monkeypatch
):
    monkeypatch.setattr(fleet, "PATIENCE_S", 1)
    workers("a")
    (killed,) = workers("b")
    folder, said = tmp_path / "study", []

    def kill(label):
        if json.loads((folder / fleet.NOTES / "hosts.json").read_text())[label] != fleet_key("b"):
            return False
        killed.kill()
        return True

    document, study = measure(client, folder, [NAME], show=at_rows(folder, 60, kill), said=said)
    lost, whole = by_host(document, study, "b"), by_host(document, study, "a")
    assert whole["state"] == "done" and whole["experiments"][NAME]["status"] == "pass"
    assert lost["state"] == "lost" and "no worker of it" in lost["reason"]
    assert any(lost["label"] in sentence and "lost" in sentence for sentence in said)
    place = folder / lost["label"]
    kept = Bundle(place, catalogue())  # sealed and sound, as everything that a study shows
    record = kept.run["experiments"][NAME]
    assert record["status"] == "crash" and "the host was lost" in record["reason"]
    assert 60 <= record["rows"] < whole["experiments"][NAME]["rows"]
    measured = (place / f"{NAME}.csv").read_bytes()

    workers("b")
    document, study = measure(client, folder, [NAME], resume=True)
    again = by_host(document, study, "b")
    assert again["state"] == "done" and again["folder"] == lost["folder"]
    assert (place / f"{NAME}.csv").read_bytes().startswith(measured)
    assert keys(place, NAME) == keys(folder / whole["label"], NAME)
    assert by_host(document, study, "a")["digest"] == whole["digest"]


def test_a_second_worker_of_the_host_goes_on_where_the_first_was_killed(client, workers, tmp_path):
    both = workers("a", "a")
    folder = tmp_path / "study"

    def kill(_):
        for process in both:  # the one that has a child measures
            if children(process.pid):
                process.kill()
                return True
        return False

    document, study = measure(client, folder, [NAME], show=at_rows(folder, 60, kill))
    assert sum(process.poll() is not None for process in both) == 1
    (host,) = document["hosts"]
    assert host["state"] == "done" and host["experiments"][NAME]["status"] == "pass"
    planned = sum(part.rows for part in catalogue()[NAME].plan("quick") if not part.skip)
    assert len(Bundle(study.hosts[0].folder, catalogue()).tables[NAME]) == planned


def children(pid: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children") as file:
            found += map(int, file.read().split())
    return found


@pytest.mark.thorough
def test_a_host_that_halts_is_called_a_straggler_and_given_up_at_the_deadline(
    client, workers, tmp_path, monkeypatch
):
    monkeypatch.setattr(fleet, "LATE_S", 0)
    monkeypatch.setattr(fleet, "STOP_S", 1)
    workers("a")
    (halted,) = workers("b")
    folder, said = tmp_path / "study", []

    def halt(label):
        if json.loads((folder / fleet.NOTES / "hosts.json").read_text())[label] != fleet_key("b"):
            return False
        for pid in [*children(halted.pid), halted.pid]:
            os.kill(pid, signal.SIGSTOP)
        return True

    document, study = measure(
        client, folder, [NAME], deadline_s=12 * PATIENCE, show=at_rows(folder, 30, halt), said=said
    )
    late = by_host(document, study, "b")
    assert by_host(document, study, "a")["state"] == "done"
    assert late["state"] == "given up" and late["straggled"] and "deadline" in late["reason"]
    assert any("is behind" in sentence and late["label"] in sentence for sentence in said)
    kept = Bundle(folder / late["label"], catalogue())
    assert any("deadline" in (one["reason"] or "") for one in kept.run["experiments"].values())


LYING = """
import json
from rseqlab.lab import remote
def measure(request, honest=remote.measure):
    answer = json.loads(honest(request))
    answer["rows"][-1]["{column}"] = {value}
    return json.dumps(answer)
measure.__module__, measure.__qualname__ = "rseqlab.lab.remote", "measure"
remote.measure = measure
remote.SEND_EVERY_S = 1e9
"""


def test_a_host_that_sends_what_no_bundle_takes_is_refused_and_the_other_is_not(client, workers, tmp_path):
    workers("a")
    name = "option-legacy-writer"
    text = next(column.name for column in catalogue()[name].columns if column.kind == "text")
    workers("b", before=LYING.format(column=text, value=r'"\x1b[31m"'))
    document, study = measure(client, tmp_path / "study", [name])
    assert by_host(document, study, "a")["state"] == "done"
    liar = by_host(document, study, "b")
    assert liar["state"] == "refused" and text in liar["reason"] and liar["reason"].isprintable()
    assert (
        Bundle(tmp_path / "study" / liar["label"], catalogue()).run["experiments"][name]["status"] == "fail"
    )


def test_workers_need_this_very_rseqlab(client, workers, tmp_path):
    workers("old", before="import rseqlab; rseqlab.__version__ = '0.0.9'")
    workers("none", before="import sys; sys.modules['rseqlab'] = None")
    workers("other", before="from rseqlab.lab import runner; runner.code_digest = lambda _: '0' * 16")
    study = fleet.Fleet(client, select(["option-legacy-writer"]), "quick", tmp_path / "study", print)
    with pytest.raises(LabError) as error:
        study.gather(False)
    for words in ("has rseqlab 0.0.9", "cannot load rseqlab", "is not the code here"):
        assert words in str(error.value)
    assert not (tmp_path / "study").exists()
    workers("good")
    document, _ = measure(client, tmp_path / "study", ["option-legacy-writer"])
    assert sorted(host["state"] for host in document["hosts"]) == ["done", "refused", "refused", "refused"]


def test_ctrl_c_keeps_what_was_measured_and_ends_what_runs_elsewhere(client, workers, address, tmp_path):
    (worker,) = workers("a")
    folder = tmp_path / "study"
    command = [*COMMAND, NAME, "--on", address, "--out", str(folder)]
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with stopped_when(
        process,
        lambda: any(path.read_bytes().count(b"\n") > 60 for path in folder.glob(f"*/{NAME}.csv")),
        "rows are here while the part is measured",
    ):
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60 * PATIENCE)
    assert process.returncode == 130, err
    assert json.loads(out)["kind"] == "interrupted" and "--resume" in err
    until(lambda: not children(worker.pid), "the part that ran on the host was ended")
    (table,) = folder.glob(f"*/{NAME}.csv")
    measured = table.read_bytes()
    with pytest.raises(BundleError, match="not finished"):
        Bundle(table.parent, catalogue())
    again = subprocess.run([*command, "--resume", "--json"], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    bundle.validate(json.loads(again.stdout), "fleet", "stdout")
    assert table.read_bytes().startswith(measured[: measured.rfind(b"\n") + 1])
    Bundle(table.parent, catalogue())


def test_rows_from_elsewhere_are_checked_cell_by_cell(tmp_path):
    experiment = catalogue()["abort-cost"]
    writer = Writer(tmp_path, experiment)
    good = {
        column.name: 1 if column.kind != "text" else (column.choices or ("x",))[0]
        for column in experiment.columns
    }
    number = next(column.name for column in experiment.columns if column.kind != "text")
    text = next(column.name for column in experiment.columns if column.kind == "text")
    bad = [
        [],
        {**good, "more": 1},
        {key: value for key, value in good.items() if key != number},
        {**good, number: "1"},
        {**good, number: True},
        {**good, number: float("nan")},
        {**good, number: -1},
        {**good, text: "\x1b]0;x\x07"},
        {**good, text: ["x"]},
        {**good, text: "x" * 30_000},
    ]
    before = writer.path.read_bytes()
    for row in bad:
        with pytest.raises(BundleError):
            writer.check("libc-0", row)
    assert writer.path.read_bytes() == before
    writer.check("libc-0", good)
    writer.append("libc-0", good, experiment.key)
    with pytest.raises(BundleError, match="there already"):
        writer.check("libc-0", good)
    writer.close()


def test_without_a_cluster_or_its_library_it_says_so(address, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_S", 1)
    with pytest.raises(LabError, match="does not answer or has no worker"):
        cluster.connect("tcp://127.0.0.1:9", "--on")
    with pytest.raises(LabError, match="no worker"):
        cluster.connect(address, "--on")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(LabError, match=r"rseqlab\[cluster\]"):
        cluster.connect(address, "--on")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--on", "tcp://127.0.0.1:9", "--resume"),
        ("--on", "tcp://127.0.0.1:9", "--deadline", "0"),
        ("--deadline", "9"),
    ],
)
def test_options_that_do_not_go_together(arguments):
    result = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr


def test_a_host_is_called_by_what_it_is():
    facts = {
        "arch": "x86_64",
        "cpu_model": "Intel(R) Xeon(R) <b>\x1b[0m",
        "cpus_allowed": "0-3",
        "kernel_release": "6.18.4-box7",
    }
    assert fleet.describe({"facts": facts}) == "x86_64-intel-xeon-b-0m-4cpu-linux-6.18"
