"""The ranges of an endpoint's settings: one home for the file, the command line, the API and its document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puna.errors import UsageError

RANGES: Mapping[str, tuple[float, float]] = {
    "min_replica": (0, 1000),
    "max_replica": (1, 1000),
    "scale_down_delay_s": (0, 86400),
    "evict_after_s": (0, 31_536_000),
    "inference_time_s": (0, 7200),
    "startup_timeout_s": (0, 7200),
    "container_concurrency": (0, 100),
    "max_queue": (0, 100_000),
    "vcpu": (0, 4096),
    "ram_gib": (0, 65536),
    "poll_s": (0, 604_800),
}
OVER_ZERO = frozenset({"inference_time_s", "startup_timeout_s"})
"""A time limit of nothing lets nothing be done."""
LEAST = {"ram_gib": 0.1, "poll_s": 30}
"""0 has a meaning of its own; what is not 0 is at least this."""
MEANING = {
    "max_replica": "to stop serving: `puna deactivate`",
    "evict_after_s": "0: none sleeps; at most a year",
    "vcpu": "0: the cores of its share",
    "container_concurrency": "0: the worker chooses",
    "startup_timeout_s": "at most two hours: a build and a place on a GPU are held meanwhile",
    "poll_s": "0: never; at most a week",
}


def check(
    values: Mapping[str, Any], error: type[UsageError] = UsageError, words: Mapping[str, str] | None = None
) -> None:
    """Refuse numbers outside their ranges; `words` are what whoever wrote them calls them.

    Raises:
        UsageError: as `error`.
    """
    for name, (low, high) in RANGES.items():
        value = values.get(name)
        if isinstance(value, int | float) and not _fits(name, value):
            lies = f"lie in {low:g} to {high:.12g}"
            if name in OVER_ZERO:
                lies = f"lie in over {low:g}, to {high:.12g}"
            elif name in LEAST:
                lies = f"be 0, or lie in {LEAST[name]:g} to {high:.12g}"
            raise error(f"{(words or {}).get(name, name)} must {lies}, and is {value:.12g}", MEANING.get(name, ""))


def _fits(name: str, value: float) -> bool:
    low, high = RANGES[name]
    if not value:
        return low <= value and name not in OVER_ZERO
    return LEAST.get(name, low) <= value <= high


def clamped(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they were kept, brought down to what is the most today."""
    return {
        name: min(value, type(value)(RANGES[name][1])) if name in RANGES and isinstance(value, int | float) else value
        for name, value in values.items()
    }
