"""`puna runs` and `puna run`: what was trained, and how it went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson, RunName
from puna.home import Home
from puna.train.reporting import record
from puna.train.reporting.record import compare, duration

run_app = typer.Typer(no_args_is_help=True, add_completion=False)


@run_app.command("list")
def runs(json: AsJson = False) -> None:
    """List training runs, newest last."""
    found = [_run_row(run) for run in record.list_runs(Home.default())]
    if json:
        output.data(found)
        return
    headings = ("run", "state", "step", "loss", "held-out loss", "tokens/s", "time")
    rows = [
        (r["name"], r["state"], f"{r['step']:,}/{r['steps']:,}", _loss(r.get("loss")), _loss(r.get("eval_loss")),
         f"{r['tokens_per_s']:,.0f}" if r.get("tokens_per_s") else "", _time(r))
        for r in found
    ]  # fmt: skip
    output.table(headings, rows, empty="no runs yet: puna train RECIPE")


@run_app.command("show")
def show_run(
    run: RunName,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write loss.png and report.html again.")] = True,
    json: AsJson = False,
) -> None:
    """Draw a run's loss curve here, and write its PNG and HTML report."""
    from puna import pipeline

    found = pipeline.find_run(Home.default(), run)
    metrics = found.metrics()
    compared = [{**c.__dict__, "error": c.error} for c in compare(found)]
    if json:
        output.data({**_run_row(found), "plan_against_measured": compared, "recipe": found.recipe, "metrics": metrics})
        return
    output.pairs(dict(_lines(found, metrics)))
    for key, title in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        if points := _points(metrics, key):
            output.line(f"\n{title} over steps")
            output.curve(points, height=9)
    output.line()
    if report and metrics:
        from puna.train.reporting.report import write_report

        write_report(found.path)
        output.line(f"report: {found.path / 'report.html'}")
    if following := _next(found):
        output.line(f"next: {following}")


def _run_row(run: record.Run) -> dict[str, Any]:
    status = run.status
    told = {"name": run.name, "state": status.state, "steps": status.steps, **run.last, "step": status.step}
    told |= {"started": status.started, "ended": status.ended, "error": status.error}
    return told | {"seconds": run.seconds(), "seconds_left": run.seconds_left()}


def _lines(run: record.Run, metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    row = _run_row(run)
    done = f" ({row['step'] / row['steps']:.0%})" if row["steps"] else ""
    lines = [("run", row["name"]), ("state", row["state"] + (f": {row['error']}" if row["error"] else ""))]
    lines += [("step", f"{row['step']:,} of {row['steps']:,}{done}")]
    if time := _time(row):
        lines.append(("time", f"{time}, began {row['started'][:16].replace('T', ' ')} UTC"))
    for key, name in (("loss", "training loss"), ("eval_loss", "held-out loss")):
        if points := _points(metrics, key):
            (first, was), (_, now) = points[0], points[-1]
            lines.append((name, f"{now:.4f}" + (f", from {was:.4f} at step {first}" if len(points) > 1 else "")))
    if row.get("lr") is not None:
        lines.append(("learning rate", f"{row['lr']:.3g}"))
    if row.get("grad_norm") is not None:
        lines.append(("gradient norm", f"{row['grad_norm']:.3g}"))
    for c in compare(run):
        digits = ",.0f" if c.measured >= 1000 else "#.3g"
        held = f"planned {c.planned:{digits}}, {c.error:+.0%}" if abs(c.error) >= 0.005 else "as planned"
        lines.append((c.name, f"{c.measured:{digits}} {c.unit} ({held})"))
    return lines


def _time(row: dict[str, Any]) -> str:
    if row["seconds_left"] is not None:
        return f"{duration(row['seconds_left'])} left"
    if row["seconds"] is None:
        return ""
    return f"{'runs for' if row['state'] == 'running' else 'took'} {duration(row['seconds'])}"


def _next(run: record.Run) -> str:
    state = run.state
    if state == "finished":
        return f"puna merge {run.name}"
    if state == "running":
        return f"puna run show {run.name}"
    return f"puna train RECIPE --resume {run.name}" if run.checkpoints else ""


def _points(metrics: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(m["step"], m[key]) for m in metrics if m.get(key) is not None]


def _loss(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""
