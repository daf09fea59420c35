"""Adapter and base become one model, tensor by tensor: the base's files are written again with the same layout.

Memory is one tensor, whatever the model's size. Tensors that the adapter leaves alone are copied as bytes; the others
are read, added to in fp32, and rounded once to the base's dtype. Which base the adapter is added to is a choice:

- `original`: the weights as published. Less noise than training saw, so a slightly different model.
- `dequantised`: each matrix that training held in 4 bits goes through NF4 and back first, so that the model is the
  trained one. That is all seven projections of every layer, LoRA targets or not; embedding, norms and head never were
  quantised and are left alone.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, Literal

import torch

from puna.artifacts import Adapter, Model, drafting, write_json
from puna.config.recipe import Recipe
from puna.errors import MachineError, MergeError
from puna.home import Home
from puna.merge.delta import EMBED, HEAD, QUANTISED, WeightDelta, check_complete, load_delta
from puna.merge.layout import DTYPES, INDEX, SINGLE, Shard, Slot, header, shards
from puna.merge.settings import read_config, write_settings
from puna.progress import Progress, Silent

# bitsandbytes' block for NF4: the trainer's, and the only one its double quantisation is tuned for.
NF4_BLOCK = 64
COPY_BYTES = 64 << 20
# Room left on the disk for config, tokenizer and whoever else writes there.
SPARE_BYTES = 64 << 20


def merge(
    adapter: Adapter,
    base_dir: Path,
    home: Home,
    *,
    base: Literal["original", "dequantised"],
    base_ref: str,
    recipe: Recipe,
    progress: Progress = Silent(),
) -> Model:
    """One model folder in `home.models` out of an adapter and its base; the same inputs give the same digest.

    Raises:
        MergeError: the adapter does not fit the base, or the sum is not finite; keys are named, no folder is left.
        MachineError: the disk is full; no folder is left.
    """
    progress.stage(f"merge with the {base} base")
    delta = load_delta(adapter.path)
    dequantise = base == "dequantised" and recipe.quantization.load_in_4bit
    work = _Work(delta, dequantise, recipe.quantization.bnb_4bit_use_double_quant)
    with drafting("model", home.models) as draft:
        touched = _write_model(work, delta, adapter, base_dir, home, draft.path, progress)
        if touched != len(delta.pairs):
            raise MergeError(f"{touched} of {len(delta.pairs)} LoRA pairs were merged")
        draft.made_from |= {**adapter.manifest.made_from, "base": base_ref, "adapter": adapter.digest}
        draft.config |= {
            "base": base,
            "trained_in_4bit": recipe.quantization.load_in_4bit,
            "merged_pairs": touched,
            "recipe": recipe.as_dict(),
        }
    progress.note(f"{touched} matrices merged into {draft.final}")
    return Model.open(draft.final)


def serving_base(
    adapter: Adapter, base_dir: Path, home: Home, *, base_ref: str, recipe: Recipe, progress: Progress = Silent()
) -> Model:
    """The base that an engine loads to serve the adapter unmerged, with its chat rows, tokenizer and stop tokens.

    Adapters that agree in these make the same model, by digest, and can share one engine. Unless the recipe merges
    with the original base, the matrices go through NF4 and back: adapter and base together then are the trained model.

    Raises:
        MergeError: the adapter does not fit the base.
        MachineError: the disk is full; no folder is left.
    """
    progress.stage("make the base that the adapter is served on")
    delta = load_delta(adapter.path)
    dequantise = recipe.quantization.load_in_4bit and recipe.merge.base != "original"
    bare = dataclasses.replace(delta, pairs={})
    work = _Work(bare, dequantise, recipe.quantization.bnb_4bit_use_double_quant)
    with drafting("model", home.models) as draft:
        _write_model(work, delta, adapter, base_dir, home, draft.path, progress)
        draft.made_from |= {"base": base_ref}
        draft.config |= {"base": "dequantised" if dequantise else "original", "serves": "adapters"}
    return Model.open(draft.final)


@dataclass(frozen=True)
class _Work:
    delta: WeightDelta
    dequantise: bool
    double_quant: bool
    device: str = field(default_factory=lambda: "cuda" if torch.cuda.is_available() else "cpu")

    def touches(self, slot: Slot) -> bool:
        return slot.name in self.delta.pairs or (self.dequantise and QUANTISED.fullmatch(slot.name) is not None)


def _write_model(
    work: _Work, delta: WeightDelta, adapter: Adapter, base_dir: Path, home: Home, target: Path, progress: Progress
) -> int:
    """Check `delta`, the whole adapter, against the base, and write all files; returns how many pairs were added."""
    config, layout = read_config(base_dir), shards(base_dir)
    slots = {slot.name: slot for shard in layout for slot in shard.slots}
    check_complete(delta, slots.values())
    unties = _check_rows(delta, slots, tied=bool(config.get("tie_word_embeddings")))
    if unties:
        progress.note("embedding and head shared their weights; the trained chat rows differ, so the model has both")
    _check_space(home.models, sum(shard.size_bytes for shard in layout), unties, slots)
    with _full_precision():
        touched = _write_weights(work, layout, target, unties, progress)
    write_settings(base_dir, adapter, home, target, untied=unties)
    return touched


@contextmanager
def _full_precision() -> Iterator[None]:
    # Training may have allowed TF32, whose 10-bit mantissa would show in the sum.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _check_space(folder: Path, size_bytes: int, unties: bool, slots: dict[str, Slot]) -> None:
    needed = size_bytes + SPARE_BYTES + (slots[EMBED].end - slots[EMBED].start if unties else 0)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise MachineError(
            f"the merged model needs {needed / 1e9:.1f} GB on the disk of {folder}, {free / 1e9:.1f} GB are free",
            "free some space, or set PUNA_HOME to a larger disk",
        )


def _check_rows(delta: WeightDelta, slots: dict[str, Slot], tied: bool) -> bool:
    """Check that the chat rows fit; True when a tied model must get a head of its own to hold them."""
    rows = delta.rows
    if rows is None:
        return False
    for name, values in ((EMBED, rows.embed), (HEAD, rows.head)):
        if values is None or (name == HEAD and tied):
            continue
        if name not in slots:
            raise MergeError(f"the adapter trained rows of {name}, which the base lacks")
        vocab, width = slots[name].shape
        if values.shape != (len(rows.token_ids), width) or not all(0 <= i < vocab for i in rows.token_ids):
            found = f"rows {tuple(values.shape)} for tokens {rows.token_ids}"
            raise MergeError(f"{name} is {(vocab, width)}; {found} do not fit")
    if not tied and rows.head is None:
        raise MergeError("the adapter's chat rows lack `head`, and the base has a head of its own")
    unties = tied and rows.head is not None and not torch.equal(rows.embed, rows.head)
    if unties and HEAD in slots:
        raise MergeError(f"the base says that embedding and head are tied, and yet has {HEAD}")
    if unties and rows.head is not None and rows.head.shape != rows.embed.shape:
        raise MergeError(f"chat rows: embed is {tuple(rows.embed.shape)}, head {tuple(rows.head.shape)}")
    return unties


# ---------------------------------------------------------------- weights


def _write_weights(work: _Work, layout: list[Shard], target: Path, unties: bool, progress: Progress) -> int:
    """Write every file; returns how many LoRA pairs were added."""
    names = _file_names(layout, unties)
    total = sum(len(shard.slots) for shard in layout)
    done = merged = 0
    for shard in layout:
        with shard.path.open("rb") as source, (target / names[shard.path.name]).open("wb", 0) as out:
            _write_all(out, shard.header)
            for slot in shard.slots:
                merged += _write_slot(work, slot, source, out)
                done += 1
                progress.advance(done, total)
    if unties:
        _write_head(work, layout, target / names[HEAD])
    if names.get(HEAD) or layout[0].path.name != SINGLE:
        weight_map = {slot.name: names[shard.path.name] for shard in layout for slot in shard.slots}
        weight_map |= {HEAD: names[HEAD]} if unties else {}
        sizes = {slot.name: slot.end - slot.start for shard in layout for slot in shard.slots}
        size_bytes = sum(sizes.values()) + (sizes[EMBED] if unties else 0)
        write_json(target / INDEX, {"metadata": {"total_size": size_bytes}, "weight_map": weight_map})
    return merged


def _file_names(layout: list[Shard], unties: bool) -> dict[str, str]:
    """Base file -> file in the model; a head of its own goes into one more file, so that offsets stay."""
    if not unties:
        return {shard.path.name: shard.path.name for shard in layout}
    # transformers prefers a lone model.safetensors to an index, so with two files neither may have that name.
    count = len(layout) + 1
    names = {shard.path.name: f"model-{i:05}-of-{count:05}.safetensors" for i, shard in enumerate(layout, 1)}
    return names | {HEAD: f"model-{count:05}-of-{count:05}.safetensors"}


def _write_slot(work: _Work, slot: Slot, source: BufferedReader, out: BinaryIO) -> int:
    if not work.touches(slot):
        _copy(source, out, slot.start, slot.end - slot.start)
        rows = work.delta.rows
        if rows is not None and slot.name == EMBED:
            _patch(out, slot, rows.token_ids, rows.embed)
        if rows is not None and rows.head is not None and slot.name == HEAD:
            _patch(out, slot, rows.token_ids, rows.head)
        return 0
    if slot.dtype not in DTYPES:
        raise MergeError(f"{slot.name} is {slot.dtype} in the base", "use the base in bf16, fp16 or fp32")
    raw = bytearray(slot.end - slot.start)
    source.seek(slot.start)
    if source.readinto(raw) < len(raw):
        raise MergeError("the base's file became shorter while it was read", "fetch the base again")
    _write_all(out, _bytes(_sum(work, slot, torch.frombuffer(raw, dtype=DTYPES[slot.dtype]).view(slot.shape))))
    return int(slot.name in work.delta.pairs)


def _sum(work: _Work, slot: Slot, weight_OI: torch.Tensor) -> torch.Tensor:
    """W + scale * B @ A, added in fp32 and rounded once to W's dtype."""
    dtype = weight_OI.dtype
    weight_OI = weight_OI.to(work.device)
    if work.dequantise and QUANTISED.fullmatch(slot.name):
        weight_OI = nf4_round_trip(weight_OI, work.double_quant)
    if slot.name in work.delta.pairs:
        a_RI, b_OR = (half.to(work.device) for half in work.delta.pairs[slot.name])
        weight_OI = weight_OI.float().addmm_(b_OR, a_RI, alpha=work.delta.scale).to(dtype)
    if not bool(weight_OI.isfinite().all()):
        raise MergeError(f"merging {slot.name} gives numbers that are not finite", "look at the run's loss")
    return weight_OI


