"""Imported by the process that the report's kernels are forked from: what every notebook would do first, done once."""

import contextlib

import ipykernel.kernelapp
import ipykernel.zmqshell  # noqa: F401
import matplotlib.backends.backend_svg
import matplotlib.font_manager  # noqa: F401  # looks through the fonts of this machine

from rseqlab.lab.child import die_with_parent
from rseqlab.study import claims, explore, figures, run, tables  # noqa: F401

die_with_parent()  # a killed report must not wait for what is done here

with contextlib.suppress(Exception):  # whatever it is, each kernel meets it again, in a cell that has a name
    found = run.open_ahead()
    claims.judge(found)
    claims.weaknesses(found)
