"""Run by each Python process that an app on a part of a GPU starts: torch and vLLM keep to that part there as well."""

from __future__ import annotations

import importlib
import os
import sys

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(_HERE)))


def _join() -> None:
    """Leaves no trace: a `puna` of the environment's own is found as if this had not been."""
    sys.path.insert(0, _ROOT)
    try:
        from puna.worker import share

        share.join()
    finally:
        sys.path.remove(_ROOT)
        for name in [name for name in sys.modules if name.split(".")[0] == "puna"]:
            del sys.modules[name]


def _run_the_next() -> None:
    """A sitecustomize of the system's or of the environment's is run as ever: this one only stands before it."""
    me = sys.modules.pop(__name__)
    path = list(sys.path)
    sys.path[:] = [entry for entry in path if os.path.abspath(entry) != _HERE]
    try:
        importlib.import_module(__name__)
    except ImportError as error:
        if error.name != "sitecustomize":
            raise
    finally:
        sys.path[:] = path
        sys.modules.setdefault(__name__, me)


_join()
_run_the_next()
