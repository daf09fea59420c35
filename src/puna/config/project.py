"""A project folder's settings: inferless.yaml of version 1 or 2, or none at all."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna import names
from puna.config import runtime
from puna.config.reading import Origin, read_yaml, shown
from puna.config.settings import DEFAULTS, FILE_KEYS, Settings
from puna.errors import ProjectError

FILE_NAMES = ("inferless.yaml", "inferless.yml")
SERVES = ("model", "adapter")
# Top-level keys that are known; those that mean nothing here are accepted in silence.
_TOP = (
    "version name import_source source_framework_type configuration env secrets optional model_url provider io_schema "
    "branch autobuild source_location hf_model_name model_type task_type docker_file_path health_api infer_api "
    "server_port docker_run_command model_import_id models serve volumes"
).split()
_CONFIGURATION = (
    *FILE_KEYS,
    *(
        "custom_runtime_id custom_runtime_url custom_runtime_name custom_runtime_version custom_volume_id "
        "custom_volume_name is_serverless region env secrets"
    ).split(),
)
FLAGS = {"": None, "true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
_OPTIONAL = ("input_file_name", "output_file_name", "runtime_file_name")


@dataclass(frozen=True)
class Project:
    """An app as its folder says that it is to be deployed; everything has a default."""

    name: str
    """The endpoint's: what the file, or else the folder, is called, made fit for one; empty when nothing of it is."""
    version: str = "2.0.0"
    settings: dict[str, Any] = field(default_factory=dict)
    """Each setting of an endpoint that the file can say, by its name in the API; the default where it says nothing."""
    runtime_name: str | None = None
    """An uploaded runtime; the file beside the app when null."""
    runtime_version: int | None = None
    runtime_file: str | None = None
    """The runtime file that is there, relative to the folder."""
    models: tuple[str, ...] = ()
    """Published models that the bundle must carry, `owner/name`, `owner/name:3` or `owner/name@alias`."""
    serve: str = "model"
    """`adapter`: requests may name any published adapter of the same base, not only the one that the app names."""
    warnings: tuple[str, ...] = ()
    """Likely mistakes, which do not stop a deployment."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, the settings among the others."""
        plain = {name: value for name, value in vars(self).items() if name != "settings"}
        return {**plain, **self.settings, "models": list(self.models), "warnings": list(self.warnings)}


def load(folder: Path) -> Project:
    """Read the settings of the project in `folder`.

    Raises:
        ProjectError: the folder or a setting is wrong.
    """
    if not folder.is_dir():
        raise ProjectError(f"{folder} is no folder", "name the folder that holds app.py")
    path = next((folder / name for name in FILE_NAMES if (folder / name).is_file()), None)
    values = read_yaml(path, ProjectError) if path else {}
    return parse(values, folder)


def parse(values: Mapping[str, Any], folder: Path) -> Project:
    """A project from the plain values of its file; numbers in quotes are numbers, null is absent.

    Raises:
        ProjectError: a value makes no sense.
    """
    warnings = _misspelt(values, _TOP, "") + _misplaced(values)
    configuration = _section(values, "configuration")
    warnings += _misspelt(configuration, _CONFIGURATION, "configuration.")
    optional = _section(values, "optional")
    warnings += _misspelt(optional, _OPTIONAL, "optional.")
    found = runtime.find(folder, _inside(optional, "runtime_file_name"))
    serve = _text(values, "serve") or "model"
    if serve not in SERVES:
        raise ProjectError(f"`serve` is {serve!r}", f"one of {', '.join(SERVES)}")
    return Project(
        name=_name(_text(values, "name"), folder, warnings),
        version=_text(values, "version") or "2.0.0",
        settings=_settings(values, configuration),
        runtime_name=_text(configuration, "custom_runtime_name") or _text(configuration, "custom_runtime_id"),
        runtime_version=_version(configuration),
        runtime_file=found.relative_to(folder).as_posix() if found else None,
        models=_names(values, "models"),
        serve=serve,
        warnings=tuple(warnings),
    )


