"""Where things lie on the disk: the package, its checkout, and what is shipped beside it."""

from pathlib import Path

import rseqlab

PACKAGE = Path(rseqlab.__file__).resolve().parent

CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").exists() else None
"""The checkout that this package runs from; None where it is installed from a wheel."""

SHIPPED = "shipped"
"""Where a wheel has the checkout's ``data`` and ``notebooks``, within the package (setup.py puts them there)."""


def project_root() -> Path:
    """What ``data`` and ``notebooks`` are read from: the checkout, or the installed package. Not written to."""
    return CHECKOUT or PACKAGE / SHIPPED
