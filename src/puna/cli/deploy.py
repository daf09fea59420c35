"""`puna deploy`: from a folder to an endpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli import output
from puna.cli.address import show
from puna.cli.options import AsJson, Wait, pairs

if TYPE_CHECKING:
    from puna.client import Client
    from puna.spec.project import Project

Folder = Annotated[Path, typer.Argument(help="The folder that holds app.py.")]
Env = Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the app; may be repeated.")]
Secret = Annotated[list[str] | None, typer.Option("--secret", help="A set of secrets for the app; may be repeated.")]
Volume = Annotated[list[str] | None, typer.Option("--volume", help="NAME or NAME=/path; may be repeated.")]


def deploy(
    folder: Folder = Path(),
    name: Annotated[str | None, typer.Option(help="The endpoint's name; inferless.yaml's when not given.")] = None,
    runtime: Annotated[str | None, typer.Option(help="An uploaded runtime; the folder's file when not given.")] = None,
    runtime_version: Annotated[int | None, typer.Option("--runtime-version", "--runtimeversion")] = None,
    min_replica: Annotated[int | None, typer.Option(help="Replicas kept when idle.", min=0)] = None,
    max_replica: Annotated[int | None, typer.Option(help="Replicas at most.", min=1)] = None,
    scale_down_delay: Annotated[
        float | None,
        typer.Option("--scale-down-delay", "--scale-down-timeout", help="Idle seconds till a replica sleeps or goes."),
    ] = None,
    evict_after: Annotated[float | None, typer.Option(help="Seconds asleep till it goes; 0: none sleeps.")] = None,
    inference_time: Annotated[
        float | None, typer.Option("--inference-time", "--inference-timeout", help="Seconds a request may take.")
    ] = None,
    container_concurrency: Annotated[int | None, typer.Option(help="Requests a replica runs at once.", min=1)] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU type; `cpu` for none.")] = None,
    fractional: Annotated[bool, typer.Option("--fractional", help="Half a GPU.")] = False,
    env: Env = None,
    secret: Secret = None,
    volume: Volume = None,
    replace: Annotated[bool, typer.Option("--replace", help="Stop the old revision first when room is short.")] = False,
    wait: Wait = True,
    json: AsJson = False,
) -> None:
    """Build a folder and roll it out; answers with URL, key and a curl line."""
    from puna import pipeline
    from puna.build import source
    from puna.client import Client
    from puna.spec import project as projects

    project = projects.load(folder)
    source.check(folder)  # before an environment is built for it
    chosen = {
        "min_replica": min_replica,
        "max_replica": max_replica,
        "scale_down_delay_s": scale_down_delay,
        "evict_after_s": evict_after,
        "inference_time_s": inference_time,
        "container_concurrency": container_concurrency,
        "gpu_type": gpu,
        "is_dedicated": False if fractional else None,
        "secrets": list(secret) if secret else None,
        "volumes": dict(_volume(word) for word in volume) if volume else None,
        "replace": replace or None,
    }
    settings = settings_of(project) | {key: value for key, value in chosen.items() if value is not None}
    settings["env"] = {**settings["env"], **pairs(env or [], "--env NAME=VALUE")}
    watch = output.Watch(quiet=json)
    for warning in project.warnings:
        watch.note(f"inferless.yaml: {warning}")
    with Client() as client:
        chosen_runtime = _runtime(client, folder, project, runtime, watch)
        version = runtime_version or project.runtime_version
        asked: dict[str, Any] = {"runtime": chosen_runtime, "runtime_version": version, "settings": settings}
        if wait:
            done = pipeline.deploy(client, folder, name or project.name, progress=watch, **asked)
        else:
            done = client.deploy(folder, name or project.name, **asked)
        show(client, done, json)


def settings_of(project: Project) -> dict[str, Any]:
    """What inferless.yaml says, as an endpoint's settings."""
    return {
        "min_replica": project.min_replica,
        "max_replica": project.max_replica,
        "scale_down_delay_s": project.scale_down_delay_s,
        "inference_time_s": project.inference_time_s,
        "container_concurrency": project.container_concurrency or 0,
        "is_dedicated": project.is_dedicated,
        "gpu_type": project.gpu_type or "",
        "zygote": project.zygote,
        "evict_after_s": project.evict_after_s,
        "env": dict(project.env),
        "secrets": list(project.secrets),
        "volumes": dict(project.volumes),
    }


def _volume(word: str) -> tuple[str, str]:
    name, _, path = word.partition("=")
    return name, path


def _runtime(client: Client, folder: Path, project: Project, given: str | None, watch: output.Watch) -> str | None:
    """The runtime to use; a folder's own file is uploaded when no runtime is named."""
    name = given or project.runtime_name
    if name or not project.runtime_file:
        return name
    from puna import pipeline

    pipeline.upload_runtime(client, folder / project.runtime_file, project.name, watch)
    return project.name
