"""A project folder's settings: inferless.yaml of version 1 or 2, or none at all."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna import names
from puna.config import fields, ranges, runtime
from puna.errors import ProjectError

FILE_NAMES = ("inferless.yaml", "inferless.yml")
SERVES = ("model", "adapter")
# What the file calls those settings that have a range.
_WORDS = {
    "min_replica": "min_replica",
    "max_replica": "max_replica",
    "scale_down_delay_s": "scale_down_delay",
    "inference_time_s": "inference_time",
    "container_concurrency": "container_concurrency",
    "evict_after_s": "evict_after",
    "vcpu": "vcpu",
    "ram_gib": "ram",
}

# Top-level keys that are known; those that mean nothing here are accepted in silence.
_TOP = (
    "version name import_source source_framework_type configuration env secrets optional model_url provider io_schema "
    "branch autobuild source_location hf_model_name model_type task_type docker_file_path health_api infer_api "
    "server_port docker_run_command model_import_id models serve volumes"
).split()
_CONFIGURATION = (
    "custom_runtime_id custom_runtime_url custom_runtime_name custom_runtime_version custom_volume_id "
    "custom_volume_name gpu_type inference_time is_dedicated is_serverless min_replica max_replica scale_down_delay "
    "container_concurrency region vcpu ram env secrets zygote evict_after"
).split()
_OPTIONAL = ("input_file_name", "output_file_name", "runtime_file_name")


@dataclass(frozen=True)
class Project:
    """How an app is to be deployed; everything has a default."""

    name: str
    """The endpoint's: what the file, or else the folder, is called, made fit for one; empty when nothing of it is."""
    version: str = "2.0.0"
    gpu_type: str | None = None
    is_dedicated: bool = True
    """A whole GPU; half of one when false."""
    min_replica: int = 0
    max_replica: int = 1
    scale_down_delay_s: float = 600
    inference_time_s: float = 180
    container_concurrency: int | None = None
    """Requests a replica takes at once; the worker chooses when null."""
    zygote: bool = True
    """Keep a process with the app's imports done, for faster cold starts."""
    evict_after_s: float = 3600
    """How long a replica sleeps before it goes; 0: none sleeps."""
    vcpu: float | None = None
    ram_gib: float | None = None
    """Host memory of a replica, `configuration.ram`; its part of the machine when null."""
    runtime_name: str | None = None
    """An uploaded runtime; the file beside the app when null."""
    runtime_version: int | None = None
    runtime_file: str | None = None
    """The runtime file that is there, relative to the folder."""
    volumes: Mapping[str, str] = field(default_factory=dict)
    """Every volume -> where it is mounted, empty for the platform's place."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Published models that the bundle must carry, `owner/name`, `owner/name:3` or `owner/name@alias`."""
    serve: str = "model"
    """`adapter`: requests may name any published adapter of the same base, not only the one that the app names."""
    warnings: tuple[str, ...] = ()
    """What looks like a mistake but does not stop a deployment."""

    @property
    def settings(self) -> dict[str, Any]:
        """What it says of an endpoint's settings, by their names in the API."""
        return {
            "min_replica": self.min_replica,
            "max_replica": self.max_replica,
            "scale_down_delay_s": self.scale_down_delay_s,
            "inference_time_s": self.inference_time_s,
            "container_concurrency": self.container_concurrency or 0,
            "is_dedicated": self.is_dedicated,
            "gpu_type": self.gpu_type or "",
            "vcpu": self.vcpu or 0,
            "ram_gib": self.ram_gib or 0,
            "zygote": self.zygote,
            "evict_after_s": self.evict_after_s,
            "env": dict(self.env),
            "secrets": list(self.secrets),
            "volumes": dict(self.volumes),
        }


