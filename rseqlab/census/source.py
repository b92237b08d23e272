"""Bytes that can be read at any place: a file, or a member of an archive that is held in memory."""

import os


class Damaged(Exception):
    """The file contradicts itself or ends too early. The census lists it as refused, with these words."""


class FileSource:
    """An open file. Reads never go beyond the size that it had when it was opened."""

    def __init__(self, descriptor: int, size_bytes: int):
        self.descriptor = descriptor
        self.size_bytes = size_bytes

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        """At most so many bytes; fewer where the file ends."""
        if not 0 <= offset_bytes < self.size_bytes or length_bytes <= 0:
            return b""
        return os.pread(self.descriptor, min(length_bytes, self.size_bytes - offset_bytes), offset_bytes)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> int:
        return os.preadv(self.descriptor, [buffer], offset_bytes)


class MemorySource:
    """A member of an archive."""

    def __init__(self, data: bytes | bytearray):
        self.data = memoryview(data)
        self.size_bytes = len(data)

    def read(self, offset_bytes: int, length_bytes: int) -> bytes:
        if not 0 <= offset_bytes < self.size_bytes or length_bytes <= 0:
            return b""
        return bytes(self.data[offset_bytes : offset_bytes + length_bytes])

    def read_into(self, offset_bytes: int, buffer: memoryview) -> int:
        part = self.data[offset_bytes : offset_bytes + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


Source = FileSource | MemorySource
