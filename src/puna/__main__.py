"""`python -m puna` is `puna`."""

from puna.cli.main import main

main()
