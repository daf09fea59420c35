"""The writable copy of an app's folder that one replica works in."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from puna.artifacts import Bundle
from puna.home import Home


def prepare(bundle: Bundle, replica_id: str, home: Home) -> Path:
    """Copy the bundle's `app/`; what was there under this replica's name goes first."""
    path = home.workspaces / replica_id
    remove(replica_id, home)
    shutil.copytree(bundle.path / "app", path, symlinks=True)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            entry = Path(folder, name)
            if not entry.is_symlink():
                entry.chmod(stat.S_IMODE(entry.stat().st_mode) | stat.S_IWUSR | stat.S_IRUSR)
    path.chmod(0o700)
    return path


def remove(replica_id: str, home: Home) -> None:
    """Remove the copy, if there is one."""
    shutil.rmtree(home.workspaces / replica_id, ignore_errors=True)
