"""A packed run says what its folder says, is read in place, and one that a stranger made harms nobody."""

import json
import os
import stat
import subprocess
import sys
import tracemalloc
import zipfile

import pytest
import runs

from rseqlab.experiments import catalogue
from rseqlab.lab import archive, bundle, exchange, runner
from rseqlab.lab.bundle import Bundle, BundleError
from rseqlab.lab.stale import code_digest
from rseqlab.study.run import reference_runs

COMMAND = [sys.executable, "-m", "rseqlab.cli"]


@pytest.fixture
def folder(tmp_path):
    """A sound run of two experiments, as a folder."""
    return runs.cut(reference_runs()[-1], tmp_path / "small", "cpu-id-read", "option-dlopen")


@pytest.fixture
def packed(folder, tmp_path):
    """The same, packed."""
    return exchange.pack(folder, tmp_path / "small.zip", catalogue()).directory


def lab(*arguments, **environment):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=os.environ | environment
    )


def contents(path):
    files = archive.files_of(path)
    return {name: files.read(name) for name in files.names()}


def test_packing_and_unpacking_change_nothing_and_the_bytes_repeat(folder, packed, tmp_path):
    again = exchange.pack(folder, tmp_path / "again.zip", catalogue()).directory
    assert again.read_bytes() == packed.read_bytes()
    assert bundle.digest(packed) == bundle.digest(folder) and contents(packed) == contents(folder)
    back = exchange.unpack(packed, tmp_path / "back", catalogue())
    assert contents(back.directory) == contents(folder) and back.digest == bundle.digest(folder)
    assert packed.stat().st_size < sum(map(len, contents(folder).values())) / 4
    assert Bundle(packed, catalogue()).name == "small"


def test_packing_writes_over_nothing(folder, packed, tmp_path):
    with pytest.raises(BundleError, match="exists already"):
        exchange.pack(folder, packed, catalogue())
    with pytest.raises(BundleError, match="not empty"):
        exchange.unpack(packed, folder, catalogue())
    with pytest.raises(BundleError, match="a folder already"):
        exchange.unpack(folder, tmp_path / "new", catalogue())
    assert not (tmp_path / "new").exists()


def test_only_the_table_that_is_asked_for_is_read(folder, tmp_path):
    """A damaged table harms nobody who does not read it, and nobody who reads it is deceived."""
    path = folder / "cpu-id-read.csv"
    path.write_text(path.read_text().replace("throughput", "throughput ", 1))
    archive.pack(archive.files_of(folder), tmp_path / "damaged.zip")
    run = Bundle(tmp_path / "damaged.zip", catalogue())
    assert run.tables["option-dlopen"] and set(run.tables) == {"cpu-id-read", "option-dlopen"}
    with pytest.raises(BundleError, match=r"cpu-id-read\.csv: its checksum"):
        _ = run.tables["cpu-id-read"]
    with pytest.raises(BundleError, match=r"cpu-id-read\.csv: its checksum"):
        run.check()
    result = lab("bundle", "verify", tmp_path / "damaged.zip")
    assert result.returncode == 1 and result.stderr.count("\n") == 1 and "damaged" in result.stderr


def test_every_command_that_reads_a_run_reads_a_packed_one(folder, packed, tmp_path):
    def said(*arguments, **environment):
        result = lab(*arguments, "--json", **environment)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    there = said("claims", "C12", "--run", folder)
    assert said("claims", "C12", RSEQLAB_RUN=str(packed)) == there | {"origin": "chosen run"}
    for name in ("options", "evidence"):
        assert said(name, "--run", packed)["run_id"] == there["run_id"], name
    assert said("bundle", "verify", packed)["bundles"][0]["rows"] == Bundle(folder, catalogue()).rows


def test_a_packed_run_of_this_machine_is_found_among_its_runs(folder, tmp_path):
    """Where somebody packed a local run to save space, it is a local run still."""
    here = runner.machine()
    document = json.loads((folder / "run.json").read_text())
    document |= {"machine": runner.identity(here), "run_id": "20261129T000000Z-full"}
    for name, record in document["experiments"].items():
        record["code_digest"] = code_digest(catalogue()[name])
    (folder / "run.json").write_text(json.dumps(document))
    (folder / "machine.json").write_text(json.dumps(here))
    bundle.seal(folder)
    place = tmp_path / "runs" / "packed.zip"
    place.parent.mkdir()
    archive.pack(archive.files_of(folder), place)
    result = lab("claims", "C12", "--json", RSEQLAB_RUNS=str(place.parent))
    assert result.returncode == 0, result.stderr
    shown = {one["origin"]: one["run_id"] for one in json.loads(result.stdout)["runs"]}
    assert shown["local run"] == document["run_id"]


def test_the_commands_pack_and_unpack(folder, tmp_path):
    made = lab("bundle", "pack", folder, "--out", tmp_path / "one.zip", "--json")
    document = json.loads(made.stdout)
    bundle.validate(document, "pack", "stdout")
    assert document["digest"] == bundle.digest(folder)
    back = lab("bundle", "unpack", tmp_path / "one.zip", "--json")
    bundle.validate(json.loads(back.stdout), "unpack", "stdout")
    assert contents(tmp_path / "one") == contents(folder)
    again = lab("bundle", "pack", folder, "--out", tmp_path / "one.zip")
    assert again.returncode == 1 and "--out" in again.stderr


