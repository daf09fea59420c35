"""The names that the app imports: its own `puna`, not the worker's, and `inferless` also without that package."""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import sys
import types
from typing import Any, Dict

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_kept: Dict[str, Any] = {}


def leave_no_trace() -> None:
    """Give the names `puna...` and the place on sys.path back: the app may have a `puna` of its own."""
    _kept.update(_taken())
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != ROOT]


def load_own(name: str) -> Any:
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


class Cls:
    """`app = inferless.Cls(gpu="A100")` with `@app.load` and `@app.infer`."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        self.load = self.infer = self.method = decorator


def decorator(*args: Any, **_options: Any) -> Any:
    """Works bare (`@inferless.request`) and called (`@inferless.method(gpu="A100")`)."""
    if len(args) == 1 and callable(args[0]):
        return args[0]
    return lambda thing: thing


def config(*args: Any) -> Any:
    """`@inferless.config`, bare or called: the class's values become environment variables, upper-cased."""
    return _export(args[0]) if args else _export


def _export(cls: Any) -> Any:
    # Pydantic 2, pydantic 1, and the plain class of the platform's documentation, which its own package stumbles over.
    fields = getattr(cls, "model_fields", None) or getattr(cls, "__fields__", None)
    try:
        values = vars(cls) if fields is None else vars(cls())
    except Exception:  # noqa: BLE001 - a field without a value has none to export, as with the package
        values = {}
    for name, value in values.items():
        if not name.startswith("_") and value is not None and not callable(value):
            os.environ[name.upper()] = str(value)
    return cls


def shim_inferless(api: Any) -> None:
    """Of the real package, `config` only: there it raises for a plain class."""
    api.config = config


def needs_package(*_args: Any, **_options: Any) -> Any:
    """Stands for what only the package can do."""
    raise ImportError("inferless.call needs the package itself: add `inferless` to python_packages in the runtime file")


class StubFinder:
    """Last on sys.meta_path, so that an installed `inferless` wins. No importlib.abc: that costs 20 ms to import."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        loader: Any = self
        return importlib.machinery.ModuleSpec(fullname, loader) if fullname == "inferless" else None

    def create_module(self, spec: Any) -> None:
        """None: Python makes it."""

    def exec_module(self, module: types.ModuleType) -> None:
        module.__doc__ = "Stands in for the package `inferless`: its decorators change nothing."
        names = ("request", "response", "method", "local_entry_point")
        module.__dict__.update(dict.fromkeys(names, decorator), Cls=Cls, config=config)
        module.__dict__.update(call=needs_package, call_async=needs_package)


def install_stub() -> None:
    """Let `import inferless` succeed without the package."""
    if not any(isinstance(finder, StubFinder) for finder in sys.meta_path):
        sys.meta_path.append(StubFinder())
