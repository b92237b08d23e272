"""The extension options: each cell of the matrix is what really happened, and what happens to a scene is a row."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import require_or_skip

from rseqlab.errors import UsageError
from rseqlab.experiments import catalogue
from rseqlab.lab import compile, probe
from rseqlab.lab.child import Child
from rseqlab.options import matrix, parties, scenes
from rseqlab.options.criteria import CRITERIA, outcome
from rseqlab.options.parties import Consumer, Setup
from rseqlab.options.scenes import Case
from rseqlab.options.schemes import FUTURE_256, ORIGINAL, SCHEME, SCHEMES, SLICE, SPARE_USED
from rseqlab.study.matrix import Matrix
from rseqlab.study.run import SHIPPED, open_run

STRONG = ('-DDEFINES="globl"',)
LIBRARY = Consumer("one", ORIGINAL)
BY_PROGRAM = (Consumer("program", ORIGINAL, "program", STRONG), LIBRARY)


@pytest.fixture(autouse=True, scope="module")
def _machine():
    require_or_skip(compile.missing() is None, "a C compiler", "`make setup` names it")
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", str(probe.kernel_refusal()))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in probe.LIBC_LEAVES.items():
            patch.setenv(name, value)
        yield


def played(setup: Setup, criterion: str = "two-libraries") -> dict:
    return scenes.row(Case(criterion, "test", setup), None)


def test_a_grown_symbol_is_overwritten_beyond_the_programs_smaller_definition():
    row = played(Setup(SCHEME["grow-symbol"], SLICE, BY_PROGRAM))
    assert row["ended"] == "exit 0" and row["registered"] == "accepted"
    assert (row["overwritten_bytes"], row["overwritten_by"]) == (4, "provider")
    assert row["overwritten_at"] == "60 to 63 of the program's object"
    assert outcome(row).manner == "silent"


def test_the_kernel_itself_overwrites_what_lies_behind_a_definition_without_padding():
    feature_bytes = int(
        subprocess.check_output([sys.executable, "-c", "from rseqlab import rseq; print(rseq.auxv()[0])"])
    )
    require_or_skip(feature_bytes >= 28, "a kernel that has mm_cid", "use Linux 6.3 or newer")
    from rseqlab.experiments.option_interposition import UNPADDED

    program = (Consumer("program", UNPADDED, "program", STRONG), LIBRARY)
    row = played(Setup(SCHEME["padding"], SPARE_USED, program))
    assert (row["overwritten_by"], row["overwritten_at"]) == ("kernel", "24 to 27 of the program's object")


def test_nothing_is_overwritten_where_nobody_interposes_or_sizes_are_agreed():
    for setup in (
        Setup(SCHEME["grow-symbol"], SLICE, (LIBRARY,), program=ORIGINAL),
        Setup(SCHEME["handshake"], SLICE, BY_PROGRAM),
    ):
        row = played(setup)
        assert row["overwritten_bytes"] == 0 and outcome(row).good, row


def test_what_is_refused_under_another_libc_by_the_case_itself_is_still_an_outcome(tmp_path):
    for path in loaded_libc():
        shutil.copy(path, tmp_path / Path(path).name)
    setup = Setup(SCHEME["version-symbol"], ORIGINAL, (Consumer("one", SLICE),), program=SLICE)
    row = scenes.row(Case("new-consumer", "test", setup), tmp_path)
    assert "version `RSEQ_2' not found" in row["said"] and outcome(row).manner == "refused"


def test_no_stand_in_takes_a_name_that_the_real_libc_defines():
    """Of libc.so and its loader: what a stand-in defines, too, libc itself may read. (malloc is replaced on purpose.)"""

    def defined(path) -> set[str]:
        said = subprocess.run(
            ["nm", "-D", "--defined-only", str(path)], capture_output=True, text=True, check=True
        )
        return {line.split()[-1].partition("@")[0] for line in said.stdout.splitlines()}

    require_or_skip(bool(shutil.which("nm")), "nm", "install binutils")
    of_libc = set().union(*map(defined, loaded_libc()))
    assert "__rseq_offset" in of_libc or "malloc" in of_libc
    for scheme in SCHEMES:
        for layout in [one for one in (ORIGINAL, SLICE) if one.bytes <= scheme.largest_bytes]:
            linked = parties.provider(scheme, layout)
            made = [linked, parties.consumer("one", scheme, layout, linked)]
            made.append(parties.consumer("early", scheme, layout, linked, *STRONG))
            for path in made:
                assert not defined(path) & of_libc, (scheme.id, layout.name, path.name)


def loaded_libc() -> set[str]:
    """The files of this process's libc and of its loader."""
    loaded = {
        path.split()[-1]
        for path in Path("/proc/self/maps").read_text().splitlines()
        if "/libc.so.6" in path or "/ld-linux" in path
    }
    require_or_skip(len(loaded) == 2, "a glibc whose files can be found", "use a glibc system")
    return loaded


