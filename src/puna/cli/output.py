"""The only module that prints: lines, tables, JSON, errors, progress bars; rich is loaded when first needed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from puna.errors import PunaError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

_consoles: dict[bool, Console] = {}


def console(stderr: bool = False) -> Console:
    """The terminal; colours go when it is none."""
    if stderr not in _consoles:
        from rich.console import Console

        _consoles[stderr] = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return _consoles[stderr]


def line(text: str = "", style: str = "") -> None:
    """One line, as it is: no markup is read from it."""
    if style and sys.stdout.isatty():
        console().print(text, style=style, markup=False)
    else:
        print(text, flush=True)


def note(text: str) -> None:
    """One line for a person, kept out of what a program reads."""
    if sys.stderr.isatty():
        console(stderr=True).print(text, style="dim", markup=False)
    else:
        print(text, file=sys.stderr, flush=True)


def data(value: Any) -> None:
    """JSON for programs."""
    print(json.dumps(value, indent=2, default=str), flush=True)


def chunk(text: str) -> None:
    """Text as it comes, without a line's end."""
    sys.stdout.write(text)
    sys.stdout.flush()


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "nothing yet") -> None:
    """A table; `empty` instead when there is no row."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    grid = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    if grid.row_count:
        console().print(grid)
    else:
        line(empty)


def pairs(values: Mapping[str, object]) -> None:
    """Names and values under each other."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        line(f"{name:<{width}}  {value}")


def error(problem: PunaError, as_json: bool = False) -> None:
    """What happened to which thing, the evidence, and the next command to type."""
    if as_json:
        data(problem.as_json())
        return
    if problem.detail:
        print(problem.detail.rstrip(), file=sys.stderr)
    terminal = console(stderr=True)
    terminal.print("error: ", style="bold red", end="")
    terminal.print(problem.message, markup=False)
    if problem.hint:
        terminal.print("hint:  ", style="bold", end="")
        terminal.print(problem.hint, markup=False)


def command_table(groups: Mapping[str, Mapping[str, Any]]) -> None:
    """`puna --help`."""
    print("Usage: puna COMMAND [OPTIONS]\n\nFrom Llama-3 base weights to your own scale-to-zero endpoint.")
    for group, commands in groups.items():
        print(f"\n{group}")
        for name, command in commands.items():
            print(f"  {name:<12}{command.help}")
    print("\npuna COMMAND --help says more of one; puna completion bash|zsh|fish prints shell completion.")


def tokens(pieces: Iterable[tuple[str, bool]]) -> None:
    """Text in pieces, learnt ones marked: green on a terminal, [brackets] elsewhere."""
    if not sys.stdout.isatty():
        print("".join(f"[{text}]" if learnt else text for text, learnt in pieces))
        return
    from rich.text import Text

    text = Text()
    for piece, learnt in pieces:
        text.append(piece, style="black on green" if learnt else "dim")
    console().print(text)


class Watch:
    """A Progress for people: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False, hide: str = "\0") -> None:
        """`quiet` says nothing at all; notes that begin with `hide` are left out."""
        self.quiet, self.hide = quiet, hide
        self._bar: Bar | None = None
        self._task: Any = None
        self._name = ""
        self._told_at = 0.0

    def stage(self, name: str) -> None:
        """A new part begins."""
        self.close()
        self._name, self._told_at = name, 0.0

    def advance(self, done: int, total: int, **figures: float) -> None:
        """Move the bar; off a terminal, a line every five seconds and one at the end."""
        if self.quiet:
            return
        told = "  ".join(f"{key} {_short(value)}" for key, value in figures.items())
        if not sys.stderr.isatty():
            now = time.monotonic()
            if done >= total or now - self._told_at > 5:
                self._told_at = now
                note(f"{self._name}: {done}/{total}  {told}".rstrip())
            return
        if self._bar is None:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[told]}"), console=console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=total, told="")
        self._bar.update(self._task, completed=done, total=total, told=told)

    def note(self, text: str) -> None:
        """One line worth reading."""
        if self.quiet or text.startswith(self.hide):
            return
        if self._bar is not None:
            self._bar.console.print(text, style="dim", markup=False)
        else:
            note(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _short(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def curve(points: Sequence[tuple[float, float]], width: int = 64, height: int = 12) -> None:
    """A line of y over x in characters, with its range at the left."""
    if not points:
        line("no points yet")
        return
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    grid = [[" "] * width for _ in range(height)]
    for x, y in points:
        column = round((x - min(xs)) / span_x * (width - 1))
        grid[round((high - y) / span_y * (height - 1))][column] = "•"
    for number, row in enumerate(grid):
        label = f"{high - span_y * number / (height - 1):8.3f}" if number in (0, height // 2, height - 1) else " " * 8
        line(f"{label} │{''.join(row)}")
    line(" " * 9 + "└" + "─" * width)
    line(" " * 10 + f"{min(xs):<{width - 8}g}{max(xs):>8g}")
