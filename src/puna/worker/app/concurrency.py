"""The number of calls of `infer` that run at once: as many as were asked for, as many as are proved safe, or one."""

from __future__ import annotations

import os
from typing import Any, Dict

from puna.worker.app import calllog, faults, imports
from puna.worker.app.runner import App
from puna.worker.engines import engine

ASYNC_CONCURRENCY = 100  # calls of an `async def infer` that wait for something; the loop takes turns among them
MOST_ASKED = 100  # what inferless.yaml takes as container_concurrency
SAFE = "infer keeps nothing of a request"


class Verdict:
    """The number of calls at once; `reason` says why, with file and line where one is to blame."""

    def __init__(self, limit: int, reason: str = "", worth: int = 1) -> None:
        self.limit, self.reason = limit, reason
        self.worth = worth
        """What engine or event loop would be good for."""

    @property
    def text(self) -> str:
        """One line for people."""
        many = "%d at once" % self.limit if self.limit > 1 else "one at a time"
        if not self.reason:
            return many
        hint = ""
        if self.limit < self.worth:
            asked = min(self.worth, MOST_ASKED)
            hint = "; container_concurrency: %d in inferless.yaml if that is meant" % asked
        return "%s: %s%s" % (many, self.reason, hint)

    def as_json(self) -> Dict[str, Any]:
        return {"limit": self.limit, "text": self.text}


def verdict(app: App, asked: int = 0) -> Verdict:
    """After `initialize`: how many calls of this app's `infer` may run at once. `asked` is 0 when nobody did."""
    if app.batches is not None:
        return Verdict(max(asked, 2 * app.batches.size), "infer gets one list of them after the other")
    if asked > 0:
        return Verdict(asked, "container_concurrency says so")
    worth = engine.concurrency() or (ASYNC_CONCURRENCY if app.is_async else 1)
    if worth <= 1:
        return Verdict(1)
    fault = why_not(app)
    return Verdict(1, fault, worth) if fault else Verdict(worth, SAFE, worth)


def why_not(app: App) -> str:
    """`app.py:14 keeps self.prompt`; empty when no two calls of `infer` can meet."""
    try:
        fault: str = imports.load_own("puna.worker.proof.verdict").why_not(app)
        return fault
    except Exception as error:  # noqa: BLE001 - what cannot be read is not proved; the log says why
        calllog.note("infer could not be read:\n" + faults.whole(error))
        return "%s could not be read" % os.path.basename(app.folder)
