"""What the census gives to one file at most. Beyond it a file is refused, and says at which limit."""

MAX_FILE_BYTES = 16 << 30
"""Of an ELF file; of other files only the first bytes are read."""

MAX_MEMBER_BYTES = 1 << 30
"""Of an ELF file in an archive, which is held in memory."""

MAX_UNPACKED_BYTES = 64 << 30
"""Of one archive, with all that lies in it."""

FREE_BYTES = 256 << 20
MAX_RATIO = 100
"""Unpacked to packed, beyond the first FREE_BYTES."""

MAX_MEMBERS = 2_000_000
MAX_DEPTH = 5
"""Archives in archives: a container image in a tar of images has 3."""

FILE_TIMEOUT_S = 300.0
"""For one file or archive; then its worker is killed."""

MEMORY_BYTES = 3 << 30
"""Address space of one worker."""

DOCUMENT = {
    "elf_file_bytes": MAX_FILE_BYTES,
    "member_bytes": MAX_MEMBER_BYTES,
    "unpacked_bytes": MAX_UNPACKED_BYTES,
    "ratio": MAX_RATIO,
    "ratio_free_bytes": FREE_BYTES,
    "members": MAX_MEMBERS,
    "depth": MAX_DEPTH,
    "file_timeout_s": FILE_TIMEOUT_S,
    "worker_memory_bytes": MEMORY_BYTES,
}
