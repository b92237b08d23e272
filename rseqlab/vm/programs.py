"""The guests' own programs, built for either architecture: the probe, and what is init where it is asked or counted."""

from pathlib import Path

from rseqlab import native
from rseqlab.lab import compile, counted
from rseqlab.vm.boot import GUEST_H

HERE = Path(__file__).parent / "c"
NATIVE = Path(native.__file__).parent
LOOPS = Path(__file__).parents[1] / "experiments" / "c"
"""Where the loops around critical sections lie, which are counted here too."""

OF_ARCH = {"x86_64": (), "aarch64": ("-mno-outline-atomics",)}
BARE = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fPIC",
    "-nostdlib",
)
STATIC = (
    *(
        "-std=gnu11",
        "-O2",
        "-Wall",
        "-Wextra",
        "-fno-strict-aliasing",
        "-fno-unroll-loops",
        "-static",
        "-no-pie",
    ),
    *(f"-I{HERE}", f"-I{NATIVE}", f"-I{LOOPS}"),
)

RSEQ_OFF = "GLIBC_TUNABLES=glibc.pthread.rseq=0"
"""On a guest's command line: init's own libc leaves its threads alone, so that init registers them itself."""


def missing(arch: str) -> str | None:
    """Why no guest's program can be built for this architecture, or None."""
    return compile.missing(counted.compiler(arch))


def probe(arch: str) -> Path:
    """The probe, which needs no libc: any libc's loader starts it, and its questions are bare system calls.

    It names libc.so.6 as its library, by a stand-in at build time; musl's loader takes that name for itself.
    """
    compiler = counted.compiler(arch)
    names = compile.build(
        compile.Target(
            f"libc-names-{arch}",
            (HERE / "libc_names.c",),
            ("-shared", "-nostdlib", "-Wl,-soname,libc.so.6"),
            compiler,
        )
    )
    return compile.build(
        compile.Target(
            f"probe-{arch}",
            (HERE / "probe.c",),
            (*BARE, *OF_ARCH[arch], "-pie", "-Wl,--no-as-needed", str(names)),
            compiler,
            (HERE / "bare.h",),
        )
    )


def init(name: str, arch: str) -> Path:
    """The static program ``name``.c, to be init: ``matrix``, ``plan``, ``costs`` or ``cpus``."""
    return compile.build(
        compile.Target(
            f"{name}-{arch}",
            (HERE / f"{name}.c", *(() if name in ("matrix", "plan") else (NATIVE / "rseq.c",))),
            (*STATIC, *OF_ARCH[arch], "-lpthread"),
            counted.compiler(arch),
            (GUEST_H, *sorted(NATIVE.rglob("*.h")), *sorted(LOOPS.glob("*.h"))),
        )
    )
