"""Registration, each case in a process of its own that really is in that state."""

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import PATIENCE

SANDBOX = Path(__file__).with_name("sandbox.py")


def run(code: str, libc_owns: bool = False, deny: int | None = None, call: str = "rseq") -> str:
    """What the code prints, run where libc owns the thread or does not, or where a filter denies rseq."""
    command = [sys.executable, "-c", "from rseqlab import abi, native, rseq\n" + textwrap.dedent(code)]
    if deny is not None:
        command = [sys.executable, str(SANDBOX), call, str(deny), *command]
    environment = os.environ | {"GLIBC_TUNABLES": f"glibc.pthread.rseq={int(libc_owns)}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60 * PATIENCE)
    assert result.returncode == 0, result.stderr
    return result.stdout


REFUSED = """
    try:
        with rseq.register({}):
            print("registered")
    except rseq.RegistrationError as error:
        print(type(error).__name__, error.errno_name, error)
"""


def test_attaching_to_libcs_area_reads_it_live():
    out = run(
        """
        import os
        area = rseq.attach()
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        cpu = max(os.sched_getaffinity(0))
        assert area.cpu_id == area.cpu_id_start == cpu, (area.cpu_id, cpu)
        assert rseq.owner().owner == "libc"
        assert rseq.configuration().address == area.address
        assert area.flags == 0 or area.flags & 0x10
        print(area)
    """,
        libc_owns=True,
    )
    assert "rseq area of libc" in out


def test_every_live_field_reads_and_every_other_is_refused_with_the_reason():
    run(
        """
        area = rseq.attach()
        for field in abi.FIELDS:
            if field.end_bytes <= area.feature_bytes:
                assert area.read(field.name) >= 0
            else:
                try:
                    area.read(field.name)
                    raise SystemExit(f"{field.name} was not refused")
                except rseq.FieldUnavailable as error:
                    assert field.since in str(error) and str(area.feature_bytes) in str(error)
    """,
        libc_owns=True,
    )


def test_own_registration_by_the_kernels_geometry():
    out = run("""
        length, align = rseq.geometry()
        with rseq.register() as area:
            actual = rseq.configuration()
            assert (actual.address, actual.size_bytes) == (area.address, length)
            assert area.address % align == 0
            assert rseq.owner().owner == "self"
            assert area.cpu_id >= 0
            print(area)
        assert not area.registered and rseq.configuration().address == 0
        try:
            area.cpu_id
        except rseq.FieldUnavailable as error:
            print(error)
    """)
    assert "rseq area of self" in out and "was unregistered" in out


@pytest.mark.parametrize(
    ("arguments", "libc_owns", "expected"),
    [
        ("", True, "AlreadyRegistered EINVAL"),
        ("length_bytes=31", False, "WrongSize EINVAL"),
        ("length_bytes=0", False, "WrongSize EINVAL"),
        ("length_bytes=-1", False, "WrongSize None"),
        ("align_bytes=16", False, "WrongAlignment EINVAL"),
        ("align_bytes=0", False, "WrongAlignment None"),
        ("flags=64", False, "WrongFlags EINVAL"),
    ],
)
def test_each_refusal_has_its_type_and_says_what_is_allowed(arguments, libc_owns, expected):
    out = run(REFUSED.format(arguments), libc_owns)
    assert out.startswith(expected), out
    assert "register" in out and len(out.split()) > 10


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errno.ENOSYS, "NoSuchCall ENOSYS"),
        (errno.EPERM, "DeniedBySandbox EPERM"),
        (errno.EACCES, "DeniedBySandbox EACCES"),
    ],
)
@pytest.mark.parametrize("libc_owns", [False, True])
def test_a_sandbox_that_denies_the_call(error, expected, libc_owns):
    """With the call denied from the start, libc owns nothing either."""
    out = run("print(rseq.owner().owner)" + textwrap.dedent(REFUSED.format("")), libc_owns, deny=error)
    assert out.splitlines()[0] == "none"
    assert out.splitlines()[1].startswith(expected)


def test_same_area_twice_and_another_signature():
    out = run("""
        ffi, lib = native.core()
        with rseq.register() as area:
            pointer = ffi.cast("void *", area.address)
            for signature in (lib.rl_signature(), 1):
                answer = lib.rl_rseq(pointer, area.registered_bytes, 0, signature)
                print(type(rseq.refusal(-answer, area.address, area.registered_bytes)).__name__)
            answer = lib.rl_rseq(pointer, area.registered_bytes, abi.FLAG_UNREGISTER, 1)
            print(type(rseq.refusal(-answer, area.address, area.registered_bytes)).__name__)
        print(type(rseq.refusal(14, 0, 32)).__name__)
    """)
    assert out.split() == ["SameAreaTwice", "WrongSignature", "WrongSignature", "WrongAddress"]


