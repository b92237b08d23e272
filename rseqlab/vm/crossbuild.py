"""The package's extensions for another architecture, by a cross compiler: the same sources, description and flags.

They use the stable ABI, so one build serves every Python that the package supports, whichever headers it saw.
"""

import contextlib
from pathlib import Path

from rseqlab import native
from rseqlab.lab import compile, counted
from rseqlab.vm import cache

SUFFIX = ".abi3.so"
NATIVE = Path(native.__file__).parent


def missing(arch: str) -> str | None:
    """Why nothing can be built for this architecture here, or None."""
    return compile.missing(counted.compiler(arch))


def extensions(arch: str, include: Path) -> dict[str, Path]:
    """File name within rseqlab/native to the built file, for each extension. Raises CompileError.

    ``include`` is the ``usr/include`` of a Python for this architecture: ``python3.*/`` lies in it, and what the
    architecture adds beside it.
    """
    from rseqlab.native import build  # not above: it brings cffi, and this module is imported to plan

    headers = next(iter(sorted(include.glob("python3.*/Python.h"))), None)
    if headers is None:
        raise compile.CompileError(f"{include} holds no python3.*/Python.h; the extensions cannot be built.")
    flags = (
        *build.COMPILE_FLAGS,
        *("-shared", "-fPIC", f"-I{NATIVE}", "-isystem", str(headers.parent), "-isystem", str(include)),
        *(f"-l{library}" for library in build.LIBRARIES),
    )
    found = {}
    for name, (_, _, sources) in build.MODULES.items():
        with cache.scratch() as space:
            wrapper = space / f"{name}.c"
            with contextlib.redirect_stdout(None):  # cffi says which file it writes
                build.described(name).emit_c_code(str(wrapper))
            target = compile.Target(
                f"{name}-{arch}{SUFFIX}",
                (wrapper, *(NATIVE / source for source in sources)),
                flags,
                counted.compiler(arch),
                tuple(sorted(NATIVE.rglob("*.h"))),
            )
            found[name + SUFFIX] = compile.build(target)
    return found
