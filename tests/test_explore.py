"""What a reader picks: the same numbers as the study's own figures, refusals that say what there is, controls that work."""

import pytest
from conftest import require_or_skip

from rseqlab.errors import UsageError
from rseqlab.lab import compile, probe
from rseqlab.study import explore, figures
from rseqlab.study.playground import OnAPage
from rseqlab.study.run import SHIPPED, NotMeasured, StudyRun, open_run, reference_runs


@pytest.fixture(scope="module")
def run() -> StudyRun:
    return open_run(SHIPPED)


def test_the_chosen_figure_has_the_numbers_of_the_whole_one(run):
    whole = figures.operations(run).numbers
    chosen = explore.percpu(run, "list", ["rseq", "mutex"], [1, 2]).numbers
    assert set(chosen["technique"]) == {"list/rseq", "list/mutex"} and set(chosen["threads"]) == {"1", "2"}
    same = whole.merge(chosen, on=["technique", "threads"])
    assert len(same) == len(chosen) == 4 and (same["median_ns_x"] == same["median_ns_y"]).all()


def test_threads_that_were_not_measured_are_said_to_be_so(run):
    assert "Not measured: 3 threads." in explore.percpu(run, "lock", (), [1, 3]).caption
    missing = explore.percpu(run, "lock", (), [3])
    assert isinstance(missing, NotMeasured) and "it has 1, 2, 4, 16" in str(missing)


def test_a_wrong_name_is_answered_with_the_right_ones(run):
    with pytest.raises(UsageError, match=r"'heap'\. There are: bytes, counter, list"):
        explore.percpu(run, "heap")
    with pytest.raises(UsageError, match=r"technique of pool is called 'cas'\. There are: rseq, malloc"):
        explore.percpu(run, "pool", ["cas"])


def test_where_no_kernel_was_booted_the_controls_are_the_reason():
    alone = open_run(reference_runs()[-1])
    for shown in (explore.pick_kernels(alone), explore.kernel_answers(alone)):
        assert isinstance(shown, NotMeasured) and "kernel-matrix" in str(shown)


def test_on_a_page_nothing_stands_there_that_nobody_can_move(run, monkeypatch):
    monkeypatch.setenv("RSEQLAB_PAGE", "1")
    for shown in (explore.designer(), explore.pick_percpu(run), explore.pick_kernels(run)):
        assert isinstance(shown, OnAPage) and "make lab" in shown._repr_html_()


def text_of(place) -> str:
    """The text twins of what an output holds."""
    return "\n".join(output["data"]["text/plain"] for output in place.outputs)


def test_the_designer_designs_refuses_and_plays():
    require_or_skip(compile.missing() is None, "cc", "install gcc")
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", f"{probe.kernel_refusal()}")
    box = explore.designer()
    box.base.value = "4.18"
    box.field_bytes.value, box.field_name.value = 64, "wide"
    box.add_field.click()
    assert box.design.fields[0].name == "wide" and "wide" in text_of(box.shown)
    assert "96 bytes smaller" in text_of(box.shown) and "nothing was executed" in text_of(box.shown)
    box.add_field.click()
    assert "alert" in box.said.value and "there already" in box.said.value and len(box.design.fields) == 1
    box.announced.value = 22
    assert "allowed" in box.said.value and box.design.feature_bytes == 0
    box.play.click()
    box.player.join(60)
    assert "Each ended as the layouts say." in text_of(box.played)
    assert "breaks, silent" in text_of(box.played) and not box.play.disabled and box.stop.disabled
    box.take_field.click()
    assert not box.design.fields


def test_a_stopped_play_keeps_what_was_played_and_says_so():
    require_or_skip(compile.missing() is None, "cc", "install gcc")
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", f"{probe.kernel_refusal()}")
    from rseqlab.study.design import Design

    played = Design("4.18").add("wide", 64).play("grow-symbol", lambda done, total: done < 1)
    assert len(played.rows) == 1 and "stopped before its end" in played.sentence()
    assert list(played.table.frame["executed"]).count("not measured") == 1


def test_the_picker_draws_what_is_ticked(run):
    box = explore.pick_percpu(run)
    box.structure.value = "pool"
    assert set(box.techniques) == {"rseq", "malloc"}
    box.techniques["malloc"].value = False
    assert "pool/rseq" in text_of(box.shown) and "pool/malloc" not in text_of(box.shown)
    box.techniques["rseq"].value = False
    assert "at least one technique" in box.said.value


def test_every_control_has_a_name_for_a_screen_reader(run):
    import ipywidgets as widgets

    named = (widgets.Dropdown, widgets.Text, widgets.BoundedIntText, widgets.Button, widgets.Checkbox)
    pending, seen = [explore.designer(), explore.pick_percpu(run)], 0
    while pending:
        one = pending.pop()
        pending += getattr(one, "children", ())
        if isinstance(one, named):
            assert one.description
            seen += 1
    assert seen > 10, "the designer's and the picker's own controls were not all met"
