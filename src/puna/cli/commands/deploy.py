"""`puna init`, `dev`, `deploy`, `scale` and `webhook`: from an app or a repository to an endpoint with its settings."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from puna import names, pipeline
from puna.cli import output
from puna.cli.credentials import show_endpoint
from puna.cli.options import AsJson, EndpointName, Wait, pairs, takes_settings
from puna.client import Client
from puna.config import project as projects
from puna.config.settings import LIVE, RANGES, Settings, setting
from puna.errors import UsageError
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


Folder = Annotated[Path | None, typer.Argument(help="The folder that holds app.py; this one.", show_default=False)]
Git = Annotated[str | None, typer.Option(help="A git repository instead, https or ssh.")]
Branch = Annotated[str | None, typer.Option(help="Its branch; its own choice when not given.")]
Path_ = Annotated[str | None, typer.Option("--path", help="The folder in it that holds app.py.")]
Credential = Annotated[str | None, typer.Option(help="The secret with its GIT_TOKEN or GIT_SSH_KEY, or HF_TOKEN.")]
Model = Annotated[
    str | None, typer.Option(help="A model instead, published here or on the hub; an app is made for it.")
]
Engine = Annotated[str | None, typer.Option(help="The engine of --model: vllm, transformers or auto.")]
Name = Annotated[str | None, typer.Option(help="The endpoint's name; inferless.yaml's when not given.")]
Runtime = Annotated[str | None, typer.Option(help="An uploaded runtime; the folder's file when not given.")]
Version = Annotated[int | None, typer.Option("--runtime-version", "--runtimeversion")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the app; may be repeated.")]
Secret = Annotated[list[str] | None, typer.Option("--secret", help="A set of secrets for the app; may be repeated.")]
Volume = Annotated[list[str] | None, typer.Option("--volume", help="NAME or NAME=/path; may be repeated.")]
Share = Annotated[int, typer.Option("--traffic", help="Percent of the requests, beside what serves.", min=1, max=100)]


@takes_settings(name for name in Settings.model_fields if setting(name).option)
def deploy(
    folder: Folder = None,
    git: Git = None,
    branch: Branch = None,
    path: Path_ = None,
    model: Model = None,
    engine: Engine = None,
    credential: Credential = None,
    name: Name = None,
    runtime: Runtime = None,
    runtime_version: Version = None,
    env: Env = None,
    secret: Secret = None,
    volume: Volume = None,
    traffic: Share = 100,
    wait: Wait = True,
    json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Build a folder, a git repository's newest commit or a model, and roll it out; answers with URL and curl line."""
    settings |= {"secrets": secret} if secret else {}
    mounts = {name: path for name, _, path in (word.partition("=") for word in volume or ())}
    settings |= {"volumes": mounts} if mounts else {}
    environment = pairs(env or [], "--env NAME=VALUE")
    source = _Source(folder, git or "", branch or "", path or "", model or "", engine or "", credential or "")
    source.check(is_watched=bool(settings.get("auto_rebuild") or settings.get("poll_s")))
    watch = output.ProgressDisplay(quiet=json)
    with Client() as client:
        target = {"name": name or "", "runtime": runtime, "runtime_version": runtime_version, "traffic": traffic}
        done = source.deploy(client, target, settings, environment, watch)
        if wait:
            done = pipeline.follow_deploy(client, done, watch)
        show_endpoint(client, done, json)


@dataclass(frozen=True)
class _Source:
    """The options about the app's origin."""

    folder: Path | None
    git: str
    branch: str
    path: str
    model: str
    engine: str
    credential: str

    def check(self, *, is_watched: bool) -> None:
        """Which options do not go together is said before anything is done."""
        if [self.folder is not None, bool(self.git), bool(self.model)].count(True) > 1:
            raise UsageError("of a folder, --git and --model more than one was named", "deploy one of them")
        if not self.git and (self.branch or self.path or is_watched):
            options = "--branch, --path, --auto-rebuild and --poll"
            raise UsageError(f"{options} say nothing without --git", "puna deploy --git https://host/owner/name")
        if self.engine and not self.model:
            raise UsageError("--engine says nothing without --model", "puna deploy --model owner/name")
        if self.credential and not (self.git or self.model):
            raise UsageError("--credential says nothing without --git or --model", "--secret gives secrets to the app")

    def deploy(
        self,
        client: Client,
        target: dict[str, Any],
        settings: dict[str, Any],
        environment: dict[str, str],
        watch: output.ProgressDisplay,
    ) -> dict[str, Any]:
        """Deploy it; what was queued. `target` are the options about the endpoint, by the client's names for them."""
        if not (self.git or self.model):
            return _deploy_folder(client, self.folder or Path(), target, settings, environment, watch)
        settings |= {"env": environment} if environment else {}
        if self.git:
            repository = {"url": self.git, "branch": self.branch, "folder": self.path, "credential": self.credential}
            return client.deploy_git(repository, settings=settings, **target)
        model = {"name": self.model, "engine": self.engine or "auto", "credential": self.credential}
        return client.deploy_model(model, settings=settings, **target)