def load(folder: Path) -> Project:
    """Read the settings of the project in `folder`.

    Raises:
        ProjectError: the folder or a setting is wrong.
    """
    if not folder.is_dir():
        raise ProjectError(f"{folder} is no folder", "name the folder that holds app.py")
    path = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    values = fields.read_yaml(path, ProjectError) if path else {}
    return parse(values, folder)


def parse(values: Mapping[str, Any], folder: Path) -> Project:
    """A project from the plain values of its file; numbers in quotes are numbers, null is absent.

    Raises:
        ProjectError: a value makes no sense.
    """
    warnings = _misspelt(values, _TOP, "") + _misplaced(values)
    settings = _section(values, "configuration")
    warnings += _misspelt(settings, _CONFIGURATION, "configuration.")
    optional = _section(values, "optional")
    warnings += _misspelt(optional, _OPTIONAL, "optional.")
    found = runtime.find(folder, _inside(optional, "runtime_file_name"))
    project = Project(
        name=_name(_text(values, "name"), folder, warnings),
        version=_text(values, "version") or "2.0.0",
        gpu_type=_text(settings, "gpu_type"),
        is_dedicated=_flag(settings, "is_dedicated", True),
        min_replica=_whole(settings, "min_replica", 0),
        max_replica=_whole(settings, "max_replica", 1),
        scale_down_delay_s=_number(settings, "scale_down_delay", 600),
        inference_time_s=_number(settings, "inference_time", 180),
        container_concurrency=_whole(settings, "container_concurrency", 0) or None,
        zygote=_flag(settings, "zygote", True),
        evict_after_s=_number(settings, "evict_after", 3600),
        vcpu=_number(settings, "vcpu", 0) or None,
        ram_gib=_number(settings, "ram", 0) or None,
        runtime_name=_text(settings, "custom_runtime_name") or _text(settings, "custom_runtime_id"),
        runtime_version=_whole(settings, "custom_runtime_version", 0) or None,
        runtime_file=found.relative_to(folder).as_posix() if found else None,
        volumes=_volumes(values, settings),
        env=_env(settings) | _env(values),
        secrets=_names(values, "secrets") + _names(settings, "secrets"),
        models=_names(values, "models"),
        serve=_text(values, "serve") or "model",
        warnings=tuple(warnings),
    )
    _check(project)
    return project


def _check(project: Project) -> None:
    if project.serve not in SERVES:
        raise ProjectError(f"`serve` is {project.serve!r}", f"one of {', '.join(SERVES)}")
    if project.max_replica < project.min_replica:
        raise ProjectError(
            f"`configuration.min_replica` is {project.min_replica}, over max_replica, {project.max_replica}",
            "raise max_replica",
        )
    words = {name: f"`configuration.{word}`" for name, word in _WORDS.items()}
    ranges.check({name: value for name, value in project.settings.items() if name in words}, ProjectError, words)


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = values.get(key) or {}
    if not isinstance(section, Mapping):
        raise ProjectError(f"`{key}` must hold keys and values, not {runtime.shown(section)}")
    return section


def _misspelt(values: Mapping[str, Any], known: list[str] | tuple[str, ...], prefix: str) -> list[str]:
    """A warning for each unknown key that is nearly a known one; other unknown keys are somebody else's."""
    found = []
    for key in map(str, values):
        # Stricter than `nearest`: files carry keys of other tools, and those deserve no warning.
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8) if key not in known else []
        found += [f"unknown key `{prefix}{key}`: did you mean `{n}`?" for n in near]
    return found


def _misplaced(values: Mapping[str, Any]) -> list[str]:
    only_inside = set(_CONFIGURATION) - set(_TOP)
    return [f"`{key}` has no effect here: move it under `configuration:`" for key in values if key in only_inside]


def _name(said: str | None, folder: Path, warnings: list[str]) -> str:
    name = names.normalise(said or folder.resolve().name)
    if said and name and name != said.lower():  # whose case alone is another sees the name when it is deployed
        warnings.append(f"`name` is {said!r}, which no endpoint can be called: it is {name!r} here")
    return name


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    if value is None or value == "":
        return None
    if isinstance(value, Mapping | list):
        raise ProjectError(f"`{key}` must be text, not {runtime.shown(value)}")
    return str(value).strip() or None


