from rseqlab.cli import main

main()
