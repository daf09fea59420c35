"""`puna machine`: this machine's GPUs, who holds them, and whether a model fits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from puna.cli import output
from puna.cli.options import AsJson

Model = Annotated[str, typer.Option(help="A published model: does it fit, whole or half?", show_default=False)]
Requests = Annotated[int | None, typer.Option(help="Requests at once, for the estimate.", min=1)]
Context = Annotated[int | None, typer.Option(help="Tokens of each, for the estimate.", min=1)]


def machine(model: Model = "", requests: Requests = None, context: Context = None, json: AsJson = False) -> None:
    """Show cores, memory and GPUs, which endpoints hold them, and whether a model fits."""
    from puna.client import Client

    with Client() as client:
        found = client.machine(model, requests=requests, context=context)
    if json:
        output.data(found)
        return
    output.line(f"{found['cpus']} cores, {_gib(found['memory_bytes'])} GiB of memory")
    for gpu in found["gpus"]:
        free, total = _gib(gpu["free_bytes"]), _gib(gpu["memory_bytes"])
        output.line(f"GPU {gpu['index']}: {gpu['name']}, {free} of {total} GiB free, {gpu['held']:.2g} held")
        for holder in gpu["holders"]:
            output.line(f"  {_holder(holder)}")
        for name, said in (gpu["fit"] or {}).items():
            output.line(f"  {name}: {said['said']}{'' if said['free_now'] else ' (not free now)'}")
    if not found["gpus"]:
        output.line("no GPU")
        if found["fit"]:
            output.line(f"  memory: {found['fit']['said']}")


def _holder(holder: dict[str, Any]) -> str:
    who = f"{holder['endpoint']} ({holder['replica']})" if holder["endpoint"] else "a build"
    used = "" if holder["used_bytes"] is None else f", uses {_gib(holder['used_bytes'])}"
    return f"{holder['share']:.2g} for {who}{used} of {_gib(holder['limit_bytes'])} GiB"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f}"
