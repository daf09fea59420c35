"""The proof of one app: its `infer` as it is after `initialize`."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from puna.worker.app.runner import App
from puna.worker.proof.escape import must_be_at_home
from puna.worker.proof.reading import Reading
from puna.worker.proof.source import Sources
from puna.worker.proof.values import PLAIN, Arguments, NotProved, Own, value


def why_not(app: App) -> str:
    """Where calls of `infer` could meet, as `app.py:14 keeps self.prompt`; empty when they cannot.

    Where validation has proved the same bundle (PUNA_PROVED), only the reading is done again, against what this
    process's `initialize` has made (10 ms): the search takes a second where vLLM is loaded, and would be on each start.
    """
    reading = Reading(Sources(app.folder))
    try:
        _must_be_alone(reading)
        reading.prove(app.model.infer, _arguments(app, reading))
        reading.files.clear()
        if not os.environ.get("PUNA_PROVED"):
            must_be_at_home(reading.known, reading.reads_files)  # last, because it looks at every object there is
    except NotProved as fault:
        return _told(fault, reading, app)
    return ""


def _arguments(app: App, reading: Reading) -> Arguments:
    if app.typed is not None and not reading.is_plain_model(app.typed.request):
        raise NotProved("infer gets a %s, which has code of its own" % app.typed.request.__name__)
    given = [value(Own(), PLAIN)]
    if app.passes_handler:
        given.append(value(Own("handler")))
    return Arguments(given)


def _told(fault: NotProved, reading: Reading, app: App) -> str:
    line = getattr(fault.node, "lineno", 0)
    path = reading.files[-1] if reading.files else ""
    if not line or not path:
        return fault.what
    return "%s:%d %s" % (os.path.relpath(path, app.folder), line, fault.what)


def _must_be_alone(reading: Reading) -> None:
    """No thread that the app has started may change things while they are read."""
    me = threading.get_ident()
    for ident, frame in sys._current_frames().items():
        at: Any = frame if ident != me else None
        while at is not None:
            if reading.sources.is_mine(at.f_code):
                name = os.path.relpath(at.f_code.co_filename, reading.sources.folder)
                raise NotProved("%s:%d runs in a thread beside infer" % (name, at.f_lineno))
            at = at.f_back
