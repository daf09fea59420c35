"""How much memory vLLM found for its KV cache, kept from one start to the next: measuring it takes seconds.

vLLM runs the largest batch and captures CUDA graphs once only to see what is left for the cache. With the same model,
options and GPU, and as much free memory as then, the answer is the same. Newer versions do this by themselves
(VLLM_ENABLE_STARTUP_PLAN), when asked to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from typing import Any, Dict, Optional

FILE = "puna-kv-cache.json"
SLACK_BYTES = 64 * 2**20  # free memory varies a little from start to start, by drivers' doing
FREE, CACHE = "free_bytes", "kv_cache_bytes"


class Found:
    """What earlier starts of one LLM found; `options` are all that it is given."""

    def __init__(self, options: Dict[str, Any]) -> None:
        root = os.environ.get("VLLM_CACHE_ROOT", "")
        self._path = os.path.join(root, FILE) if root else ""
        self._key = key_of(options)
        self._free_bytes = 0

    def option(self) -> Dict[str, Any]:
        """`kv_cache_memory_bytes` when it is known and as much memory is free as then; begins CUDA."""
        entry = self._read().get(self._key)
        self._free_bytes = free_bytes()
        if entry is None or self._free_bytes + SLACK_BYTES < entry[FREE]:
            return {}
        return {"kv_cache_memory_bytes": entry[CACHE]}

    def keep(self, engine: Any) -> None:
        """Remember what this start has found; an engine that does not tell is left alone."""
        found = None
        with contextlib.suppress(AttributeError, TypeError, IndexError):
            found = engine.collective_rpc(_available)[0]
        if not found or not self._path or not self._free_bytes:
            return
        entries = self._read()
        entries[self._key] = {FREE: self._free_bytes, CACHE: int(found)}
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


def look(options: Dict[str, Any], given: Dict[str, Any]) -> Optional[Found]:
    """For an LLM that measures; None where the app settles it, or the engine has a process of its own."""
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "0") == "1":
        return None  # CUDA must not begin in this process then
    if given.get("kv_cache_memory_bytes") or given.get("num_gpu_blocks_override"):
        return None
    return Found(options)


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


def free_bytes() -> int:
    """Free memory of the GPU."""
    torch: Any = sys.modules["torch"]
    free, _ = torch.cuda.mem_get_info()
    return int(free)


def _available(worker: Any) -> Any:
    return getattr(worker, "available_kv_cache_memory_bytes", None)
