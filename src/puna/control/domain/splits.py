"""How two revisions share an endpoint's requests: the second's share, its own scaling, its part of the limits."""

from __future__ import annotations

from dataclasses import dataclass

WHOLE = 100
"""Percent: the share of a revision that serves alone."""


@dataclass(frozen=True)
class TrafficSplit:
    """The share of a second revision beside the one that serves, and its own scaling."""

    revision: int
    percent: int
    """1 to 99; the serving revision has the rest."""
    desired_replicas: int = 0
    scaling_reason: str = ""

    def part(self, total: int) -> int:
        """Its places of so many: its share of them, but one at least, and all but one at most."""
        return min(max(1, round(total * self.percent / WHOLE)), max(1, total - 1)) if total else 0
