"""`puna runs` and `puna run`: what was trained, and how it went."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson, RunName
from puna.home import Home
from puna.train import record

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.command("list")
def runs(json: AsJson = False) -> None:
    """List training runs, newest last."""
    found = record.list_runs(Home.default())
    if json:
        output.data([_row(r) for r in found])
        return
    rows = [
        (r["name"], r["state"], f"{r['step']}/{r['steps']}", _figure(r.get("loss")), _figure(r.get("eval_loss")))
        for r in map(_row, found)
    ]
    output.table(("run", "state", "step", "loss", "held-out loss"), rows, empty="no runs yet: puna train RECIPE")


@app.command()
def show(
    run: RunName,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write loss.png and report.html again.")] = True,
    json: AsJson = False,
) -> None:
    """Draw a run's loss curve here, and write its PNG and HTML report."""
    from puna import pipeline

    found = pipeline.find_run(Home.default(), run)
    metrics = found.metrics()
    if json:
        output.data({**_row(found), "recipe": found.recipe, "metrics": metrics})
        return
    output.pairs(_row(found))
    output.line("\nloss")
    output.curve([(m["step"], m["loss"]) for m in metrics if m.get("loss") is not None])
    evals = [(m["step"], m["eval_loss"]) for m in metrics if m.get("eval_loss") is not None]
    if evals:
        output.line("\nheld-out loss")
        output.curve(evals)
    if report and metrics:
        from puna.train.report import write_report

        write_report(found.path)
        output.line(f"\nreport: {found.path / 'report.html'}")


def _row(run: record.Run) -> dict[str, Any]:
    return {"name": run.name, "state": run.state, "steps": run.steps, **run.last, "step": run.step}


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else ""
