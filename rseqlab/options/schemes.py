"""The seven options as data: the idea, who proposed or does it, and which layouts of the struct there are.

What an option means in C lies in options/c/scheme.h under the same name.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How one party believes the object to be: ``fields_bytes`` is the end of the last field it knows."""

    name: str
    fields_bytes: int
    bytes: int
    align_bytes: int
    about: str

    def macros(self) -> tuple[str, ...]:
        """What the C sources are told."""
        return (f"-DFIELDS={self.fields_bytes}", f"-DBYTES={self.bytes}", f"-DALIGN={self.align_bytes}")


ORIGINAL = Layout("20-in-32", 20, 32, 32, "Linux 4.18: five fields, 12 bytes spare")
SPARE_USED = Layout("28-in-32", 28, 32, 32, "Linux 6.3: node_id and mm_cid in the spare bytes")
SLICE = Layout("33-in-64", 33, 64, 64, "Linux 7.0: slice_ctrl, announced as 33 bytes, aligned to 64")
FUTURE_128 = Layout("128-in-128", 128, 128, 128, "a future struct of 128 bytes, aligned to its size")
FUTURE_256 = Layout("256-in-256", 256, 256, 256, "a future struct of 256 bytes, aligned to its size")
LAYOUTS = (ORIGINAL, SPARE_USED, SLICE, FUTURE_128, FUTURE_256)
LAYOUT = {layout.name: layout for layout in LAYOUTS}


@dataclass(frozen=True)
class Scheme:
    """One option. ``kernel`` is ``real`` where today's kernel does its part, ``played`` where none ever did."""

    id: str
    idea: str
    who: str
    source: str
    kernel: str
    symbol: bool
    """Whether its users find the area under the name of one TLS object that libc exports."""

    @property
    def macro(self) -> str:
        """The option's name in C."""
        return self.id.replace("-", "_").upper()

    @property
    def largest_bytes(self) -> int:
        """The largest object that the option can describe at all."""
        return ORIGINAL.bytes if self.id == "padding" else LAYOUTS[-1].bytes


SCHEMES = (
    Scheme(
        "private",
        "Each library registers an area of its own.",
        "practice before glibc had rseq; TCMalloc today",
        "google/tcmalloc:tcmalloc/internal/percpu.cc@fce3f55d",
        "real",
        symbol=False,
    ),
    Scheme(
        "grow-symbol",
        "The exported TLS object __rseq_abi grows in size and alignment under its old name.",
        "the question of 14 July 2020",
        "https://lore.kernel.org/r/20200714030348.6214-1-mathieu.desnoyers@efficios.com",
        "real",
        symbol=True,
    ),
    Scheme(
        "version-symbol",
        "A new symbol version names the larger object; the old version stays.",
        "usual practice of libc",
        "glibc: the Versions file of each of its parts, as csu/Versions",
        "real",
        symbol=True,
    ),
    Scheme(
        "pointer",
        "The 32 bytes stay; their last 8 point to an extended struct.",
        "the fallback of 14 July 2020",
        "https://lore.kernel.org/r/131549905.11442.1594731035989.JavaMail.zimbra@efficios.com",
        "played",
        symbol=True,
    ),
    Scheme(
        "handshake",
        "user_size and kernel_size inside the struct, agreed at registration.",
        "Mathieu Desnoyers, the RFC of 13 July 2020",
        "https://lore.kernel.org/r/20200714030348.6214-1-mathieu.desnoyers@efficios.com",
        "played",
        symbol=True,
    ),
    Scheme(
        "padding",
        "New fields go into the spare bytes of the 32.",
        "Google's virtual CPU ids; node_id and mm_cid since Linux 6.3",
        "cbae6bac29a8 and f7b01bb0b57f",
        "real",
        symbol=True,
    ),
    Scheme(
        "offset-size",
        "libc allocates and says where and how much: __rseq_offset, __rseq_size, __rseq_flags.",
        "Florian Weimer; glibc 2.35, extensible since 2.41 and Linux 6.3",
        "https://lore.kernel.org/r/87mu42bepq.fsf@oldenburg2.str.redhat.com",
        "real",
        symbol=False,
    ),
)
SCHEME = {scheme.id: scheme for scheme in SCHEMES}
