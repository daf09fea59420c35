"""Rows of the store, written as no single use case of the product writes them."""

from __future__ import annotations

from typing import Any

from puna.config.settings import Settings
from puna.control.domain.records import Build, Revision, RevisionSpec
from puna.control.domain.states import BuildState
from puna.control.store.store import Store


def save_endpoint(store: Store, name: str, settings: Settings, now: float) -> None:
    """An endpoint without a revision, or one with other settings."""
    with store._write() as connection:
        store._save_endpoint(connection, name, settings, now, active=True)


def add_revision(store: Store, name: str, spec: RevisionSpec, now: float) -> Revision:
    """A revision without a build."""
    with store._write() as connection:
        return store._add_revision(connection, name, spec, now)


def build_revision(store: Store, name: str, number: int, now: float) -> Build:
    """The build of a revision, queued; of one that is not there, too."""
    with store._write(routes=False) as connection:
        build_id = store._add_build(connection, "revision", name, number, now)
        store._name_build(connection, name, number, build_id)
        return store._build(connection, build_id)


def move_build(store: Store, build_id: str, state: BuildState, **values: Any) -> Build:
    """A build in another state, and its runtime's version with it; its revision stays as it is."""
    with store._write(routes=False) as connection:
        store._move_build(connection, store._build(connection, build_id), state, values)
        return store._build(connection, build_id)
