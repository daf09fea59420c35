"""Uploaded source snapshots, found by their digest."""

from __future__ import annotations

import os
import re

from puna.artifacts import SHORT, Source
from puna.errors import NotFoundError
from puna.home import Home
from puna.packaging import source


def find(home: Home, digest: str) -> Source:
    """A source snapshot by its digest, whole or the first 16 digits or more.

    Raises:
        NotFoundError: it was never uploaded.
    """
    missing = NotFoundError(f"there is no source {digest[:SHORT]!r}", "PUT /api/v1/sources first; `puna deploy` does")
    # The pattern first: a digest comes from outside and names a folder.
    if not re.fullmatch(r"[0-9a-f]{16,64}", digest) or not (home.sources / digest[:SHORT]).is_dir():
        raise missing
    found = Source.open(home.sources / digest[:SHORT])
    if not found.digest.startswith(digest):
        raise missing
    return found


def use(home: Home, digest: str) -> Source:
    """As `find`, for what is to be deployed: it counts as used now, so it stays until the store names it.

    Raises:
        NotFoundError: it was never uploaded.
    """
    with source.using(home):
        found = find(home, digest)
        os.utime(found.path)
        return found
