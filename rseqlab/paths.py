"""Where things lie on the disk: the package, its checkout, and what is shipped beside it."""

import os
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


def user_folder(variable: str, below_home: str) -> Path:
    """The reader's own folder for this package: in what an XDG variable names, or in its usual place.

    A relative path in the variable is not one, as the XDG base directory specification has it.
    """
    given = Path(os.environ.get(variable) or ".")
    return (given if given.is_absolute() else Path.home() / below_home) / "rseqlab"


def work_folder() -> Path:
    """What runs and reports are written to: the checkout, or the reader's data folder for an installed package."""
    return CHECKOUT or user_folder("XDG_DATA_HOME", ".local/share")


def runs_folder() -> Path:
    """Where local runs lie: $RSEQLAB_RUNS, or ``runs`` in the checkout, or in the reader's data folder."""
    return Path(os.environ.get("RSEQLAB_RUNS") or work_folder() / "runs")


def cache_folder() -> Path:
    """Where what is compiled is kept: $RSEQLAB_CACHE, or ``build/compiled`` in the checkout, or in the reader's cache."""
    if given := os.environ.get("RSEQLAB_CACHE"):
        return Path(given)
    home = CHECKOUT / "build" if CHECKOUT else user_folder("XDG_CACHE_HOME", ".cache")
    return home / "compiled"


def answers_folder() -> Path:
    """Where answers of commands that only read are kept, beside what is compiled."""
    return cache_folder().with_name("answers")
