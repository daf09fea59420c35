"""Folders that one replica sees: a writable copy of its app's, and volumes at their mount paths.

A volume is a link where one can be made, else mounted in a namespace of the app alone, else refused.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from puna.artifacts import Bundle
from puna.errors import MachineError
from puna.home import Home
from puna.process import namespace


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


# Where links are made for everybody to see. Elsewhere (/etc ...) a path is the app's own business, in its namespace.
LINKABLE = ("/var/nfs-mount", "/var/nfs-share", "/mnt")
TRY_S = 20.0


def place_volumes(mounts: Mapping[str, Path]) -> dict[str, str]:
    """Link what can be linked; what is returned must be mounted in a namespace of the app's own."""
    return {path: str(folder) for path, folder in mounts.items() if not _link(Path(path), folder)}


def check_volumes(mounts: Mapping[str, Path]) -> None:
    """Place `mounts` as a launch would.

    Raises:
        MachineError: a path can neither be linked nor mounted here; the hint is the command that makes it.
    """
    private = place_volumes(mounts)
    why = _refusal(json.dumps(private)) if private else ""
    if why:
        path, folder = next(iter(private.items()))
        commands = f"sudo mkdir -p {os.path.dirname(path)} && sudo ln -s {folder} {path}"
        raise MachineError(f"volume {Path(folder).name} cannot be mounted at {path}: {why}", commands)


def with_volumes(mounts: Mapping[str, str], argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` with `mounts`; `argv` itself when there are none."""
    if not mounts:
        return list(argv)
    return namespace.command("volumes", dict(mounts), list(argv))


def unlink_volume(folder: Path) -> None:
    """Remove the links that lead to a volume."""
    for root in LINKABLE:
        for path in Path(root).glob("*"):
            if path.is_symlink() and os.readlink(path) == str(folder):
                path.unlink()


def _link(path: Path, folder: Path) -> bool:
    if path.is_symlink():
        return os.readlink(path) == str(folder)
    if path.exists() or str(path.parent) not in LINKABLE:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(folder)
    except FileExistsError:  # another launch was faster
        return path.is_symlink() and os.readlink(path) == str(folder)
    except OSError:
        return False
    return True


@cache
def _refusal(mounts: str) -> str:
    """The reason why a namespace with `mounts` cannot be had; empty when it can. Tried, because no setting tells."""
    argv = with_volumes(json.loads(mounts), ["/bin/true"])
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TRY_S, check=False)
    text = done.stderr.strip().removeprefix("puna: no volume can be mounted: ")
    return "" if done.returncode == 0 else text or f"exit code {done.returncode}"
