"""Errors of the user's code, described by the user's lines: error, line, traceback. Prints nothing."""

from __future__ import annotations

import linecache
import os
import sys
import threading
import traceback
from typing import Any, Dict

# traceback and linecache import these on first use, which may be after a user's file of that name is on sys.path.
import tokenize  # noqa: F401  # isort: skip


def describe(error: BaseException, folder: str) -> Dict[str, str]:
    """`{"error", "line", "traceback"}`; the traceback holds the frames of files under `folder` and the error itself."""
    mine = [f for f in traceback.extract_tb(error.__traceback__) if is_inside(f.filename, folder)]
    head = "".join(traceback.format_exception_only(type(error), error)).strip()
    if type(error).__module__.startswith("puna.worker"):
        head = str(error)  # ours: the text says it all
    text = "Traceback (most recent call last):\n" + "".join(traceback.format_list(mine)) if mine else ""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        line = _line(error.filename, error.lineno, folder, (error.text or "").strip())
        message = "%s: %s" % (type(error).__name__, error.msg)
    else:
        line = _line(mine[-1].filename, mine[-1].lineno or 0, folder, mine[-1].line or "") if mine else ""
        message = head
    return {"error": message, "line": line, "traceback": text + head}


def whole(error: BaseException) -> str:
    """The traceback with the libraries' frames, without the worker's own: for the log."""
    parts = traceback.TracebackException.from_exception(error).format()
    return "".join(p for p in parts if not p.lstrip().startswith(('File "<frozen importlib', 'File "' + _HERE)))


def place(folder: str) -> str:
    """The line of the app that runs now: the main thread's, else any thread's; empty when none is."""
    frames = sys._current_frames()
    main = threading.main_thread().ident
    for ident in sorted(frames, key=lambda one: one != main):
        frame: Any = frames[ident]
        while frame is not None:
            if is_inside(frame.f_code.co_filename, folder):
                return _line(frame.f_code.co_filename, frame.f_lineno, folder, "")
            frame = frame.f_back
    return ""


def is_inside(filename: str, folder: str) -> bool:
    """True for a file of the app, but not for a library installed under it."""
    path = os.path.abspath(filename)  # `<frozen importlib>` is no file
    return (
        not filename.startswith("<")
        and path.startswith(os.path.abspath(folder) + os.sep)
        and "site-packages" not in path
    )


def _line(filename: str, number: int, folder: str, text: str) -> str:
    path = os.path.relpath(filename, folder) if is_inside(filename, folder) else filename
    return "%s:%d: %s" % (path, number, text or linecache.getline(filename, number).strip())


def warm_up() -> None:
    """Format one traceback, so that everything which that imports is there before the user's folder is."""
    try:
        raise ValueError("warm-up")
    except ValueError as error:
        whole(error)
        describe(error, os.sep)


_HERE: Any = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # all of the worker
