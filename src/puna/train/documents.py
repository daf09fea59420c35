"""Where documents begin and end in a flat batch, and the tensors of one forward pass over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

ALIKE = 0.75
"""Neighbours at least this long, compared with the longest of their group, are padded to it together."""


@dataclass(frozen=True)
class Group:
    """Neighbouring documents of about one length, padded to the longest where attention needs a rectangle."""

    tokens: int
    """How many they have together."""
    documents: int
    longest: int
    place: torch.Tensor | None
    """Each token's place in the padded [documents * longest]; None when nothing is padded."""


@dataclass(frozen=True)
class Documents:
    """Where documents begin and end in a flat batch of T tokens."""

    lengths: tuple[int, ...]
    positions_T: torch.Tensor
    """Each token's place in its own document."""
    starts: torch.Tensor
    """int32 [documents + 1]: running sum of lengths."""
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str) -> Documents:
        """Documents of these lengths, in this order; sorted lengths make few groups."""
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
        starts = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        return cls(tuple(lengths), positions, starts, tuple(_groups(lengths, device)))

    @property
    def longest(self) -> int:
        """Tokens of the longest document."""
        return max(self.lengths)


def _groups(lengths: Sequence[int], device: torch.device | str) -> Iterator[Group]:
    first = 0
    for index in range(1, len(lengths) + 1):
        if index < len(lengths) and ALIKE * lengths[first] <= lengths[index] <= lengths[first]:
            continue
        chosen, longest = torch.tensor(lengths[first:index]), lengths[first]
        place = None
        if int(chosen.min()) != longest:
            place = torch.cat([torch.arange(n) + row * longest for row, n in enumerate(chosen.tolist())]).to(device)
        yield Group(int(chosen.sum()), len(chosen), longest, place)
        first = index


@dataclass(frozen=True)
class Batch:
    """Documents end to end; N of the T places have a following token that is learnt."""

    ids_T: torch.Tensor
    where_N: torch.Tensor
    """Places whose successor is learnt; worked out on the CPU, so that a GPU is never waited for."""
    targets_N: torch.Tensor
    """The token that follows each of them."""
    documents: Documents