def nf4_round_trip(weight: torch.Tensor, double_quant: bool = True) -> torch.Tensor:
    """The matrix as training saw it: quantised to NF4 by bitsandbytes and back, in its own dtype."""
    from bitsandbytes import functional  # seconds to import; `original` needs none of it

    packed, state = functional.quantize_4bit(
        weight, blocksize=NF4_BLOCK, compress_statistics=double_quant, quant_type="nf4"
    )
    return functional.dequantize_4bit(packed, state).to(weight.dtype)  # type: ignore[no-any-return]


def _write_head(work: _Work, layout: list[Shard], path: Path) -> None:
    """A head of its own for a tied model: the embedding's bytes with the head's chat rows."""
    shard, embed = next((sh, sl) for sh in layout for sl in sh.slots if sl.name == EMBED)
    rows = work.delta.rows
    assert rows is not None and rows.head is not None
    new = header(HEAD, embed.dtype, embed.shape)
    with shard.path.open("rb") as source, path.open("wb", buffering=0) as out:
        _write_all(out, new.header)
        _copy(source, out, embed.start, embed.end - embed.start)
        _patch(out, new.slots[0], rows.token_ids, rows.head)


def _patch(out: BinaryIO, slot: Slot, token_ids: tuple[int, ...], rows_ND: torch.Tensor) -> None:
    """Overwrite the rows of some tokens, rounded to the file's dtype."""
    if slot.dtype not in DTYPES:
        raise MergeError(f"{slot.name} is {slot.dtype} in the base", "use the base in bf16, fp16 or fp32")
    rounded = rows_ND.to(DTYPES[slot.dtype])
    if not bool(rounded.isfinite().all()):
        raise MergeError(f"the chat rows of {slot.name} do not fit {slot.dtype}")
    row_bytes = math.prod(slot.shape[1:]) * rounded.itemsize
    end = out.tell()
    for token_id, row in zip(token_ids, rounded, strict=True):
        out.seek(slot.start + token_id * row_bytes)
        _write_all(out, _bytes(row))
    out.seek(end)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().data.cast("B")


def _copy(source: BinaryIO, out: BinaryIO, offset: int, length: int) -> None:
    while length:
        sent = os.sendfile(out.fileno(), source.fileno(), offset, min(length, COPY_BYTES))
        if sent == 0:
            raise MergeError("the base's file became shorter while it was read", "fetch the base again")
        offset, length = offset + sent, length - sent


def _write_all(out: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[out.write(view) :]
