"""This tree beside another commit of it: alternating pairs of runs, and how sure the ratio of a figure is."""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SURE = 0.95


@dataclass(frozen=True)
class Interval:
    """The median of some ratios, and between which two of them it lies with a chance of 95 % at least."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`more`, `less`, or that nothing was measured."""
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
def tree_of(revision: str, repository: Path) -> Iterator[Path]:
    """A folder with the files of a commit, for as long as the context lasts.

    Raises:
        RuntimeError: there is no such commit here.
    """
    command = ["git", "archive", "--format=tar", revision]
    done = subprocess.run(command, cwd=repository, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{revision} is no commit here: {done.stderr.decode(errors='replace').strip()}")
    with tempfile.TemporaryDirectory(prefix="puna-against-") as folder:
        subprocess.run(["tar", "-x", "-C", folder], input=done.stdout, check=True)
        yield Path(folder)


def ratio(mine: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """The interval of mine/theirs by pair, as the results files have it."""
    found = interval([one / other for one, other in zip(mine, theirs, strict=True)])
    return {"median": found.median, "low": found.low, "high": found.high, "verdict": found.verdict}


def line(figure: str, revision: str, found: Mapping[str, Any], pairs: int) -> str:
    """The line that scripts look for."""
    span = f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f}, {pairs} pairs)"
    return f"RESULT {figure} against {revision}: {span}: {found['verdict']}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--against` and `--pairs`."""
    parser.add_argument(
        "--against", metavar="REV", help="this tree beside that of another commit, in alternating pairs"
    )
    parser.add_argument("--pairs", type=int, default=12, help="of runs, with --against; 6 at least")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End with a usage error where the pairs are too few to bound anything."""
    if options.against and options.pairs < 6:
        parser.error("--pairs is 6 at least: fewer bound nothing")
