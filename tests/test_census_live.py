"""The live census on real processes: what it finds, and that nobody it looks at is disturbed."""

import contextlib
import ctypes
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

from rseqlab import abi, host, native
from rseqlab.census import process
from rseqlab.lab import bundle, compile, probe

C_FILE = Path(__file__).parent / "c" / "live_target.c"
LEAVES = {"GLIBC_TUNABLES": "glibc.pthread.rseq=0"}
OWNS = {"GLIBC_TUNABLES": "glibc.pthread.rseq=1"}
HOSTILE = "\x1b[31m<b>\n[x]"
SEIZE, INTERRUPT = 0x4206, 0x4207


@contextlib.contextmanager
def target(*command, **environment):
    """A process that has said that it is ready."""
    with subprocess.Popen(
        list(map(str, command)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as one:
        try:
            assert one.stdout.readline() == "ready\n"
            yield one
        finally:
            one.kill()


def python(code, **environment):
    return target(sys.executable, "-c", textwrap.dedent(code), **environment)


def threads(count, **environment):
    return python(
        f"""
        import sys, threading, time
        for _ in range({count - 1}):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        print("ready", flush=True)
        for line in sys.stdin:
            print("here", flush=True)
        """,
        **environment,
    )


@pytest.fixture(scope="module")
def program():
    require_or_skip(compile.missing() is None, "a C compiler", "install it with `make deps`")
    signature = abi.SIGNATURES[host.arch()]
    return compile.build(
        compile.Target("live_target", (C_FILE,), ("-O1", f"-DRSEQLAB_SIGNATURE={signature:#x}"))
    )


def ask(*targets):
    found = process.census(pids=[one.pid for one in targets])
    bundle.validate(found, "census-live", "the census")
    return {one["pid"]: one for one in found["processes"]}, found["summary"]


def state(pid):
    return process._stat(pid).state


def settled(pid, wanted, seconds=5.0):
    """Whether it comes to this state; the kernel needs a moment."""
    end = time.monotonic() + seconds
    while state(pid) not in wanted and time.monotonic() < end:
        time.sleep(0.01)
    return state(pid) in wanted


def answers(one):
    one.stdin.write("there?\n")
    one.stdin.flush()
    return one.stdout.readline() == "here\n"


def free(pid):
    """No thread of it is traced or stopped."""
    places = [f"{pid}/task/{tid}" for tid in process._tasks(pid)]
    return all(process._status(one)["tracer"] == 0 and process._stat(one).state in "SRD" for one in places)


def test_owner_size_signature_and_flags_come_from_the_kernel(program):
    require_or_skip(probe.libc_refusal() is None, "a libc that registers", "use glibc 2.35 or newer")
    with (
        threads(20, **OWNS) as libc,
        target(program, "self", "own", **LEAVES) as own,
        threads(3, **LEAVES) as none,
    ):
        found, summary = ask(libc, own, none)
    usual = abi.SIGNATURES[host.arch()]
    assert len(found[libc.pid]["threads"]) == 20
    for one in found[libc.pid]["threads"]:
        assert one["owner"] == "libc" and one["size_bytes"] >= 32
        assert one["signature"] == usual and one["flags"] == 0
        assert one["offset_bytes"] == found[libc.pid]["libc"]["offset_bytes"]
    (one,) = found[own.pid]["threads"]
    assert (one["owner"], one["size_bytes"], one["signature"]) == ("self", 32, usual)
    assert [one["owner"] for one in found[none.pid]["threads"]] == ["none"] * 3
    assert found[none.pid]["libc"]["size_bytes"] == 0
    assert summary["threads_by_owner"] == {"libc": 20, "self": 1, "none": 3, "unknown": 0}
    assert summary["not_inspected"] == {} and summary["let_go_by_ending"] == 0


def test_five_hundred_threads_are_all_asked_and_go_on():
    with threads(500) as many:
        found, summary = ask(many)
        assert len(found[many.pid]["threads"]) == summary["threads"] == 500
        assert summary["stopped_max_ns"] >= summary["stopped_p50_ns"] > 0
        assert free(many.pid) and answers(many)


def test_a_stopped_process_stays_stopped_and_its_parent_hears_nothing():
    with threads(3) as one:
        one.send_signal(signal.SIGSTOP)
        assert os.waitpid(one.pid, os.WUNTRACED)[0] == one.pid
        found, _ = ask(one)
        assert [thread["was_stopped"] for thread in found[one.pid]["threads"]] == [True] * 3
        assert settled(one.pid, "T")
        time.sleep(0.05)
        assert os.waitpid(one.pid, os.WUNTRACED | os.WCONTINUED | os.WNOHANG) == (0, 0)
        assert {process._stat(f"{one.pid}/task/{tid}").state for tid in process._tasks(one.pid)} == {"T"}
        one.send_signal(signal.SIGCONT)
        assert answers(one)


def test_signals_that_come_while_it_asks_are_not_lost():
    wanted = 300
    code = f"""
        import signal, threading
        got = 0
        def count(number, frame):
            global got
            got += 1
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
        print("ready", flush=True)
        while got < {wanted}:
            signal.sigwait([signal.SIGRTMIN])
            got += 1
        print("all", flush=True)
        """
    ffi, lib = native.core()
    answer = ffi.new("struct rl_inspection *")
    with python(code) as one:
        for _ in range(wanted):  # a real-time signal is queued as often as it is sent
            os.kill(one.pid, signal.SIGRTMIN)
            assert lib.rl_inspect(one.pid, 1000, answer) == 0
        assert one.stdout.readline() == "all\n"


def test_who_is_traced_already_is_counted_and_left_alone():
    with threads(1) as one:
        tracer = f"""
            import ctypes, sys
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.ptrace({SEIZE}, {one.pid}, None, None) == 0, ctypes.get_errno()
            print("ready", flush=True)
            sys.stdin.read()
            """
        with python(tracer) as other:
            found, summary = ask(one)
            assert summary["not_inspected"] == {"already traced by another process": 1}
            assert found[one.pid]["threads"] == []
            assert process._status(one.pid)["tracer"] == other.pid
        assert answers(one)


def test_an_uninterruptible_sleep_is_counted_and_let_go_later(program):
    with target(program, "vfork", "waits") as one:
        assert settled(one.pid, "D")
        children = Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split()
        try:
            assert ask(one)[1]["not_inspected"] == {"uninterruptible sleep": 1}
            ffi, lib = native.core()
            answer = ffi.new("struct rl_inspection *")
            assert lib.rl_inspect(one.pid, 20, answer) == -110  # ETIMEDOUT: what the census avoids by looking
            assert lib.rl_let_go(one.pid) == -11
        finally:
            os.kill(int(children[0]), signal.SIGKILL)
        end = time.monotonic() + 5
        while lib.rl_let_go(one.pid) and time.monotonic() < end:
            time.sleep(0.005)
        assert settled(one.pid, "S") and free(one.pid)


def test_the_kernel_lets_go_when_the_tracer_is_killed_with_a_thread_in_its_hands():
    with threads(2) as one:
        tracer = f"""
            import ctypes, os, signal
            libc = ctypes.CDLL(None, use_errno=True)
            libc.ptrace({SEIZE}, {one.pid}, None, None)
            libc.ptrace({INTERRUPT}, {one.pid}, None, None)
            os.waitpid({one.pid}, 0x40000000)
            assert open("/proc/{one.pid}/stat").read().split()[2] == "t"
            os.kill(os.getpid(), signal.SIGKILL)
            """
        ended = subprocess.run([sys.executable, "-c", textwrap.dedent(tracer)], timeout=30)
        assert ended.returncode == -signal.SIGKILL
        assert settled(one.pid, "S") and free(one.pid) and answers(one)


@pytest.mark.parametrize("how", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.thorough)])
def test_a_census_that_is_ended_leaves_everybody_running(how):
    with threads(200) as many:
        for number in range(4):
            command = [sys.executable, "-m", "rseqlab.cli", "census", "--live", "--pid", str(many.pid)]
            with subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            ) as lab:
                end = time.monotonic() + 20
                while process._status(many.pid)["tracer"] == 0 and lab.poll() is None and number:
                    if time.monotonic() > end:
                        break
                time.sleep(0.004 * number)
                lab.send_signal(how)
                said = lab.stderr.read()
                assert lab.wait(timeout=20) in (0, 130, -how), said
            end = time.monotonic() + 5
            while not free(many.pid) and time.monotonic() < end:
                time.sleep(0.01)
            assert free(many.pid) and answers(many)


