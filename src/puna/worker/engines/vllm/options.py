"""Options that the worker adds to those of an app's `LLM`: sleep, few CUDA graphs, a KV cache measured only once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import sys
from typing import Any, Callable, Dict, Iterator, List, Optional, Set

from puna.worker.engines.engine import adapter_entry, adapter_table

MAX_CONCURRENCY = 256
PROMPT_TOKENS = 256  # prompts of this size, alone or among others, are worth a CUDA graph at any concurrency
IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
# With adapters that requests bring: so many in one step, each of them memory on the GPU (84 MB at rank 16 on 8 B), and
# so many in host memory before the one that was used longest ago is read from disk again.
SHARED_IN_STEP, SHARED_IN_MEMORY = 8, 32


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
    """Settings of this worker, set when it begins to serve: in a zygote's fork that is after the imports."""

    concurrency = 0
    """0 when nobody asked."""


def added_options(init: Callable[..., Any], options: Dict[str, Any]) -> Dict[str, Any]:
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


def adapter_options(given: Dict[str, Any]) -> Dict[str, Any]:
    """The options that `LLM` needs to load the base of an adapter; the app's own stay as they are."""
    found = adapter_entry(given.get("model"))
    if found is None:
        return {}
    rank = next((r for r in RANKS if r >= max(found["rank"], RANKS[0])), RANKS[-1])
    wanted = {"enable_lora": True, "max_lora_rank": rank}
    if adapter_table().get("takes_others"):
        wanted.update(max_loras=SHARED_IN_STEP, max_cpu_loras=SHARED_IN_MEMORY)
    return {name: value for name, value in wanted.items() if name not in given}


def measures_memory(init: Callable[..., Any]) -> bool:
    """This vLLM measures at each start what is left for its KV cache, and can be given it instead."""
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


FILE = "puna-kv-cache.json"
KV_CACHE_BYTES = "kv_cache_memory_bytes"
SLACK_BYTES = 64 * 2**20  # free memory varies a little from start to start, by drivers' doing
FREE, CACHE, ROOM = "free_bytes", "kv_cache_bytes", "full_length_requests"
# Where the endpoint asks for no concurrency: more room than for so many requests of the greatest length only lengthens
# waking, by 3.4 ms a GiB (H200), and takes memory that another engine on this GPU could have. More run, if shorter.
FULL_LENGTH_REQUESTS = 64


class KvCacheSize:
    """The memory that earlier starts of one LLM found for its KV cache: measuring it takes seconds.

    vLLM runs the largest batch and captures CUDA graphs once only to see what is left for the cache. With the same
    model, options and GPU, and as much free memory as then, the answer is the same. Newer versions do this by
    themselves (VLLM_ENABLE_STARTUP_PLAN), when asked to.

    `options` are all that it is given; `full_length_requests` says how many the cache is to hold, 0 for all that fit.
    """

    def __init__(self, options: Dict[str, Any], full_length_requests: int = 0) -> None:
        self.full_length_requests = full_length_requests
        root = os.environ.get("VLLM_CACHE_ROOT", "")
        self._path = os.path.join(root, FILE) if root else ""
        self._key = key_of(options)
        self._free_bytes = 0

    def option(self) -> Dict[str, Any]:
        """`kv_cache_memory_bytes` when it is known and as much memory is free as then; begins CUDA."""
        entry = self._read().get(self._key)
        torch: Any = sys.modules["torch"]
        self._free_bytes = int(torch.cuda.mem_get_info()[0])
        if entry is None or self._free_bytes + SLACK_BYTES < entry[FREE]:
            return {}
        share = 1.0
        if self.full_length_requests and entry.get(ROOM):
            share = min(1.0, self.full_length_requests / float(entry[ROOM]))
        return {KV_CACHE_BYTES: int(entry[CACHE] * share)}

    def keep(self, engine: Any) -> None:
        """Remember what this start has found; an engine that does not tell is left alone."""
        found, room = None, 0.0
        with contextlib.suppress(AttributeError, TypeError, IndexError):
            found, room = engine.collective_rpc(_available)[0]
        if not found or not self._path or not self._free_bytes:
            return
        entries = self._read()
        entries[self._key] = {FREE: self._free_bytes, CACHE: int(found), ROOM: room}
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        part = "%s.%d" % (self._path, os.getpid())
        with open(part, "w", encoding="utf-8") as file:
            json.dump(entries, file)
        os.replace(part, self._path)

    def _read(self) -> Dict[str, Any]:
        try:
            with open(self._path, encoding="utf-8") as file:
                entries: Dict[str, Any] = json.load(file)
        except (OSError, ValueError):
            return {}
        return entries


def kv_cache_of(options: Dict[str, Any], given: Dict[str, Any]) -> Optional[KvCacheSize]:
    """For an LLM that measures; None where the app settles it, or the engine has a process of its own."""
    if os.environ.get(IN_PROCESS, "0") == "1":
        return None  # CUDA must not begin in this process then
    if given.get(KV_CACHE_BYTES) or given.get("num_gpu_blocks_override"):
        return None
    if given.get("gpu_memory_utilization"):
        return KvCacheSize(options)  # the app says how much of the GPU it wants
    return KvCacheSize(options, Asked.concurrency or FULL_LENGTH_REQUESTS)


def hash_without_size(module: Any) -> None:
    """Let the name of a compiled graph not depend on `kv_cache_memory_bytes`, which does not change the graph.

    vLLM leaves `gpu_memory_utilization` out of it but not this; the first start that is given the size would compile
    again what the one before has compiled (14 s for 8 B). `module` is vllm.config.cache.
    """
    config: Any = getattr(module, "CacheConfig", None)
    original = getattr(config, "compute_hash", None)
    if original is None or KV_CACHE_BYTES not in getattr(config, "__dataclass_fields__", ()):
        return

    @functools.wraps(original)
    def compute_hash(self: Any) -> Any:
        size = getattr(self, KV_CACHE_BYTES)
        object.__setattr__(self, KV_CACHE_BYTES, None)
        try:
            return original(self)
        finally:
            object.__setattr__(self, KV_CACHE_BYTES, size)

    config.compute_hash = compute_hash


def key_of(options: Dict[str, Any]) -> str:
    """Model, options, versions and GPU in one word."""
    torch, vllm = sys.modules.get("torch"), sys.modules.get("vllm")
    gpu = ""
    if torch is not None:
        properties: Any = torch.cuda.get_device_properties(0)
        gpu = "%s %d" % (properties.name, properties.total_memory)
    said = {name: repr(value) for name, value in options.items() if name != "self"}
    fraction = os.environ.get("PUNA_GPU_FRACTION", "")
    parts = [said, getattr(vllm, "__version__", ""), getattr(torch, "__version__", ""), gpu, fraction]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _available(worker: Any) -> Any:
    """Bytes for the cache, and how many requests of the greatest length it holds, 0 where vLLM does not say."""
    room = 0.0
    with contextlib.suppress(ImportError, AttributeError, TypeError, ValueError):
        sizes: Any = importlib.import_module("vllm.v1.core.kv_cache_utils")
        room = sizes.get_max_concurrency_for_kv_cache_config(worker.vllm_config, worker.model_runner.kv_cache_config)
    return getattr(worker, "available_kv_cache_memory_bytes", None), float(room)
