"""`python -m xlr`."""

from xlr.commands.cli import main

main()