def _settings(values: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: plain(name, configuration.get(key)) for key, name in FILE_KEYS.items()}
    said |= {
        "env": _env(configuration) | _env(values),
        "secrets": _names(values, "secrets") + _names(configuration, "secrets"),
        "volumes": _volumes(values, configuration),
    }
    words = {name: f"`configuration.{key}`" for key, name in FILE_KEYS.items()}
    written = {name: value for name, value in said.items() if value is not None}
    judged = Settings.model_validate(written, context=Origin(ProjectError, words))
    return {name: value for name, value in judged.as_dict().items() if name in said}


def plain(name: str, value: Any) -> Any:
    """Return a setting's value as people write it: text without the space around it, and true for words that say so."""
    if not isinstance(value, str | int | float):
        return value
    text = str(value).strip()
    if isinstance(getattr(DEFAULTS, name), bool):
        return FLAGS.get(text.lower(), text)
    return text or None


def _version(configuration: Mapping[str, Any]) -> int | None:
    text = _text(configuration, "custom_runtime_version") or "0"
    with contextlib.suppress(ValueError):
        if (number := float(text)).is_integer() and number >= 0:
            return int(number) or None
    raise ProjectError(f"`configuration.custom_runtime_version` must be a whole number, not {text!r}")


def _section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = values.get(key) or {}
    if not isinstance(section, Mapping):
        raise ProjectError(f"`{key}` must hold keys and values, not {shown(section)}")
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
        raise ProjectError(f"`{key}` must be text, not {shown(value)}")
    return str(value).strip() or None


def _inside(values: Mapping[str, Any], key: str) -> str | None:
    """A file's name that stays in the folder: who wrote it may not be who owns the machine that reads it."""
    name = _text(values, key)
    if name is not None and (name.startswith("/") or ".." in re.split(r"[/\\]", name) or not name.isprintable()):
        raise ProjectError(f"`optional.{key}` is {name!r}, which is outside the project", "name a file of the folder")
    return name


def _volumes(values: Mapping[str, Any], configuration: Mapping[str, Any]) -> dict[str, str]:
    """`custom_volume_name` of the platform's file, and our list of names, or `name: path` pairs."""
    platform = _text(configuration, "custom_volume_name") or _text(configuration, "custom_volume_id")
    found = {platform: ""} if platform else {}
    for item in _listed(values, "volumes"):
        pairs = item if isinstance(item, Mapping) else {item: ""}
        for name, path in pairs.items():
            if not isinstance(name, str) or not isinstance(path, str | None):
                raise ProjectError(f"`volumes` has {shown(item)}", "write `- name: /mount/path`, or `- name`")
            found[name] = path or ""
    return found


def _listed(values: Mapping[str, Any], key: str) -> list[Any]:
    value = values.get(key) or []
    if isinstance(value, str | Mapping):
        return [value]  # one name, or pairs without the dashes
    if not isinstance(value, list):
        raise ProjectError(f"`{key}` must be a list, not {shown(value)}")
    return value


def _env(values: Mapping[str, Any]) -> dict[str, Any]:
    value = values.get("env") or {}
    # `- KEY=VALUE`, as the platform's command line has it.
    if isinstance(value, list) and all(isinstance(item, str) and "=" in item for item in value):
        value = dict(item.split("=", 1) for item in value)
    if not isinstance(value, Mapping):
        raise ProjectError(f"`env` must hold KEY: value pairs, not {shown(value)}")
    return dict(value)


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = values.get(key) or []
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str | Mapping) for item in items):
        raise ProjectError(f"`{key}` must be a list of names, not {shown(value)}")
    # The platform's newer files list secrets as `- name: x`.
    found = [str(item.get("name", "")) if isinstance(item, Mapping) else item for item in items]
    return tuple(dict.fromkeys(name.strip() for name in found if name.strip()))
