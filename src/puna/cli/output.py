"""The only module that prints: lines, tables, JSON, errors, progress bars; rich is loaded when first needed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
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


def bars(rows: Iterable[tuple[str, float]], width: int = 32) -> None:
    """A histogram in characters: a label, a bar, a number; the longest bar is `width` wide."""
    shown = list(rows)
    most = max((value for _, value in shown), default=0) or 1
    label = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        eighths = round(value / most * width * 8)
        # A bar that would be empty still shows that there is something.
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8] or ("▏" if value else "")
        line(f"  {name:>{label}}  {bar:<{width}}  {value:>9,.0f}")


def data(value: Any) -> None:
    """JSON for programs."""
    print(json.dumps(value, indent=2, default=str), flush=True)


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


def listing(
    found: object, as_json: bool, headings: Sequence[str], rows: Iterable[Sequence[object]], empty: str
) -> None:
    """Print a list: `found` as JSON for programs, or its rows as a table."""
    if as_json:
        data(found)
    else:
        table(headings, rows, empty)


def pairs(values: Mapping[str, object]) -> None:
    """Names and values under each other."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        line(f"{name:<{width}}  {value}")


def error(problem: PunaError, as_json: bool = False) -> None:
    """Print what happened to which thing, the evidence, and the next command to type."""
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
    """Text in pieces, learnt ones marked: green on a terminal, [brackets] around each stretch elsewhere."""
    if not sys.stdout.isatty():
        stretches = [("".join(text for text, _ in group), learnt) for learnt, group in groupby(pieces, lambda p: p[1])]
        print("".join(f"[{text}]" if learnt else text for text, learnt in stretches))
        return
    from rich.text import Text

    text = Text()
    for piece, learnt in pieces:
        text.append(piece, style="black on green" if learnt else "dim")
    console().print(text)


class ProgressDisplay:
    """A Progress for people: a live bar on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool = False, hide: str = "\0", clock: Callable[[], float] = time.monotonic) -> None:
        """`quiet` says nothing at all; notes that begin with `hide` are left out."""
        self.quiet, self.hide, self.clock = quiet, hide, clock
        self._bar: Bar | None = None
        self._task: Any = None
        self._name = ""
        self._told_at = float("-inf")
        self._first: tuple[float, int] | None = None

    def stage(self, name: str) -> None:
        """A new part begins."""
        self.close()
        self._name, self._told_at, self._first = name, float("-inf"), None

    def advance(self, done: int, total: int, **figures: float) -> None:
        """Move the bar; off a terminal, a line every five seconds and one at the end."""
        if self.quiet:
            return
        now = self.clock()
        told = "  ".join(filter(None, [*map(_told, figures.items()), self._left(now, done, total)]))
        if not sys.stderr.isatty():
            if done >= total or now - self._told_at > 5:
                self._told_at = now
                note(f"{self._name}: {done:,}/{total:,}  {told}".rstrip())
            return
        if self._bar is None:
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=total, told="", count="")
        self._bar.update(self._task, completed=done, total=total, told=told, count=f"{done:,}/{total:,}")

    def _left(self, now: float, done: int, total: int) -> str:
        """Time left at the pace since the first call, whose own step is slower: kernels are built in it."""
        if self._first is None:
            self._first = now, done
        from puna.train.reporting.record import duration

        since, first = self._first
        if done <= first or done >= total:
            return ""
        return f"{duration((now - since) / (done - first) * (total - done))} left"

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


def _new_bar() -> Bar:
    from rich.constrain import Constrain
    from rich.progress import BarColumn, Progress, TextColumn

    terminal = console(stderr=True)

    class Narrow(Progress):
        """Leaves room for the `^C` that terminals echo: at the last column it would break the line."""

        def get_renderables(self) -> Iterable[Constrain]:
            yield Constrain(self.make_tasks_table(self.tasks), terminal.width - 3)

    # The bar takes the width that the words leave.
    columns = ("{task.description}", BarColumn(bar_width=None), "{task.fields[count]}")
    return Narrow(*columns, TextColumn("{task.fields[told]}"), console=terminal, expand=True)


def _told(figure: tuple[str, float]) -> str:
    """A figure as the bar shows it; what is only worth a log line is left out."""
    name, value = figure
    if name == "grad_norm":
        return ""
    if name == "tokens_per_s":
        return f"{value:,.0f} tokens/s"
    if name == "lr":
        return f"lr {value:.1e}" if value else "lr 0"
    return f"{name} {_short(value)}"


def _short(value: float) -> str:
    """Four digits, so that a line of figures does not jump."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}"


def curve(points: Sequence[tuple[float, float]], width: int = 64, height: int = 12) -> None:
    """A line of y over x in characters, with its range at the left."""
    if not points:
        line("no points yet")
        return
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    span_x, span_y = (max(xs) - min(xs)) or 1.0, (high - low) or 1.0
    grid = [[" "] * width for _ in range(height)]
    places = [((x - min(xs)) / span_x * (width - 1), (high - y) / span_y * (height - 1)) for x, y in points]
    for (x0, y0), (x1, y1) in zip(places, places[1:], strict=False):
        for column in range(round(x0) + 1, round(x1)):
            grid[round(y0 + (y1 - y0) * (column - x0) / (x1 - x0))][column] = "·"
    for x, y in places:
        grid[round(y)][round(x)] = "•"
    for number, row in enumerate(grid):
        label = f"{high - span_y * number / (height - 1):8.3f}" if number in (0, height // 2, height - 1) else " " * 8
        line(f"{label} │{''.join(row)}")
    line(" " * 9 + "└" + "─" * width)
    line(" " * 10 + f"{min(xs):<{width - 8}g}{max(xs):>8g}")


def package_changes(changes: Mapping[str, Any] | None, before: str, after: str) -> None:
    """Added, removed and changed, under the two headings; None: one of the environments is not there."""
    if changes is None:
        line("their packages are not compared: one of the two environments is not there")
        return
    rows = [(p["name"], "", p["version"]) for p in changes["added"]]
    rows += [(p["name"], p["version"], "") for p in changes["removed"]]
    rows += [(p["name"], p["before"], p["after"]) for p in changes["changed"]]
    table(("package", before, after), sorted(rows), empty="the packages are the same")
