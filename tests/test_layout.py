"""Layouts: against the compiler's own offsets, and against what the running kernel says of itself."""

import json
import os
import platform
import subprocess
import sys

import pytest
from conftest import require_or_skip

from rseqlab import abi, layout, native, rseq
from rseqlab.errors import UsageError
from rseqlab.lab.compile import Target, build, missing
from rseqlab.lab.probe import LIBC_LEAVES, kernel_refusal


def test_every_offset_size_and_alignment_is_the_compilers(tmp_path, monkeypatch):
    """The layouts write C without a gap; the compiler places the members and says where."""
    require_or_skip(missing() is None, "cc", "install gcc")
    monkeypatch.setenv("RSEQLAB_CACHE", str(tmp_path / "cache"))
    declarations, prints, expected = [], [], []
    for found in layout.every():
        for struct in found.structs:
            name = f"s{len(declarations)}"
            declarations.append(struct.c_source(name))
            for field in struct.fields:
                member = f"struct {name}, {field.name}"
                size = f"sizeof(((struct {name} *)0)->{field.name})"
                prints.append(f'printf("%zu %zu\\n", offsetof({member}), {size});')
                expected.append(f"{field.offset_bytes} {field.size_bytes}")
            prints.append(f'printf("%zu %zu\\n", sizeof(struct {name}), _Alignof(struct {name}));')
            expected.append(f"{struct.size_bytes} {struct.align_bytes}")
    source = tmp_path / "offsets.c"
    source.write_text(
        "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n"
        + "".join(declarations)
        + "int main(void)\n{\n"
        + "\n".join(prints)
        + "\nreturn 0;\n}\n"
    )
    program = build(Target("offsets", (source,), ("-std=gnu11", "-Wall", "-Wextra", "-Werror")))
    said = subprocess.run([program], capture_output=True, text=True, timeout=30, check=True).stdout
    assert said.splitlines() == expected
    assert len(expected) > 300


def test_every_byte_is_in_exactly_one_member():
    for found in layout.every():
        for struct in found.structs:
            end = 0
            for member in struct.members:
                assert member.offset_bytes == end and member.kind in layout.KINDS
                end = member.end_bytes
            assert end == struct.size_bytes, (found.title, struct.name)


def test_the_running_kernels_feature_size_is_the_end_of_its_last_field():
    require_or_skip(native.unavailable() is None, "the compiled layer", "run `make setup`")
    found = layout.of_release(platform.release())
    feature_bytes, align_bytes = rseq.auxv()
    assert found.feature_bytes == max(field.end_bytes for field in found.structs[0].fields)
    if found.release == "4.18":
        assert (feature_bytes, align_bytes) == (0, 0)
    else:
        assert (feature_bytes, align_bytes) == (found.feature_bytes, found.structs[0].align_bytes)


WRITTEN = """
import json, sys
from rseqlab import abi, native
ffi, lib = native.core()
memory = ffi.new("unsigned char[]", 1024)
address = -(-int(ffi.cast("uintptr_t", memory)) // 256) * 256
area = ffi.cast("unsigned char *", address)
for byte in range(256):
    area[byte] = 0 if abi.FIELD["rseq_cs"].offset_bytes <= byte < abi.FIELD["flags"].end_bytes else 0xA5
before = bytes(ffi.buffer(area, 256))
answer = lib.rl_rseq(ffi.cast("void *", address), int(sys.argv[1]), 0, lib.rl_signature())
after = bytes(ffi.buffer(area, 256))
lib.rl_rseq(ffi.cast("void *", address), int(sys.argv[1]), abi.FLAG_UNREGISTER, lib.rl_signature())
print(json.dumps({"answer": answer, "changed": [n for n in range(256) if before[n] != after[n]]}))
"""


@pytest.mark.parametrize("length_bytes", [32, 64, 256])
def test_the_kernel_writes_the_fields_of_the_layout_and_nothing_else(length_bytes):
    """An area filled with a pattern, registered: which bytes the running kernel has written."""
    require_or_skip(native.unavailable() is None, "the compiled layer", "run `make setup`")
    require_or_skip(kernel_refusal() is None, "rseq registration", f"{kernel_refusal()}")
    said = subprocess.run(
        [sys.executable, "-c", WRITTEN, str(length_bytes)],
        env=os.environ | LIBC_LEAVES,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    seen, found = json.loads(said), layout.of_release(platform.release())
    if seen["answer"]:
        assert not abi.accepted_length(length_bytes, rseq.auxv()[0]), seen
        pytest.skip(f"this kernel answers {seen['answer']} to a length of {length_bytes}")
    fields = {
        field.name: set(range(field.offset_bytes, field.end_bytes)) for field in found.structs[0].fields
    }
    assert set(seen["changed"]) <= set().union(*fields.values()), seen
    for name in ("cpu_id_start", "cpu_id", "node_id", "mm_cid"):
        assert name not in fields or fields[name] <= set(seen["changed"]), (name, seen)


@pytest.mark.parametrize(
    ("kernel", "release", "feature_bytes", "align_bytes"),
    [
        ("5.10.0-38-cloud-amd64", "4.18", 20, 32),
        ("6.1.0-40-cloud-arm64", "4.18", 20, 32),
        ("6.12.57+deb13-cloud-amd64", "6.3", 28, 32),
        ("7.3", "7.0", 33, 64),
    ],
)
def test_kernels_that_were_seen_say_what_the_layout_says(kernel, release, feature_bytes, align_bytes):
    found = layout.of_release(kernel)
    assert (found.release, found.feature_bytes) == (release, feature_bytes)
    assert found.structs[0].align_bytes == align_bytes


def test_a_grown_struct_is_the_releases_own():
    for release in layout.RELEASES[1:]:
        of_release = layout.of_release(release)
        grown = layout.of_option("offset-size", of_release.feature_bytes)
        assert grown.structs[0].members == of_release.structs[0].members
    assert [field.offset_bytes for field in abi.FIELDS] == [
        member.offset_bytes
        for member in layout.of_release("7.0").structs[0].fields
        if member.name != "reserved"
    ]


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: layout.of_option("padding", 33), "12 bytes"),
        (lambda: layout.of_option("overlay"), "offset-size"),
        (lambda: layout.of_option("pointer", 5), "4096"),
        (lambda: layout.of_release("4.9"), "4.18"),
        (lambda: layout.layout(), "one of the two"),
        (lambda: layout.layout("pointer", release="7.0"), "one of the two"),
    ],
)
def test_what_cannot_be_is_answered_with_what_can(ask, said):
    with pytest.raises(UsageError, match=said):
        ask()


@pytest.mark.parametrize("found", layout.every(), ids=lambda found: found.title)
def test_the_text_fits_a_mail_and_the_html_says_the_same(found):
    text, page = repr(found), found._repr_html_()
    assert text.isascii() and max(map(len, text.splitlines())) <= 75, text
    for struct in found.structs:
        assert struct.heading in text and struct.heading in page
        for field in struct.fields:
            assert field.name in text and f"<td>{field.name}</td>" in page
