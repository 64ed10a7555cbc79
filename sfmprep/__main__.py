"""`python -m sfmprep` is the command line."""

from sfmprep.cli.commands import main

main()
