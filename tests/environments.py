"""Environments of a home, as tests look at them."""

from __future__ import annotations

import time

from puna.home import Home


def leftovers(home: Home) -> list[str]:
    """What is left of environments; what is on its way out has a moment."""
    end = time.monotonic() + 10
    while any(home.environments.glob(".gone-*")) and time.monotonic() < end:
        time.sleep(0.02)
    return [p.name for p in home.environments.iterdir() if not p.name.endswith(".lock")]
