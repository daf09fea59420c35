"""Adapters under a model's name: an app loads `owner/name`, gets the base below it, and the adapter on every request.

The bundle's adapters.json, which PUNA_ADAPTERS names, says which names are adapters and where they lie. The base's
files stand under the same name in the bundle's Hugging Face cache, so tokenizers and engines find them as usual.
"""

from __future__ import annotations

import json
import os
from typing import Any, Dict, Optional

from puna.worker.engines.engine import LoadedAdapter

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has kernels for
# With adapters that requests bring: so many in one step, each of them memory on the GPU (84 MB at rank 16 on 8 B), and
# so many in host memory before the one that was used longest ago is read from disk again.
SHARED_IN_STEP, SHARED_IN_MEMORY = 8, 32


def of(model: str) -> Optional[LoadedAdapter]:
    """The adapter that a model's name means; None when it means a whole model."""
    found = _named(model)
    return None if found is None else LoadedAdapter(model, os.path.join(os.path.dirname(_file()), found["path"]))


def vllm_options(given: Dict[str, Any]) -> Dict[str, Any]:
    """The options that `LLM` needs to load the base of an adapter; the app's own stay as they are."""
    found = _named(given.get("model"))
    if found is None:
        return {}
    rank = next((r for r in RANKS if r >= max(found["rank"], RANKS[0])), RANKS[-1])
    wanted = {"enable_lora": True, "max_lora_rank": rank}
    if _read().get("takes_others"):
        wanted.update(max_loras=SHARED_IN_STEP, max_cpu_loras=SHARED_IN_MEMORY)
    return {name: value for name, value in wanted.items() if name not in given}


def _named(model: Any) -> Optional[Dict[str, Any]]:
    found: Optional[Dict[str, Any]] = _read().get("adapters", {}).get(model) if isinstance(model, str) else None
    return found


def _file() -> str:
    return os.environ.get("PUNA_ADAPTERS", "")


def _read() -> Dict[str, Any]:
    if not _file():
        return {}
    with open(_file(), encoding="utf-8") as file:
        found: Dict[str, Any] = json.load(file)
    return found
