"""Every experiment: a part of it, run as a run does, gives the rows that it plans, in the columns that it states."""

import pytest
from conftest import require_or_skip

from rseqlab.experiments import abort_cost, catalogue
from rseqlab.lab import bundle, runner
from rseqlab.lab.bundle import Bundle


def one_part(experiment):
    """The experiment with the first of its parts that can be measured here; skips, saying why, where none can."""
    planned = experiment.plan("quick")
    part = next((part for part in planned if not part.skip), planned[0])
    require_or_skip(part.skip is None, f"what {experiment.name} needs", str(part.skip))
    return part, type(experiment)(**{**vars(experiment), "plan": lambda profile: [part]})


OF_THIS_MACHINE = sorted(name for name, one in catalogue().items() if one.group == "machine")
"""Those of other groups boot guests or run programs for minutes; they have tests of their own."""


COMPILES_MUCH = ("option-alignment", "option-interposition", "option-two-libraries")
"""Their test cases are executed in test_options.py as well."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.thorough if name in COMPILES_MUCH else ())
        for name in OF_THIS_MACHINE
    ],
)
def test_a_part_yields_what_it_plans(name, tmp_path):
    experiment = catalogue()[name]
    if reasons := experiment.unmet():
        pytest.skip("; ".join(reasons))
    part, smaller = one_part(experiment)
    folder = tmp_path / "run"
    document = runner.run([smaller], "quick", folder, False, lambda *progress: None)
    record = document["experiments"][name]
    assert (record["status"], record["rows"]) == ("pass", part.rows), record["reason"]
    found = Bundle(folder, {name: smaller})
    assert len(found.tables[name]) == part.rows and bundle.digest(folder)


def test_per_cpu_operations_abort_now_and_then_and_lose_nothing(tmp_path):
    """With more threads than CPUs some sections are interrupted; the work is in the data all the same."""
    from rseqlab.lab import ops

    aborts = 0
    for _ in range(20):
        row = ops.run_job("list/rseq", max(ops.thread_counts(8)), 400_000)
        assert row["done"] == row["operations"]
        aborts += row["aborts_moved"] + row["aborts_migrated"] + row["aborts_interrupted"]
        if aborts:
            return
    pytest.fail("no section was interrupted: the threads did not share a CPU")


@pytest.mark.parametrize("technique", ["counter/rseq", "counter/rseq-mm_cid", "counter/atomic-own-line"])
def test_a_storm_of_signals_loses_nothing_and_comes_to_an_end(technique):
    from rseqlab.lab import ops

    row = ops.run_job(technique, 2, 80_000_000, storm_hz=10_000)
    assert row["signals"] > 100 and row["done"] == row["operations"]


def test_threads_that_are_moved_use_other_slots():
    from rseqlab import host
    from rseqlab.lab import ops

    row = ops.run_job("counter/rseq", 1, 800_000, moves=4)
    assert row["slots_used"] == min(len(host.allowed_cpus()), 5) and row["done"] == 800_000


def test_work_that_is_not_found_fails_the_part(monkeypatch):
    from rseqlab import native
    from rseqlab.lab import ops
    from rseqlab.lab.child import Failed

    ffi, lib = native.core()

    class Losing:
        """The library, but for one operation that gets lost."""

        def __getattr__(self, name):
            return getattr(lib, name)

        def rl_ops_run(self, job, outcome):
            answer = lib.rl_ops_run(job, outcome)
            outcome.done -= 1
            return answer

    monkeypatch.setattr(native, "core", lambda: (ffi, Losing()))
    with pytest.raises(Failed, match="of 8 operations 7 were found"):
        ops.run_job("counter/rseq", 1, 8)


@pytest.mark.parametrize(
    ("event", "signals", "aborts", "sound"),
    [
        ("signal-inside", 648, 648, True),
        ("signal-inside", 647, 648, True),  # met once in a full run: preempted before it trapped
        ("signal-inside", 600, 648, False),
        ("signal-inside", 648, 647, False),
        ("signal", 648, 0, True),
        ("signal", 647, 0, False),
        ("signal-announced", 648, 1, True),
        ("other-index", 0, 648, True),
    ],
)
def test_an_abort_before_the_trap_is_no_fault_of_the_batch(event, signals, aborts, sound):
    assert abort_cost.is_what_was_asked(event, 648, signals, aborts) == sound
