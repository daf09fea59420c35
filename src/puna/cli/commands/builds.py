"""`puna runtime` and `puna build`: environments with versions, and what the builder does and did."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from puna import names
from puna.cli import output
from puna.cli.options import AsJson, EndpointName, Wait, Yes
from puna.client import Client
from puna.errors import ConflictError

runtime_app = typer.Typer(no_args_is_help=True, add_completion=False)
RuntimeFile = Annotated[Path, typer.Argument(help="inferless-runtime-config.yaml.", show_default=False)]
RuntimeName = Annotated[
    str | None, typer.Option("--name", help="The runtime's name; the folder's when not given.", show_default=False)
]

RuntimeArgument = Annotated[str, typer.Argument(help="The runtime's name.", show_default=False)]
OfVersion = Annotated[int | None, typer.Option("--version", help="Its version; the newest when not given.", min=1)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write it there; printed when not given.")]
PythonOf = Annotated[Path | None, typer.Option("--python", help="An environment's folder; the active one by default.")]
Everything = Annotated[bool, typer.Option("--all", help="Every package, not only those that were asked for.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite a file that says something else.")]
OneVersion = Annotated[int | None, typer.Option("--version", help="Only this one.", min=1)]
Before = Annotated[int, typer.Argument(help="A version.", min=1, show_default=False)]
After = Annotated[int, typer.Argument(help="Another.", min=1, show_default=False)]


@runtime_app.command()
def upload(file: RuntimeFile, name: RuntimeName = None, wait: Wait = True, json: AsJson = False) -> None:
    """Build a runtime from its file, with its log; a new version of it when the name is taken."""
    from puna import pipeline

    with Client() as client:
        chosen = name or names.of_folder(file.resolve().parent)
        done = pipeline.upload_runtime(client, file, chosen, output.ProgressDisplay(quiet=json), wait=wait)
        if json:
            output.data(done)
        else:
            output.line(f"runtime {done['name']} version {done['version']} is {done['status']} ({done['digest'][:16]})")
            output.line(f"next: puna deploy {file.parent}")


# The platform's newer CLI calls it `create`.
runtime_app.command("create", hidden=True)(upload)


@runtime_app.command()
def generate(
    file: Output = None, python: PythonOf = None, everything: Everything = False, force: Force = False
) -> None:
    """Write a runtime file of an environment that is there: what was asked for in it, with its versions."""
    from puna.packaging import generate as generating

    made = generating.text(generating.place(python or generating.here()), everything=everything)
    if file is None:
        output.line(made.rstrip())
        return
    if file.exists() and not force and file.read_text() != made:
        raise ConflictError(f"{file} is there already, and says something else", "add --force, or name another file")
    file.write_text(made)
    output.line(f"wrote {file}; next: puna runtime upload {file}")


@runtime_app.command("list")
def list_runtimes(json: AsJson = False) -> None:
    """List runtimes and their versions."""
    with Client() as client:
        found = client.runtimes()
    rows = [(r["name"], r["version"], r["status"], r["digest"][:16]) for r in found]
    headings = ("runtime", "version", "status", "digest")
    output.listing(found, json, headings, rows, empty="no runtimes yet: puna runtime upload FILE")


@runtime_app.command("show")
def show_runtime(name: RuntimeArgument, version: OfVersion = None, json: AsJson = False) -> None:
    """Show a version of a runtime: its file, packages as installed, size, and which endpoints use it."""
    with Client() as client:
        found = client.runtime(name, version)
    if json:
        output.data(found)
        return
    size = f"{found['size_bytes'] / 2**20:,.1f} MiB" if found["size_bytes"] is not None else "not on this disk"
    facts = {key: found[key] for key in ("name", "version", "status", "error", "hint", "digest", "python_version")}
    versions = ", ".join(str(v["version"]) for v in found["versions"])
    facts |= {"size": size, "build": found["build_id"], "versions": versions}
    output.pairs({key: value for key, value in facts.items() if value})
    output.line(found["yaml"].rstrip())
    if found["packages"] is not None:
        packages = [(p["name"], p["version"]) for p in found["packages"]]
        output.table(("package", "version"), packages, empty="no packages")
    uses = [(e["endpoint"], e["revision"], e["version"], e["state"]) for e in found["endpoints"]]
    output.table(("endpoint", "revision", "version", "state"), uses, empty="no endpoint uses it")


@runtime_app.command("diff")
def diff_versions(name: RuntimeArgument, before: Before, after: After, json: AsJson = False) -> None:
    """Show what differs between two versions: lines of the file, and packages as installed."""
    with Client() as client:
        found = client.runtime_diff(name, before, after)
    if json:
        output.data(found)
        return
    output.line(found["yaml"] or "the files say the same")
    output.package_changes(found["packages"], f"version {before}", f"version {after}")


@runtime_app.command("use")
def use_runtime(
    endpoint: EndpointName, name: RuntimeArgument, version: OfVersion = None, wait: Wait = True, json: AsJson = False
) -> None:
    """Build an endpoint on another runtime, or version of it, as a new revision."""
    from puna import pipeline

    with Client() as client:
        done = client.patch(endpoint, runtime=name, runtime_version=version)
        number = done["changed_revision"]
        if wait and number is not None:
            build = next((r["build_id"] for r in done["revisions"] if r["number"] == number), None)
            made = {"endpoint": endpoint, "revision": number, "build_id": build}
            done = pipeline.follow_deploy(client, made, output.ProgressDisplay(quiet=json))
        if json:
            output.data(done)
        elif number is None:
            output.line(f"{endpoint} is built on it already")
        else:
            output.line(f"revision {number} of {endpoint} " + ("serves" if wait else "is being built"))


@runtime_app.command("delete")
def delete_runtime(name: RuntimeArgument, version: OneVersion = None, yes: Yes = False, json: AsJson = False) -> None:
    """Delete a version that no endpoint needs; without --version, all of them."""
    what = f"version {version} of runtime {name}" if version is not None else f"all versions of runtime {name}"
    if not yes and not json:
        typer.confirm(f"delete {what}?", abort=True)
    with Client() as client:
        done = client.delete_runtime(name, version)
    output.data(done) if json else output.line(f"{what}: deleted")


build_app = typer.Typer(no_args_is_help=True, add_completion=False)
BuildId = Annotated[str, typer.Argument(help="The build's id, as `puna build list` shows it.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the build ends.")]


@build_app.command("list")
def list_builds(json: AsJson = False) -> None:
    """List the latest builds."""
    with Client() as client:
        found = client.builds()
    rows = [(b["id"], b["kind"], f"{b['subject']} {b['number']}", b["status"], b["error"]) for b in found]
    headings = ("build", "kind", "of", "status", "error")
    output.listing(found, json, headings, rows, empty="nothing was built yet: puna deploy FOLDER")


@build_app.command("show")
def show_build(build: BuildId, json: AsJson = False) -> None:
    """Show a build: its steps with their seconds, and why it failed."""
    with Client() as client:
        found = client.build(build)
    if json:
        output.data(found)
        return
    facts = ("id", "kind", "subject", "number", "status", "error", "hint")
    output.pairs({key: found[key] for key in facts if found[key]})
    steps = [(s["name"], s["state"], "" if s["seconds"] is None else f"{s['seconds']:.1f}") for s in found["steps"]]
    output.table(("step", "state", "seconds"), steps)


@build_app.command("log")
def build_log(build: BuildId, follow: Follow = False) -> None:
    """Print a build's output."""
    with Client() as client:
        for line in client.build_log(build, follow):
            output.line(line)


@build_app.command("cancel")
def cancel_build(build: BuildId, json: AsJson = False) -> None:
    """Stop a build: one that waits at once, one under way within seconds; what serves goes on."""
    with Client() as client:
        done = client.cancel_build(build)
    output.data(done) if json else output.line(f"build {build} of {done['subject']} is being stopped")
