"""Lists in pages: how many items, after which one, and the cursor of the next page.

A cursor is where the last item of a page stands in the list's order, so a page stays right when items come or go.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Query

from puna.errors import UsageError

T = TypeVar("T")
Position = tuple[str | float, ...]
DEFAULT, MOST = 200, 1000
MOST_NUMBER = 2**63 - 1
"""The largest number that the database knows."""


@dataclass(frozen=True)
class Page:
    """The part of a list that is asked for."""

    limit: int = DEFAULT
    after: str = ""

    def cut(self, items: Iterable[T], position: Callable[[T], Position]) -> tuple[list[T], str | None]:
        """This page of `items`, in the order of their positions, and the cursor of the next; None at the end.

        Positions differ from one item to another, and have the same kinds of parts.

        Raises:
            UsageError: `after` is no cursor of such a list.
        """
        ordered = sorted(items, key=position)
        if self.after and ordered:
            begin = self.position(*(type(part) for part in position(ordered[0])))
            ordered = [item for item in ordered if position(item) > begin]
        found = ordered[: self.limit]
        return found, cursor(*position(found[-1])) if len(ordered) > self.limit else None

    def show(self, items: Iterable[T], position: Callable[[T], Position], view: Callable[[T], Any]) -> dict[str, Any]:
        """The reply: only what is on the page is looked at any closer.

        Raises:
            UsageError: `after` is no cursor of such a list.
        """
        found, following = self.cut(items, position)
        return {"items": [view(item) for item in found], "next": following}

    def position(self, *kinds: type) -> Position:
        """Where the item that `after` names stands, in parts of these kinds.

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


def page(
    limit: Annotated[int, Query(ge=1, le=MOST, description="Items in one page, at most.")] = DEFAULT,
    after: Annotated[str, Query(max_length=1000, description="The `next` of the page before.")] = "",
) -> Page:
    """The page that a request asks for."""
    return Page(limit, after)


Paged = Annotated[Page, Depends(page)]


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
