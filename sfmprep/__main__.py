"""`python -m sfmprep` is the command line."""

from sfmprep.cli import main

main()
