"""`puna ps`, `logs`, `events`, `traffic` and all that changes what an endpoint serves."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from puna.cli import credentials, output
from puna.cli.options import AsJson, EndpointName, Wait, Yes, pairs
from puna.client import Client
from puna.errors import UsageError


def ps(
    name: Annotated[str | None, typer.Argument(help="One endpoint only, with more of it.", show_default=False)] = None,
    json: AsJson = False,
) -> None:
    """List endpoints and their replicas, or show one."""
    with Client() as client:
        if name is not None:
            one = client.endpoint(name)
            output.data(one) if json else _show_one(one)
            return
        found = client.endpoints()
    rows = []
    for one in found:
        revision, why = one["revision"] or "", one["reason"] or ""
        if len(one["traffic"]) > 1:
            revision = ", ".join(f"{part['revision']}: {part['percent']} %" for part in one["traffic"])
        rows.append((one["name"], one["label"], revision, _replicas(one), _warm(one), one["url"], why))
    headings = ("endpoint", "state", "revision", "replicas", "warm", "url", "why")
    output.listing(found, json, headings, rows, empty="no endpoints yet: puna deploy FOLDER")


def _show_one(endpoint: dict[str, Any]) -> None:
    traffic = ", ".join(f"revision {part['revision']}: {part['percent']} %" for part in endpoint["traffic"])
    at_once, desired = endpoint["concurrency"], endpoint["desired_replicas"]
    facts = {
        "endpoint": endpoint["name"],
        "state": endpoint["label"],
        "serves": traffic or "nothing yet",
        "url": endpoint["url"],
        "replicas": _replicas(endpoint),
        "calls per replica": at_once["text"] if at_once else "known once it has run",
        "wanted": f"{desired}: {endpoint['scaling_reason']}" if endpoint["scaling_reason"] else desired,
        "warm": _warm(endpoint),
        "why": endpoint["reason"] or "",
    }
    output.pairs({key: value for key, value in facts.items() if value != ""})
    rows = [(r["id"], r["state"], r["tier"], r["revision"], r["in_flight"], r["reason"]) for r in endpoint["replicas"]]
    if rows:
        output.table(("replica", "state", "tier", "revision", "in flight", "why"), rows)


def _replicas(endpoint: dict[str, Any]) -> str:
    """How many replicas are awake and asleep, of how many there may be: `1 + 2 asleep of 0-3`."""
    states, settings = [replica["state"] for replica in endpoint["replicas"]], endpoint["settings"]
    asleep = f" + {states.count('asleep')} asleep" if "asleep" in states else ""
    return f"{states.count('ready')}{asleep} of {settings['min_replica']}-{settings['max_replica']}"


def _warm(endpoint: dict[str, Any]) -> str:
    """The memory that an endpoint's zygote costs, or what it is doing instead of being ready."""
    zygote = endpoint.get("warm")
    if not zygote:
        return ""
    return f"{zygote['memory_bytes'] / 2**20:.0f} MiB" if zygote["state"] == "ready" else str(zygote["state"])


def logs(
    name: Annotated[str | None, typer.Argument(help="The endpoint's name.", show_default=False)] = None,
    follow_log: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.")] = 200,
    replica: Annotated[str | None, typer.Option(help="Only this replica's.", show_default=False)] = None,
    build: Annotated[str | None, typer.Option(help="A build's log instead.", show_default=False)] = None,
    search: Annotated[str, typer.Option(help="Only lines with this in them.", show_default=False)] = "",
    request: Annotated[str, typer.Option(help="Only what the call of this id printed.", show_default=False)] = "",
    since: Annotated[str, typer.Option(help="Only what was printed since: 30m, 24h, a time.", show_default=False)] = "",
    times: Annotated[bool, typer.Option("--times", "-t", help="When each line was printed.")] = False,
) -> None:
    """Show what an app printed, with request ids; or a build's log."""
    if (name is None) == (build is None):
        raise UsageError("name an endpoint, or a build", "puna logs NAME, or puna logs --build ID")
    with Client() as client:
        if build is not None:
            told = client.build_log(build, follow=follow_log and not search, search=search)
        else:
            wanted = {"search": search, "request": request, "since": since, "times": int(times)}
            told = client.logs(str(name), follow=follow_log, lines=lines, replica=replica, **wanted)
        for line in told:
            output.line(line)


def events(name: EndpointName, json: AsJson = False) -> None:
    """Show what happened to an endpoint, and why: rollouts, scaling, deaths."""
    with Client() as client:
        found = client.events(name)
    if json:
        output.data(found)
        return
    for event in found:
        at = datetime.fromtimestamp(float(event["at"])).strftime("%Y-%m-%d %H:%M:%S")
        output.line(f"{at}  {event['message']}")


def activate(name: EndpointName, json: AsJson = False) -> None:
    """Let an endpoint take requests again."""
    with Client() as client:
        show_change(client.activate(name), json)


def deactivate(name: EndpointName, json: AsJson = False) -> None:
    """Stop every replica and refuse requests."""
    with Client() as client:
        show_change(client.deactivate(name), json)


