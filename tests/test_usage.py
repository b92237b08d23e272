"""Who uses rseq, as it is shown: figures and tables of cited rows, and the census that a run holds."""

import re
import threading

import nbformat
import pytest

from rseqlab.experiments import catalogue, usage_files, usage_live
from rseqlab.lab import runner
from rseqlab.lab.bundle import Bundle
from rseqlab.study import notebook, usage, usage_figures, usage_machine, workloads
from rseqlab.study.run import CHOSEN, SHIPPED, NotMeasured, StudyRun, open_run, reference_runs
from rseqlab.study.sources import CONTRADICTIONS, USAGE, read

MACHINE = ("usage-files", "usage-live", "usage-aborts")


@pytest.fixture(scope="module")
def shipped():
    return open_run(SHIPPED)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A real run of the three, on this machine as it is, with four threads that are certainly there."""
    folder = tmp_path_factory.mktemp("runs") / "usage"
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(4)]
    for one in threads:
        one.start()
    try:
        known = [catalogue()[name] for name in MACHINE]
        document = runner.run(known, "quick", folder, False, lambda *_: None)
    finally:
        done.set()
        for one in threads:
            one.join()
    for name, record in document["experiments"].items():
        assert record["status"] in ("pass", "skip"), (name, record["reason"])
    return open_run(folder)


def test_the_figures_have_a_description_a_text_twin_and_no_date(shipped):
    for figure in (usage_figures.over_time(), usage_figures.growth(), usage_figures.ledger(shipped)):
        assert 'role="img"' in figure.svg and "aria-label=" in figure.svg and len(figure.description) > 80
        assert "Evidence:" in figure.caption and not figure.numbers.empty
        assert not re.search(r"<dc:date>|<metadata>", figure.svg)
    assert usage_figures.over_time().svg == usage_figures.over_time().svg


def test_every_project_stands_in_the_figure_and_in_a_table():
    numbers = usage_figures.over_time().numbers
    rows = read(USAGE)
    for role in usage_figures.ROLE_LOOKS:
        of_role = [row for row in rows if row["role"] == role]
        projects = {(row["purpose"], row["project"]) for row in of_role}
        assert numbers[role].sum() == len(projects) > 0
        shown = usage.users(role)
        assert len(shown.frame) == len(of_role) and "Evidence: cited" in shown.caption
        assert all(row["source"] in set(shown.frame["source"]) for row in of_role)


def test_counts_before_and_after_are_the_first_dates():
    first = usage_figures.first_use()
    assert not first.duplicated(["project", "area"]).any()
    counted = usage_figures.before_and_after()
    assert sum(map(sum, counted.values())) == len(first)
    assert counted["libc"][0] == 0, "libc's area cannot have users before libc registers"
    said = str(usage.answer())
    assert (
        f"in libc's area work {counted['libc'][0]} of the first and {counted['libc'][1]} of the second"
        in said
    )


def test_contradictions_show_both_sides():
    shown = str(usage.contradictions().frame.to_dict("list"))
    for row in read(CONTRADICTIONS):
        assert row["one_source"] in shown and row["other_source"] in shown


def test_the_ledger_leaves_nothing_out(shipped):
    judged = usage_figures.judged(shipped)
    numbers = usage_figures.ledger(shipped).numbers
    assert int(numbers.drop(columns="kind").to_numpy().sum()) == len(judged)
    missing = usage.not_measured(shipped).frame
    assert len(missing) == sum(one.finding.verdict == "not measured" for one in judged)
    assert (missing["not measured"].str.len() > 20).all()
    assert f"Of {len(judged)} claims" in str(usage.totals(shipped))


def test_what_the_run_lacks_is_its_reason():
    without = StudyRun(Bundle(reference_runs("workloads")[-1], catalogue()), CHOSEN)
    for shown in (usage_machine.files, usage_machine.live, usage_machine.aborts):
        assert isinstance(shown(without), NotMeasured) and "Not measured" in str(shown(without))


def test_the_census_of_this_machine_counts_and_names_nobody(here):
    rows = here.table("usage-files")
    assert set(rows["outcome"]) == set(usage_files.OUTCOMES) and rows["files"].sum() > 2
    live = here.table("usage-live").set_index("outcome")
    assert set(live.index) == set(usage_live.OUTCOMES) and live["threads"].sum() >= 5
    for name in ("usage-files", "usage-live"):
        for value in here.table(name).to_numpy().ravel():
            assert "/" not in str(value), f"{name} gives a path away: {value}"
    assert "Evidence: measured" in usage_machine.files(here).caption
    assert "threads of that machine were asked about" in usage_machine.live(here).caption


def test_the_kernel_counts_the_aborts_that_a_load_counts_itself(here):
    record = here.bundle.run["experiments"]["usage-aborts"]
    if record["status"] == "skip":
        assert record["reason"]
        pytest.skip(record["reason"])
    rows = here.table("usage-aborts").set_index(["what", "event"])
    load = rows.loc[("our own load", "aborts")]
    assert load["count"] == load["by_itself"] > 0
    assert "Our own load counted" in usage_machine.aborts(here).caption


def test_the_notebook_asks_only_for_what_is_there():
    path = next(path for path in notebook.notebooks() if path.stem == "50_usage")
    modules = {
        "usage": usage,
        "usage_figures": usage_figures,
        "usage_machine": usage_machine,
        "workloads": workloads,
    }
    for cell in nbformat.read(path, as_version=4).cells:
        for module, name in re.findall(
            r"\b(usage\w*|workloads)\.(\w+)\(", cell.source if cell.cell_type == "code" else ""
        ):
            assert callable(getattr(modules[module], name)), f"{module}.{name}"
