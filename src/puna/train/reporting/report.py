"""A run's figures for people: loss.png, and report.html, one file that needs nothing else."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from puna.train.planning.cost import GIB
from puna.train.planning.plan import TrainingPlan, describe
from puna.train.reporting.plots import Chart, PlotLine, draw_svg, legend
from puna.train.reporting.record import PlanComparison, Run, compare, duration, mean_speed, planned_memory

STYLE = Path(__file__).with_suffix(".css")
"""Light or dark as the reader's system is, one column on a narrow screen."""
INK, LEARNT, HELD_OUT, RATE, GRID = "#222222", "#2b6cb0", "#c05621", "#718096", "#e2e8f0"
TABLE_ROWS = 60


def write_report(run_dir: Path) -> None:
    """Draw loss.png and write report.html from what lies in the run's folder."""
    run = Run(run_dir)
    (run_dir / "loss.png").write_bytes(draw(run.metrics(), run.name))
    (run_dir / "report.html").write_text(page(run), encoding="utf-8")


def draw(metrics: list[dict[str, Any]], title: str) -> bytes:
    """The curves as PNG bytes: training and held-out loss above, learning rate below."""
    from matplotlib.figure import Figure

    # A figure by hand: pyplot would keep global state and choose a window system.
    figure = Figure(figsize=(9, 5.4), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    learnt, held_out, rates = (_points(metrics, key) for key in ("loss", "eval_loss", "lr"))
    for points, color, label, style in ((learnt, LEARNT, "training", "-"), (held_out, HELD_OUT, "held out", "o--")):
        if points:
            label = f"{label}, last {points[-1][1]:.3f}"
            upper.plot(*zip(*points, strict=True), style, color=color, label=label, markersize=4, linewidth=1.6)
    if rates:
        lower.plot(*zip(*rates, strict=True), color=RATE, linewidth=1.4)
        lower.yaxis.set_major_formatter(lambda rate, _: f"{rate:.2g}")
        lower.set_ylim(bottom=0)
    upper.set_title(title, loc="left", color=INK, fontweight="bold")
    upper.set_ylabel("loss (nats a token)")
    lower.set_ylabel("learning rate")
    lower.set_xlabel("optimiser step")
    if learnt or held_out:
        upper.legend(frameon=False)
    figure.align_ylabels()
    for axis in (upper, lower):
        axis.grid(color=GRID, linewidth=0.8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.04)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def page(run: Run) -> str:
    """The report as HTML."""
    adapter, metrics, recipe = run.adapter, run.metrics(), yaml.safe_dump(run.recipe, sort_keys=False)
    lineage = dict(adapter.manifest.made_from) | {"adapter": adapter.digest} if adapter else {"dataset": run.dataset}
    body = [
        f"<header><h1>{html.escape(run.name)}</h1>{_state(run)}{_tiles(run, metrics)}</header>",
        _section("Curves", _panels(run, metrics)),
        _section("Plan against reality", _compared(run)),
        _section("Replies before and after", _samples(run.samples)),
        _section("Plan", _plan(run.plan)),
        _section("Recipe", f"<details><summary>recipe.yaml</summary><pre>{html.escape(recipe)}</pre></details>"),
        _section("Figures", _figures(metrics)),
        _section("Made from", _table(("part", "digest or name"), lineage.items())),
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(run.name)}: training report</title><style>{STYLE.read_text(encoding='utf-8')}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body><main>{"".join(body)}</main></body></html>\n'


# ------------------------------------------------------------------------------------------ head


def _state(run: Run) -> str:
    status, took, left = run.status, run.seconds(), run.seconds_left()
    parts = [status.state, f"step {status.step:,} of {status.steps:,}"]
    parts += [f"began {status.started[:16].replace('T', ' ')} UTC"] if status.started else []
    parts += [f"took {duration(took)}"] if took is not None and left is None else []
    parts += [f"about {duration(left)} left"] if left is not None else []
    problem = f'<p class="problem">{html.escape(status.error)}</p>' if status.error else ""
    return f'<p class="state">{html.escape(" · ".join(parts))}</p>{problem}'


def _tiles(run: Run, metrics: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for key, name in (("eval_loss", "held-out loss"), ("loss", "training loss")):
        if points := _points(metrics, key):
            was = f"from {points[0][1]:#.4g} at step {points[0][0]}" if len(points) > 1 else ""
            found.append((name, f"{points[-1][1]:#.4g}", was))
    if speed := mean_speed(metrics):
        found.append(("speed", f"{speed:,.0f}", "tokens/s, mean"))
    if memory := [value for _, value in _points(metrics, "memory_bytes")]:
        found.append(("peak memory", f"{max(memory) / GIB:.2f}", "GiB"))
    if adapter := run.adapter:
        found.append(("learnt from", f"{adapter.manifest.metrics.get('tokens', 0):,}", "tokens"))
    cell = "<div><dt>{}</dt><dd><b>{}</b> <span>{}</span></dd></div>"
    tiles = "".join(cell.format(*tile) for tile in found)
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


# ---------------------------------------------------------------------------------------- curves


def charts(run: Run, metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The report's panels: loss first, then what tells whether the steps were sound and fast."""
    steps, plan, training = run.status.steps, run.plan, run.recipe["training"]
    losses = [
        PlotLine("training", _points(metrics, "loss"), "learnt"),
        PlotLine("held out", _points(metrics, "eval_loss"), "held"),
    ]
    memory = [(step, value / GIB) for step, value in _points(metrics, "memory_bytes")]
    clip, speed, size = training["max_grad_norm"], plan.get("tokens_per_s"), planned_memory(plan) / GIB
    norms = _points(metrics, "grad_norm")
    # A limit far over every norm would press the curve flat.
    near = bool(norms) and bool(clip) and clip < 4 * max(norm for _, norm in norms)
    return [
        Chart("Loss", "nats a token", losses, steps, "{:.4f}".format, from_zero=False),
        Chart("Learning rate", "", [PlotLine("rate", _points(metrics, "lr"))], steps, "{:.3g}".format),
        Chart("Gradient norm", "before clipping", [PlotLine("norm", norms)], steps, "{:.3g}".format,
              ("clipped over", clip) if near else None),
        Chart("Speed", "tokens/s", [PlotLine("measured", _points(metrics, "tokens_per_s"))], steps, "{:,.0f}".format,
              ("planned", speed) if speed else None),
        Chart("Memory", "GiB", [PlotLine("measured", memory)], steps, "{:.2f}".format,
              ("planned", size) if size else None),
    ]  # fmt: skip


def _panels(run: Run, metrics: Sequence[Mapping[str, Any]]) -> str:
    found = []
    for chart in charts(run, metrics):
        if not chart.drawn:
            continue
        title = f"<figcaption><b>{chart.title}</b> <small>{chart.unit}</small></figcaption>{legend(chart)}"
        if chart.title == "Loss":  # twice, because text in a wide drawing is too small on a narrow screen
            drawing = f'<div class="if-wide">{draw_svg(chart, 900, 300)}</div>'
            drawing += f'<div class="if-narrow">{draw_svg(chart)}</div>'
            found.append(f'<figure class="whole">{title}{drawing}</figure>')
        else:
            found.append(f"<figure>{title}{draw_svg(chart)}</figure>")
    return f'<div class="panels">{"".join(found)}</div>' if found else ""


def _figures(metrics: Sequence[Mapping[str, Any]]) -> str:
    """The log lines as a table, at most TABLE_ROWS of them, evenly chosen."""
    keys = {"loss": "loss", "eval_loss": "held-out loss", "lr": "learning rate", "grad_norm": "gradient norm",
            "tokens_per_s": "tokens/s", "memory_bytes": "GiB"}  # fmt: skip
    last, shown = len(metrics) - 1, min(len(metrics), TABLE_ROWS)
    chosen = [metrics[at * last // max(1, shown - 1)] for at in range(shown)]
    rows = [(f"{line['step']:,}", *(_figure(key, line.get(key)) for key in keys)) for line in chosen]
    told = f"{len(rows)} of {len(metrics)} log lines" if len(rows) < len(metrics) else f"all {len(rows)} log lines"
    table = _table(("step", *keys.values()), rows)
    return f"<details><summary>{told}</summary>{table}</details>" if rows else ""


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return ""
    if key == "memory_bytes":
        return f"{value / GIB:.2f}"
    return f"{value:,.0f}" if key == "tokens_per_s" else f"{value:.3g}" if key == "lr" else f"{value:.4f}"


# ------------------------------------------------------------------------------ plan and replies


def _compared(run: Run) -> str:
    rows = [(f"{c.name} ({c.unit})", _round(c.planned), _round(c.measured), _told(c)) for c in compare(run)]
    if not rows:
        return ""
    on_gpu = str(run.plan.get("device")).startswith("cuda")
    memory = "torch's allocator at its peak" if on_gpu else "the whole process, Python and its libraries included"
    note = f'<p class="dim">Measured: the mean over all steps, held-out rows not counted; memory is {memory}.</p>'
    return _table(("figure", "planned", "measured", "measured against planned"), rows) + note


def _told(c: PlanComparison) -> str:
    if abs(c.error) < 0.005:
        return "as planned"
    more, less = {"speed": ("faster", "slower"), "a step": ("longer", "shorter")}.get(c.name, ("more", "less"))
    return f"{abs(c.error):.0%} {more if c.error > 0 else less}"


def _round(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:#.3g}"


def _plan(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in plan.get("reasons", ()))
    try:
        lines = describe(TrainingPlan.from_dict(dict(plan)))
    except (KeyError, TypeError):  # written by another version of Puna: its reasons can be read all the same
        lines = []
    return (_table(("part", "planned"), lines) if lines else "") + (f"<ul>{reasons}</ul>" if reasons else "")


def _samples(samples: Sequence[Mapping[str, str]]) -> str:
    found = []
    for sample in samples:
        pairs = ((name, sample.get(key, "")) for name, key in
                 (("before training", "before"), ("after training", "after"), ("reference", "reference")))  # fmt: skip
        cells = "".join(f"<div><dt>{name}</dt><dd>{html.escape(text)}</dd></div>" for name, text in pairs if text)
        found.append(f'<article><h3>{html.escape(sample.get("prompt", ""))}</h3><dl class="replies">{cells}</dl>')
        found.append("</article>")
    return "".join(found)


def _points(metrics: Iterable[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in metrics if line.get(key) is not None]


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(heading)}</th>' for heading in headings)
    lines = []
    for first, *others in rows:
        cells = "".join(f"<td>{html.escape(str(cell))}</td>" for cell in others)
        lines.append(f'<tr><th scope="row">{html.escape(str(first))}</th>{cells}</tr>')
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="scroll" tabindex="0"><table>{body}</table></div>' if lines else ""
