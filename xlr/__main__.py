"""`python -m xlr`."""

from xlr.cli import main

main()
