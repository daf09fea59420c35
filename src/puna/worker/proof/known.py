"""What is known of the objects that are there and are not the app's."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import types
from typing import Any, Callable, Dict, Optional, Tuple

from puna.worker.engines import engine as engines
from puna.worker.engines.vllm.shared import SharedEngine
from puna.worker.proof import library
from puna.worker.proof.source import Sources

LOCKS = {type(threading.Lock()), type(threading.RLock()), threading.Semaphore, threading.BoundedSemaphore}

MARK = engines.SAFE
MOST_WRAPPED = 20


class Known:
    """What the objects that are there now are known for."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._by_id: Dict[int, Tuple[Any, str]] = {}
        self._classes: Dict[int, Tuple[Any, bool]] = {}
        for module in library.FUNCTIONS:
            self.learn(module)

    def learn(self, name: str) -> None:
        """Look up the functions of one module, if it is loaded and is no file of the app."""
        module = sys.modules.get(name)
        if module is None or self.is_apps_module(module):
            return
        for one, effect in library.FUNCTIONS[name]:
            found = attribute(module, one)
            if found is not None and not self.is_apps(found):
                self._by_id[id(found)] = found, effect

    def effect(self, it: Any) -> str:
        """How a function treats what it is given; empty when that is not known."""
        module = getattr(it, "__module__", None)
        if id(it) not in self._by_id and module in library.FUNCTIONS:
            self.learn(module)  # it was imported since
        found = self._by_id.get(id(it))
        return found[1] if found is not None and found[0] is it else ""

    def is_apps_module(self, module: Any) -> bool:
        """A file of the app's folder, whatever name it has."""
        return self._sources.is_inside(getattr(module, "__file__", None) or "")

    def is_apps_class(self, kind: Any) -> bool:
        """A class from a file of the app's, or into which the app has put a function."""
        if id(kind) not in self._classes:
            found = self.is_from_app(kind) or any(map(self._leads_to_app, list(vars(kind).values())))
            self._classes[id(kind)] = kind, found
        return self._classes[id(kind)][1]

    def is_mine(self, code: types.CodeType) -> bool:
        """Code of a file of the app's."""
        return self._sources.is_mine(code)

    def is_from_app(self, kind: Any) -> bool:
        """A class whose module is a file of the app's."""
        module = sys.modules.get(str(getattr(kind, "__module__", "")))
        return module is not None and self.is_apps_module(module)

    def _leads_to_app(self, it: Any) -> bool:
        """A function, method or decorated one whose code is the app's."""
        for _ in range(MOST_WRAPPED):
            if isinstance(it, types.FunctionType) and self._sources.is_mine(it.__code__):
                return True
            if isinstance(it, property):
                return any(self._leads_to_app(f) for f in (it.fget, it.fset) if f is not None)
            inner = it.func if isinstance(it, functools.partial) else None
            if isinstance(it, (staticmethod, classmethod, types.MethodType)):
                inner = it.__func__
            elif isinstance(it, types.FunctionType) or type(it).__name__ == "_lru_cache_wrapper":
                inner = getattr(it, "__wrapped__", None)
            if inner is None:
                return False
            it = inner
        return True

    def is_apps(self, it: Any) -> bool:
        """A function or object that leads to code of the app's."""
        if isinstance(it, type):
            return self.is_apps_class(it)
        return self._leads_to_app(it) or self.is_from_app(type(it))


def attribute(module: Any, name: str) -> Any:
    try:
        return getattr(module, name, None)
    except Exception:  # noqa: BLE001 - a lazy module whose import fails: then the app cannot use it either
        return None


def engine_of(it: Any) -> str:
    """`vllm` or `transformers` for an engine that the worker has made safe for many threads; else empty."""
    for one in engines.all_engines():
        if it is getattr(one, "_llm", None) or it is getattr(one, "_model", None):
            return one.kind
    return ""


def is_shimmed(kind: Any) -> bool:
    """The library's class of engines, as the worker has changed it."""
    return any(getattr(found, MARK, False) for found in vars(kind).values())


def is_shared_engine(it: Any) -> bool:
    """What stands where vLLM's LLM keeps its engine."""
    return type(it) is SharedEngine


def is_marked(it: Any, name: str) -> bool:
    """A method, as the class has it, that a shim has made safe."""
    if name in getattr(it, "__dict__", {}):
        return False
    return bool(getattr(static(type(it), name), MARK, False))


def static(kind: Any, name: str) -> Any:
    """What a class says of a name, without running anything."""
    for one in kind.__mro__:
        if name in vars(one):
            return vars(one)[name]
    return None


def base_named(it: Any, name: str, package: str) -> Optional[Any]:
    """The class of that name among an object's, when it comes from that package."""
    for one in type(it).__mro__:
        if one.__name__ == name and one.__module__.split(".")[0] == package:
            return one
    return None


def is_tokenizer(it: Any, is_apps: Callable[[Any], bool]) -> bool:
    """A tokenizer of transformers whose calls cannot meet: in Python, or with the worker's lock around Rust."""
    if base_named(it, "PreTrainedTokenizerBase", "transformers") is None or any(map(is_apps, type(it).__mro__)):
        return False
    for name in ("_encode_plus", "_batch_encode_plus", "_decode", "_call_one", "encode", "decode", "__call__"):
        if name in vars(it):
            return False
    if not hasattr(it, "_tokenizer"):
        return True
    try:
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            part = getattr(it._tokenizer, name, None)
            if part is not None:
                part.__getstate__()
    except Exception:  # noqa: BLE001 - a part written in Python cannot be written down: not known to keep nothing
        return False
    return bool(getattr(static(type(it), "_decode"), MARK, False))


def is_pipeline(it: Any) -> bool:
    """transformers' pipeline for text over a model that the worker batches."""
    kind = type(it)
    if kind.__name__ != "TextGenerationPipeline" or not kind.__module__.startswith("transformers."):
        return False
    return engine_of(getattr(it, "model", None)) == "transformers"


def is_async_engine(it: Any) -> bool:
    """vLLM's own engine for asyncio; each request is told by its id."""
    return any(base_named(it, name, "vllm") is not None for name in ("AsyncLLM", "AsyncLLMEngine"))


def is_logger(it: Any) -> bool:
    """The standard library's."""
    return type(it) in (logging.Logger, logging.RootLogger)


def is_lock(it: Any) -> bool:
    """A lock, which keeps nothing but who holds it."""
    kind = type(it)
    asyncio = sys.modules.get("asyncio")
    return kind in LOCKS or (asyncio is not None and kind in (asyncio.Lock, asyncio.Semaphore))


def torch_decorated(it: Any) -> Optional[types.FunctionType]:
    """The function under `@torch.no_grad()` and its like."""
    if not isinstance(it, types.FunctionType) or it.__code__.co_name != "decorate_context":
        return None
    if not it.__code__.co_filename.endswith(os.path.join("torch", "utils", "_contextlib.py")):
        return None
    cells: Dict[str, Any] = dict(zip(it.__code__.co_freevars, it.__closure__ or ()))
    inner = cells["func"].cell_contents if "func" in cells else None
    return inner if isinstance(inner, types.FunctionType) else None
