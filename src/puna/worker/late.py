"""Import one of the worker's own modules after its names were given back to the app."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Dict

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_kept: Dict[str, Any] = {}


def leave_no_trace() -> None:
    """Give the names `puna...` and the place on sys.path back: the app may have a `puna` of its own."""
    _kept.update(_taken())
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != ROOT]


def load(name: str) -> Any:
    """The module of that full name; sys.modules and sys.path are afterwards as they were."""
    if not _kept:  # a test, or the control plane: the names are in use
        return importlib.import_module(name)
    theirs, path = _taken(), list(sys.path)
    try:
        sys.modules.update(_kept)
        sys.path.insert(0, ROOT)
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
        _kept.update(_taken())
        sys.modules.update(theirs)


def _taken() -> Dict[str, Any]:
    names = [n for n in sys.modules if n.split(".")[0] == "puna"]
    return {n: sys.modules.pop(n) for n in names}
