"""A stand-in for the `inferless` package, used when the environment has none: its decorators change nothing."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any, Callable, Optional, Sequence


class Cls:
    """`app = inferless.Cls(gpu="A100")` with `@app.load` and `@app.infer`."""

    def __init__(self, *_args: Any, **_options: Any) -> None:
        self.load = self.infer = self.method = decorator


def decorator(*args: Any, **_options: Any) -> Any:
    """Works bare (`@inferless.request`) and called (`@inferless.method(gpu="A100")`)."""
    if len(args) == 1 and callable(args[0]):
        return args[0]
    return _same


def _same(thing: Callable[..., Any]) -> Callable[..., Any]:
    return thing


class Finder:
    """Last on sys.meta_path, so that an installed `inferless` wins. No importlib.abc: that costs 20 ms to import."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]] = None, target: Optional[types.ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        loader: Any = self
        return importlib.machinery.ModuleSpec(fullname, loader) if fullname == "inferless" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[types.ModuleType]:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__doc__ = __doc__
        names = ("request", "response", "config", "method", "local_entry_point")
        module.__dict__.update(dict.fromkeys(names, decorator), Cls=Cls)


def install() -> None:
    """Let `import inferless` succeed without the package."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
