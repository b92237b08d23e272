"""Build-time only: the cffi extensions, as setup.py hands them to setuptools.

Two extensions, because a loader may refuse the initial-exec TLS of the second (see own_tls.h).
"""

import os
import re
import shlex
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COMPILE_FLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-fno-strict-aliasing"]

CORE_SOURCES = (
    "rseq.c",
    "machine.c",
    "inspect.c",
    "cpu_id.c",
    "percpu.c",
    "percpu_calls.c",
    "ops.c",
    "techniques.c",
    "abort.c",
    "takeover.c",
    "find.c",
)
OWN_TLS_SOURCES = ("own_tls.c",)
MODULES = {
    "_core": ("rseqlab.h", "core.cdef.h", CORE_SOURCES),
    "_own_tls": ("own_tls.h", "own_tls.cdef.h", OWN_TLS_SOURCES),
}
"""By the extension's name: the header that it includes, what Python sees of it, and the C files."""
LIBRARIES = ["dl", "pthread"]


def described(name, **how):
    """cffi's description of one of the extensions; ``how`` it is compiled is setuptools' matter."""
    header, cdef, _ = MODULES[name]
    ffi = FFI()
    ffi.cdef((HERE / cdef).read_text())
    ffi.set_source(f"rseqlab.native.{name}", f'#include "{header}"\n', **how)
    return ffi


MATTERS = re.compile(r"-(O\w*|m[\w=,.+-]+|std=\S+|f(?!\w+-prefix-map)[\w=,.+-]+)")
"""A flag that says something about the code. A path of the machine that built it is none."""


def flags_that_matter():
    """What the compiler is given: by the Python that builds, by the environment, and by this project."""
    given = [sysconfig.get_config_var("CFLAGS") or "", os.environ.get("CFLAGS", "")]
    words = [*shlex.split(" ".join(given)), *COMPILE_FLAGS]
    return [word for word in words if MATTERS.fullmatch(word)]


def _extension(name):
    ffi = described(
        name,
        sources=[str((HERE / source).relative_to(ROOT)) for source in MODULES[name][2]],
        include_dirs=[str(HERE.relative_to(ROOT))],
        define_macros=[("RL_COMPILE_FLAGS", '"' + " ".join(flags_that_matter()) + '"')],
        extra_compile_args=COMPILE_FLAGS,
        libraries=LIBRARIES,
        depends=[str(path.relative_to(ROOT)) for path in sorted(HERE.rglob("*.h"))],
    )
    return ffi.distutils_extension(tmpdir="build/cffi", verbose=False)


def extensions():
    """The Extension objects; the current directory must be the repository's root."""
    return [_extension(name) for name in MODULES]
