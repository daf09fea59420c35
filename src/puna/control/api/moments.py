"""A moment as people write it: `7d` ago, a day, ISO 8601, or Unix seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from puna.errors import UsageError

AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LATEST = 253_402_300_799  # the year 9999 ends


def moment(text: str, now: float) -> float:
    """The Unix seconds that `text` means; times without a zone are in UTC.

    Raises:
        UsageError: it means none.
    """
    word = text.strip()
    ago = AGO.fullmatch(word)
    if ago:
        return now - float(ago[1]) * UNITS_S[ago[2]]
    try:
        if re.fullmatch(r"\d+(\.\d+)?", word):
            at = float(word)
        else:
            # Digits behind the sixth of a second's are more than datetime reads.
            read = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", word))
            at = (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        at = -1.0
    if not 0 <= at <= LATEST:
        raise UsageError(f"{text[:60]!r} is no time", "write 30m, 24h or 7d, 2026-11-25T12:00:00Z, or Unix seconds")
    return at
