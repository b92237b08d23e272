"""What the study shows of the layouts: figures and tables. Apart from the layouts' own tests, which run in guests, too."""

import pytest

from rseqlab import layout
from rseqlab.study import figures, tables


@pytest.mark.parametrize("size", [28, 33, 256])
def test_the_byte_grid_names_every_field_and_its_place(size):
    shown = figures.layouts(size)
    assert 'role="img"' in shown.svg and shown.caption in repr(shown)
    for option in layout.OPTIONS:
        room = size if option != "padding" else min(size, 28)
        for struct in layout.of_option(option, room).structs:
            rows = shown.numbers[
                shown.numbers["layout"].str.startswith(f"{option},")
                & (shown.numbers["struct"] == struct.name)
            ]
            seen = list(zip(rows["field"], rows["offset_bytes"], strict=True))
            assert seen == [(member.name, member.offset_bytes) for member in struct.members]
            for field in struct.fields:
                assert f"{field.name} at {field.offset_bytes}" in shown.description
    assert figures.layouts(size).svg == shown.svg


def test_releases_and_the_table_of_sizes_are_shown():
    assert all(f"Linux {release}" in figures.release_layouts().svg for release in layout.RELEASES)
    frame = tables.layouts().frame
    assert len(frame) == len(layout.OPTIONS) * len(layout.SIZES_BYTES)
    refused = frame[(frame["option"] == "padding") & (frame["feature_size"] > 32)]["structs"]
    assert refused.str.contains("room for 12 bytes").all()
