"""`puna ship`: from a recipe to an endpoint in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.home import Home


def ship(
    recipe: Annotated[Path, typer.Argument(help="The recipe's YAML file.", show_default=False)],
    folder: Annotated[Path | None, typer.Option(help="Where the app's four files go; ./NAME when not given.")] = None,
    json: AsJson = False,
) -> None:
    """Train, merge, verify, publish, init, build and deploy; `puna up` is started when it is not running."""
    from puna import pipeline
    from puna.cli.address import show
    from puna.cli.running import ensure_up
    from puna.client import Client
    from puna.config import recipe as recipes

    home, read, watch = Home.default(), recipes.load(recipe), output.Watch(quiet=json)
    ensure_up(home)
    with Client(home=home) as client:
        shipped = pipeline.ship(read, home, client, folder or Path(read.name), watch)
        watch.close()
        if not json:
            output.line(f"run {shipped.run} became {shipped.model.name} version {shipped.model.version}")
        show(client, shipped.endpoint, json)
