"""`python -m roundel` is the command line."""

from roundel.cli.app import main

main()
