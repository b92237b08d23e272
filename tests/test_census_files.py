"""The census of files: every form of evidence, every container, and files that mean harm."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import census_samples as made
import pytest
from conftest import require_or_skip

from rseqlab.census import archive, files, pool, words
from rseqlab.census.elf import Elf
from rseqlab.census.evidence import CLASSES, RULES
from rseqlab.census.scan import scan
from rseqlab.census.source import FileSource, MemorySource
from rseqlab.census.text import printable
from rseqlab.lab import bundle, compile
from rseqlab.native import build

NATIVE = Path(build.__file__).with_name("_core.abi3.so")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")


def census(*paths, **options) -> dict:
    document = scan(map(str, paths), **{"workers": 1, **options})
    bundle.validate(document, "census", "the test")
    return document


def by_name(document: dict) -> dict[str, dict]:
    return {(row["member"] or row["path"]).rpartition("/")[2]: row for row in document["files"]}


@pytest.fixture(scope="module", params=made.COMPILERS)
def built(request, tmp_path_factory):
    """(machine, sample, file) of all that this linker can make."""
    machine = request.param
    require_or_skip(
        made.compiler(machine) is not None, f"a compiler for {machine}", "install it with `make deps`"
    )
    folder = tmp_path_factory.mktemp(machine)
    found = [(sample, made.build(machine, sample, folder)) for sample in made.samples(machine)]
    return machine, [(sample, path) for sample, path in found if path]


def test_each_form_of_evidence_is_found_and_nothing_else(built):
    machine, found = built
    document = census(found[0][1].parent)
    assert not document["refused"] and document["machines"] == {machine: len(found)}
    rows = by_name(document)
    for sample, path in found:
        row = rows.get(path.name)
        if sample.expected is None:
            assert row is None, row
            continue
        assert row and row["class"] == sample.expected, (sample.name, row)
        rules = {one["rule"] for one in row["evidence"]}
        assert sample.rule is None or sample.rule in rules, (sample.name, row["evidence"])
        assert row["confidence"] == RULES[row["evidence"][0]["rule"]].confidence


def test_places_point_at_what_they_say(built):
    _, found = built
    for row in census(found[0][1].parent)["files"]:
        data = Path(row["path"]).read_bytes()
        for one in row["evidence"]:
            for place in one["places"]:
                at = place["offset_bytes"]
                if one["rule"] == "word":
                    assert data[at : at + 4] == b"rseq"
                elif one["rule"] == "area-symbol-looked-up":
                    assert data[at:].startswith(place["detail"].encode() + b"\0")


def test_symbols_and_sections_are_those_that_pyelftools_finds(built):
    elftools = pytest.importorskip("elftools.elf.elffile")
    for _, path in built[1]:
        with open(path, "rb") as file:
            theirs = elftools.ELFFile(file)
            names = [one.name for one in theirs.iter_sections()]
            table = theirs.get_section_by_name(".dynsym") or next(
                (one for one in theirs.iter_segments() if one.header.p_type == "PT_DYNAMIC"), None
            )
            symbols = {one.name for one in table.iter_symbols()} if table is not None else set()
            ours = Elf(FileSource(file.fileno(), path.stat().st_size))
            assert [one.name for one in ours.sections] == names
            if ours.segments:
                assert {one.name for one in ours.dynamic_symbols(symbols - {""})} == symbols - {""}


def test_our_own_layer_has_the_sections_that_readelf_counts():
    (row,) = census(NATIVE)["files"]
    assert row["class"] == "own-sections" and row["confidence"] == "high"
    assert "rseqlab" in {one["origin"] for one in row["origins"]}
    headers = subprocess.run(["readelf", "-SW", NATIVE], capture_output=True, text=True, check=True).stdout
    size = next(line.split() for line in headers.splitlines() if " __rseq_cs " in line)
    size_bytes = int(size[size.index("PROGBITS") + 3], 16)
    counts = {one["rule"]: one["count"] for one in row["evidence"]}
    assert counts["descriptor-in-section"] == counts["descriptor-by-pointer"] == size_bytes // 32


def test_a_descriptor_without_its_signature_is_not_verified(built, tmp_path):
    machine, found = built
    path = next(path for sample, path in found if sample.name == "section.so")
    signature = made.struct.pack("<I", files.descriptors.SIGNATURES[machine])
    hurt = tmp_path / "hurt.so"
    hurt.write_bytes(path.read_bytes().replace(signature, b"\x90" * 4))
    (row,) = census(hurt)["files"]
    assert (row["class"], row["confidence"]) == ("own-sections", "low")
    assert row["evidence"][0]["rule"] == "section-unverified"


@pytest.mark.parametrize("compiled", [True, False])
def test_words_are_found_at_every_place_with_and_without_the_compiled_search(compiled):
    for machine, wanted in words.WORDS.items():
        for at in (
            0,
            1,
            2,
            3,
            60,
            61,
            62,
            63,
            64,
            words.BUFFER_BYTES - 3,
            words.BUFFER_BYTES - 1,
            3 * words.BUFFER_BYTES,
        ):
            for word in wanted:
                data = bytearray(b"." * (3 * words.BUFFER_BYTES + 40))
                data[at : at + 4] = word.value.to_bytes(4, "little")
                found = words.find(MemorySource(data), wanted, compiled).offsets
                assert found[word.name] == [at], (machine, word, at)


def test_both_searches_agree_on_a_whole_library():
    data = MemorySource(NATIVE.read_bytes())
    for wanted in words.WORDS.values():
        assert words.find(data, wanted, True) == words.find(data, wanted, False)


def test_every_container_is_read_and_nothing_is_written(tmp_path, monkeypatch):
    reason = archive.unavailable()
    require_or_skip(reason is None, "libarchive", "`make setup` says which package has it")
    members = {
        "usr/lib/own.so": NATIVE.read_bytes(),
        "usr/share/doc": b"rseq",
        "changelog.gz": b"\x1f\x8b rseq",
    }
    for name, data in made.archives(members).items():
        (tmp_path / name).write_bytes(data)
    before = sorted(tmp_path.rglob("*"))
    document = census(tmp_path)
    assert not document["refused"]
    found = {Path(row["path"]).name: row for row in document["files"]}
    assert set(found) == {path.name for path in before}
    assert {row["class"] for row in found.values()} == {"own-sections"}
    assert found["oci.tar"]["member"] == "blobs/sha256/" + "1" * 64 + "!usr/lib/own.so"
    assert found["sample.deb"]["member"] == "data.tar.xz!usr/lib/own.so"
    plain = census(NATIVE)["files"][0]
    for row in found.values():
        assert {**row, "path": "", "member": ""} == {**plain, "path": "", "member": ""}
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_for_any_number_of_workers(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.so").write_bytes(NATIVE.read_bytes()[: 150_000 if number % 3 else None])
    one, three = census(tmp_path, workers=1), census(tmp_path, workers=3)
    assert one == three and one["totals"]["files"] == 200 and one["refused"] and one["files"]


def test_what_is_no_regular_file_is_refused_and_links_are_not_followed(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "up").symlink_to("..")
    (tmp_path / "own.so").write_bytes(NATIVE.read_bytes())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        document = census(tmp_path, tmp_path / "loop", "/dev/null", tmp_path / "nowhere", tmp_path)
    reasons = {Path(row["path"]).name: row["reason"] for row in document["refused"]}
    assert set(reasons) == {"fifo", "socket", "loop", "null", "nowhere"}
    assert "ELOOP" in reasons["loop"] and "ENOENT" in reasons["nowhere"] and "fifo" in reasons["fifo"]
    assert len(document["files"]) == 1


def test_unreadable_files_and_the_kernels_own_filesystems_are_refused(tmp_path):
    assert "proc" in census("/proc/self")["refused"][0]["reason"]
    (tmp_path / "secret").write_bytes(NATIVE.read_bytes())
    (tmp_path / "secret").chmod(0)
    if os.geteuid() == 0:
        return  # root reads it all the same
    assert "EACCES" in census(tmp_path)["refused"][0]["reason"]


def hurt(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    made_of = bytearray(data)
    for at, value in changes:
        made_of[at : at + len(value)] = value
    return bytes(made_of)


MANY = b"\xff" * 8


@pytest.mark.parametrize(
    ("name", "change", "words_of_reason"),
    [
        ("cut", lambda data: data[: len(data) // 2], "it was cut"),
        ("a header", lambda data: data[:40], "ends within the ELF header"),
        ("offset", lambda data: hurt(data, (40, MANY)), "section headers end"),
        ("programs", lambda data: hurt(data, (32, MANY)), "program headers end"),
        ("count", lambda data: hurt(data, (56, b"\xff\xff")), "program headers"),
        ("entry size", lambda data: hurt(data, (54, b"\x01\x00")), "1 bytes each"),
        ("class", lambda data: hurt(data, (4, b"\x09")), "class 9"),
        ("packed", lambda data: hurt(data, (600, b"UPX!")), "packed (UPX)"),
    ],
)
def test_hostile_headers_are_refused_with_the_reason(tmp_path, name, change, words_of_reason):
    (tmp_path / name).write_bytes(change(NATIVE.read_bytes()))
    document = census(tmp_path)
    assert not document["files"] and len(document["refused"]) == 1
    assert words_of_reason in document["refused"][0]["reason"], document["refused"]


def test_sparse_and_gigantic_files_cost_neither_time_nor_memory(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(1 << 40)
    with open(tmp_path / "sparse-elf", "wb") as file:
        file.write(NATIVE.read_bytes()[:64])
        file.truncate(1 << 40)
    document = census(tmp_path, timeout_s=10)
    assert [Path(row["path"]).name for row in document["refused"]] == ["sparse-elf"]


def test_a_bomb_is_refused_at_its_limit(tmp_path):
    require_or_skip(archive.unavailable() is None, "libarchive", "`make setup` says which package has it")
    with (
        zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb,
        bomb.open("lib.so", "w") as member,
    ):
        member.write(NATIVE.read_bytes()[:64])
        for _ in range(300):
            member.write(bytes(1 << 20))
    document = census(tmp_path)
    assert not document["files"] and "unpack to" in document["refused"][0]["reason"]
    nested = NATIVE.read_bytes()
    for _ in range(8):
        nested = made.tar({"inner.tar": nested})
    (tmp_path / "bomb.zip").unlink()
    (tmp_path / "deep.tar").write_bytes(nested)
    assert "deep in one another" in census(tmp_path)["refused"][0]["reason"]


def test_a_worker_that_dies_or_hangs_costs_one_file(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(NATIVE.read_bytes())
    entry = """
