"""A transformers model loaded under an adapter's name: the adapter is added to its weights, in memory, without PEFT.

One adapter a model: transformers has no kernels for a batch of several, so requests cannot bring others.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
from typing import Any, Dict

from puna.worker.app import calllog
from puna.worker.engines import adapters
from puna.worker.engines.engine import LoadedAdapter
from puna.worker.engines.transformers import generate

PREFIX = "base_model.model."
MARK = "_puna_adapters"


def shim(module: Any) -> None:
    """Change `PreTrainedModel.from_pretrained` of `transformers.modeling_utils`."""
    kind = module.PreTrainedModel
    if MARK in vars(kind):
        return
    original = kind.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        loaded = original(cls, name, *arguments, **options)
        adapter = adapters.of(name)
        if adapter is not None:
            add(loaded[0] if isinstance(loaded, tuple) else loaded, adapter)
        generate.loaded(loaded[0] if isinstance(loaded, tuple) else loaded, str(name))
        return loaded

    kind.from_pretrained = classmethod(from_pretrained)
    setattr(kind, MARK, True)


def add(model: Any, adapter: LoadedAdapter) -> None:
    """W + scale * B @ A, for every pair of the adapter, computed in float32.

    Raises:
        RuntimeError: a pair has no matrix in this model, or one that cannot be added to.
    """
    torch = importlib.import_module("torch")
    with open(os.path.join(adapter.path, "adapter_config.json"), encoding="utf-8") as file:
        config: Dict[str, Any] = json.load(file)
    load = importlib.import_module("safetensors.torch").load_file
    halves = load(os.path.join(adapter.path, "adapter_model.safetensors"))
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    places = sorted(name[len(PREFIX) : -len(".lora_A.weight")] for name in halves if name.endswith(".lora_A.weight"))
    modules = dict(model.named_modules())
    with torch.no_grad():
        for place in places:
            weight = getattr(modules.get(place), "weight", None)
            if weight is None or not weight.is_floating_point() or weight.is_meta:
                raise RuntimeError(
                    "the adapter %s cannot be added to %s of this model (missing, quantised or not in memory): load "
                    "it whole and as it is, or publish the merged model: puna merge RUN" % (adapter.name, place)
                )
            a, b = (halves["%s%s.lora_%s.weight" % (PREFIX, place, half)].to(weight.device) for half in "AB")
            weight.copy_(weight.float() + scale * (b.float() @ a.float()))
    calllog.note("the adapter %s was added to %d matrices" % (adapter.name, len(places)))
