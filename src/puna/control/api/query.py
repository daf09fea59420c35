"""Queries of requests: pages of lists, with the cursor of the next one, and moments as people write them.

A cursor is where the last item of a page stands in the list's order, so a page stays right when items come or go.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query
from typing_extensions import TypedDict

from puna.errors import UsageError

T = TypeVar("T")
V = TypeVar("V")
Position = tuple[str | float, ...]
DEFAULT, MOST = 200, 1000
MOST_NUMBER = 2**63 - 1
"""The largest number that the database knows."""

AGO = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
LATEST = 253_402_300_799  # the year 9999 ends


class Listed(TypedDict, Generic[T]):
    """A page of a list."""

    items: list[T]
    next: str | None
    """The `after` of the next page; null at the end."""


@dataclass(frozen=True)
class Page:
    """The part of a list that is asked for."""

    limit: Annotated[int, Query(ge=1, le=MOST, description="Items in one page, at most.")] = DEFAULT
    after: Annotated[str, Query(max_length=1000, description="The `next` of the page before.")] = ""

    def show(self, items: Iterable[T], position: Callable[[T], Position], view: Callable[[T], V]) -> Listed[V]:
        """This page of `items`, in the order of their positions: only what is on it is looked at any closer.

        Positions differ from one item to another, and have the same kinds of parts.

        Raises:
            UsageError: `after` is no cursor of such a list.
        """
        ordered = sorted(items, key=position)
        if self.after and ordered:
            begin = self.position(*(type(part) for part in position(ordered[0])))
            ordered = [item for item in ordered if position(item) > begin]
        found = ordered[: self.limit]
        following = cursor(*position(found[-1])) if len(ordered) > self.limit else None
        return {"items": [view(item) for item in found], "next": following}

    def position(self, *kinds: type) -> Position:
        """The position of the item that `after` names, in parts of these kinds.

        Raises:
            UsageError: it is no cursor of such a list.
        """
        try:
            parts = json.loads(base64.urlsafe_b64decode(self.after.encode()), parse_constant=_refuse)
            if not isinstance(parts, list) or len(parts) != len(kinds):
                raise ValueError
            return tuple(_part(part, kind) for part, kind in zip(parts, kinds, strict=True))
        except (ValueError, RecursionError):
            raise not_a_cursor(self.after) from None


Paged = Annotated[Page, Depends()]


def cursor(*position: str | float) -> str:
    """A position as text for a URL."""
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode()


def number(text: str) -> int | None:
    """The cursor of a list whose items have rising numbers; None for its beginning.

    Raises:
        UsageError: it is no such number.
    """
    if not re.fullmatch("[0-9]{0,19}", text) or int(text or 0) > MOST_NUMBER:
        raise not_a_cursor(text)
    return int(text) if text else None


def not_a_cursor(text: str) -> UsageError:
    """The error for a text that is no cursor of the list."""
    return UsageError(f"`after` is {text[:80]!r}, which is no cursor of this list", "take it from a page's `next`")


def _part(value: Any, kind: type) -> str | float:
    if kind is str and isinstance(value, str):
        value.encode()  # half a surrogate pair cannot be looked up
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and kind is not str and abs(value) <= MOST_NUMBER:
        return int(value) if kind is int else float(value)
    raise ValueError


def _refuse(text: str) -> None:
    raise ValueError(text)


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