def test_another_users_process_is_counted_and_ones_own_is_asked():
    require_or_skip(os.geteuid() == 0, "the right to become another user", "run the tests as root")
    with (
        threads(1) as root,
        target(
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "sh",
            "-c",
            "echo ready; exec sleep 60",
        ) as nobody,
    ):
        assert settled(nobody.pid, "S")
        code = f"""
            import json, os
            from rseqlab.census import process
            from rseqlab import native
            native.core()
            os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)
            print(json.dumps(list(process.inspect({{"leave_out": [], "pids": [{root.pid}, {nobody.pid}]}}))))
            """
        said = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
        )
        assert said.returncode == 0, said.stderr
        rows = {row.get("pid"): row for row in json.loads(said.stdout)}
    assert rows[root.pid]["not_inspected"] == {"another user's process (EPERM)": 1}
    assert rows[root.pid]["threads"] == [] and len(rows[nobody.pid]["threads"]) == 1


def test_a_wait_that_any_stop_ends_is_counted():
    code = """
        import select
        poll = select.epoll()
        print("ready", flush=True)
        poll.poll(60)
        """
    with python(code) as one:
        assert settled(one.pid, "S")
        assert ask(one)[1]["calls_that_may_end_early"] == 1


def test_hostile_names_reach_neither_terminal_nor_document(program):
    with target(program, "none", HOSTILE) as one:
        command = [sys.executable, "-m", "rseqlab.cli", "census", "--live", "--pid", str(one.pid)]
        text = subprocess.run(command, capture_output=True, text=True, timeout=60)
        as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
    assert text.returncode == as_json.returncode == 0, text.stderr + as_json.stderr
    assert "\x1b" not in text.stdout and "\\x1b[31m<b>" in text.stdout
    (found,) = json.loads(as_json.stdout)["processes"]
    assert found["name"] == "\\x1b[31m<b>\\n[x]"


