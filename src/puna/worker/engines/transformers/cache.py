"""Keys and values of rows that run together: left-padded to one width, joined by newcomers, left by those who end."""

from __future__ import annotations

import importlib
from typing import Any, List, Sequence, Tuple

Pairs = List[Tuple[Any, Any]]
"""Keys and values of each layer, [rows, heads, width, size]."""


class Unlike(Exception):
    """This model keeps something other than keys and values by position: its rows cannot be joined."""


class Held:
    """The cache of some rows, and which of its columns are padding."""

    def __init__(self, cache: Any, mask: Any) -> None:
        """`cache` as the model returned it; `mask` [rows, width] is 1 where a token stands.

        Raises:
            Unlike: it is no plain cache of that shape.
        """
        self.cache, self.mask = cache, mask
        wanted = tuple(mask.shape)
        for pair in pairs_of(cache):
            for tensor in pair:
                if getattr(tensor, "ndim", 0) != 4 or (tensor.shape[0], tensor.shape[2]) != wanted:
                    raise Unlike("a layer's cache is of shape %s" % (list(getattr(tensor, "shape", ())),))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that are padding in each of those that stay."""
        mask = self.mask[list(rows)]
        first = int((mask.sum(0) > 0).int().argmax())
        self.mask = mask[:, first:]
        self.cache = cache_of([(k[list(rows), :, first:], v[list(rows), :, first:]) for k, v in pairs_of(self.cache)])

    def join(self, other: Held) -> None:
        """The other's rows stand below these from now on."""
        torch = importlib.import_module("torch")
        width = max(self.mask.shape[1], other.mask.shape[1])

        def both(mine: Any, theirs: Any) -> Any:
            pad = torch.nn.functional.pad
            return torch.cat([pad(t, (0, 0, width - t.shape[2], 0)) for t in (mine, theirs)])

        theirs = pairs_of(other.cache)
        mine = enumerate(pairs_of(self.cache))
        self.cache = cache_of([(both(k, theirs[layer][0]), both(v, theirs[layer][1])) for layer, (k, v) in mine])
        masks = (self.mask, other.mask)
        self.mask = torch.cat([torch.nn.functional.pad(m, (width - m.shape[1], 0)) for m in masks])


def empty() -> Any:
    """A cache with nothing in it."""
    return importlib.import_module("transformers").DynamicCache()


def cache_of(pairs: Pairs) -> Any:
    """A cache of transformers' that holds these."""
    cache = empty()
    for layer, (keys, values) in enumerate(pairs):
        cache.update(keys, values, layer)
    return cache


def pairs_of(cache: Any) -> Pairs:
    """Keys and values of a cache, as versions of transformers have them.

    Raises:
        Unlike: it is none of those.
    """
    if isinstance(cache, (tuple, list)):  # before 4.42 a model returned tuples, whatever it was given
        return [(pair[0], pair[1]) for pair in cache]
    layers = getattr(cache, "layers", None)
    if layers is not None:
        if any(type(layer).__name__ != "DynamicLayer" for layer in layers):
            raise Unlike("a layer keeps %s" % ", ".join(sorted({type(layer).__name__ for layer in layers})))
        return [(layer.keys, layer.values) for layer in layers]
    if type(cache).__name__ == "DynamicCache":
        return [(keys, cache.value_cache[layer]) for layer, keys in enumerate(cache.key_cache)]
    raise Unlike("the model keeps a %s" % type(cache).__name__)
