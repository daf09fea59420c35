"""vLLM's class `LLM`, changed in place: blocking calls from many threads share one engine, batched by it."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from typing import Any, Callable

from puna.worker.app import calllog
from puna.worker.engines import engine as engines
from puna.worker.engines.vllm.engine import VllmEngine
from puna.worker.engines.vllm.loop import EngineLoop, SharedEngine
from puna.worker.engines.vllm.options import adapter_options, added_options, in_process, kv_cache_of, measures_memory

# Each adds requests and then waits for them; those that vLLM has, by version.
CALLS = ("generate", "chat", "encode", "embed", "classify", "score", "reward", "beam_search", "enqueue", "enqueue_chat")
ENGINE_NEEDS = ("add_request", "step", "abort_request", "has_unfinished_requests")
LOOP = "_puna_loop"


def shim(module: Any) -> None:
    """Change `module.LLM`. In place, so that isinstance, subclasses and names bound before mean the same class."""
    llm_class = getattr(module, "LLM", None)
    if llm_class is None or LOOP in vars(llm_class):
        return
    if not callable(getattr(llm_class, "generate", None)):
        calllog.note("this vLLM's LLM has no generate: its calls are not batched")
        return
    setattr(llm_class, LOOP, None)
    llm_class.__init__ = _init(llm_class.__init__)
    for name in CALLS:
        method = getattr(llm_class, name, None)
        if callable(method):
            setattr(llm_class, name, _call(method, name.startswith("enqueue")))


def _init(original: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        given = dict(signature.bind_partial(self, *arguments, **options).arguments)
        given.update(given.pop("kwargs", {}))
        options.update(added_options(original, given))
        options.update(adapter_options(given))
        found = kv_cache_of(dict(given, **options), given) if measures_memory(original) else None
        if found is not None:
            options.update(found.option())
        cores = os.sched_getaffinity(0)
        with in_process():
            original(self, *arguments, **options)
        if found is not None and "kv_cache_memory_bytes" not in options:
            found.keep(self.llm_engine)
        os.sched_setaffinity(0, cores)  # vLLM on CPUs binds this thread to one core, and threads begin like their maker
        _share(self, str(given.get("model", "")))

    return __init__


def _share(llm: Any, model: str) -> None:
    engine = getattr(llm, "llm_engine", None)
    missing = [name for name in ENGINE_NEEDS if not callable(getattr(engine, name, None))]
    if missing:
        calllog.note("this vLLM's engine has no %s: calls of LLM run one at a time" % ", ".join(missing))
        return
    loop = EngineLoop(engine, engines.like_this_thread(), engines.died)
    try:
        shared = VllmEngine(llm, model, loop)
    except AttributeError as error:
        calllog.note("this vLLM's configuration is unlike those known (%s): calls of LLM run one at a time" % error)
        return
    llm.llm_engine = SharedEngine(engine, loop)
    llm.request_counter = SharedCounter()
    setattr(llm, LOOP, loop)
    adapter = engines.adapter_of(model)
    if adapter is not None:
        loop.defaults["lora_request"] = shared._lora(adapter)
    if getattr(getattr(llm, "model_config", None), "runner_type", "generate") == "generate":
        engines.register(shared)  # one that embeds is shared as well, but answers no prompts


class SharedCounter:
    """vLLM's counts with two statements, and two threads would get one id."""

    def __init__(self) -> None:
        self._ids = itertools.count()

    def __next__(self) -> int:
        return next(self._ids)

    def reset(self) -> None:
        """Ids go on: others' requests have the low ones."""


def _call(method: Callable[..., Any], only_adds: bool) -> Callable[..., Any]:
    parameters = inspect.signature(method).parameters

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        loop = getattr(self, LOOP)
        if loop is None:
            return method(self, *arguments, **options)
        # Bars of many requests at once would only tear each other apart in the call log.
        if "use_tqdm" in parameters and "use_tqdm" not in options:
            place, kind = list(parameters).index("use_tqdm"), parameters["use_tqdm"].kind
            if place > len(arguments) or kind is inspect.Parameter.KEYWORD_ONLY:
                options["use_tqdm"] = False
        if only_adds:
            with loop.rendering:
                return method(self, *arguments, **options)
        with loop.own_handle():
            return method(self, *arguments, **options)

    setattr(call, engines.SAFE, not only_adds)
    return call
