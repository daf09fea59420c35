"""`puna data`: prepare a recipe's dataset, and look at what the model will learn from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.errors import UsageError
from puna.home import Home

data_app = typer.Typer(no_args_is_help=True, add_completion=False)
RecipeFile = Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)]


@data_app.command()
def prepare(recipe: RecipeFile, json: AsJson = False) -> None:
    """Load, sample, split and tokenise; kept, so that training starts at once."""
    from puna import pipeline
    from puna.config import recipe as recipes

    watch = output.ProgressDisplay(quiet=json)
    prepared = pipeline.prepare(recipes.load(recipe), Home.default(), watch)
    watch.close()
    figures = dict(prepared.dataset.manifest.metrics)
    if json:
        output.data({"dataset": str(prepared.dataset.path), **figures})
    else:
        output.pairs({"dataset": prepared.dataset.path, **figures})


@data_app.command()
def preview(
    recipe: RecipeFile,
    row: Annotated[int, typer.Option(help="Which row.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    json: AsJson = False,
) -> None:
    """Show one row as the model sees it: learnt tokens are marked, the others only read."""
    from puna import pipeline
    from puna.config import recipe as recipes
    from puna.data.tokens import preview as tokens_of

    watch = output.ProgressDisplay(quiet=json)
    prepared = pipeline.prepare(recipes.load(recipe), Home.default(), watch)
    watch.close()
    if split not in ("train", "test"):
        raise UsageError(f"--split is {split!r}", "train or test")
    tokens = tokens_of(prepared.dataset, row, split)  # type: ignore[arg-type]
    if json:
        output.data([{"text": t.text, "id": t.token_id, "learnt": t.label} for t in tokens])
        return
    output.tokens((t.text, t.label) for t in tokens)
    learnt = sum(t.label for t in tokens)
    output.line(f"\nrow {row} of {split}: {len(tokens)} tokens, {learnt} learnt (green, or in [brackets])")
