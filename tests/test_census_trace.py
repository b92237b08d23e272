"""The trace on real kernels' tracepoints: its counts against a load's own, and what is left behind: nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab.census import trace
from rseqlab.errors import LabError
from rseqlab.lab import bundle, probe

COMMAND = [sys.executable, "-m", "rseqlab.cli", "census", "--trace"]
HOSTILE = '\x1b[1m"},\\\n[b]'  # 15 bytes at most are kept


@pytest.fixture(autouse=True)
def allowed(request):
    if "refused" not in request.node.name and "statistics" not in request.node.name:
        require_or_skip(os.geteuid() == 0, "the right to watch the kernel", "run the tests as root")
        require_or_skip(trace.obstacle() is None, "bpftrace", "install it with `make deps`")


def watchers(pid):
    """Every bpftrace below this process."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name == "bpftrace" and pid in ancestors(int(rest.split()[1])):
                found.add(int(path.parent.name))
    return found


def ancestors(pid):
    while pid > 1:
        yield pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def mounts():
    return {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}


def test_aborts_are_those_that_the_load_counts_itself():
    require_or_skip(probe.kernel_refusal() is None, "rseq", "use a kernel with CONFIG_RSEQ")
    cost, why = trace.overhead(rounds=1, batch_ns=100_000_000)
    assert why is None
    assert cost["aborts_by_load"] > 20  # else this says little
    assert cost["aborts_by_trace"] == cost["aborts_by_load"]
    assert cost["low"] <= cost["ratio"] <= cost["high"] and cost["samples"] == trace.BLOCK


def test_registrations_are_counted_by_process_and_hostile_names_are_harmless():
    code = f"""
        import ctypes, time
        libc = ctypes.CDLL(None)
        libc.prctl(15, {HOSTILE.encode()!r})
        while True:
            for _ in range(50):
                libc.syscall({334 if os.uname().machine == "x86_64" else 293}, None, 0, 0, 0)
            time.sleep(0.01)
        """
    before = mounts()
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)]) as caller:
        try:
            document, interrupted = trace.census(1, measure_overhead=False)
        finally:
            caller.kill()
    bundle.validate(document, "census-trace", "the trace")
    assert not interrupted and document["overhead_reason"]
    (row,) = [row for row in document["processes"] if row["pid"] == caller.pid and row["calls"]]
    assert row["calls"] >= 50 and row["name"] == '\\x1b[1m"},\\\\n[b]'.replace("\\\\n", "\\\\n")
    assert all(count == 0 for count in document["unlisted"].values())
    for line in trace.sentences(document):
        assert line.isprintable()
    assert mounts() == before and not watchers(os.getpid())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_however_it_ends(how):
    before = mounts()
    with subprocess.Popen([*COMMAND, "60", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as lab:
        end = time.monotonic() + 30
        while not (below := watchers(lab.pid)) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(trace.LINES_EVERY_S + 2)
        lab.send_signal(how)
        said, _ = lab.communicate(timeout=30)
    if how == signal.SIGINT:
        assert lab.returncode == 130
        found = json.loads(said)
        assert found["interrupted"] and found["elapsed_ns"] >= 1e9 * trace.LINES_EVERY_S / 2
        assert found["overhead"] is None and found["overhead_reason"]
    else:
        assert lab.returncode == -how
    end = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in below) and time.monotonic() < end:
        time.sleep(0.05)
    assert below and not any(Path(f"/proc/{pid}").exists() for pid in below)
    assert mounts() == before


def test_who_may_not_watch_is_refused_with_the_reason():
    code = """
        import os, sys
        import rseqlab.cli, rseqlab.census.trace, rseqlab.lab.bundle, rseqlab.lab.child
        from rseqlab.census import trace
        if os.geteuid() == 0:
            os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
        print(trace.obstacle())
        """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert "only root" in said.stdout, said.stderr


def test_where_nothing_can_be_measured_it_is_refused_with_every_reason(monkeypatch):
    def child(*_):
        return Silent()

    class Silent:
        outcome = trace.Child  # anything with a status
        outcome = type("Outcome", (), {"status": "pass", "reason": None})

        def __iter__(self):
            yield {"reasons": {"updates": "no tracepoint", "statistics": "no file"}}

    monkeypatch.setattr(trace, "Child", child)
    with pytest.raises(LabError, match="no file; no tracepoint"):
        trace.census(1)


def test_statistics_are_names_and_numbers():
    # The shape of kernel/rseq.c's rseq_stats_show(), Linux 7.0.
    text = "exit:               12\nsignal:              3\nslowp:               0\nfault junk\n"
    assert trace.read_statistics(text) == {"exit": 12, "signal": 3, "slowp": 0}
