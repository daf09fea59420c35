"""The one `puna up` of a home: its state on the disk, and its process."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from puna.artifacts import write_json
from puna.errors import ConflictError, NotFoundError
from puna.home import Home
from puna.process import tree
from puna.process.locks import HeldError, locked
from puna.process.tree import Process


@contextlib.contextmanager
def sole(home: Home) -> Iterator[None]:
    """Be the only `puna up` of this home; the kernel forgets the lock with the process.

    Raises:
        ConflictError: another one runs; its process id is named.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(home.lock, timeout_s=0))
        except HeldError as held:
            raise ConflictError(
                f"`puna up` runs in {home.root} already, as process {held.holder or 'unknown'}",
                "use it, or end it: puna down",
            ) from None
        os.ftruncate(lock, 0)
        with contextlib.suppress(OSError):  # a full disk: up.json may say it, and its owner is who has this file open
            os.write(lock, str(os.getpid()).encode())
        yield


def write_state(home: Home, url: str) -> None:
    """Write down for this user's clients where this one listens."""
    write_json(home.state, {"url": url, "pid": os.getpid(), "control_socket": str(home.control_socket)})


def read_state(home: Home) -> dict[str, object]:
    """Read what `write_state` wrote; an empty dict when there is nothing."""
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
    return pid if isinstance(pid, int) and tree.has_open(pid, home.lock) else None


def owner_of(home: Home) -> Process | None:
    """As `pid_of`, also when up.json was removed or names a stranger: the lock itself says who has it."""
    try:
        written = int(home.lock.read_text())
    except (OSError, ValueError):
        written = 0
    owner = Process(written, tree.start_ticks(written))  # before the look: what is looked at is what is named
    if tree.has_open(written, home.lock):
        return owner
    pid = pid_of(home)
    return Process(pid, tree.start_ticks(pid)) if pid else None


def url_of(home: Home) -> str:
    """Its address.

    Raises:
        NotFoundError: it is not up.
    """
    url = read_state(home).get("url")
    if not url:
        raise NotFoundError("puna is not up", "puna up")
    return str(url)
