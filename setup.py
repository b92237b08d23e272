"""The compiled part of the project; everything else is stated in pyproject.toml."""

import sys
import sysconfig
from pathlib import Path

from setuptools import setup

# cffi writes against the stable ABI except on a free-threaded Python, which has none.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


def extensions():
    """None outside Linux, where the package can only show what was measured elsewhere."""
    if sys.platform != "linux":
        return []
    # Not `from rseqlab.native`: that would import the package, which needs its dependencies.
    sys.path.insert(0, str(Path(__file__).resolve().parent / "rseqlab" / "native"))
    import build

    found = build.extensions()
    for extension in found:
        extension.py_limited_api = STABLE_ABI
    return found


setup(
    ext_modules=extensions(),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
