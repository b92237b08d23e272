"""The sections under attack, and wrong sections that the same attack must find out."""

import os
import re
import signal
import subprocess
from pathlib import Path

import programs
import pytest
from conftest import PATIENCE, require_or_skip

from rseqlab import host
from rseqlab.lab import probe
from rseqlab.lab.compile import build

THREADS = (1, 2, 4, 16)
OPERATIONS = int(os.environ.get("RSEQLAB_ATTACK_OPERATIONS", 600_000))
"""Of each thread in one attack. Fewer make an attack shorter, not the test easier: it goes on to as many aborts."""
RARE = OPERATIONS // 4096 // 2
"""Half of what one thread should make of the operations that are one in 4096, drawn at random."""


@pytest.fixture(scope="module", autouse=True)
def _registration():
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", str(probe.kernel_refusal()))


def attack(program: Path, threads: int, by: str, seed: int = 1, timeout_s: float = 150 * PATIENCE):
    """How the attack ended. One that comes to no end (corrupted links may go in circles) has no zero either."""
    command = [str(program), str(threads), str(OPERATIONS), by, str(seed)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired as late:
        return subprocess.CompletedProcess(command, -signal.SIGALRM, (late.stdout or b"").decode(), "no end")


def counted(what: str, result: subprocess.CompletedProcess) -> int:
    return int(re.search(rf"^{what} (\d+)$", result.stdout, re.M)[1])


@pytest.fixture(scope="module")
def program():
    return build(programs.attack())


@pytest.mark.parametrize("by", ["cpu_id", "mm_cid"])
def test_every_invariant_holds_under_at_least_ten_thousand_aborts(program, by):
    answer = probe.thread_that_libc_may_own().get("values") or {}
    live = answer.get("live_bytes") or 0
    if by == "mm_cid" and live < 28:
        pytest.skip(f"the kernel keeps {live} bytes live here; mm_cid needs 28 (Linux 6.3)")
    causes = dict.fromkeys(("moved", "migrated", "interrupted"), 0)
    for seed in range(1, 20):
        for threads in THREADS:
            result = attack(program, threads, by, seed)
            assert result.returncode == 0, f"{threads} threads, seed {seed}: {result.stdout}{result.stderr}"
            causes = {cause: count + counted(cause, result) for cause, count in causes.items()}
            assert counted("records", result) > 10_000, "the byte ring was hardly used"
            assert counted("takeovers", result) > RARE and counted("strays", result) > RARE
        if sum(causes.values()) >= 10_000:
            if len(host.allowed_cpus()) > 1:
                assert all(causes.values()), f"no abort of some cause: {causes}"
            return
    pytest.fail(f"only {causes} aborts: the attack does not attack here")


@pytest.mark.parametrize("mutant", programs.MUTANTS)
def test_the_attack_finds_a_wrong_section(mutant):
    """With the compare or the descriptor left out, or the commit outside, an invariant breaks or it crashes."""
    program = build(programs.mutant(mutant))
    for seed in range(1, 6):
        result = attack(program, 4, "cpu_id", seed, timeout_s=20)
        if result.returncode != 0:
            assert result.returncode < 0 or "violated: " in result.stdout, result.stdout
            return
    pytest.fail("five attacks on a wrong section found nothing")


def test_injection_is_in_no_other_build():
    plain = build(programs.plain()).read_text()
    assert "rl_inject" not in plain and "__rseq_cs" in plain
