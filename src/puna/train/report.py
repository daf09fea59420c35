"""What a run leaves for people: loss.png, and report.html, one file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from puna.train.record import Run

GIB = 2**30
INK, LEARNT, HELD_OUT, RATE, GRID = "#222222", "#2b6cb0", "#c05621", "#718096", "#e2e8f0"


def write_report(run_dir: Path) -> None:
    """Draw loss.png and write report.html from what lies in the run's folder."""
    run = Run(run_dir)
    picture = draw(run.metrics(), run.name)
    (run_dir / "loss.png").write_bytes(picture)
    (run_dir / "report.html").write_text(page(run, picture), encoding="utf-8")


def draw(metrics: list[dict[str, Any]], title: str) -> bytes:
    """The curves as PNG bytes: training and held-out loss above, learning rate below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure and canvas by hand: pyplot would keep global state and choose a window system.
    figure = Figure(figsize=(9, 5.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
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


def page(run: Run, picture: bytes) -> str:
    """The report as HTML."""
    adapter = run.adapter
    results = dict(adapter.manifest.metrics) if adapter else {}
    lineage = dict(adapter.manifest.made_from) | {"adapter": adapter.digest} if adapter else {"dataset": run.dataset}
    image = base64.b64encode(picture).decode()
    status = run.status
    parts = [
        f"<h1>{html.escape(run.name)}</h1>",
        f"<p class=state>{status.state}, step {status.step} of {status.steps}, began {status.started[:19]} UTC</p>",
        f'<img alt="loss, held-out loss and learning rate over steps" src="data:image/png;base64,{image}">',
        _section("Result", _table((k.replace("_", " "), _number(v)) for k, v in results.items())),
        _section("Replies before and after", _samples(run.samples)),
        _section("Plan", _plan(run.plan)),
        _section("Recipe", f"<pre>{html.escape(yaml.safe_dump(run.recipe, sort_keys=False))}</pre>"),
        _section("Made from", _table(lineage.items())),
    ]
    title = f"<title>{html.escape(run.name)}</title>"
    return f"<!doctype html><html lang=en><meta charset=utf-8>{title}<style>{STYLE}</style>{''.join(parts)}</html>\n"


def _points(metrics: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in metrics if line.get(key) is not None]


def _section(title: str, body: str) -> str:
    return f"<h2>{title}</h2>{body}" if body else ""


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(str(k))}<td>{html.escape(str(v))}" for k, v in rows)
    return f"<table>{cells}</table>" if cells else ""


def _number(value: Any) -> str:
    return f"{value:,.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _samples(samples: list[dict[str, str]]) -> str:
    keys = ("prompt", "before", "after", "reference")
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(s.get(k, ''))}" for k in keys) for s in samples)
    head = "".join(f"<th>{k}" for k in keys)
    return f"<table class=wide><tr>{head}{rows}</table>" if rows else ""


def _plan(plan: Mapping[str, Any]) -> str:
    if not plan:
        return ""
    sizes = {f"memory: {k.replace('_', ' ')}": f"{v / GIB:.2f} GiB" for k, v in plan["memory"].items()}
    plain = {k.replace("_", " "): _number(v) for k, v in plan.items() if k not in ("memory", "reasons")}
    reasons = "".join(f"<li>{html.escape(reason)}" for reason in plan["reasons"])
    return f"<ul>{reasons}</ul>" + _table((plain | sizes).items())


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:62rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%}table{border-collapse:collapse;font-size:.9rem}"
    "th,td{text-align:left;vertical-align:top;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #e2e8f0}"
    "th{font-weight:600}td{font-variant-numeric:tabular-nums;white-space:pre-wrap;overflow-wrap:anywhere}"
    ".wide{width:100%;table-layout:fixed}.state{color:#718096}"
    "pre{background:#f7fafc;padding:1rem;overflow:auto;font-size:.85rem}"
)
