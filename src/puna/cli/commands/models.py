"""`puna model`: what was published."""

from __future__ import annotations

from typing import Annotated

import typer

from puna.cli import output
from puna.cli.options import AsJson
from puna.home import Home

model_app = typer.Typer(no_args_is_help=True, add_completion=False)
Ref = Annotated[str, typer.Argument(help="owner/name, owner/name:version or owner/name@alias.", show_default=False)]


@model_app.command("list")
def list_models(json: AsJson = False) -> None:
    """List published models and their versions."""
    from puna.publish.registry import Registry

    found = Registry(Home.default()).list()
    if json:
        output.data([{**v.__dict__, "path": str(v.path)} for v in found])
        return
    rows = [(v.name, v.version, v.kind, ", ".join(v.aliases), v.digest[:16], v.created[:19]) for v in found]
    output.table(
        ("model", "version", "kind", "aliases", "digest", "published"),
        rows,
        empty="no models yet: puna publish RUN owner/name",
    )


@model_app.command("show")
def show_model(ref: Ref, json: AsJson = False) -> None:
    """Show one version: where it is and what it was made from."""
    from puna.publish.registry import Registry

    version = Registry(Home.default()).resolve(ref)
    values = {**version.__dict__, "path": str(version.path)}
    output.data(values) if json else output.pairs(values)


@model_app.command()
def alias(ref: Ref, name: Annotated[str, typer.Argument(help="The alias, e.g. champion.")]) -> None:
    """Let an alias point to a version."""
    from puna.publish.registry import Registry

    Registry(Home.default()).alias(ref, name)
    output.line(f"{name} is now {ref}")


@model_app.command()
def unalias(ref: Annotated[str, typer.Argument(help="owner/name@alias.", show_default=False)]) -> None:
    """Remove an alias; the version that it meant stays."""
    from puna.publish.registry import Registry

    Registry(Home.default()).unalias(ref)
    output.line(f"{ref} is removed")


@model_app.command("delete")
def delete_version(
    ref: Ref, force: Annotated[bool, typer.Option("--force", help="Even when an alias points to it.")] = False
) -> None:
    """Delete a version."""
    from puna.publish.registry import Registry

    Registry(Home.default()).delete(ref, force=force)
    output.line(f"{ref} is deleted")
