"""The structures as a user of the package has them: every operation, misuse, leaks, affinity."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PATIENCE, require_or_skip

from rseqlab import host
from rseqlab.lab import probe

CHECK = Path(__file__).parent / "percpu_check.py"
START = {"libc": probe.LIBC_OWNS, "self": probe.LIBC_LEAVES}


@pytest.mark.parametrize("by", ["cpu_id", "mm_cid"])
@pytest.mark.parametrize("owner", ["libc", "self"])
def test_every_structure_does_what_it_says(owner, by):
    refusal = probe.libc_refusal() if owner == "libc" else probe.kernel_refusal()
    require_or_skip(refusal is None, f"an area of {owner}", str(refusal))
    live = (probe.thread_that_libc_may_own().get("values") or {}).get("live_bytes") or 0
    if by == "mm_cid" and live < 28:
        pytest.skip(f"the kernel keeps {live} bytes live here; mm_cid needs 28 (Linux 6.3)")
    result = subprocess.run(
        [sys.executable, str(CHECK), owner, by],
        env=os.environ | START[owner],
        capture_output=True,
        text=True,
        timeout=120 * PATIENCE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.split()[-1] == "affinity"


@pytest.mark.parametrize("by", ["cpu_id", "mm_cid"])
def test_without_a_fence_lists_are_taken_over_by_moving_or_not_at_all(by):
    refusal = probe.libc_refusal()
    require_or_skip(refusal is None, "an area of libc", str(refusal))
    live = probe.thread_that_libc_may_own()["values"]["live_bytes"]
    if by == "mm_cid" and live < 28:
        pytest.skip(f"the kernel keeps {live} bytes live here; mm_cid needs 28 (Linux 6.3)")
    command = [sys.executable, str(CHECK), "libc", by, "fence-denied"]
    result = subprocess.run(
        [sys.executable, str(CHECK.with_name("sandbox.py")), "membarrier", str(errno.EPERM), *command],
        env=os.environ | START["libc"],
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
    )
    assert (result.returncode, result.stdout) == (0, "no_fence\n"), result.stderr


def test_cpu_numbers_with_holes_get_a_slot_each(monkeypatch):
    files = {"/sys/devices/system/cpu/possible": "0,4-6,300", "/sys/devices/system/node/possible": "0,2"}
    monkeypatch.setattr(host, "read", files.__getitem__)
    assert host.possible_cpus() == 301 and host.possible_nodes() == 3
    from rseqlab import percpu

    with percpu.Counter() as counter:
        assert counter.indices == 301 and counter.peek(300) == 0
        assert counter.mapped_bytes == 301 * counter.bytes_per_index
