"""Names of published models: `owner/name`, with `:version` or `@alias`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from puna import names
from puna.errors import UsageError

LATEST = "latest"


@dataclass(frozen=True)
class Ref:
    """A published model as a user names it: at most one of version and alias is set."""

    name: str
    version: int | None = None
    alias: str | None = None


def parse(text: str) -> Ref:
    """`owner/name`, `owner/name:3` or `owner/name@champion`.

    Raises:
        UsageError: it is none of them.
    """
    name, at, alias = text.partition("@")
    if at:
        return Ref(names.check("model", name), alias=names.check("alias", alias))
    name, colon, version = text.partition(":")
    if colon and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise UsageError(f"`{version}` is not a version", f"write {name}:1, or {name}@latest")
    return Ref(names.check("model", name), version=int(version) if colon else None)