def zipped(path, members, method=zipfile.ZIP_LZMA):
    """A zip file of (name or ZipInfo, bytes)."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members:
            file.writestr(name, data, method)
    return path


def special(name, kind):
    member = zipfile.ZipInfo(name)
    member.external_attr = (kind | 0o777) << 16
    return member


def with_comment(path):
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"hello"


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([("/etc/passwd.json", b"x")], "no plain file"),
        ([("../../evil.json", b"x")], "no plain file"),
        ([("run/run.json", b"x")], "no plain file"),
        ([("run.py", b"x")], "no plain file"),
        ([("a\x1b[31m.json", b"x")], "no plain file"),
        ([(special("run.json", stat.S_IFLNK), b"/etc/passwd")], "no plain file"),
        ([(special("run.json", stat.S_IFCHR), b"")], "no plain file"),
        ([(f"t{number}.csv", b"") for number in range(archive.MOST_MEMBERS + 1)], "at most"),
        ([("run.json", b"{}")], "SHA256SUMS|required|must contain"),
        ([("machine.json", b"{}")], r"has no run\.json"),
        ([], "not a packed run|has no run"),
    ],
)
def test_what_a_stranger_made_is_refused_in_one_line(tmp_path, members, says):
    path = zipped(tmp_path / "hostile.zip", members)
    with pytest.raises(BundleError, match=says) as refusal:
        Bundle(path, catalogue())
    assert "\x1b" not in str(refusal.value) and "\n" not in str(refusal.value)
    with pytest.raises(BundleError):
        exchange.import_(path, tmp_path / "runs", catalogue())
    assert not list((tmp_path / "runs").iterdir())


def test_a_member_twice_is_refused(packed, tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(packed, "a") as file:
        file.writestr("run.json", b"{}")
    with pytest.raises(BundleError, match="twice"):
        Bundle(packed, catalogue())


def test_a_missing_member_and_one_too_many_are_refused(folder, tmp_path):
    data = contents(folder)
    for name in ("cpu-id-read.csv", "machine.json", "SHA256SUMS"):
        path = zipped(tmp_path / f"without-{name}.zip", [one for one in data.items() if one[0] != name])
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            Bundle(path, catalogue())
    path = zipped(tmp_path / "more.zip", [*data.items(), ("stray.csv", b"a\n1\n")])
    with pytest.raises(BundleError, match=r"stray\.csv: not listed"):
        Bundle(path, catalogue())


def test_what_is_cut_or_changed_or_no_zip_file_is_refused(packed, tmp_path):
    sound = packed.read_bytes()
    middle = len(sound) // 3
    broken = {
        "cut": sound[: len(sound) // 2],
        "changed": sound[:middle]
        + bytes(byte ^ 0xFF for byte in sound[middle : middle + 64])
        + sound[middle + 64 :],
        "text": b"not a run at all" * 10,
        "empty": b"",
        "end": sound[-22:],
    }
    for name, data in broken.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(data)
        with pytest.raises(BundleError) as refusal:
            Bundle(path, catalogue()).check()
        assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    with_comment(packed)
    with pytest.raises(BundleError, match="its end is missing"):
        Bundle(packed, catalogue())


def test_a_bomb_is_refused_before_it_fills_anything(tmp_path):
    """One that says how large it is, and one that lies about it: neither fills the memory."""
    honest = zipped(
        tmp_path / "honest.zip", [("run.json", bytes(archive.LARGEST_BYTES + 1))], zipfile.ZIP_DEFLATED
    )
    with pytest.raises(BundleError, match="at most"):
        Bundle(honest, catalogue())
    liar = zipped(tmp_path / "liar.zip", [("run.json", bytes(200 << 20))], zipfile.ZIP_DEFLATED)
    data = liar.read_bytes()
    size = (200 << 20).to_bytes(4, "little")
    assert data.count(size) == 2
    liar.write_bytes(data.replace(size, (1000).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        with pytest.raises(BundleError):
            Bundle(liar, catalogue())
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_packed_run_that_is_no_file_is_said_to_be_none(tmp_path):
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "folder.zip").mkdir()
    for name in ("pipe.zip", "folder.zip", "nothing.zip"):
        with pytest.raises(BundleError, match=r"Could not read|plain file"):
            Bundle(tmp_path / name, catalogue())
    assert archive.bundles_in(tmp_path) == []


def test_runs_of_a_folder_are_found_packed_or_not(folder, packed, tmp_path):
    (tmp_path / ".hidden.zip").write_bytes(b"")
    assert archive.bundles_in(tmp_path) == [folder, packed]
    study = exchange.merge([tmp_path], tmp_path / "study", catalogue())
    assert [run.digest for run in study] == [bundle.digest(folder)], "a run is in a study once"
    more = exchange.merge([reference_runs("workloads")[-1]], tmp_path / "study", catalogue())
    assert {path.name for path in (tmp_path / "study").glob("*.zip")} == {more[-1].directory.name} or len(
        more
    ) == 2
