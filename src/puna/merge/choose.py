"""Which base to merge with: measured, not believed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from puna.artifacts import Adapter, Dataset, Model
from puna.config.recipe import Recipe
from puna.home import Home
from puna.merge.stream import merge
from puna.merge.verify import TrainedLike, Verification, compare, expect, read_probes
from puna.progress import Progress, Silent

Base = Literal["original", "dequantised"]
# How far above the trained model the original base may lie and still be taken by `auto`. Both are measured on the same
# tokens; a token's two losses differ by some 0.2 nats, so that over the 65 k tokens of a full measurement their means
# differ by 0.001 from chance alone. Within two of these they are equal, and then the weights without 4-bit noise win.
MAX_AUTO_RISE = 0.002


def merge_and_verify(  # noqa: PLR0913 - everything that a merge is made of; the pipeline calls it once
    adapter: Adapter,
    base_dir: Path,
    home: Home,
    *,
    recipe: Recipe,
    base_ref: str,
    dataset: Dataset,
    trained: TrainedLike,
    progress: Progress = Silent(),
) -> tuple[Model, Verification, str]:
    """Merge as the recipe's `merge.base` says, verify, and say why this base; the loser of `auto` is removed.

    `auto` merges both ways, which takes the room of two models for a while, and takes the original base if its
    held-out loss is at most `MAX_AUTO_RISE` above the trained model's: the original weights lack the 4-bit noise and
    usually make the better model, but the adapter was fitted to the noisy ones, and only a measurement tells.

    Raises:
        MergeError: the adapter does not fit the base.
        MachineError: the disk is full.
    """
    probes = read_probes(dataset)
    expected = expect(trained, probes, progress)
    there = {path.name for path in home.models.iterdir()}
    done: dict[Base, tuple[Model, Verification]] = {}
    for base in _bases(recipe):
        model = merge(adapter, base_dir, home, base=base, base_ref=base_ref, recipe=recipe, progress=progress)
        verdict = compare(model, expected, probes, progress)
        done[base] = Model.open(model.path), verdict
    chosen, why = choose({base: verdict for base, (_, verdict) in done.items()}, recipe)
    progress.note(why)
    kept = done[chosen][0]
    for model, _ in done.values():
        # A model that was there before belongs to someone: it may be published.
        if model.digest != kept.digest and model.path.name not in there:
            shutil.rmtree(model.path)
    return *done[chosen], why


def _bases(recipe: Recipe) -> tuple[Base, ...]:
    if recipe.merge.base != "auto":
        return (recipe.merge.base,)
    return ("original", "dequantised") if recipe.quantization.load_in_4bit else ("original",)


def choose(verdicts: Mapping[Base, Verification], recipe: Recipe) -> tuple[Base, str]:
    """The base to keep, and one sentence of why."""
    if len(verdicts) == 1:
        (base,) = verdicts
        if recipe.merge.base == "auto":
            return base, "original: the base was not trained in 4 bits, so there is no other"
        return base, f"{base}: the recipe says so"
    original, dequantised = verdicts["original"], verdicts["dequantised"]
    figures = (
        f"held-out loss {original.merged_loss:.4f} with the original base, {dequantised.merged_loss:.4f} with the "
        f"dequantised one, {original.trained_loss:.4f} as trained"
    )
    if original.merged_loss - original.trained_loss <= MAX_AUTO_RISE:
        return "original", f"original: {figures}; at most {MAX_AUTO_RISE} above the trained model, without 4-bit noise"
    return "dequantised", f"dequantised: {figures}; the original base is more than {MAX_AUTO_RISE} worse than trained"
