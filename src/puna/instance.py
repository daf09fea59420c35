"""The one `puna up` of a home: what it writes about itself, and which process it is."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from puna.artifacts import write_json
from puna.errors import NotFoundError
from puna.home import Home


def write_state(home: Home, url: str) -> None:
    """Tell this user's clients where we are."""
    write_json(home.state, {"url": url, "pid": os.getpid(), "control_socket": str(home.control_socket)})


def read_state(home: Home) -> dict[str, object]:
    """What `write_state` wrote, or an empty dict."""
    try:
        found = json.loads(home.state.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def pid_of(home: Home) -> int | None:
    """The process id of this home's `puna up`; None when there is none.

    What up.json says is believed of a process that holds the home's lock open, and of no other: ids are used again.
    """
    pid = read_state(home).get("pid")
    return pid if isinstance(pid, int) and _holds(pid, home.lock) else None


def owner_of(home: Home) -> int | None:
    """As `pid_of`, also when up.json is gone or names a stranger: the lock itself says who has it."""
    try:
        written = int(home.lock.read_text())
    except (OSError, ValueError):
        written = 0
    return written if _holds(written, home.lock) else pid_of(home)


def _holds(pid: int, lock: Path) -> bool:
    """The process has that file open."""
    try:
        asked = lock.stat()
        for fd in Path("/proc", str(pid), "fd").iterdir():
            with contextlib.suppress(OSError):
                found = fd.stat()
                if (found.st_dev, found.st_ino) == (asked.st_dev, asked.st_ino):
                    return True
    except OSError:
        return False  # it is gone, or another user's
    return False


def url_of(home: Home) -> str:
    """Its address.

    Raises:
        NotFoundError: it is not up.
    """
    url = read_state(home).get("url")
    if not url:
        raise NotFoundError("puna is not up", "puna up")
    return str(url)
