"""The proof of one app: its `infer` as it is after `initialize`, and no library that holds code of the app's."""

from __future__ import annotations

import functools
import gc
import logging
import os
import sys
import threading
import types
from typing import Any, Dict, List, Set

from puna.worker.app.runner import App
from puna.worker.proof.library import Known
from puna.worker.proof.reading import Reading
from puna.worker.proof.source import NotProved, Sources
from puna.worker.proof.values import PLAIN, Arguments, Own, value

MOST_STEPS = 6
# These only pass on: their holder is the one to look at.
BETWEEN = (dict, list, tuple, set, frozenset, types.MethodType, staticmethod, classmethod, property, functools.partial)
BETWEEN_NAMES = {"cell", "_lru_cache_wrapper", "cached_property", "OrderedDict", "deque", "mappingproxy", "defaultdict"}
STREAMS = (logging.NullHandler, logging.StreamHandler)


def must_be_at_home(known: Known, reads_files: bool) -> None:
    """No library holds a function of the app's, or an object of its classes.

    `reads_files`: `infer` opens files for reading, so what is logged into one may come back to it. Without that a log's
    file keeps nothing for anybody: libraries have such handlers of their own (flashinfer's, of its compiler).

    Raises:
        NotProved: one does; the text says what holds which.
    """
    frozen = gc.get_freeze_count()
    gc.unfreeze()  # a zygote has put its libraries out of the collector's sight
    try:
        _Search(known).run()
    finally:
        if frozen:
            gc.freeze()
    for reference in list(logging._handlerList):  # type: ignore[attr-defined]
        handler = reference()
        if isinstance(handler, logging.FileHandler) and not reads_files:
            continue
        is_stream = type(handler) in STREAMS or type(handler).__name__ == "_StderrHandler"
        stream = getattr(handler, "stream", None)
        if type(handler).__module__.split(".")[0] == "logging" and not is_stream:
            raise NotProved("a %s keeps what is logged" % type(handler).__name__)
        if is_stream and type(stream).__module__ in ("_io", "io") and not hasattr(stream, "mode"):
            raise NotProved("a logging handler keeps what is logged in a %s" % type(stream).__name__)
    for name in ("stdout", "stderr"):
        if type(getattr(sys, name)).__module__ in ("_io", "io") and not _goes_out(getattr(sys, name)):
            raise NotProved("sys.%s is a file that keeps what is printed" % name)


def _goes_out(stream: Any) -> bool:
    """The stream's text leaves by the process's own descriptors."""
    try:
        return stream.fileno() in (1, 2)
    except (OSError, ValueError):  # a StringIO, or closed
        return False


class _Search:
    """From the app's functions and objects to those who hold them, as far as things that only pass on."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._seen: Set[int] = set()
        self._ours: List[Any] = []
        """Lists of this search, which hold everything it looks at."""

    def run(self) -> None:
        targets = self._targets()
        names = {id(t): getattr(t, "__qualname__", type(t).__name__) for t in targets}
        for _ in range(MOST_STEPS):
            if not targets:
                return
            self._ours.append(targets)
            self._seen.update(map(id, targets))
            targets = self._holders(targets, names)

    def _targets(self) -> List[Any]:
        """The app's functions, and objects of its classes."""
        objects = gc.get_objects()
        kinds = {kind for kind in set(map(type, objects)) if self._known.is_from_app(kind)}
        found = [it for it in objects if type(it) in kinds]
        functions = [it for it in objects if type(it) is types.FunctionType]
        # By file, not by function: beside torch there are 72,000 functions in 2,300 files.
        files = {path for path in {it.__code__.co_filename for it in functions} if self._known.sources.is_inside(path)}
        return [*found, *(it for it in functions if it.__code__.co_filename in files)]

    def _holders(self, targets: List[Any], names: Dict[int, str]) -> List[Any]:
        between: List[Any] = []
        mine = {id(one) for one in (*self._ours, sys._getframe(), self.__dict__, between)}
        for holder in gc.get_referrers(*targets):
            if id(holder) in mine or id(holder) in self._seen or isinstance(holder, types.FrameType):
                continue
            kind = type(holder)
            if kind in BETWEEN or kind.__name__ in BETWEEN_NAMES:
                between.append(holder)
            elif not self._is_home(holder):
                raise NotProved("%s holds code of the app's%s" % (_named(holder), _which(holder, targets, names)))
        return between

    def _is_home(self, holder: Any) -> bool:
        """The app's own, the worker's, or a function around one of the app's."""
        if isinstance(holder, types.ModuleType):
            return self._known.is_apps_module(holder) or holder.__name__.split(".")[0] == "puna"
        if isinstance(holder, type):
            return self._known.is_from_app(holder)
        if isinstance(holder, (types.FunctionType, types.GeneratorType, types.CoroutineType)):
            return True
        kind = type(holder)
        return kind.__module__.split(".")[0] == "puna" or self._known.is_from_app(kind)


def _named(holder: Any) -> str:
    name = getattr(holder, "__name__", "")
    return str(name) if isinstance(holder, (type, types.ModuleType)) else "a %s" % type(holder).__name__


def _which(holder: Any, targets: List[Any], names: Dict[int, str]) -> str:
    held = {id(v) for v in getattr(holder, "__dict__", {}).values()}
    found = [names[id(t)] for t in targets if id(t) in held and id(t) in names]
    return " (%s)" % found[0] if found else ""


def why_not(app: App) -> str:
    """The place where calls of `infer` could meet, as `app.py:14 keeps self.prompt`; empty when they cannot.

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
        return _sentence(fault, reading, app)
    return ""


def _arguments(app: App, reading: Reading) -> Arguments:
    if app.typed is not None and not reading.is_plain_model(app.typed.request):
        raise NotProved("infer gets a %s, which has code of its own" % app.typed.request.__name__)
    given = [value(Own(), PLAIN)]
    if app.passes_handler:
        given.append(value(Own("handler")))
    return Arguments(given)


def _sentence(fault: NotProved, reading: Reading, app: App) -> str:
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
            if reading.sources.is_inside(at.f_code.co_filename):
                name = os.path.relpath(at.f_code.co_filename, reading.sources.folder)
                raise NotProved("%s:%d runs in a thread beside infer" % (name, at.f_lineno))
            at = at.f_back