def test_a_process_that_is_not_there_is_wrong_use():
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    command = [sys.executable, "-m", "rseqlab.cli", "census", "--live", "--pid", str(ended.pid), "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2 and "no such process" in json.loads(said.stdout)["message"]


def test_what_is_gone_is_counted():
    with subprocess.Popen(["sleep", "60"]) as one:
        one.kill()
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert ask(one)[1]["not_inspected"] == {"ended, but not yet collected by its parent": 1}


def test_symbols_are_found_where_the_loader_itself_finds_them():
    ours = next(one for one in process._maps(os.getpid()) if process.LOADERS.search(one.path))
    places = process.defined(Path(ours.path).read_bytes(), ["__rseq_offset"])
    require_or_skip("__rseq_offset" in places, "a libc that exports __rseq_offset", "use glibc 2.35")
    loaded = ctypes.CDLL(None)
    assert (
        ctypes.addressof(ctypes.c_ssize_t.in_dll(loaded, "__rseq_offset"))
        == ours.start + places["__rseq_offset"]
    )
    assert process.defined(b"", ["a"]) == process.defined(b"\x7fELF\x01\x01" + bytes(64), ["a"]) == {}


def test_mapped_files_are_joined_with_the_census_of_files():
    code = """
        import sys
        from rseqlab import native
        native.core()
        print("ready", flush=True)
        sys.stdin.read()
        """
    with python(code) as one:
        command = [sys.executable, "-m", "rseqlab.cli", "census", "--live", "--json", "--pid", str(one.pid)]
        said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    classes = {Path(row["path"]).name: row["class"] for row in document["files"]}
    assert classes["_core.abi3.so"] == "own-sections"
    assert any(name.startswith("ld-") for name in classes)
    (process_row,) = document["processes"]
    assert sorted(process_row["files"]) == sorted(row["path"] for row in document["files"])
