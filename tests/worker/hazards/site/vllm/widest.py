"""How many requests the engine has had in one step, written where the test reads it."""

import os

_widest = 1


def note(size):
    """So many ran in this step."""
    global _widest
    if size > _widest:
        _widest = size
        path = os.environ["HAZARDS_WIDEST"]
        with open(path + ".new", "w") as file:
            file.write(str(size))
        os.replace(path + ".new", path)