def test_which_definition_wins_follows_the_link_order_of_libraries():
    early = (Consumer("early", ORIGINAL, "linked", STRONG), LIBRARY)
    first = played(Setup(SCHEME["grow-symbol"], FUTURE_256, early))
    after = played(Setup(SCHEME["grow-symbol"], FUTURE_256, early, provider_first=True))
    assert first["overwritten_bytes"] and not after["overwritten_bytes"]


def test_a_new_library_on_an_old_libc_believes_foreign_bytes_or_is_told():
    new = (Consumer("one", SLICE),)
    assert played(Setup(SCHEME["grow-symbol"], ORIGINAL, new, program=SLICE))["wrong"] == 1
    refused = played(Setup(SCHEME["version-symbol"], ORIGINAL, new, program=SLICE))
    assert "version `RSEQ_2' not found" in refused["said"] and outcome(refused).manner == "refused"
    assert played(Setup(SCHEME["offset-size"], ORIGINAL, new, program=SLICE))["unaware"] == 1


def test_a_second_private_area_is_refused_and_known_to_be():
    row = played(Setup(SCHEME["private"], ORIGINAL, (LIBRARY, Consumer("two", SLICE))))
    assert (row["live"], row["refused"], row["wrong"]) == (1, 1, 0)


def test_words_of_the_loader_are_kept_without_this_machines_folders():
    late = Consumer("one", SLICE, "load", ('-DTLS_MODEL="initial-exec"',))
    row = played(Setup(SCHEME["private"], SLICE, (late,), fill=True))
    assert row["said"] == "libone.so: cannot allocate memory in static TLS block"
    assert not outcome(row).good


@pytest.mark.parametrize(
    ("code", "ended"),
    [
        ("*(volatile int *)0 = 1;", "SIGSEGV"),
        ("for (;;) ;", "hung"),
        ('write(1, "\\xff\\xfe who what\\n a b=c d\\n", 21);', "exit 0"),
        ("usleep(200000); for (;;) if (!memset(sbrk(1 << 20), 1, 1 << 20)) break;", "SIGSEGV"),
        ("usleep(200000); for (;;) write(1, here, 65536);", "SIGXFSZ"),
    ],
    ids=["crash", "hang", "garbage", "memory", "output"],
)
def test_what_a_program_does_is_an_outcome_not_a_failure(tmp_path, monkeypatch, code, ended):
    monkeypatch.setattr(parties, "RUN_TIMEOUT_S", 1 if ended == "hung" else 20)
    source = tmp_path / "bad.c"
    head = "#define _GNU_SOURCE\n#include <string.h>\n#include <unistd.h>\nstatic char here[65536];\n"
    source.write_text(head + "int main(void) { (void)here; " + code + " return 0; }\n")
    bad = parties.made(compile.Target("bad", (source,)))
    scene = parties.play(bad, (), {})
    assert scene.ended == ended
    monkeypatch.setattr(Setup, "play", lambda self: scene)
    row = played(Setup(SCHEME["grow-symbol"], SLICE, (LIBRARY,)))
    assert row["ended"] == ended and not outcome(row).good


def test_a_scene_that_cannot_be_built_is_not_measured_and_says_why():
    broken = Setup(SCHEME["grow-symbol"], SLICE, (LIBRARY,), provider_flags=("-DBYTES=broken",))
    row = played(broken)
    assert row["ended"] == scenes.NOT_BUILT and outcome(row).good is None and row["said"]


