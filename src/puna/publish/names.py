"""Names of published models: `owner/name`, with `:version` or `@alias`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from puna.errors import UsageError

# The Hugging Face Hub's rule, so that a name also works there and as a cache folder (`models--owner--name`).
PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
LATEST = "latest"


@dataclass(frozen=True)
class Ref:
    """A published model as a user names it: at most one of version and alias is set."""

    name: str
    version: int | None = None
    alias: str | None = None


def check_name(name: str) -> str:
    """`name`, when it is a valid `owner/name`.

    Raises:
        UsageError: it is not.
    """
    parts = name.split("/")
    if len(parts) != 2 or not all(PART.fullmatch(part) for part in parts) or ".." in name or "--" in name:
        raise UsageError(
            f"`{name}` is not a model name",
            "write owner/name, each of letters, digits, `.`, `_` and `-` (no `--`, no `..`), e.g. acme/llama3-chat",
        )
    return name


def check_alias(alias: str) -> str:
    """`alias`, when it is valid.

    Raises:
        UsageError: it is not.
    """
    if not ALIAS.fullmatch(alias):
        raise UsageError(f"`{alias}` is not an alias", "write lower-case letters, digits, `_`, `-`, e.g. champion")
    return alias


def parse(text: str) -> Ref:
    """`owner/name`, `owner/name:3` or `owner/name@champion`.

    Raises:
        UsageError: it is none of them.
    """
    name, at, alias = text.partition("@")
    if at:
        return Ref(check_name(name), alias=check_alias(alias))
    name, colon, version = text.partition(":")
    if colon and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise UsageError(f"`{version}` is not a version", f"write {name}:1, or {name}@latest")
    return Ref(check_name(name), version=int(version) if colon else None)
