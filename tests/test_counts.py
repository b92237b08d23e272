"""The tables of counts and of the comparison with librseq, on rows with a known answer."""

import pytest
from built_runs import Rows
from conftest import require_or_skip

from rseqlab.experiments import percpu_instructions, percpu_peers
from rseqlab.lab import counted
from rseqlab.lab.experiment import Task
from rseqlab.study import counts
from rseqlab.study.run import SHIPPED, NotMeasured, open_run


def timed(**times_ns):
    """Rows of eight builds of eight rounds; every way of every operation takes its time, give or take 0.2 %."""
    return [
        {"part": f"p{process}", "build": process, "process": 0, "round": number, "who": who, "operation": operation, "bytes_copied": None,
         "ns_per_operation": ns * (1 + (process + number) % 5 / 2000), "peer": "headers"}
        for operation, ways in times_ns.items()
        for who, ns in zip(percpu_peers.WHO, ways, strict=True)
        for process in range(8)
        for number in range(8)
    ]  # fmt: skip


def test_a_verdict_beside_librseq_needs_the_whole_interval():
    run = Rows(percpu_peers=timed(addv=(1.0, 1.0, 1.0, 1.2), cmpeqv_storev=(1.0, 1.0, 1.3, 1.2)))
    frame = counts.peers(run).frame.set_index(["operation", "whose"])["verdict"]
    loaded = counts.OFFSET["ours-offset-loaded"]
    assert frame["addv", loaded] == "as fast" and frame["cmpeqv_storev", loaded] == "slower"
    sentence = counts.peers_in_a_sentence(run)
    assert sentence.startswith("Of 2 operations 1 are") and "cmpeqv_storev, 1.083" in sentence


def test_one_build_carries_no_verdict_and_the_table_says_so():
    run = Rows(percpu_peers=[row for row in timed(addv=(1.0, 1.0, 1.0, 1.2)) if row["part"] == "p0"])
    shown = counts.peers(run)
    assert set(shown.frame["verdict"]) == {"undecided"}
    for said in (shown.caption, counts.peers_in_a_sentence(run)):
        assert "No verdict: measured in one build; a verdict needs 8." in said


def test_both_architectures_stand_side_by_side_without_their_loop():
    rows = []
    for arch in counted.ARCHITECTURES:
        refusal = percpu_instructions.refusal(arch)
        require_or_skip(refusal is None, f"counting for {arch}", str(refusal))
        rows += percpu_instructions.EXPERIMENT.measure(Task({"arch": arch, "peers": False}, frozenset()))
    frame = counts.instructions(Rows(percpu_instructions=rows)).frame
    assert list(frame.columns[:5]) == [
        "operation",
        "bytes_copied",
        "whose",
        "x86_64_instructions",
        "x86_64_with_loop",
    ]
    line = frame[frame["operation"] == "thread_local_add"].iloc[0]
    assert (line["x86_64_instructions"], line["whose"]) == ("1", "no section")
    row = next(
        row
        for row in rows
        if row["arch"] == "aarch64" and row["operation"] == "addv" and row["who"] == "ours"
    )
    shown = frame[(frame["operation"] == "addv") & (frame["whose"] == counts.OFFSET["ours"])].iloc[0]
    assert float(shown["aarch64_with_loop"]) == row["instructions_per_operation"]
    assert (
        float(shown["aarch64_with_loop"]) - float(shown["aarch64_instructions"]) == row["loop_instructions"]
    )


@pytest.mark.parametrize("show", [counts.instructions, counts.peers])
def test_rows_that_are_missing_are_shown_as_not_measured(show):
    assert isinstance(show(Rows()), NotMeasured)


def test_the_sentence_without_rows_says_so():
    assert counts.peers_in_a_sentence(Rows()).startswith("Not measured")
    assert counts.peers_in_a_sentence(open_run(SHIPPED))
