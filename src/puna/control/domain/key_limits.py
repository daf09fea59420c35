"""What one key may ask for: calls and tokens in a time, calls at once. `10/s`, `100k/min`, `8`. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from puna.errors import UsageError

PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0}
WRITTEN = {"s": "s", "sec": "s", "second": "s", "min": "min", "m": "min", "minute": "min", "h": "h", "hour": "h"}
FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}
SHAPE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)\s*/\s*([a-z]+)")
MAX_COUNT = 10**12


@dataclass(frozen=True)
class Rate:
    """So many in any period of that length."""

    count: int
    unit: str

    @property
    def period_s(self) -> float:
        """The length, in seconds."""
        return PERIODS[self.unit]

    def __str__(self) -> str:
        for letter, factor in (("M", FACTORS["m"]), ("k", FACTORS["k"])):
            if self.count >= factor and self.count % factor == 0:
                return f"{self.count // factor}{letter}/{self.unit}"
        return f"{self.count}/{self.unit}"


@dataclass(frozen=True)
class KeyLimits:
    """What one key may ask for; None is no limit."""

    rate: Rate | None = None
    """Calls."""
    tokens: Rate | None = None
    """Tokens, read and written."""
    concurrency: int | None = None
    """Calls at once, those that wait included."""

    def as_json(self) -> dict[str, Any]:
        """The limits as they are written."""
        rate, tokens = self.rate and str(self.rate), self.tokens and str(self.tokens)
        return {"rate": rate, "tokens": tokens, "concurrency": self.concurrency}


NO_LIMITS = KeyLimits()


def parse(values: Mapping[str, Any] | None) -> KeyLimits:
    """Limits from their written form, as `KeyLimits.as_json` gives it.

    Raises:
        UsageError: one of them means nothing.
    """
    values = values or {}
    concurrency = values.get("concurrency")
    if concurrency is not None and not 1 <= concurrency <= MAX_COUNT:
        raise UsageError(f"concurrency {concurrency} lets no call through", "give 1 or more, or leave it out")
    return KeyLimits(_rate("rate", values.get("rate")), _rate("tokens", values.get("tokens")), concurrency)


def _rate(name: str, text: str | None) -> Rate | None:
    if text is None:
        return None
    example = {"rate": "10/s, 600/min or 5k/h", "tokens": "100k/min or 2M/h"}[name]
    match = SHAPE.fullmatch(text.strip())
    unit = WRITTEN.get(match[3]) if match else None
    if match is None or unit is None:
        raise UsageError(f"{name} {text!r} is no limit", f"write it as {example}")
    count = float(match[1]) * FACTORS[match[2].lower()]
    if not 1 <= count <= MAX_COUNT or count != int(count):
        raise UsageError(
            f"{name} {text!r} is no limit: it must be a whole number, at least 1", f"write it as {example}"
        )
    return Rate(int(count), unit)
