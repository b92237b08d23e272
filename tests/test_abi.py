"""The rules of the ABI, against what real kernels and libcs were seen to do."""

import pytest

from rseqlab import abi


@pytest.mark.parametrize(
    ("libc_size", "auxv", "live"),
    [
        (0, 28, 0),  # registration off
        (32, 0, 20),  # glibc 2.35 to 2.39, kernel before 6.3
        (32, 28, 28),  # the same libc, kernel 6.3 to 6.19
        (32, 33, 28),  # the same libc, kernel 7.x: slice_ctrl needs a registration above 32
        (20, 0, 20),  # glibc 2.40 and backports, or 2.41 on an old kernel
        (20, 28, 28),  # Debian 12's glibc on 6.3 or newer: registered 32, says 20
        (20, 33, 28),
        (28, 28, 28),  # glibc 2.41 and newer
        (33, 33, 33),
    ],
)
def test_what_libc_says_against_what_is_live(libc_size, auxv, live):
    active = abi.active_size_of_libc(libc_size, auxv)
    assert active.feature_bytes == live
    assert str(libc_size) in active.rule


@pytest.mark.parametrize(
    ("feature_bytes", "refused"), [(0, lambda n: n != 32), (28, lambda n: n < 32), (33, lambda n: n < 32)]
)
def test_lengths_as_seen_on_real_kernels(feature_bytes, refused):
    """5.10 and 6.1, 6.12, 7.3: lengths 20 to 256 by 4, and 33."""
    for length in [*range(20, 257, 4), 33]:
        assert abi.accepted_length(length, feature_bytes) is not refused(length), length


def test_fields_lie_end_to_end_from_zero():
    end = 0
    for field in abi.FIELDS:
        assert field.offset_bytes == end
        end = field.end_bytes
    assert end == 32


@pytest.mark.parametrize(
    ("length", "auxv_align", "required"), [(32, 64, 32), (32, 0, 32), (33, 64, 64), (64, 32, 32)]
)
def test_alignment(length, auxv_align, required):
    assert abi.required_alignment_bytes(length, auxv_align) == required