def test_another_libc_runs_the_same_programs_by_its_own_loader(tmp_path):
    """This machine's own, copied elsewhere: it has to give the same rows, and be what ran them."""
    for path in loaded_libc():
        shutil.copyfile(
            path, tmp_path / Path(path).name
        )  # not the permission to execute it: packages lack it, too
    setup = Setup(SCHEME["offset-size"], SLICE, (LIBRARY, Consumer("two", SLICE)))
    assert scenes.row(Case("two-libraries", "test", setup), tmp_path) == played(setup)
    (tmp_path / "libc.so.6").write_bytes(b"")
    row = scenes.row(Case("two-libraries", "test", setup), tmp_path)
    assert row["said"].endswith("libc.so.6: file too short") and row["ended"] == scenes.NOT_STARTED
    assert outcome(row).good is None and "does not start under this libc" in outcome(row).why
    with pytest.raises(UsageError, match=r"holds no dynamic loader"):
        parties.loader(tmp_path.parent / "nothing")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two of the experiments, by the command line as a reader has it."""
    folder = tmp_path_factory.mktemp("options") / "run"
    names = ("option-skew", "option-legacy-writer")
    result = rseqlab("run", *names, "--out", str(folder))
    assert result.returncode == 0, result.stderr
    return folder


def rseqlab(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "rseqlab.cli", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_the_matrix_has_a_cell_for_every_option_and_criterion(run):
    document = json.loads(rseqlab("options", "--run", str(run), "--json").stdout)
    cells = {(cell["option"], cell["criterion"]): cell for cell in document["cells"]}
    assert set(cells) == {(scheme.id, criterion.id) for scheme in SCHEMES for criterion in CRITERIA}
    for (option, criterion), cell in cells.items():
        assert cell["sentence"], (option, criterion)
        if cell["outcome"] in ("works", "breaks"):
            assert cell["rows"], (option, criterion)
        assert cell["emulated"] == cell["label"].startswith("emulated"), cell
    measured = {criterion for (_, criterion), cell in cells.items() if cell["outcome"] != "not measured"}
    assert measured == {"old-consumer", "new-consumer", "room", "kernel-today", "legacy-writer"}
    silent = cells["grow-symbol", "new-consumer"]
    assert (silent["outcome"], silent["manner"]) == ("breaks", "silent")
    assert "<table" in Matrix(open_run(run))._repr_html_()
    assert cells["handshake", "old-consumer"]["emulated"] and not cells["padding", "room"]["emulated"]


def test_a_cell_can_be_asked_for_with_its_scenes_and_a_wrong_one_is_wrong_use(run):
    told = rseqlab("options", "grow-symbol/new-consumer", "--run", str(run))
    assert told.returncode == 0 and "33-in-64, library" in told.stdout and "option-skew" in told.stdout
    wrong = rseqlab("options", "grow-symbol/nonsense", "--run", str(run))
    assert wrong.returncode == 2 and "The criteria are: old-consumer" in wrong.stderr
    missing = rseqlab("options", "--run", str(run.parent / "nothing"), "--json")
    assert missing.returncode == 1 and json.loads(missing.stdout)["kind"] == "failed"
    refused = rseqlab("run", "cpu-id-read", "--libc", str(run))
    assert refused.returncode == 2 and "option-" in refused.stderr


def test_nothing_is_left_behind(run):
    """No process of a scene, and nothing in its folder that is not part of the bundle."""
    alive = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(compile.cache_folder()).encode() in words[0]:
            alive.append(words)
    assert not alive
    assert {path.suffix for path in run.iterdir()} == {".json", ".csv", ""}
    names = {path.name for path in compile.cache_folder().glob("*-stage/*")}
    assert all(name.startswith("lib") and ".so" in name for name in names), names


def test_rows_repeat_exactly(run, tmp_path):
    again = tmp_path / "again"
    assert rseqlab("run", "option-legacy-writer", "--out", str(again)).returncode == 0
    name = "option-legacy-writer.csv"
    assert (again / name).read_text() == (run / name).read_text()


def test_without_its_table_a_cell_is_not_measured_with_the_reason():
    cells = matrix.cells({}, {"option-skew": "the compiler is missing"})
    assert all(cell.outcome == "not measured" for cell in cells)
    assert (
        next(cell for cell in cells if cell.criterion == "old-consumer").sentence == "the compiler is missing"
    )


def test_every_criterion_names_an_experiment_that_serves_it():
    known = catalogue()
    for criterion in CRITERIA:
        if not criterion.cost:
            assert criterion.experiment in known, criterion.id


def test_a_page_needs_no_table_and_the_reader_may_play_a_scene():
    from rseqlab.study import option_figures, options, playground

    reference = open_run(SHIPPED)
    for shown in (option_figures.options_matrix(reference), options.section(reference, "private")):
        assert shown._repr_html_()
    played = playground.play(option="grow-symbol")
    assert "Breaks, silent" in str(played) and "60 to 63" in str(played)
    with pytest.raises(ValueError, match="not one of"):
        playground.play(option="nonsense")


@pytest.mark.thorough
def test_the_controls_play_a_scene_where_a_reader_can_move_them():
    import nbformat
    from nbclient import NotebookClient

    cells = ("from rseqlab.study import playground\nbox = playground.controls()", "box.children[-2].click()")
    shown = "print([output['data']['text/plain'] for output in box.children[-1].outputs])"
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (*cells, shown)])
    NotebookClient(node, timeout=120).execute()
    assert "Breaks, silent" in str(node.cells[-1].outputs)


def test_a_scene_plays_in_a_child_of_its_own():
    from rseqlab.study.playground import CHOICES

    child = Child(
        scenes.play_one, {name: values[0] for name, values in CHOICES.items()}, probe.LIBC_LEAVES, 60
    )
    (row,) = list(child)
    assert child.outcome.status == "pass" and row["option"] == "private"
