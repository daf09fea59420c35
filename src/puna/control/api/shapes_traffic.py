"""What the API answers about the traffic of an endpoint and about two of its revisions, as types for OpenAPI."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from puna.control.api.shapes import ApiShape, Share
from puna.control.domain.states import RevisionState


class Traffic(ApiShape):
    """What was asked for, and who has how much now."""

    endpoint: str
    revision: int
    """Which one is to have another share."""
    percent: int
    traffic: list[Share]


class ComparedRevision(ApiShape):
    """One of two revisions that were compared."""

    revision: int
    state: RevisionState
    created: float
    source: str
    commit: str | None
    runtime: str | None
    runtime_version: int | None
    environment: str


class ChangedSetting(ApiShape):
    """A setting, `env.NAME` for one of a mapping; null where it is not set."""

    name: str
    before: Any
    after: Any


class Package(ApiShape):
    """An installed package."""

    name: str
    version: str


class ChangedPackage(ApiShape):
    """A package whose version is another."""

    name: str
    before: str
    after: str


class ChangedPackages(ApiShape):
    """What is different between two environments, as installed."""

    added: list[Package]
    removed: list[Package]
    changed: list[ChangedPackage]


class ChangedFile(ApiShape):
    """A file that is different."""

    path: str
    change: str
    """`added`, `removed` or `changed`."""
    lines: str | None
    """As `diff -u`; null where they are not shown."""
    why: str
    """Why they are not."""


class RevisionDiff(ApiShape):
    """What changed from one revision to another."""

    endpoint: str
    from_: ComparedRevision = Field(alias="from")
    to: ComparedRevision
    settings: list[ChangedSetting]
    packages: ChangedPackages | None
    """Null when one of the two environments is not there."""
    files: list[ChangedFile] | None
    """Null when one of the two sources has been cleared away."""
    is_cut: bool
    """More files differ than are told."""
