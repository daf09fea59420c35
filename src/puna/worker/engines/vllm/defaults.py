"""What the worker asks of vLLM where the app says nothing: one process, sleep, few CUDA graphs."""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, Set

MAX_CONCURRENCY = 256
PROMPT_TOKENS = 256  # prompts of this size, alone or among others, are worth a CUDA graph at any concurrency
IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"


@contextlib.contextmanager
def in_process() -> Iterator[None]:
    """The engine lives in this process, unless the environment says otherwise: no pickling between it and the app.

    Only while one is made: vLLM's asynchronous engine needs the other setting.
    """
    if IN_PROCESS in os.environ:
        yield
        return
    os.environ[IN_PROCESS] = "0"
    try:
        yield
    finally:
        os.environ.pop(IN_PROCESS, None)


class Asked:
    """What was asked of this worker. Set when it begins to serve, which is after the imports in a zygote's fork."""

    concurrency = 0
    """0 when nobody asked."""


def chosen(init: Callable[..., Any], options: Dict[str, Any]) -> Dict[str, Any]:
    """Options to add to those that the app gave to `LLM`."""
    known = _known(init)
    more: Dict[str, Any] = {}
    if not is_cuda():
        return more
    # The allocator that sleep needs and expandable segments exclude each other.
    is_expandable = "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if "enable_sleep_mode" in known and "enable_sleep_mode" not in options and not is_expandable:
        more["enable_sleep_mode"] = True
    says = options.keys() & {"compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size"}
    can_say = "cudagraph_mode" in _fields("vllm.config", "CompilationConfig")
    if can_say and not says and not options.get("enforce_eager"):
        largest = min(int(options.get("max_num_seqs") or MAX_CONCURRENCY), Asked.concurrency or MAX_CONCURRENCY)
        # Piecewise ones too: without them a step with a prompt in it takes 25 ms where 8 would do (8 B, H200).
        more["compilation_config"] = {
            "cudagraph_capture_sizes": capture_sizes(largest),
            "cudagraph_mode": "FULL_AND_PIECEWISE",
        }
    return more


def capture_sizes(largest: int) -> List[int]:
    """Numbers of tokens in a step that have a CUDA graph; a step takes the next larger one, a start captures each.

    Up to `largest`, the most replies at once, and on to where a step has prompts in it besides.
    """
    end = max(2 * largest, PROMPT_TOKENS)
    sizes, size = {1, 2, 4, largest}, 8
    while size <= end:
        sizes.update({size, min(size * 3 // 2, end) if size > 8 else size})
        size *= 2
    return sorted(sizes)


def measures_memory(init: Callable[..., Any]) -> bool:
    """This vLLM measures at each start what is left for its KV cache, and can be told instead."""
    return is_cuda() and "kv_cache_memory_bytes" in _known(init)


def is_cuda() -> bool:
    """True on an NVIDIA GPU; asks vLLM where it can say, without touching the GPU."""
    platform = getattr(sys.modules.get("vllm.platforms"), "current_platform", None)
    if platform is not None:
        return bool(platform.is_cuda())
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.version.cuda) and bool(torch.cuda.is_available())


def _known(init: Callable[..., Any]) -> Set[str]:
    return set(inspect.signature(init).parameters) | _fields("vllm.engine.arg_utils", "EngineArgs")


def _fields(module: str, name: str) -> Set[str]:
    return set(getattr(getattr(sys.modules.get(module), name, None), "__dataclass_fields__", ()))
