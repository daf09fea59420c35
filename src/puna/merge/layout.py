"""The layout of a base's safetensors files: headers are read, weights are not."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puna.errors import MergeError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What safetensors itself allows (its MAX_HEADER_SIZE): a longer length field means a damaged file.
MAX_HEADER_BYTES = 100_000_000
# The element types a model's weights are merged in; others (fp8, integers) are already quantised.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Slot:
    """One tensor's place in a file."""

    name: str
    dtype: str
    """As safetensors writes it: `BF16`, `F32`..."""
    shape: tuple[int, ...]
    start: int
    """Byte offset from the file's first byte."""
    end: int


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header's bytes as they stand, and its tensors in the order they lie."""

    path: Path
    header: bytes
    slots: tuple[Slot, ...]

    @property
    def size_bytes(self) -> int:
        """Header and weights."""
        return max((slot.end for slot in self.slots), default=len(self.header))


def shards(base_dir: Path) -> list[Shard]:
    """The files of a model folder, one or many with an index, as transformers would choose them.

    Raises:
        MergeError: no safetensors weights, a damaged file, or an index that names what is not there.
    """
    if (base_dir / SINGLE).exists():
        return [read_shard(base_dir / SINGLE)]
    if not (base_dir / INDEX).exists():
        found = "only pickled .bin weights" if list(base_dir.glob("*.bin")) else "no weights"
        raise MergeError(f"{base_dir} holds {found}, no safetensors", "use a base with safetensors files")
    weight_map = _weight_map(base_dir / INDEX)
    missing = sorted({name for name in weight_map.values() if not (base_dir / name).is_file()})
    if missing:
        raise MergeError(f"{base_dir} lacks {', '.join(missing)}", "fetch the base again")
    found_shards = [read_shard(base_dir / name) for name in sorted(set(weight_map.values()))]
    present = {(slot.name, shard.path.name) for shard in found_shards for slot in shard.slots}
    lost = sorted(name for name, file in weight_map.items() if (name, file) not in present)
    if lost:
        raise MergeError(f"{base_dir / INDEX} names {len(lost)} tensors that its files lack: {', '.join(lost[:3])}")
    return found_shards


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = dict(json.loads(path.read_text())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise MergeError(f"{path} cannot be read: {error!r}", "fetch the base again") from None
    for name in weight_map.values():
        if Path(name).name != name:
            raise MergeError(f"{path} names {name!r}, which is not a file beside it")
    return weight_map


def read_shard(path: Path) -> Shard:
    """One file's layout.

    Raises:
        MergeError: the file is not safetensors, or is cut short.
    """
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
            raise MergeError(f"{path} is not a safetensors file", "fetch the base again")
        text = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
        slots = [_slot(name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MergeError(f"{path} has a damaged safetensors header", "fetch the base again") from None
    shard = Shard(path, prefix + text, tuple(sorted(slots, key=lambda slot: (slot.start, slot.end))))
    if path.stat().st_size != shard.size_bytes:
        raise MergeError(f"{path} has {path.stat().st_size} bytes, not {shard.size_bytes}", "fetch the base again")
    return shard


def _slot(name: str, entry: dict[str, Any], origin: int) -> Slot:
    start, end = entry["data_offsets"]
    slot = Slot(name, entry["dtype"], tuple(entry["shape"]), origin + start, origin + end)
    if slot.dtype in DTYPES and end - start != (expected := math.prod(slot.shape) * DTYPES[slot.dtype].itemsize):
        raise MergeError(f"tensor {name} takes {end - start} bytes, not {expected}", "fetch the base again")
    return slot


def header(name: str, dtype: str, shape: tuple[int, ...]) -> Shard:
    """A header for one new tensor, padded to 8 bytes as safetensors does."""
    entry = {"dtype": dtype, "shape": list(shape), "data_offsets": [0, math.prod(shape) * DTYPES[dtype].itemsize]}
    text = json.dumps({"__metadata__": {"format": "pt"}, name: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return Shard(Path(), len(text).to_bytes(8, "little") + text, (_slot(name, entry, 8 + len(text)),))
