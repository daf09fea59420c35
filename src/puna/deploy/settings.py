"""Reading settings and names that somebody sent."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from puna.deploy.records import Settings
from puna.errors import UsageError
from puna.spec import fields


def parse(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings from JSON values, over `base`; null is absent, and environment values that are numbers become text.

    Raises:
        UsageError: an unknown key (with the nearest valid one) or a value that makes no sense.
    """
    merged = {**(base.as_dict() if base else {}), **{k: v for k, v in values.items() if v is not None}}
    settings = fields.build(Settings, merged, "settings", UsageError)
    volumes = {str(name): str(path or "") for name, path in settings.volumes.items()}
    return dataclasses.replace(settings, env={str(k): str(v) for k, v in settings.env.items()}, volumes=volumes)


def check_name(name: str, what: str) -> None:
    """Names stand in URLs, paths and metrics: lower-case letters, digits and dashes, at most 48.

    Raises:
        UsageError: the name is something else.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?", name):
        raise UsageError(
            f"{what} {name!r} is not a name", "use lower-case letters, digits and dashes, at most 48, e.g. my-app"
        )
