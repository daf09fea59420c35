"""Stage 8: the island that runs the user's app: standard library only, CPython 3.8 and later."""
