"""`puna init` and `puna dev`: write an app, and try it without a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from puna import names
from puna.cli import output
from puna.cli.options import AsJson
from puna.home import Home


def init(
    model: Annotated[str, typer.Argument(help="The published model to serve, owner/name.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where the four files go.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="The endpoint's name; the folder's when not given.")] = None,
    engine: Annotated[str, typer.Option(help="vllm, transformers, or auto: vllm where there is a GPU.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that say something else.")] = False,
    json: AsJson = False,
) -> None:
    """Write app.py, input_schema.py, inferless-runtime-config.yaml and inferless.yaml."""
    from puna.packaging import template

    engine = template.chosen(engine)
    called = names.check("endpoint", name, what="--name") if name else names.of_folder(folder)
    files = template.init(folder, model, name=called, engine=engine, force=force)
    if json:
        output.data({"engine": engine, "files": [str(file) for file in files]})
        return
    for file in files:
        output.line(f"wrote {file}")
    output.line(f"next: puna deploy {folder}")


def dev(
    folder: Annotated[Path, typer.Argument(help="The folder that holds app.py.")] = Path(),
    timeout: Annotated[float, typer.Option(help="Seconds the whole run may take.")] = 900,
    json: AsJson = False,
) -> None:
    """Run an app once in its own environment: import, initialize, infer on the schema's examples, finalize."""
    from puna import pipeline

    watch = output.ProgressDisplay(quiet=json)
    tried = pipeline.try_app(folder, Home.default(), watch, timeout)
    if json:
        output.data({"outputs": tried.outputs, "seconds": tried.seconds, "schema": tried.schema})
        return
    for one in tried.outputs:
        output.line(f"{one['name']}: {_plain(one.get('data'))}")
    output.line(f"it works; next: puna deploy {folder}")


def _plain(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
