"""Line charts as inline SVG: no script, values on hover, colours from the page, told apart by dash and dot as well."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40
MOST_POINTS = 240
"""Points of a line that are drawn: more cannot be told apart on a screen."""


@dataclass(frozen=True)
class PlotLine:
    """One line of a chart; `kind` is its class in the page's style: `learnt`, `held` or `plain`."""

    name: str
    points: Sequence[Point]
    kind: str = "plain"


@dataclass(frozen=True)
class Chart:
    """One panel: lines over optimiser steps."""

    title: str
    unit: str
    lines: Sequence[PlotLine]
    steps: int
    text: Callable[[float], str]
    """A value as hover and summary write it."""
    level: tuple[str, float] | None = None
    """A horizontal line to compare with, and its name."""
    from_zero: bool = True

    @property
    def drawn(self) -> list[PlotLine]:
        """The lines that have a point."""
        return [line for line in self.lines if line.points]

    @property
    def summary(self) -> str:
        """The chart in a sentence, for those who cannot see it."""
        told = []
        for line in self.drawn:
            (first, start), (last, end) = line.points[0], line.points[-1]
            told.append(f"{line.name} {self.text(start)} at step {first:g}, {self.text(end)} at step {last:g}")
        if self.level:
            told.append(f"{self.level[0]} {self.text(self.level[1])}")
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit} over optimiser steps: {'; '.join(told)}."


def draw_svg(chart: Chart, width: int = 420, height: int = 240) -> str:
    """The chart as an `<svg>` element; empty when it has no point."""
    if not chart.drawn:
        return ""
    across, up = (0.0, float(max(chart.steps, 1, *(line.points[-1][0] for line in chart.drawn)))), _range_y(chart)
    ticks_x = [tick for tick in ticks(*across, 5 if width < 600 else 9) if tick == int(tick)]
    ticks_y = ticks(*up, 4)

    def x(step: float) -> float:
        return LEFT + (step - across[0]) / (across[1] - across[0]) * (width - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (up[1] - value) / (up[1] - up[0]) * (height - TOP - BOTTOM)

    parts = [f'<svg role="img" viewBox="0 0 {width} {height}" aria-label="{html.escape(chart.summary)}">']
    for tick in ticks_y:
        parts.append(f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{width - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick_text(tick, ticks_y)}</text>')
    for tick in ticks_x:
        parts.append(f'<text x="{x(tick):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{tick:,.0f}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {height - BOTTOM}H{width - RIGHT}"/>')
    parts.append(f'<text x="{width - RIGHT}" y="{height - 6}" text-anchor="end" class="dim">optimiser step</text>')
    if chart.level and up[0] <= chart.level[1] <= up[1]:
        parts.append(f'<path class="level" d="M{LEFT} {y(chart.level[1]):.1f}H{width - RIGHT}"/>')
    for line in chart.drawn:
        parts += _line(line, [(x(s), y(v)) for s, v in thin(line.points)])
    for line in chart.drawn:  # above all lines, so that every point can be pointed at
        for step, value in thin(line.points):
            said = f"step {step:,g}: {line.name} {chart.text(value)}"
            spot = f'cx="{x(step):.1f}" cy="{y(value):.1f}"'
            parts.append(f'<circle class="spot {line.kind}" {spot} r="7"><title>{html.escape(said)}</title></circle>')
    return "".join(parts) + "</svg>"


def legend(chart: Chart) -> str:
    """The chart's lines by name, each with its last value and a sample of its stroke."""
    known = [(line.kind, f"{line.name} {chart.text(line.points[-1][1])}") for line in chart.drawn]
    if chart.level:
        known.append(("level", f"{chart.level[0]} {chart.text(chart.level[1])}"))
    found = []
    for kind, name in known:
        dot = f'<circle class="dot {kind}" cx="13" cy="6" r="3"/>' if kind == "held" else ""
        stroke = f'<path class="{kind if kind == "level" else "line " + kind}" d="M1 6H25"/>'
        found.append(f'<span><svg class="key" viewBox="0 0 26 12" aria-hidden="true">{stroke}{dot}</svg>{name}</span>')
    return f'<p class="legend">{"".join(found)}</p>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers between `low` and `high`, about so many of them."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tick_text(value: float, among: Sequence[float]) -> str:
    """A tick with as many decimals as its neighbours need, and no more."""
    apart = among[1] - among[0] if len(among) > 1 else abs(value) or 1.0
    if value == 0:
        return "0"
    if max(map(abs, among)) < 1e-2:
        return f"{value:.2g}"
    whole = (d for d in range(6) if abs(apart * 10**d - round(apart * 10**d)) < 1e-6)
    return f"{value:,.{next(whole, 6)}f}"


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: of each stretch its lowest and its highest, so that no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2 - 1))  # the ends are kept too
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _line(line: PlotLine, places: Iterable[Point]) -> list[str]:
    at = list(places)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
    parts = [f'<path class="line {line.kind}" d="{path}"/>']
    if line.kind == "held" or len(at) == 1:
        parts += [f'<circle class="dot {line.kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at]
    return parts


def _range_y(chart: Chart) -> tuple[float, float]:
    values = [value for line in chart.drawn for _, value in line.points]
    if chart.level:
        values.append(chart.level[1])
    low, high = (0.0 if chart.from_zero else min(values)), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - (0.0 if low == 0 else room), high + room
