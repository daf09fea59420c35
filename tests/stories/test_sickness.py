"""Each process of a `puna up` is made sick in four ways under eight callers, and gets well by itself in time.

`PUNA_REPEAT=10` does each ten times, and prints what it took; `make bench-sickness` writes that down.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stories.conftest import Up
from stories.sickness import KINDS, limit_s, sicken, standing

pytestmark = pytest.mark.process
REPEAT = int(os.environ.get("PUNA_REPEAT", "1"))


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    """Two gateways and two replicas."""
    with tempfile.TemporaryDirectory(prefix="puna-") as root, standing(Path(root)) as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["worker", "gateway", "control"])
def test_what_is_sick_is_replaced_in_time(up: Up, role: str, kind: str) -> None:
    for _ in range(REPEAT):
        found = sicken(up, role, kind)
        print(found)
        assert found.recovered_s < limit_s(role), up.log.read_text()
        assert found.failed == []
        assert found.broken <= (8 if role == "gateway" else 0), "more than what had begun"