def test_nesting_a_second_registration_is_refused_and_the_first_survives():
    out = run("""
        with rseq.register() as area:
            try:
                with rseq.register():
                    print("registered twice")
            except rseq.AlreadyRegistered as error:
                print(error)
            print(area.registered, rseq.owner().owner)
    """)
    assert "belongs to self" in out and out.splitlines()[-1] == "True self"


def test_leaving_in_another_thread_is_an_error_and_nothing_is_freed():
    out = run("""
        import gc, threading
        manager = rseq.register()
        area = manager.__enter__()
        caught = []
        def leave():
            try:
                manager.__exit__(None, None, None)
            except rseq.WrongThread as error:
                caught.append(str(error))
        thread = threading.Thread(target=leave)
        thread.start(); thread.join()
        address = area.address
        del manager, area
        gc.collect()
        blocks = [bytes(4096) for _ in range(1000)]
        print(caught[0])
        print(rseq.configuration().address == address, rseq.owner().owner)
    """)
    assert "another thread" in out and out.splitlines()[-1] == "True self"


def test_another_librarys_area_is_recognised():
    out = run("""
        ffi, lib = native.core()
        memory = ffi.new("char[]", 256)
        address = (int(ffi.cast("uintptr_t", memory)) + 63) // 64 * 64
        assert lib.rl_rseq(ffi.cast("void *", address), 32, 0, lib.rl_signature()) == 0
        print(rseq.owner())
        try:
            with rseq.register():
                pass
        except rseq.AlreadyRegistered as error:
            print(error)
    """)
    assert "other" in out and "belongs to other" in out


def test_a_thread_whose_libc_area_was_unregistered_is_not_taken_for_libcs():
    out = run(
        """
        ffi, lib = native.core()
        theirs = rseq.configuration()
        lib.rl_rseq(ffi.cast("void *", theirs.address), theirs.size_bytes, abi.FLAG_UNREGISTER, theirs.signature)
        print(rseq.owner())
        try:
            rseq.attach()
        except rseq.NotRegistered as error:
            print(error)
    """,
        libc_owns=True,
    )
    assert "owner='none'" in out and "register()" in out


def test_a_fork_inherits_the_registration_and_may_leave_it():
    out = run("""
        import os
        with rseq.register() as area:
            pid = os.fork()
            if pid:
                print(os.waitpid(pid, 0)[1])
            else:
                assert rseq.owner().owner == "self" and area.cpu_id >= 0
        if not pid:
            os._exit(rseq.configuration().address != 0)
    """)
    assert out.split() == ["0"]


def test_the_area_shows_itself_as_a_table_in_jupyter():
    out = run("print(rseq.attach()._repr_html_())", libc_owns=True)
    for field in ("cpu_id_start", "rseq_cs", "mm_cid", "slice_ctrl"):
        assert f"<td>{field}</td>" in out
    assert "offset_bytes" in out


def test_a_field_beyond_the_live_bytes_is_refused():
    """An original registration never offers slice_ctrl, whatever the kernel knows."""
    out = run("""
        with rseq.register(length_bytes=32, align_bytes=32) as area:
            print(area.feature_bytes, area.active.rule)
            print([row["field"] for row in area.rows() if row["value"] is None])
    """)
    live = int(out.split()[0])
    assert live in (20, 28)
    assert "slice_ctrl" in out.splitlines()[1]


@pytest.mark.parametrize("libc_owns", [False, True])
def test_without_ptrace_the_kernel_is_asked_by_registering_again(libc_owns):
    """A sandbox that denies ptrace, or a kernel before 5.13: the answers are the same."""
    code = """
        print(rseq.owner().owner, rseq.configuration().size_bytes)
        if rseq.owner().owner == "none":
            with rseq.register() as area:
                actual = rseq.configuration()
                print(actual.address == area.address, actual.size_bytes == area.registered_bytes)
        print(rseq.owner().owner)
    """
    assert run(code, libc_owns, deny=errno.EPERM, call="ptrace") == run(code, libc_owns)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("align_bytes=1 << 62", "WrongAlignment None"),
        ("flags=1 << 31", "WrongFlags None"),
        ("signature=-1", "WrongSignature None"),
    ],
)
def test_what_no_kernel_could_be_asked_is_refused_before_asking(arguments, expected):
    assert run(REFUSED.format(arguments)).startswith(expected)
