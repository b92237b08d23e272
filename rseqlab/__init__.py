"""rseqlab: a lab for restartable sequences (rseq). Importing it needs no compiler and no rseq."""

__version__ = "0.1.0"


def load_ipython_extension(ipython) -> None:
    """`%load_ext rseqlab` in a notebook: the command line as `%rseqlab`, with completion."""
    from rseqlab.cli.magic import load  # not above: importing the package is light

    load(ipython)
