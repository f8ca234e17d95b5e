"""`python -m outzoom` is the command line."""

from .cli import main

main()
