"""rseqlab: a lab for restartable sequences (rseq). Importing it needs no compiler and no rseq."""

__version__ = "0.1.0"