def _deploy_folder(
    client: Client,
    folder: Path,
    target: dict[str, Any],
    settings: dict[str, Any],
    environment: dict[str, str],
    watch: output.ProgressDisplay,
) -> dict[str, Any]:
    from puna.packaging import source

    project = projects.load(folder)
    source.check(folder)
    settings = project.settings | settings
    settings["env"] = {**settings["env"], **environment}
    for warning in project.warnings:
        watch.note(f"inferless.yaml: {warning}")
    name = target["name"] or project.name or names.of_folder(folder)
    client.check_settings(name, settings)  # before an environment is built for them
    runtime, version = target["runtime"] or project.runtime_name, target["runtime_version"] or None
    if version and not runtime:
        raise UsageError("--runtime-version says nothing without --runtime", "`puna runtime list`")
    if runtime:
        version = version or project.runtime_version
    elif project.runtime_file:  # its own file becomes one
        runtime = project.name or target["name"]
        pipeline.upload_runtime(client, folder / project.runtime_file, runtime, watch)
    target |= {"name": name, "runtime": runtime, "runtime_version": version}
    return client.deploy(folder, settings=settings, **target)


@takes_settings(name for name in RANGES if name in LIVE and name != "poll_s")
def scale(name: EndpointName, json: AsJson = False, *, settings: dict[str, Any]) -> None:
    """Change replicas, delays and limits without a rebuild."""
    from puna.cli.commands.endpoints import show_change

    if not settings:
        raise UsageError("nothing to change", "puna scale NAME --min 1 --max 4")
    with Client() as client:
        show_change(client.patch(name, **settings), json)


@takes_settings(("auto_rebuild", "poll_s"))
def webhook(
    name: EndpointName,
    replay: Annotated[int | None, typer.Option(help="Do as if this delivery came now.", show_default=False)] = None,
    json: AsJson = False,
    *,
    settings: dict[str, Any],
) -> None:
    """Show address and secret for a repository's settings, and the deliveries so far; or change and repeat."""
    with Client() as client:
        if settings:
            client.patch(name, **settings)
        if replay is not None:
            client.replay_delivery(name, replay)
        told, deliveries = client.webhook(name), client.deliveries(name)
    if json:
        output.data({**told, "deliveries": deliveries})
        return
    git = told["git"]
    if not git:
        output.line(f"{name} is not built from a repository: puna deploy --git URL --name {name}")
        return
    output.line(f"repository: {git['url']} {git.get('branch', '')} at commit {git.get('commit', '?')[:12]}")
    output.line(f"pushes:     {_pushes(name, told)}")
    output.line(f"url:        {told['url']}")
    output.line(f"secret:     {told['secret']}")
    output.line("content:    application/json, push events")
    rows = [_delivery_row(one) for one in deliveries]
    output.table(("delivery", "at", "from", "outcome", "revision", "commit", "why"), rows, empty="nothing came yet")


def _pushes(name: str, told: dict[str, Any]) -> str:
    if not told["auto_rebuild"]:
        return f"are not deployed: puna webhook {name} --auto-rebuild"
    return "are deployed" + (f"; it is asked every {told['poll_s']:g} s as well" if told["poll_s"] else "")


def _delivery_row(one: dict[str, Any]) -> tuple[Any, ...]:
    at = datetime.fromtimestamp(one["at"]).strftime("%m-%d %H:%M:%S")
    outcome = f"{one['outcome']}, {one['state']}" if one["state"] else one["outcome"]
    sender = f"{one['sender']} {one['event']}".strip()
    return (one["id"], at, sender, outcome, one["revision"] or "", one["commit"][:12], one["message"])
