"""Open files: what this process may have of them, and how a gateway divides them."""

from __future__ import annotations

import resource

MOST = 1 << 20
"""More is never asked for: some programs walk over all numbers up to their limit."""
FEW = 8192
"""Below this many, `puna up` says so."""
MOST_CLIENTS = 16384
"""Of one gateway, however many files it may open: an idle connection takes some 9 KiB of memory."""

_given = resource.getrlimit(resource.RLIMIT_NOFILE)
"""Soft and hard, as this process found them."""


def hard() -> int:
    """The most files that a process may open."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return MOST if limit == resource.RLIM_INFINITY else min(limit, MOST)


def raise_limit() -> int:
    """Raise the soft limit to the hard one; how many files this process may open from now on."""
    soft, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard():
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard(), ceiling))
    return hard()


def give_back(pid: int) -> None:
    """Let a child have the limit that this process found at its start: `select` in an app breaks beyond 1,024 files.

    Raises:
        OSError: there is no such process any more.
    """
    ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (_given[0], ceiling))


def for_clients(limit: int) -> int:
    """The part of `limit` files for clients; the others are for workers, the control plane and bodies on disk."""
    return min(MOST_CLIENTS, limit // 2)


def for_bodies(limit: int) -> int:
    """The part for bodies on disk."""
    return min(512, limit // 4)


def for_forwarding(limit: int) -> int:
    """The part for what is passed on to the control plane."""
    return min(512, limit // 8)
