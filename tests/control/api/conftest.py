"""Furnished places for each operation of the API's document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from control.place import Place, furnished, own_place


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place that is only read."""
    yield from furnished(tmp_path_factory.mktemp("read"))


@pytest.fixture
def place(operation_id: str, read: Place, tmp_path: Path) -> Iterator[Place]:
    yield from own_place(operation_id, read, tmp_path)
