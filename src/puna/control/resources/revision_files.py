"""A revision's files: its source, found by its digest, and damage to what was built from it."""

from __future__ import annotations

import os
import re

from puna.artifacts import SHORT, Bundle, Source
from puna.control.domain.records import Revision
from puna.errors import NotFoundError
from puna.home import Home
from puna.packaging import inventory, source


def find_source(home: Home, digest: str) -> Source:
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


def use_source(home: Home, digest: str) -> Source:
    """As `find`, for what is to be deployed: it counts as used now, so it stays until the store names it.

    Raises:
        NotFoundError: it was never uploaded.
    """
    with source.using(home):
        found = find_source(home, digest)
        os.utime(found.path)
        return found


def damage_of(home: Home, revision: Revision) -> str:
    """Damage to its environment or bundle; empty when there is none, or it has not been built."""
    if revision.environment:
        path = home.environments / revision.environment[:SHORT]
        found = inventory.damage(path) if path.is_dir() else None
        if found is None or found:
            return f"its environment {path.name} is damaged: {found}" if found else f"its environment {path} is gone"
    if revision.bundle:
        try:
            bundle = Bundle.open(home.bundles / revision.bundle[:SHORT])
        except NotFoundError as error:
            return error.message
        if why := bundle.damage():
            return f"its bundle {bundle.path.name} is damaged: {why}"
    return ""
