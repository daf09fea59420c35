"""Progress reports of a stage; only the CLI turns this into something printed."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A watcher of one stage. Calls are cheap and may be ignored."""

    def stage(self, name: str) -> None:
        """A new part of the work begins, e.g. `tokenise`."""

    def advance(self, done: int, total: int, **figures: float) -> None:
        """`done` of `total` steps of the current part are over; figures such as `loss=1.2`."""

    def note(self, text: str) -> None:
        """One line worth reading: a decision and its reason, a warning."""


class Silent:
    """Watches and says nothing."""

    def stage(self, name: str) -> None:
        """Ignored."""

    def advance(self, done: int, total: int, **figures: float) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""
