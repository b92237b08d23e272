"""The comparison with librseq: finding the reader's headers, and the loops around both sides."""

from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab.experiments import percpu_instructions, percpu_peers
from rseqlab.lab import compile, counted, librseq, probe
from rseqlab.lab.child import Child
from rseqlab.lab.experiment import measure_part

STAND_IN = Path(__file__).parent / "c" / "peer"
OLD = "enum rseq_percpu_mode { A };\nint rseq_cmpeqv_storev(void);\n"
NEW = "enum rseq_percpu_mode { A };\nint rseq_load_cbne_store__ptr(void);\n"


@pytest.fixture
def alone(monkeypatch):
    """As if nothing of librseq were installed."""
    monkeypatch.setattr(librseq, "_by_pkg_config", lambda: [])
    monkeypatch.delenv(librseq.VARIABLE, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("place", "text", "include", "names_2024"),
    [
        ("include/rseq/rseq.h", NEW, "<rseq/rseq.h>", True),
        ("include/rseq/rseq.h", OLD, "<rseq/rseq.h>", False),
        ("rseq/rseq.h", NEW, "<rseq/rseq.h>", True),
        ("tools/testing/selftests/rseq/rseq.h", OLD, '"rseq.h"', False),
        ("rseq.h", OLD, '"rseq.h"', False),
    ],
)
def test_every_published_shape_is_found_and_no_path_is_in_its_title(
    place, text, include, names_2024, alone, tmp_path
):
    header = tmp_path / place
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(text)
    alone.setenv(librseq.VARIABLE, str(tmp_path))
    found = librseq.find()
    assert (found.include, found.names_2024, found.files) == (include, names_2024, (header,))
    title = found.title
    assert librseq.missing() is None and str(tmp_path) not in title
    header.write_text(text + "\n")
    assert librseq.find().title != title


def test_headers_from_before_there_were_index_modes_are_not_taken(alone, tmp_path):
    (tmp_path / "rseq.h").write_text("int rseq_cmpeqv_storev(intptr_t *v);\n")
    alone.setenv(librseq.VARIABLE, str(tmp_path))
    assert librseq.find() is None
    assert librseq.VARIABLE in librseq.missing() and str(tmp_path) not in librseq.missing()


def test_without_headers_it_is_skipped_with_the_remedy(alone):
    if librseq.find():
        pytest.skip("librseq is installed here")
    assert any(librseq.VARIABLE in reason for reason in percpu_peers.EXPERIMENT.unmet())
    skipped = [part.skip for part in percpu_instructions.plan("quick") if part.id.endswith("librseq")]
    assert len(skipped) == 2 and all(skipped)


def test_both_sides_do_their_work_in_one_process(alone):
    require_or_skip(compile.missing() is None, "a C compiler", str(compile.missing()))
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", str(probe.kernel_refusal()))
    alone.setenv(librseq.VARIABLE, str(STAND_IN))
    arguments = {"seed": 1, "build": 1, "rounds": 1, "batch_ns": 1_000_000}
    request = {"module": percpu_peers.EXPERIMENT.module, "arguments": arguments, "done": []}
    child = Child(measure_part, request, probe.LIBC_OWNS, timeout_s=60)
    rows = list(child)
    assert child.outcome.status == "pass", child.outcome.reason
    timed = {(row["who"], row["operation"], row["bytes_copied"]) for row in rows}
    operations = {(name, copied) for name, copied in percpu_peers.OPERATIONS if name != "offset_deref_addv"}
    assert timed == {(who, *operation) for who in percpu_peers.WHO for operation in operations}
    assert len(rows) == len(timed)


@pytest.mark.parametrize("arch", counted.ARCHITECTURES)
def test_the_same_section_behind_another_interface_is_as_many_instructions(arch, alone):
    """The stand-in adds at most the widening of the index, an int in its interface: a copy, and on aarch64 a shift
    that cannot ride along with an addition any more. Copies are left out: they leave so few registers that what the
    compiler spills depends on the interface."""
    alone.setenv(librseq.VARIABLE, str(STAND_IN))
    refusal = percpu_instructions.refusal(arch, peers=True)
    require_or_skip(refusal is None, f"counting for {arch}", str(refusal))
    found = {}
    for one in counted.count(arch, percpu_instructions.program(arch, peers=True)):
        found[one.loop.who, one.loop.operation, one.loop.by, one.loop.bytes_copied] = one.instructions
    theirs = {key[1:]: value for key, value in found.items() if key[0] == "theirs"}
    assert len(theirs) == len(percpu_peers.OPERATIONS) - 1
    for key, instructions in theirs.items():
        if "memcpy" not in key[0]:
            most = 2 if arch == "aarch64" else 1
            assert 0 <= instructions - found["ours_offset_loaded", *key] <= most, key
