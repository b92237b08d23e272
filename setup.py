"""The compiled part of the project; everything else is stated in pyproject.toml."""

import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent

# cffi writes against the stable ABI except on a free-threaded Python, which has none.
STABLE_ABI = not sysconfig.get_config_var("Py_GIL_DISABLED")


def extensions():
    """None outside Linux, where the package can only show what was measured elsewhere."""
    if sys.platform != "linux":
        return []
    # Not `from rseqlab.native`: that would import the package, which needs its dependencies.
    sys.path.insert(0, str(ROOT / "rseqlab" / "native"))
    import build

    found = build.extensions()
    for extension in found:
        extension.py_limited_api = STABLE_ABI
    return found


SHIPPED = ("data/**/*", "notebooks/*.ipynb")
"""What lies beside the package in the checkout and an installed one reads as well (rseqlab.lab.runner.SHIPPED)."""


class BuildWithData(build_py):
    """Puts it into the package, unless the package stays in its checkout (pip install -e)."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._shipped():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def get_outputs(self, *arguments, **more):
        found = super().get_outputs(*arguments, **more)
        return found if self.editable_mode else [*found, *(str(target) for _, target in self._shipped())]

    def _shipped(self):
        home = Path(self.build_lib) / "rseqlab" / "shipped"
        paths = sorted(path for pattern in SHIPPED for path in ROOT.glob(pattern))
        return [(path, home / path.relative_to(ROOT)) for path in paths if path.is_file()]


setup(
    cmdclass={"build_py": BuildWithData},
    ext_modules=extensions(),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
