"""Puna's gateway against another commit's: alternating pairs under one load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pairs import line, ratio, tree_of

from servers.contenders import Puna, puna
from servers.load import wrk

PAIRS_A_START = 6
"""So many pairs, then both are started anew: where a process lies in memory is luck that would stay with it."""
FIGURES = ("requests_per_s", "p50_ms", "p99_ms")


def compare(revision: str, own: Path, pairs: int, load: tuple[int, float], gateways: int) -> dict[str, Any]:
    """`pairs` pairs of runs, first the one and then the other first; `load` is connections and seconds of a run."""
    runs: list[dict[str, dict[str, Any]]] = []
    with tree_of(revision, own) as other:
        while len(runs) < pairs:
            with puna(gateways, source=own / "src") as mine, puna(gateways, source=other / "src") as theirs:
                for running in (mine, theirs):
                    wrk(running.target, load[0], 1.0)
                for _ in range(min(PAIRS_A_START, pairs - len(runs))):
                    runs.append(_pair(mine, theirs, load, mine_first=len(runs) % 2 == 0))
                    print(f"pair {len(runs)}: {_short(runs[-1])}", file=sys.stderr, flush=True)
    sides = [{name: [run[side][name] for run in runs] for name in FIGURES} for side in ("mine", "theirs")]
    ratios = {name: ratio(*(side[name] for side in sides)) for name in FIGURES}
    return {"revision": revision, "pairs": runs, "ratios": ratios}


def _pair(mine: Puna, theirs: Puna, load: tuple[int, float], *, mine_first: bool) -> dict[str, dict[str, Any]]:
    turns = [("mine", mine), ("theirs", theirs)]
    return {name: wrk(running.target, *load) for name, running in (turns if mine_first else reversed(turns))}


def _short(run: dict[str, dict[str, Any]]) -> str:
    mine, theirs = run["mine"]["requests_per_s"], run["theirs"]["requests_per_s"]
    return f"{mine:,.0f} and {theirs:,.0f} req/s: {mine / theirs:.3f}"


def lines(found: dict[str, Any], connections: int) -> list[str]:
    """One line a figure."""
    count = len(found["pairs"])
    return [line(f"{name} at {connections}", found["revision"], of, count) for name, of in found["ratios"].items()]
