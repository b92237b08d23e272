"""Runs between machines: an archive says the same everywhere, and one that a stranger made harms nobody."""

import gzip
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import runs

from rseqlab.experiments import catalogue
from rseqlab.lab import archive, bundle, exchange
from rseqlab.lab.bundle import Bundle, BundleError
from rseqlab.study.run import reference_runs

COMMAND = [sys.executable, "-m", "rseqlab.cli", "bundle"]


@pytest.fixture
def small(tmp_path):
    """A sound run of one experiment, cut out of the shipped one."""
    return runs.cut(reference_runs()[-1], tmp_path / "small", "cpu-id-read")


def packed(path, members, prefix="run/"):
    """An archive of (name or TarInfo, bytes)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members:
            member = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def contents(folder):
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


def test_there_and_back_nothing_changes_and_the_bytes_repeat(small, tmp_path):
    one = exchange.export(small, tmp_path / "one.zip", catalogue())
    two = exchange.export(small, tmp_path / "two.zip", catalogue())
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.digest == bundle.digest(small) and not one.redacted
    place, run, new = exchange.import_(one.path, tmp_path / "runs", catalogue())
    assert new and run.digest == one.digest and contents(place) == contents(small)
    assert exchange.import_(two.path, tmp_path / "runs", catalogue())[2] is False


def test_private_words_do_not_leave(small, tmp_path):
    text = (small / "machine.json").read_text()
    document = json.loads(text)
    document["facts"]["cpu_model"] = f"chip of {os.path.expanduser('~')}/x in /home/somebody/y"
    (small / "machine.json").write_text(json.dumps(document))
    bundle.seal(small)
    made = exchange.export(small, tmp_path / "out.zip", catalogue())
    assert made.redacted == ("machine.json",) and made.digest != bundle.digest(small)
    files = archive.files_of(made.path)
    everything = b"".join(map(files.read, files.names()))
    assert b"somebody" not in everything and os.path.expanduser("~").encode() + b"/x" not in everything
    if len(platform.node()) > 3:
        assert f" {platform.node()} ".encode() not in everything


def special(name, kind, link=""):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([(tarfile.TarInfo("/etc/passwd"), b"x")], "no plain file"),
        ([(tarfile.TarInfo("run/../../evil.json"), b"x")], "no plain file"),
        ([(tarfile.TarInfo("../run.json"), b"x")], "no plain file"),
        ([("sub/run.json", b"x")], "no plain file"),
        ([("run.py", b"x")], "no plain file"),
        ([("a\x1b[31m.json", b"x")], "no plain file"),
        ([(special("run/run.json", tarfile.SYMTYPE, "/etc/passwd"), b"")], "no plain file"),
        ([(special("run/run.json", tarfile.LNKTYPE, "run/machine.json"), b"")], "no plain file"),
        ([(special("run/run.json", tarfile.CHRTYPE), b"")], "no plain file"),
        ([(special("run/run.json", tarfile.FIFOTYPE), b"")], "no plain file"),
        ([("run.json", b"{}"), ("run.json", b"{}")], "two files of one name"),
        ([(f"t{number}.csv", b"") for number in range(exchange.MOST_MEMBERS + 1)], "more than"),
        ([("run.json", b"{}")], "run.json"),
        ([], "No such file"),
    ],
)
def test_what_a_stranger_made_is_refused_and_leaves_nothing(tmp_path, members, says):
    hostile = packed(tmp_path / "hostile.tar.gz", members)
    with pytest.raises(BundleError) as refusal:
        exchange.import_(hostile, tmp_path / "runs", catalogue())
    assert says in str(refusal.value) and "\x1b" not in str(refusal.value)
    assert not list((tmp_path / "runs").iterdir())


def test_a_changed_number_a_cut_archive_and_other_files_are_refused(small, tmp_path):
    sound = exchange.export(small, tmp_path / "sound.zip", catalogue()).path.read_bytes()
    changed = [
        (name, data.replace(b"0.", b"1.") if name.endswith(".csv") else data)
        for name, data in contents(small)
    ]
    for name, data in {"cut": sound[: len(sound) // 2], "text": b"not an archive", "empty": b""}.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(BundleError, match=r"not an archive|No such file|run\.json"):
            exchange.import_(path, tmp_path / "runs", catalogue())
    with pytest.raises(BundleError, match="damaged"):
        exchange.import_(packed(tmp_path / "changed", changed), tmp_path / "runs", catalogue())
    assert not list((tmp_path / "runs").iterdir())


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:  # a header that claims 100 GB, and no end of zeros
        member = tarfile.TarInfo("run/run.json")
        member.size = 100 << 30
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        for _ in range(2 * exchange.LARGEST_UNPACKED_BYTES >> 20):
            file.write(bytes(1 << 20))
    with pytest.raises(BundleError, match="when unpacked"):
        exchange.import_(path, tmp_path / "runs", catalogue())
    assert not list((tmp_path / "runs").iterdir())


def test_a_study_holds_each_run_once_and_takes_more(small, tmp_path):
    shipped = reference_runs()[-1]
    study = tmp_path / "study"
    assert len(exchange.merge([small, shipped, small], study, catalogue())) == 2
    assert len(exchange.merge([study, small], study, catalogue())) == 2
    assert {run.digest for run in map(lambda path: Bundle(path, catalogue()), exchange.members(study))} == {
        bundle.digest(small),
        bundle.digest(shipped),
    }
    with pytest.raises(BundleError, match="no run and no study"):
        exchange.merge([tmp_path / "runs"], study, catalogue())


@pytest.mark.thorough
def test_the_commands_say_what_they_did(small, tmp_path):
    def said(*arguments, code=0):
        result = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"RSEQLAB_RUNS": str(tmp_path / "runs")},
            cwd=tmp_path,
        )
        assert result.returncode == code, result.stderr
        return json.loads(result.stdout)

    made = said("export", small, "--json")
    bundle.validate(made, "export", "stdout")
    assert said("export", small, "--json", code=1)["kind"] == "failed"  # never over what is there
    found = said("import", made["path"], "--json")
    bundle.validate(found, "import", "stdout")
    assert found["bundles"][0]["new"] and Path(found["bundles"][0]["folder"]).is_dir()
    merged = said("merge", small, "--out", "study", "--json")
    bundle.validate(merged, "merge", "stdout")
    assert said("import", "nothing.tar.gz", "--json", code=1)["message"].startswith("nothing.tar.gz")
    assert said("merge", small, "--json", code=2)["kind"] == "usage"
