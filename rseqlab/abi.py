"""struct rseq by kernel release: fields, offsets, sizes, constants, each with its source.

This is the only place in Python that knows the numbers; the C side asserts the same offsets.
"""

from dataclasses import dataclass

AT_RSEQ_FEATURE_SIZE = 27
"""Aux vector: end of the last field that the kernel knows. Linux 6.3, 317c8194e6ae."""
AT_RSEQ_ALIGN = 28
"""Aux vector: alignment that an extended registration needs. Linux 6.3, 317c8194e6ae."""

ORIGINAL_FEATURE_BYTES = 20
"""End of ``flags``, the last field of Linux 4.18, d7822b1e24f2."""
ORIGINAL_SIZE_BYTES = 32
"""Length and alignment that every kernel accepts. Linux 4.18, d7822b1e24f2."""

FLAG_UNREGISTER = 1
"""RSEQ_FLAG_UNREGISTER, Linux 4.18."""
FLAG_SLICE_EXT_DEFAULT_ON = 2
"""RSEQ_FLAG_SLICE_EXT_DEFAULT_ON, Linux 7.0, d6200245c75e."""

CPU_ID_UNINITIALIZED = -1
CPU_ID_REGISTRATION_FAILED = -2

SIGNATURES = {"x86_64": 0x53053053, "aarch64": 0xD428BC00}
"""The word before each abort handler, by architecture."""


@dataclass(frozen=True)
class Field:
    """One member of struct rseq. ``since`` is the first mainline release, ``commit`` its source."""

    name: str
    offset_bytes: int
    size_bytes: int
    since: str
    commit: str
    about: str

    @property
    def end_bytes(self) -> int:
        """The feature size from which this field may be used."""
        return self.offset_bytes + self.size_bytes


FIELDS = (
    Field("cpu_id_start", 0, 4, "4.18", "d7822b1e24f2", "CPU number, valid even before registration"),
    Field("cpu_id", 4, 4, "4.18", "d7822b1e24f2", "CPU number, or why there is none"),
    Field("rseq_cs", 8, 8, "4.18", "d7822b1e24f2", "descriptor of the critical section that runs now"),
    Field("flags", 16, 4, "4.18", "d7822b1e24f2", "read-only feature state since 7.0"),
    Field("node_id", 20, 4, "6.3", "cbae6bac29a8", "NUMA node"),
    Field("mm_cid", 24, 4, "6.3", "f7b01bb0b57f", "concurrency id: dense among a process's running threads"),
    Field("slice_ctrl", 28, 4, "7.0", "d7a5da7a0f7f", "time slice extension: request and grant"),
)
FIELD = {field.name: field for field in FIELDS}


def accepted_length(length_bytes: int, feature_bytes: int) -> bool:
    """Whether the kernel's documented rule accepts this registration length.

    ``feature_bytes`` is AT_RSEQ_FEATURE_SIZE, 0 where the kernel gives none (before 6.3: 32 only).
    Source: rseq_length_valid and its predecessors in kernel/rseq.c, ee3e3ac05c26.

    >>> accepted_length(32, 33), accepted_length(28, 28), accepted_length(64, 0)
    (True, False, False)
    """
    if length_bytes == ORIGINAL_SIZE_BYTES:
        return True
    return bool(feature_bytes) and length_bytes > ORIGINAL_SIZE_BYTES and length_bytes >= feature_bytes


def required_alignment_bytes(length_bytes: int, auxv_align_bytes: int) -> int:
    """The alignment that the kernel asks of an area registered at this length (same source).

    >>> required_alignment_bytes(32, 64), required_alignment_bytes(64, 64)
    (32, 64)
    """
    if length_bytes == ORIGINAL_SIZE_BYTES or not auxv_align_bytes:
        return ORIGINAL_SIZE_BYTES
    return auxv_align_bytes


@dataclass(frozen=True)
class ActiveSize:
    """How many bytes of an area are fields that the kernel keeps live, and the rule that says so."""

    feature_bytes: int
    rule: str


def active_size_of_libc(libc_size_bytes: int, auxv_feature_bytes: int) -> ActiveSize:
    """What libc's ``__rseq_size`` means on this kernel.

    glibc 2.35 to 2.39 say 32 (what they allocated; bug 31965), 2.40 and backports say 20 whatever the
    kernel knows; both register 32 bytes, and a kernel keeps live every field that it knows and that
    lies wholly in what was registered, except ``slice_ctrl``, which needs more than 32. From 2.41 the
    value is the kernel's feature size. Sources: glibc 2e456ccf0c34, 93d0bfbe8ffa; librseq c7b4575.
    """
    kernel_bytes = auxv_feature_bytes or ORIGINAL_FEATURE_BYTES
    if libc_size_bytes == 0:
        return ActiveSize(0, "libc says 0: it did not register")
    if libc_size_bytes in (ORIGINAL_FEATURE_BYTES, ORIGINAL_SIZE_BYTES):
        active = active_size_of_registration(ORIGINAL_SIZE_BYTES, auxv_feature_bytes).feature_bytes
        meaning = (
            "which glibc 2.35 to 2.39 report for the 32 bytes that they registered"
            if libc_size_bytes == ORIGINAL_SIZE_BYTES
            else "which glibc 2.40 and backports report for the 32 bytes that they registered, "
            "and 2.41 on a kernel before 6.3"
        )
        return ActiveSize(
            active,
            f"libc says {libc_size_bytes}, {meaning}; this kernel knows {kernel_bytes}: "
            f"{active} bytes are live",
        )
    active = min(libc_size_bytes, kernel_bytes)
    return ActiveSize(
        active,
        f"libc says {libc_size_bytes}, which from glibc 2.41 is the kernel's feature size "
        f"(here {kernel_bytes}): {active} bytes are live",
    )


def active_size_of_registration(length_bytes: int, auxv_feature_bytes: int) -> ActiveSize:
    """What a registration of ``length_bytes`` keeps live on this kernel.

    >>> active_size_of_registration(32, 0).feature_bytes, active_size_of_registration(32, 28).feature_bytes
    (20, 28)
    """
    kernel_bytes = auxv_feature_bytes or ORIGINAL_FEATURE_BYTES
    if length_bytes > ORIGINAL_SIZE_BYTES:
        return ActiveSize(
            min(length_bytes, kernel_bytes), f"registered {length_bytes}, kernel knows {kernel_bytes}"
        )
    active = min(kernel_bytes, FIELD["mm_cid"].end_bytes)
    return ActiveSize(
        active,
        f"registered {length_bytes}, kernel knows {kernel_bytes}: {active} bytes are live"
        + ("; slice_ctrl needs a registration above 32" if kernel_bytes > active else ""),
    )


def layout(option: str | None = None, feature_bytes: int | None = None, release: str | None = None):
    """The struct byte by byte, by extension option or by kernel release: see :mod:`rseqlab.layout`."""
    from rseqlab.layout import layout as lay  # not above: it is made of the fields here

    return lay(option, feature_bytes, release)
