"""What of a revision's files on the disk is not as it was built, in words."""

from __future__ import annotations

from puna.artifacts import SHORT, Bundle
from puna.control.domain.records import Revision
from puna.errors import NotFoundError
from puna.home import Home
from puna.packaging import integrity


def of(home: Home, revision: Revision) -> str:
    """What is damaged of its environment or bundle; empty when nothing is, or it has not been built."""
    if revision.environment:
        path = home.environments / revision.environment[:SHORT]
        found = integrity.damage(path) if path.is_dir() else None
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