import os, time
from rseqlab.census import files, worker
examine = files.examine
def hurt(path, named, report):
    if path.endswith("a"): os.kill(os.getpid(), 11)
    if path.endswith("b"): time.sleep(60)
    examine(path, named, report)
worker.examine = hurt
worker.main()
"""
    monkeypatch.setattr(pool, "ENTRY", entry)
    document = census(tmp_path, timeout_s=3)
    reasons = {Path(row["path"]).name: row["reason"] for row in document["refused"]}
    assert "SIGSEGV" in reasons["a"] and "more than 3 s" in reasons["b"]
    assert [Path(row["path"]).name for row in document["files"]] == ["c"]
    assert document["totals"]["files"] == 3


def test_a_worker_without_memory_says_so(tmp_path):
    (tmp_path / "own.so").write_bytes(NATIVE.read_bytes())
    require_or_skip(archive.unavailable() is None, "libarchive", "`make setup` says which package has it")
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as large:
        large.writestr("lib.so", NATIVE.read_bytes() + bytes(240 << 20))
    document = census(tmp_path, memory_bytes=330 << 20)
    assert [Path(row["path"]).name for row in document["files"]] == ["own.so"]
    assert "memory" in document["refused"][0]["reason"]


EVIL = "\x1b[31m<b>[bold]\n\u202egnp.so"


def test_names_reach_neither_terminal_nor_json_raw(tmp_path):
    (tmp_path / EVIL).write_bytes(NATIVE.read_bytes())
    with open(os.path.join(os.fsencode(tmp_path), b"\xff\xfe.so"), "wb") as file:
        file.write(NATIVE.read_bytes()[:100])
    command = [sys.executable, "-m", "rseqlab.cli", "census", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, timeout=60)
    assert shown.returncode == 0 and b"\x1b" not in shown.stdout and "\u202e".encode() not in shown.stdout
    assert b"\\x1b[31m<b>[bold]\\n\\u202egnp.so" in shown.stdout and rb"\xff\xfe.so" in shown.stdout
    said = subprocess.run([*command, "--json"], capture_output=True, timeout=60)
    assert said.returncode == 0 and b"\x1b" not in said.stdout
    document = json.loads(said.stdout)
    assert document["files"][0]["path"].endswith(EVIL) and document["refused"][0]["path"].endswith(
        "\\xff\\xfe.so"
    )
    assert printable("\x1b\udcff") == "\\x1b\\udcff"


def test_a_path_that_is_not_there_is_wrong_use(tmp_path):
    absent = str(tmp_path / "\x1babsent")
    command = [sys.executable, "-m", "rseqlab.cli", "census", str(tmp_path), absent, "--json"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2 and json.loads(said.stdout)["kind"] == "usage"
    assert "absent" in said.stderr and "\x1b" not in said.stderr


def test_every_class_and_rule_is_stated_in_the_document(tmp_path):
    document = census(tmp_path)
    assert [one["class"] for one in document["classes"]] == list(CLASSES)
    assert {one["rule"] for one in document["rules"]} == set(RULES) and document["limits"]


def test_some_hundred_mutants_do_no_harm():
    from fuzz_census import campaign

    require_or_skip(
        compile.missing("x86_64-linux-gnu-gcc") is None, "a compiler", "install it with `make deps`"
    )
    record = campaign(400, 11, 1, lambda text: None)
    assert record["inputs"] == 400 and record["contained"] == 0 and sum(record["outcomes"].values()) == 400


def test_precision_and_recall_are_counted_by_class_and_name_each_package_that_is_not_read():
    from rseqlab.census.known import compare, known
    from rseqlab.errors import LabError

    assert {row["expected"] for row in known()} <= {*CLASSES, "none"}
    row = {"path": "/x/a.deb", "member": "data.tar.xz!usr/lib/one.so", "class": "registers"}
    document = {"paths": ["/x/a.deb"], "files": [row]}
    expected = [
        {"package": "a.deb", "file": "one.so", "expected": "registers"},
        {"package": "a.deb", "file": "two.so", "expected": "registers"},
    ]
    found = compare(document, expected)["classes"]
    assert (found["registers"]["precision"], found["registers"]["recall"]) == (1.0, 0.5)
    assert found["none"]["precision"] == 0.0 and found["none"]["recall"] is None
    with pytest.raises(LabError, match=r"b\.deb"):
        compare(document, [*expected, {"package": "b.deb", "file": "x", "expected": "none"}])
