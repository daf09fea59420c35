"""The steps of a run, foreseen: how many tokens each has, and its largest pass, on the process that has most."""

from __future__ import annotations

from dataclasses import dataclass

from puna.train.rows import Longs, pack, share, step_rows


@dataclass(frozen=True)
class Steps:
    """The rows' lengths of every step's share of every process; order and shares are drawn from the seed."""

    shares: tuple[tuple[int, ...], ...]
    world: int

    @classmethod
    def foresee(cls, lengths: Longs, rows_per_step: int, steps: int, seed: int, world: int = 1) -> Steps:
        """What the loop will do with rows of these lengths."""
        found = []
        for step in range(steps):
            chosen = lengths[step_rows(len(lengths), rows_per_step, step, seed)]
            parts = share(chosen, world) if world > 1 else [range(len(chosen))]
            found += [tuple(int(chosen[i]) for i in part) for part in parts]
        return cls(tuple(found), world)

    @property
    def mean_tokens(self) -> float:
        """Of one process in one step."""
        return sum(map(sum, self.shares)) / len(self.shares)

    @property
    def most_tokens(self) -> int:
        """Of one process in its longest step."""
        return max(map(sum, self.shares))

    def largest_pass(self, tokens_per_batch: int) -> int:
        """Tokens of the largest pass of any step: what memory must be there for."""
        largest = 0
        for lengths in self.shares:
            if sum(lengths) <= tokens_per_batch:
                largest = max(largest, sum(lengths))
            elif largest < tokens_per_batch:
                largest = max(largest, *(sum(lengths[i] for i in one) for one in pack(lengths, tokens_per_batch)))
        return largest
