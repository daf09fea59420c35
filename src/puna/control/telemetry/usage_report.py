"""Use added up: the hours' rows by endpoint, key, day and hour, with each key's share of the GPU time; and as CSV."""

from __future__ import annotations

import csv
import io
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby

from typing_extensions import TypedDict

from puna.control.domain.records import UsageRow
from puna.control.store.store import Store
from puna.errors import UsageError

LOG = logging.getLogger("puna.usage")
GROUPS = ("hour", "day", "endpoint", "key")
SPANS_S = {"hour": 3600, "day": 86400}
COLUMNS = ("start", "endpoint", "key", "key_name", "requests", "failed", "infer_s", "gpu_s")
METER_EVERY_S = 30.0
"""An API that is asked counts by itself: this is for what no one asks, and a power cut."""
PRUNE_EVERY_S = 3600.0
NO_KEY, IDLE = "local", "idle"
"""Names of the empty key: requests without one, and GPU time in hours in which nobody called."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Sums(TypedDict):
    """Requests and GPU-seconds, added up."""

    requests: int
    failed: int
    infer_s: float
    gpu_s: float


class Used(Sums):
    """The use of one endpoint, key, hour or day; null is what was not asked for."""

    start: float | None
    endpoint: str | None
    key: str | None
    """A key's id; empty for requests without one."""
    key_name: str | None


def grouping(by: str) -> tuple[str, ...]:
    """The words of `by`, e.g. `day,endpoint`.

    Raises:
        UsageError: a word is none of `GROUPS`.
    """
    words = tuple(dict.fromkeys(word.strip() for word in by.split(",") if word.strip()))
    if not words or not set(words) <= set(GROUPS) or {"hour", "day"} <= set(words):
        raise UsageError(f"use cannot be added up by {by!r}", f"by one or more of {', '.join(GROUPS)}: day or hour")
    return words


def add_up(rows: Iterable[UsageRow], by: Sequence[str]) -> list[Used]:
    """The rows' sums, one for each endpoint, key, day or hour as `by` says; what it does not name is None."""
    sums: dict[tuple[float, str, str], Used] = {}
    span_s = next((SPANS_S[word] for word in by if word in SPANS_S), 0)
    for row in _shared(rows) if "key" in by else rows:
        start = row.hour // span_s * span_s if span_s else None
        endpoint = row.endpoint if "endpoint" in by else None
        key = row.key if "key" in by else None
        of = (start or 0, endpoint or "", key or "")
        none = Used(
            start=start, endpoint=endpoint, key=key, key_name=None, requests=0, failed=0, infer_s=0.0, gpu_s=0.0
        )
        found = sums.setdefault(of, none)
        if key is not None:
            found["key_name"] = row.key_name or found["key_name"]
        found["requests"] += row.requests
        found["failed"] += row.failed
        found["infer_s"] += row.infer_s
        found["gpu_s"] += row.gpu_s
    items = [sums[of] for of in sorted(sums)]
    for item in items:
        if item["key"] == "":
            item["key_name"] = NO_KEY if item["requests"] else IDLE
        item["infer_s"], item["gpu_s"] = round(item["infer_s"], 3), round(item["gpu_s"], 3)
    return items


def _shared(rows: Iterable[UsageRow]) -> Iterator[UsageRow]:
    """GPU time given to the keys that called in the same hour, by the seconds that their calls took."""
    for _, some in groupby(rows, lambda row: (row.hour, row.endpoint)):
        mine = list(some)
        gpu_s, infer_s = sum(row.gpu_s for row in mine), sum(row.infer_s for row in mine)
        for row in mine:
            share = row.gpu_s if not infer_s else gpu_s * row.infer_s / infer_s
            if share or row.requests:
                yield UsageRow(
                    row.hour, row.endpoint, row.key, row.key_name, row.requests, row.failed, row.infer_s, share
                )


def total(items: Sequence[Used]) -> Sums:
    """All of them together."""
    return {
        "requests": sum(item["requests"] for item in items),
        "failed": sum(item["failed"] for item in items),
        "infer_s": round(sum(item["infer_s"] for item in items), 3),
        "gpu_s": round(sum(item["gpu_s"] for item in items), 3),
    }


def as_csv(items: Iterable[Used]) -> str:
    """The items as a table for spreadsheets: times as ISO 8601 in UTC, every cell quoted, no cell a formula."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(COLUMNS)
    for item in items:
        start = item["start"]
        at = "" if start is None else datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        writer.writerow([at, *(_cell(item.get(name)) for name in COLUMNS[1:])])
    return text.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it: a key's name is anybody's text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else "" if value is None else value


def metering(store: Store, stopped: threading.Event) -> None:
    """Count GPU time and forget what is old, until `stopped`."""
    pruned = 0.0
    while not stopped.wait(METER_EVERY_S):
        now = time.time()
        try:
            store.meter(now)
            if now - pruned > PRUNE_EVERY_S:
                store.prune_usage(now)
                pruned = now
        except Exception:  # the log has it, and the next turn counts what this one did not
            LOG.exception("use was not counted")
