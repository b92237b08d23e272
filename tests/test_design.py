"""A reader's own struct: its layout against the compiler's, its costs, and what was computed against what happens."""

import subprocess

import pytest
from conftest import require_or_skip

from rseqlab import layout
from rseqlab.errors import UsageError
from rseqlab.lab import compile, probe
from rseqlab.options.schemes import ORIGINAL, SLICE
from rseqlab.study.design import DEFINES, REFERS, Added, Design

DESIGNS = (
    Design("4.18"),
    Design("7.0"),
    Design("6.3").add("one", 1).add("wide", 8).add("lump", 24),
    Design("7.0").add("far", 64, 64).add("tight", 8, 2).add("odd", 3, 8),
    Design("7.0").add("next", 4).announce(100),
)


def test_the_compiler_places_the_designs_fields_where_they_are_said_to_be(tmp_path):
    require_or_skip(compile.missing() is None, "cc", "install gcc")
    asserted = []
    for number, design in enumerate(DESIGNS):
        for option in layout.OPTIONS:
            try:
                structs = design.under(option).structs
            except UsageError:
                assert option == "padding" and design.announced_bytes > 32
                continue
            for place, struct in enumerate(structs):
                name = f"s{number}_{place}_{option.replace('-', '_')}"
                asserted.append(struct.c_source(name))
                asserted += [
                    f'_Static_assert(offsetof(struct {name}, {field.name}) == {field.offset_bytes}, "");'
                    for field in struct.fields
                ]
                asserted.append(f'_Static_assert(sizeof(struct {name}) == {struct.size_bytes}, "");')
                asserted.append(f'_Static_assert(_Alignof(struct {name}) == {struct.align_bytes}, "");')
    source = tmp_path / "design.c"
    source.write_text("#include <stddef.h>\n#include <stdint.h>\n" + "\n".join(asserted))
    command = ["cc", "-std=gnu11", "-Werror", "-fsyntax-only", str(source)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert said.returncode == 0, said.stderr
    assert len(asserted) > 200


def test_a_design_without_fields_is_the_release_itself():
    for release in layout.RELEASES:
        assert Design(release).struct == layout.of_release(release).structs[0]


def test_bytes_per_thread_are_those_that_libc_rounds_up_to():
    seen = [(one.announced_bytes, one.align_bytes, one.thread_bytes) for one in DESIGNS]
    assert seen == [(20, 32, 32), (33, 64, 64), (64, 64, 64), (139, 256, 256), (100, 128, 128)]
    for design in DESIGNS:
        assert design.thread_bytes == design.struct.size_bytes


def test_the_next_field_takes_the_place_of_the_reserved_byte():
    field = Design("7.0").add("next", 4).struct.fields[-1]
    assert (field.name, field.offset_bytes) == ("next", 32)


def test_traps_are_told():
    assert "bug 31965" in repr(Design("7.0").announce(33).notes()) + repr(Design("6.3").announce(32).notes())
    assert "bug 31965" not in repr(Design("7.0").notes())
    assert "hold mine here and mm_cid in Linux 6.3" in repr(Design("4.18").add("mine", 8).notes())
    assert "wide lies on 2 cache lines (bytes 60 to 67)" in repr(
        Design("6.3").add("a", 32, 4).add("wide", 8, 4).notes()
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: Added("two words", 4), "cannot be a field's name"),
        (lambda: Added("x", 0), "1 to 1024 bytes are allowed"),
        (lambda: Added("x", 4, 3), "powers of two"),
        (lambda: Design("7.0").add("mm_cid", 4), "there already"),
        (lambda: Design("5.0"), "Releases that changed it"),
        (lambda: Design("7.0").add("x", 8).announce(33), "the fields end at byte 40"),
        (lambda: Design("7.0").announce(5000), "33 to 4096 are allowed"),
        (lambda: Design("7.0").under("padding"), "room for 12 bytes"),
    ],
)
def test_what_cannot_be_is_refused_with_what_is_allowed(wrong, said):
    with pytest.raises(UsageError, match=said):
        wrong()


def test_what_is_shown_has_a_text_twin_that_says_the_same():
    design = Design("7.0").add("hint", 8)
    for text in (repr(design), design._repr_html_()):
        for word in ("hint", "slice_ctrl", "AT_RSEQ_ALIGN 64", "bytes_of_100000_threads", "grow-symbol"):
            assert word in text
    assert "nothing was executed" in repr(design.survivors())


def test_who_survives_is_computed_by_the_options_rules():
    design = Design("7.0").add("hint", 64)
    said = design.survives("grow-symbol", ORIGINAL, DEFINES)
    assert not said.works and "96 bytes smaller" in said.why
    assert design.survives("grow-symbol", ORIGINAL, REFERS).works
    assert design.survives("handshake", SLICE, DEFINES).works
    assert not design.survives("padding", ORIGINAL, REFERS).works
    assert [one.name for one in Design("6.3").old()] == ["20-in-32", "28-in-32"]


def test_what_was_computed_is_what_happens():
    """The scenes of a designed struct, executed: an early adopter's definition is overwritten, and only there."""
    require_or_skip(compile.missing() is None, "cc", "install gcc")
    require_or_skip(probe.kernel_refusal() is None, "rseq registration", f"{probe.kernel_refusal()}")
    for option in ("grow-symbol", "offset-size"):
        played = Design("4.18").add("hint", 64).play(option)
        frame = played.table.frame
        assert set(frame["agree"]) == {"yes"}, played
        assert "Each ended as the layouts say." in played.sentence()
        defined = frame[frame["consumer"] == DEFINES]["executed"]
        assert set(defined) == {"breaks, silent" if option == "grow-symbol" else "breaks, refused"}


def test_what_cannot_be_played_is_not_measured_with_the_reason():
    played = Design("7.0").add("huge", 500).play("grow-symbol")
    assert "Not measured" in repr(played) and "up to 256 bytes" in repr(played)
    assert set(played.table.frame["executed"]) == {"not measured"}
