"""An adapter's additions: the LoRA pairs by base tensor, and the chat tokens' rows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from puna.config.recipe import PROJECTIONS
from puna.errors import MergeError
from puna.merge.layout import Slot

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PREFIX = "base_model.model."
# The matrices that QLoRA holds in 4 bits: the projections of the decoder layers. Embedding and head are
# nn.Embedding and the output layer, which training leaves as they are.
QUANTISED = re.compile(rf"model\.layers\.\d+\.(self_attn|mlp)\.({'|'.join(PROJECTIONS)})\.weight")
# PEFT features whose weights are more than W + scale * B @ A; merging them as such would be silently wrong.
UNSUPPORTED = ("use_dora", "fan_in_fan_out", "modules_to_save", "rank_pattern", "alpha_pattern", "lora_bias")


@dataclass(frozen=True)
class DeltaChatRows:
    """Trained rows of embedding and head, fp32 [n, D], for the tokens `token_ids`."""

    token_ids: tuple[int, ...]
    embed: torch.Tensor
    head: torch.Tensor | None


@dataclass(frozen=True)
class WeightDelta:
    """An adapter in memory: small (168 MB for rank 16 on 8 B) beside the base it belongs to."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """Base tensor name -> (A [r, in], B [out, r]), fp32."""
    scale: float
    rows: DeltaChatRows | None = None
    targets: list[str] | str = field(default_factory=list)


def load_delta(folder: Path) -> WeightDelta:
    """Read an adapter folder.

    Raises:
        MergeError: a file is missing, a pair is incomplete, or the adapter is of a kind that is not plain LoRA.
    """
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise MergeError(f"the adapter {folder} cannot be read: {error}") from None
    odd = [name for name in UNSUPPORTED if config.get(name)]
    odd += ["bias"] if config.get("bias", "none") != "none" else []
    if odd:
        raise MergeError(f"the adapter {folder} uses {', '.join(odd)}", "only plain LoRA (and rsLoRA) can be merged")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return WeightDelta(_pairs(tensors, folder), scale, _chat_rows(folder), config.get("target_modules") or [])


def _pairs(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    halves: dict[str, dict[str, torch.Tensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])(\.default)?\.weight", name)
        if match is None:
            strange.append(name)
        else:
            halves.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor.float()
    if strange:
        raise MergeError(f"{folder} holds {len(strange)} tensors that are no LoRA pair: {_some(strange)}")
    single = [name for name, half in halves.items() if len(half) != 2]
    if single:
        raise MergeError(f"{folder} holds only half a LoRA pair for {_some(single)}")
    bad = [name for name, half in halves.items() if not all(bool(t.isfinite().all()) for t in half.values())]
    if bad:
        hint = "look at the run's loss: it diverged"
        raise MergeError(f"the adapter's weights for {_some(bad)} are not finite", hint)
    return {name: (half["A"], half["B"]) for name, half in halves.items()}


def _chat_rows(folder: Path) -> DeltaChatRows | None:
    path = folder / "chat_rows.safetensors"
    if not path.exists():
        return None
    tensors = load_file(path)
    missing = [name for name in ("embed", "token_ids") if name not in tensors]
    if missing:
        raise MergeError(f"{path} lacks {', '.join(missing)}")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise MergeError(f"{path} holds numbers that are not finite", "look at the run's loss: it diverged")
    token_ids = tuple(int(i) for i in tensors["token_ids"])
    head = tensors.get("head")
    return DeltaChatRows(token_ids, tensors["embed"].float(), None if head is None else head.float())


def check_complete(delta: WeightDelta, slots: Iterable[Slot]) -> None:
    """Compare the adapter's pairs with what its config says it targets in this base, one for one.

    Raises:
        MergeError: a target without a pair, a pair without a target, or a shape that does not fit; keys named.
    """
    shapes = {slot.name: slot.shape for slot in slots}
    expected = {name for name in shapes if _is_target(name, delta.targets)}
    unknown = sorted(set(delta.pairs) - set(shapes))
    if unknown:
        raise MergeError(
            f"the base has no tensor for {len(unknown)} of the adapter's {len(delta.pairs)} pairs: {_some(unknown)}",
            "merge the adapter with the base it was trained on",
        )
    missing = sorted(expected - set(delta.pairs))
    extra = sorted(set(delta.pairs) - expected)
    if missing or extra:
        text = f"lacks {_some(missing)}" if missing else f"has {_some(extra)}, which its config does not name"
        raise MergeError(f"{len(delta.pairs)} of {len(expected)} expected LoRA pairs are there: the adapter {text}")
    if not expected:
        raise MergeError("the adapter targets no tensor of this base", "merge it with the base it was trained on")
    for name, (a_RI, b_OR) in delta.pairs.items():
        if (b_OR.shape[0], a_RI.shape[1]) != shapes[name] or a_RI.shape[0] != b_OR.shape[1]:
            raise MergeError(f"{name} is {shapes[name]}, the adapter's pair {tuple(b_OR.shape)} @ {tuple(a_RI.shape)}")


def _is_target(name: str, targets: list[str] | str) -> bool:
    # PEFT's rule: a list names the modules' last parts, a string is a pattern for the whole path.
    module = name.removesuffix(".weight")
    if targets == "all-linear":
        return QUANTISED.fullmatch(name) is not None
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return name.endswith(".weight") and any(module == t or module.endswith(f".{t}") for t in targets)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
