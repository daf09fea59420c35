"""The variants that can be asked for: which trainer, with which settings."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass(frozen=True)
class Variant:
    """One trainer with its settings."""

    name: str
    trainer: str
    """A key of NEEDS."""
    meaning: str
    dropout: float
    loss_on: str | None = None
    """None: as the whole benchmark."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Merged into Puna's recipe, section by section; other trainers have none."""


VARIANTS = (
    Variant("puna-dropout-0", "puna", "Puna, LoRA without dropout", 0.0),
    Variant("puna-dropout-0.05", "puna", "Puna, the tutorial's recipe", 0.05),
    Variant("puna-assistant", "puna", "the first, loss on the assistant's turns only", 0.0, "assistant"),
    Variant("puna-fp8", "puna", "the first, frozen products in fp8", 0.0, None, {"training": {"precision": "fp8"}}),
    Variant("puna-thrifty", "puna", "the first, in 16 GiB", 0.0, None, {"training": {"memory": "16GiB"}}),
    Variant("trl", "trl", "TRL's SFTTrainer, the tutorial's recipe", 0.05),
    Variant("unsloth-dropout-0", "unsloth", "Unsloth, LoRA without dropout", 0.0),
    Variant("unsloth-dropout-0.05", "unsloth", "Unsloth, the tutorial's dropout", 0.05),
)
REFERENCES = {0.0: "puna-dropout-0", 0.05: "puna-dropout-0.05"}
"""What a result is compared with: Puna with the same dropout."""
NEEDS: dict[str, tuple[str, ...]] = {
    "puna": (),
    "trl": ("trl", "peft", "datasets", "accelerate", "bitsandbytes"),
    "unsloth": ("unsloth", "trl", "peft", "datasets", "accelerate", "bitsandbytes"),
}


def pick(words: Sequence[str]) -> list[Variant]:
    """The variants that `words` name, in the table's order; all of them when there are none.

    A word is a name or the beginning of several (`puna`), and may change Puna's recipe:
    `puna-dropout-0+training.tokens_per_batch=8192+training.recompute_layers=16`.

    Raises:
        ValueError: a word names none, or changes the recipe of a trainer that has none.
    """
    if not words:
        return list(VARIANTS)
    chosen: dict[str, Variant] = {}
    for word in words:
        name, *changes = word.split("+")
        found = [v for v in VARIANTS if v.name == name] or [v for v in VARIANTS if v.name.startswith(f"{name}-")]
        if not found:
            raise ValueError(f"there is no variant {name!r}; see --list")
        for variant in found:
            changed = _changed(variant, changes)
            chosen[changed.name] = changed
    order = [variant.name for variant in VARIANTS]
    return sorted(chosen.values(), key=lambda v: order.index(v.name.split("+")[0]))


def missing(variant: Variant) -> list[str]:
    """The packages that the variant's trainer needs and that are not installed."""
    return [name for name in NEEDS[variant.trainer] if importlib.util.find_spec(name) is None]


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with `changes` put over them, section by section."""
    result = dict(values)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old or {}, value) if both else value
    return result


def _changed(variant: Variant, changes: Sequence[str]) -> Variant:
    if not changes:
        return variant
    if variant.trainer != "puna":
        raise ValueError(f"{variant.name} has no recipe to change")
    recipe: Mapping[str, Any] = variant.recipe
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} is no section.key=value")
        value = yaml.safe_load(text)
        for key in reversed(path.split(".")):
            value = {key: value}
        recipe = merged(recipe, value)
    return dataclasses.replace(variant, name="+".join((variant.name, *changes)), recipe=recipe)
