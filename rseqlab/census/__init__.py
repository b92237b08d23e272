"""Who uses rseq: files, running processes, packages, and programs that the reader knows."""