def _inside(values: Mapping[str, Any], key: str) -> str | None:
    """A file's name that stays in the folder: who wrote it may not be who owns the machine that reads it."""
    name = _text(values, key)
    if name is not None and (name.startswith("/") or ".." in re.split(r"[/\\]", name) or not name.isprintable()):
        raise ProjectError(f"`optional.{key}` is {name!r}, which is outside the project", "name a file of the folder")
    return name


def _number(values: Mapping[str, Any], key: str, default: float) -> float:
    text = _text(values, key)
    try:
        number = default if text is None else float(text)
    except ValueError:
        number = -1
    if not 0 <= number < float("inf"):
        raise ProjectError(f"`configuration.{key}` must be a number of at least 0, not {values[key]!r}")
    return number


def _whole(values: Mapping[str, Any], key: str, default: int) -> int:
    number = _number(values, key, default)
    if number != int(number):
        raise ProjectError(f"`configuration.{key}` must be a whole number, not {values[key]!r}")
    return int(number)


def _flag(values: Mapping[str, Any], key: str, default: bool) -> bool:
    words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
    text = _text(values, key)
    if text is None:
        return default
    if text.lower() not in words:
        raise ProjectError(f"`configuration.{key}` must be true or false, not {values[key]!r}")
    return words[text.lower()]


def _volumes(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, str]:
    """`custom_volume_name` of the platform's file, and our list of names, or `name: path` pairs."""
    platform = _text(settings, "custom_volume_name") or _text(settings, "custom_volume_id")
    found = {platform: ""} if platform else {}
    for item in _listed(values, "volumes"):
        pairs = item if isinstance(item, Mapping) else {item: ""}
        for name, path in pairs.items():
            if not isinstance(name, str) or not isinstance(path, str | None):
                raise ProjectError(f"`volumes` has {runtime.shown(item)}", "write `- name: /mount/path`, or `- name`")
            found[name] = path or ""
    return found


def _listed(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key) or []
    if isinstance(value, str | Mapping):
        return [value]  # one name, or pairs without the dashes
    if not isinstance(value, list):
        raise ProjectError(f"`{key}` must be a list, not {runtime.shown(value)}")
    return value


def _env(values: Mapping[str, Any]) -> dict[str, str]:
    value = values.get("env") or {}
    if isinstance(value, list):  # `- KEY=VALUE`, as the platform's command line has it
        pairs = [item.partition("=") if isinstance(item, str) else ("", "", "") for item in value]
        if any(not equals for _, equals, _ in pairs):
            raise ProjectError(f"`env` must hold KEY: value pairs, not {runtime.shown(value)}")
        value = {key: text for key, _, text in pairs}
    if not isinstance(value, Mapping):
        raise ProjectError(f"`env` must hold KEY: value pairs, not {runtime.shown(value)}")
    for key, item in value.items():
        if not names.fits("variable", str(key)) or "\0" in _env_text(item):
            raise ProjectError(f"`env` has {runtime.shown(key)}, which no environment variable can be called")
    return {str(key): _env_text(item) for key, item in value.items()}


def _env_text(value: object) -> str:
    if isinstance(value, Mapping | list):
        raise ProjectError(f"`env` must hold text, not {runtime.shown(value)}", "put quotes around it")
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key) or []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str | Mapping) for item in items):
        raise ProjectError(f"`{key}` must be a list of names, not {runtime.shown(value)}")
    # The platform's newer files list secrets as `- name: x`.
    found = [str(item.get("name", "")) if isinstance(item, Mapping) else item for item in items]
    return tuple(dict.fromkeys(name.strip() for name in found if name.strip()))
