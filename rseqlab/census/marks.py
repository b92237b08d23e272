"""Marks of origin: texts by which a file tells where its use of rseq comes from.

Data, not code: each mark is a string that the named project's source has, with where it stands there. A mark
says which project a file was likely built from or with; it decides no class. Whoever knows a better mark adds
a line.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    origin: str
    text: bytes
    where: str


MARKS = (
    Mark("glibc", b"GNU C Library", "the banner that libc.so.6 prints when it is executed"),
    Mark("glibc", b"Fatal glibc error: rseq registration failed", "rseq-internal.h, before glibc 2.41"),
    Mark("glibc", b"glibc.pthread.rseq", "the tunable's name, in the loader"),
    Mark("tcmalloc", b"tcmalloc_internal", "its C++ namespace, in symbols and type names"),
    Mark("tcmalloc", b"TcmallocSlab_Internal", "symbols of its critical sections"),
    Mark("tcmalloc", b"tcmalloc_slabs", "the word beside its area, percpu.h"),
    Mark("librseq", b"rseq_register_current_thread", "its public function"),
    Mark("librseq", b"rseq_available", "its public function"),
    Mark("librseq", b"rseq_mempool", "its memory pools"),
    Mark("jemalloc", b"percpu_arena", "its option"),
    Mark("stress-ng", b"stress-ng", "its own name"),
    Mark("librseq", b"librseq.so", "its soname"),
    Mark("librseq", b"compudj/librseq", "its address"),
    Mark("abseil", b"absl::", "its C++ namespace, in messages"),
    Mark("abseil", b"4absl", "the same, in symbols and type names"),
    Mark("YT library", b"yt/rseq/", "the folder of its sources"),
    Mark("Mesa", b"MESA_LOADER_DRIVER_OVERRIDE", "an environment variable that it reads"),
    Mark("Node", b"NODE_OPTIONS", "an environment variable that it reads"),
    Mark("rseqlab", b"rseqlab", "this project"),
    Mark("ClickHouse", b"ClickHouse", "its own name"),
    Mark("OpenJDK", b"JVM_GetVersionInfo", "exported by libjvm"),
    Mark("musl", b"musl libc", "the loader's banner"),
)
