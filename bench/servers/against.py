"""Puna against another commit of itself: alternating pairs under one load, and how sure their ratio is."""

from __future__ import annotations

import contextlib
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.contenders import Puna, puna
from servers.load import wrk

PAIRS_A_START = 6
"""So many pairs, then both are started anew: where a process lies in memory is luck that would stay with it."""
SURE = 0.95
FIGURES = ("requests_per_s", "p50_ms", "p99_ms")


@dataclass(frozen=True)
class Interval:
    """The median of some ratios, and between which two of them it lies with a chance of 95 % at least."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.low <= 1 <= self.high:
            return "no measurable difference"
        return "more" if self.low > 1 else "less"


def interval(ratios: Sequence[float]) -> Interval:
    """The sign test's interval of the median: it supposes nothing of how the ratios are spread.

    Raises:
        ValueError: fewer than six ratios, of which no two bound the median so surely.
    """
    ordered, count = sorted(ratios), len(ratios)
    # The median lies outside of the k-th from either end when k or fewer of `count` fair coins fall one way.
    outside = [2 * sum(math.comb(count, i) for i in range(k + 1)) / 2**count for k in range(count // 2)]
    cut = max((k for k, chance in enumerate(outside) if chance <= 1 - SURE), default=-1)
    if cut < 0:
        raise ValueError(f"{count} pairs bound nothing with a chance of {SURE:.0%}: measure six at least")
    return Interval(statistics.median(ordered), ordered[cut], ordered[-1 - cut])


@contextlib.contextmanager
def source_of(revision: str, repository: Path) -> Iterator[Path]:
    """The `src` folder of a commit, in a place of its own.

    Raises:
        RuntimeError: there is no such commit here.
    """
    command = ["git", "archive", "--format=tar", revision, "src"]
    done = subprocess.run(command, cwd=repository, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{revision} is no commit here: {done.stderr.decode(errors='replace').strip()}")
    with tempfile.TemporaryDirectory(prefix="puna-against-") as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=done.stdout, check=True)
        yield Path(folder) / "src"


def compare(revision: str, own: Path, pairs: int, load: tuple[int, float], gateways: int) -> dict[str, Any]:
    """`pairs` pairs of runs, first the one and then the other first; `load` is connections and seconds of a run."""
    runs: list[dict[str, dict[str, Any]]] = []
    with source_of(revision, own) as other:
        while len(runs) < pairs:
            with puna(gateways, source=own / "src") as mine, puna(gateways, source=other) as theirs:
                for running in (mine, theirs):
                    wrk(running.target, load[0], 1.0)
                for _ in range(min(PAIRS_A_START, pairs - len(runs))):
                    runs.append(_pair(mine, theirs, load, mine_first=len(runs) % 2 == 0))
                    print(f"pair {len(runs)}: {_short(runs[-1])}", file=sys.stderr, flush=True)
    return {"revision": revision, "pairs": runs, "ratios": {name: _ratio(runs, name) for name in FIGURES}}


def _pair(mine: Puna, theirs: Puna, load: tuple[int, float], *, mine_first: bool) -> dict[str, dict[str, Any]]:
    turns = [("mine", mine), ("theirs", theirs)]
    return {name: wrk(running.target, *load) for name, running in (turns if mine_first else reversed(turns))}


def _ratio(runs: Sequence[dict[str, dict[str, Any]]], figure: str) -> dict[str, Any]:
    found = interval([run["mine"][figure] / run["theirs"][figure] for run in runs])
    return {"median": found.median, "low": found.low, "high": found.high, "verdict": found.verdict}


def _short(run: dict[str, dict[str, Any]]) -> str:
    mine, theirs = run["mine"]["requests_per_s"], run["theirs"]["requests_per_s"]
    return f"{mine:,.0f} and {theirs:,.0f} req/s: {mine / theirs:.3f}"


def lines(found: dict[str, Any], connections: int) -> list[str]:
    """The lines that scripts look for."""
    said = []
    for name, ratio in found["ratios"].items():
        what = f"RESULT {name} at {connections} against {found['revision']}: {ratio['median']:.3f} "
        what += f"({ratio['low']:.3f} to {ratio['high']:.3f}, {len(found['pairs'])} pairs): {ratio['verdict']}"
        said.append(what)
    return said
