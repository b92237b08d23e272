"""The ways to extend struct rseq after it became ABI, each one executed: options, criteria, the matrix."""
