"""Reading settings that somebody sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from puna.config import fields
from puna.config.repository import Repository
from puna.control.domain.records import GIT, MASK, Settings
from puna.errors import UsageError


def parse(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings from JSON values, over `base`; null is absent, and environment values that are numbers become text.

    Raises:
        UsageError: an unknown key (with the nearest valid one) or a value that makes no sense.
    """
    merged = {**(base.as_dict() if base else {}), **{k: v for k, v in values.items() if v is not None}}
    if values.get("git"):
        merged["git"] = parse_git(values["git"], base.git if base else {})
    settings = fields.build(Settings, merged, "settings", UsageError)
    volumes = {str(name): str(path or "") for name, path in settings.volumes.items()}
    kept = base.env if base else {}
    env = {str(k): kept.get(str(k), MASK) if v == MASK else str(v) for k, v in settings.env.items()}
    return dataclasses.replace(settings, env=env, volumes=volumes)


def parse_git(values: Any, before: Mapping[str, str]) -> dict[str, str]:
    """Where the source comes from, with what is not said as it was; the commit is for the fetch to say.

    Raises:
        UsageError: it is no repository, branch or folder, or something else was said.
    """
    known = sorted(GIT - {"commit"})
    if not isinstance(values, Mapping) or not set(values) <= set(known):
        raise UsageError(f"`git` has {', '.join(known)} and nothing else", 'e.g. {"url": "https://..."}')
    said = {str(key): str(value or "") for key, value in values.items()}
    now = {key: value for key, value in ({**before, **said}).items() if value}
    Repository(now.get("url", ""), now.get("branch", ""), now.get("folder", ""))
    is_same = all(now.get(key) == before.get(key) for key in ("url", "branch", "folder"))
    return now if is_same else {key: value for key, value in now.items() if key != "commit"}