def rebuild(name: EndpointName, wait: Wait = True, json: AsJson = False) -> None:
    """Build the endpoint's source again and roll it out."""
    from puna import pipeline

    with Client() as client:
        made = client.rebuild(name)
        if wait and made.get("build_id"):
            pipeline.follow(client, made["build_id"], output.ProgressDisplay(quiet=json))
            made = client.wait_for_endpoint(name, made["revision"])
        show_change(made, json)


def rollback(
    name: EndpointName,
    revision: Annotated[int | None, typer.Option(help="Which; the one before when not given.")] = None,
    wait: Wait = True,
    json: AsJson = False,
) -> None:
    """Take a split away, or serve an earlier revision again."""
    with Client() as client:
        made = client.rollback(name, revision)
        if wait:
            made = client.wait_for_traffic(name, made["revision"])
        show_change(made, json)


def delete(name: EndpointName, yes: Yes = False, json: AsJson = False) -> None:
    """Delete an endpoint and stop its replicas."""
    if not yes and not json:
        typer.confirm(f"delete endpoint {name}?", abort=True)
    with Client() as client:
        done = client.delete(name)
        credentials.forget_key(client.home, name)
    output.data(done) if json else output.line(f"{name} is deleted")


def show_change(endpoint: dict[str, Any], json: bool) -> None:
    """Print what an endpoint has become."""
    if json:
        output.data(endpoint)
        return
    name = endpoint.get("name") or endpoint.get("endpoint")
    output.line(
        f"{name}: {endpoint.get('label') or endpoint.get('state') or 'revision ' + str(endpoint.get('revision'))}"
    )


Shares = Annotated[list[str] | None, typer.Argument(help="REVISION=PERCENT; what is left is what serves'.")]
Number = Annotated[int, typer.Argument(help="A revision.", show_default=False)]


def traffic(name: EndpointName, shares: Shares = None, wait: Wait = True, json: AsJson = False) -> None:
    """Divide the requests between two revisions, e.g. 3=90 4=10; without shares, show who gets how much."""
    asked = _shares(name, shares or [])
    with Client() as client:
        if asked:
            done = client.set_traffic(name, asked)
            if wait:
                client.wait_for_traffic(name, done["revision"], done["percent"])
        found = client.endpoint(name)
    _show_traffic(found, json)


def promote(
    name: EndpointName,
    revision: Annotated[int | None, typer.Argument(help="Which; the second one when not given.")] = None,
    wait: Wait = True,
    json: AsJson = False,
) -> None:
    """Give a revision all requests; the other one is drained and retired."""
    with Client() as client:
        done = client.promote(name, revision)
        if wait:
            client.wait_for_traffic(name, done["revision"], done["percent"])
        found = client.endpoint(name)
    _show_traffic(found, json)


def diff(name: EndpointName, before: Number, after: Number, json: AsJson = False) -> None:
    """Show what changed from one revision to another: settings, packages, files."""
    with Client() as client:
        found = client.diff(name, before, after)
    if json:
        output.data(found)
        return
    commits = [found[side]["commit"] for side in ("from", "to")]
    if any(commits):
        output.line(f"commit: {' -> '.join((commit or 'none')[:12] for commit in commits)}")
    headings = ("setting", f"revision {before}", f"revision {after}")
    rows = [(one["name"], one["before"], one["after"]) for one in found["settings"]]
    output.table(headings, rows, empty="the settings are the same")
    output.package_changes(found["packages"], f"revision {before}", f"revision {after}")
    if found["files"] is None:
        output.line("their files are not compared: one of the two sources has been cleared away")
        return
    for one in found["files"]:
        output.line(f"{one['change']}: {one['path']}" + (f" ({one['why']})" if one["why"] else ""))
        if one["lines"]:
            output.line(one["lines"])
    if not found["files"]:
        output.line("the files are the same")
    if found["is_cut"]:
        output.line("more files differ than are shown")


def _shares(name: str, words: list[str]) -> dict[int, int]:
    example = f"puna traffic {name} 3=90 4=10"
    try:
        return {int(number): int(share.removesuffix("%")) for number, share in pairs(words, example).items()}
    except ValueError:
        raise UsageError(f"{' '.join(words)!r}: shares are whole percent, by revision", example) from None


def _show_traffic(endpoint: dict[str, Any], json: bool) -> None:
    if json:
        output.data(endpoint)
        return
    rows = []
    for one in endpoint["traffic"]:
        share = f"{one['percent']} %" + (f", to have {one['wanted']} %" if one["wanted"] != one["percent"] else "")
        ready = [r for r in endpoint["replicas"] if r["revision"] == one["revision"] and r["state"] == "ready"]
        figures = [one.get(key, "") for key in ("requests", "errors", "p50_ms", "p95_ms")]
        rows.append((one["revision"], share, len(ready), *figures))
    headings = ("revision", "requests", "ready", "answered", "errors", "p50 ms", "p95 ms")
    output.table(headings, rows, empty="nothing serves yet")
