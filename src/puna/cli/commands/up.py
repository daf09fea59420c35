"""`puna up`, `down`, `console` and `machine`: the running Puna, and the machine that it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from puna import instance
from puna.cli import output, running
from puna.cli.options import AsJson
from puna.errors import UsageError
from puna.front import DEFAULT_PORT, Front, Tls
from puna.home import Home


def up(
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 need TLS or --insecure.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = DEFAULT_PORT,
    gateways: Annotated[int, typer.Option(help="Gateway processes on the port.")] = 1,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Run in the background; `puna down` ends it.")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen on any address without TLS.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.", show_default=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", show_default=False)] = None,
    url: Annotated[str, typer.Option(help="What callers type, behind a proxy or by a name.", show_default=False)] = "",
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Site whose pages may call inference from a browser; `*` for all; repeatable.", show_default=False
        ),
    ] = None,
    keep_alive: Annotated[int, typer.Option(help="Seconds for which a connection waits for its next request.")] = (
        Front.keep_alive_s
    ),
    per_address: Annotated[int, typer.Option(help="Connections from one address, for each gateway.")] = (
        Front.per_address
    ),
) -> None:
    """Run the control plane, the gateway and all replicas until Ctrl-C."""
    from puna import server

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("TLS needs a certificate and its key", "give both --tls-cert and --tls-key")
    home = Home.default()
    if detach:
        with instance.sole(home):  # one that runs is named here, without the log of another that ends at once
            pass
        words = ["--host", host, "--port", str(port), "--gateways", str(gateways)]
        words += ["--insecure"] if insecure else []
        words += ["--tls-cert", str(tls_cert), "--tls-key", str(tls_key)] if tls_cert else []
        words += ["--url", url] if url else []
        words += [word for origin in cors_origin or () for word in ("--cors-origin", origin)]
        words += ["--keep-alive", str(keep_alive), "--per-address", str(per_address)]
        running.start(home, words)
        output.line(f"puna is up at {instance.url_of(home)}; stop it with: puna down")
        return
    tls = Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    front = Front(host, port, insecure, tls, url, tuple(cors_origin or ()), keep_alive, per_address)
    server.run_up(home, front, gateways, progress=output.ProgressDisplay())


def down(json: AsJson = False) -> None:
    """Stop what `puna up` runs: requests in flight finish, replicas end, nothing is left."""
    home = Home.default()
    owner = instance.owner_of(home)
    if owner is None:
        if not json:
            output.line("puna is not up: nothing to stop")
        else:
            output.data({"stopped": False})
        return
    running.stop(owner)
    output.data({"stopped": True, "pid": owner.pid}) if json else output.line("puna is down")


def console(
    browse: Annotated[bool, typer.Option("--open", help="Open it in this machine's browser.")] = False,
    json: AsJson = False,
) -> None:
    """Print a one-time link to the console; it signs whoever opens it in as administrator for twelve hours."""
    from puna.client import Client

    with Client() as client:
        made = client.console_link()
    if json:
        output.data(made)
    else:
        output.line(made["url"])
        output.note(f"it works once, within {made['expires_s'] / 60:.0f} minutes")
    if browse:
        import webbrowser

        webbrowser.open(made["url"])


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
