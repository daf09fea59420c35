"""What `puna train --dry-run` shows: what will be learnt from, what it takes, how long."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.cli import output

if TYPE_CHECKING:
    from puna.artifacts import Dataset
    from puna.config.recipe import Recipe
    from puna.data.tokens import Histogram, PreviewToken
    from puna.train.planning.plan import TrainingPlan

SAID_ABOVE = ("rows", "tokens", "time")
"""Lines of the plan's description that the sections on data and time have already."""


def show_plan(recipe: Recipe, recipe_file: Path, dataset: Dataset, plan: TrainingPlan, as_json: bool) -> None:
    """The dataset, the plan and one row, for a person or as data; nothing is trained."""
    from puna.data.tokens import length_histogram, preview
    from puna.train.planning.plan import describe

    figures, row, lengths = dataset.manifest.metrics, preview(dataset), length_histogram(dataset)
    if as_json:
        figures = {**figures, "length_histogram": lengths.__dict__}
        learnt = [{"text": t.text, "id": t.token_id, "learnt": t.label} for t in row]
        output.data({"data": figures, "plan": plan.as_dict(), "preview": learnt})
        return
    output.line(f"{recipe.name}: {recipe.base} learns from {recipe.data.dataset}; this is the plan, nothing is trained")
    _heading("Data")
    output.pairs(dict(data_lines(figures, recipe.data.max_length)))
    output.line("\ntokens a row, and how many rows have them")
    output.bars(bars(lengths))
    _heading("One row: what is learnt is " + ("green" if output.is_terminal() else "in [brackets]"))
    _plan_row(row)
    _heading("Plan")
    output.pairs({name: text for name, text in describe(plan) if name not in SAID_ABOVE})
    output.line()
    for reason in plan.reasons:
        output.line(f"- {reason}")
    _heading("Time")
    output.line(time_line(plan))
    output.line(f"\nnext: puna train {shlex.quote(str(recipe_file))}")


def data_lines(figures: Mapping[str, Any], max_length: int) -> list[tuple[str, str]]:
    """A dataset's figures as (name, text) lines."""
    lengths, cut = figures["lengths"], figures.get("truncated_rows", 0)
    share = f"{cut:,} rows ({figures.get('truncated_share', 0.0):.1%})" if cut else "no row"
    lines = [
        ("rows", f"{figures['rows_train']:,} to learn from, {figures['rows_test']:,} held out"),
        ("tokens", f"{figures['tokens_train']:,} an epoch, {figures['tokens_test']:,} held out"),
        ("learnt", f"{figures['labelled_share']:.0%} of the tokens; the others are only read"),
        ("row length", f"{lengths['p50']:,} tokens at 50%, {lengths['p90']:,} at 90%, {lengths['p99']:,} at 99%, "
                       f"{lengths['max']:,} at most"),
        ("cut", f"{share} at {max_length:,} tokens"),
    ]  # fmt: skip
    if left_out := figures.get("unlearnable_rows", 0):
        lines.append(("left out", f"{left_out:,} rows: their first reply begins after the cut"))
    if skipped := figures.get("skipped_rows", 0):
        lines.append(("skipped", f"{skipped:,} malformed rows"))
    return lines


def bars(lengths: Histogram) -> list[tuple[str, float]]:
    """Ranges of row lengths and their rows, from the first that has any."""
    width = lengths.width
    first = next((i for i, count in enumerate(lengths.rows) if count), 0)
    return [(f"{i * width + 1:,}-{(i + 1) * width:,}", n) for i, n in enumerate(lengths.rows) if i >= first]


def time_line(plan: TrainingPlan) -> str:
    """How long, for how many steps, at what speed."""
    from puna.train.reporting.record import duration

    steps = f"{plan.steps:,} steps ({plan.epochs:.2f} epochs) at {plan.tokens_per_s:,.0f} tokens/s"
    return f"about {duration(plan.seconds)}: {steps}, held-out rows included; the run tells its own"


def _plan_row(row: Sequence[PreviewToken]) -> None:
    from puna.data.tokens import excerpt

    start, end = excerpt(row)
    if start:
        output.line(f"... {start:,} tokens before")
    shown = [(token.text, token.label) for token in row[start:end]]
    output.tokens([*shown[:-1], (shown[-1][0].rstrip(), shown[-1][1])])
    if end < len(row):
        output.line(f"... {len(row) - end:,} tokens more")


def _heading(text: str) -> None:
    output.line(f"\n{text}", style="bold")
