"""The command line. Results go to standard output, progress and errors to standard error.

Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted. One module for each family of commands; each is
imported here, which is how its commands come to be.
"""

from rseqlab.cli import bundles, census, kernel_build, kernels, measure, stability, study, usage
from rseqlab.cli.base import app, main

__all__ = [
    "app",
    "bundles",
    "census",
    "kernel_build",
    "kernels",
    "main",
    "measure",
    "stability",
    "study",
    "usage",
]
