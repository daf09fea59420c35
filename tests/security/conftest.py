"""Attempts to get through, counted: every test here names what it tried, and none of it may have worked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from puna.home import Home


class Tally:
    """What was tried in one test, and what got through."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties
        self.through: list[str] = []

    def __call__(self, attempt: str, *, refused: bool) -> None:
        """One attempt, named so that whoever reads it knows what to mend."""
        self._properties.append(("attempt", attempt))
        if not refused:
            self.through.append(attempt)


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """Fails the test when it is over and anything got through."""
    made = Tally(request.node.user_properties)
    yield made
    assert not made.through, "got through:\n" + "\n".join(made.through)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figure of the whole run."""
    reports = [r for found in terminalreporter.stats.values() for r in found if isinstance(r, pytest.TestReport)]
    reports = [r for r in reports if "security/" in r.nodeid]
    called = [r for r in reports if r.when == "call"]
    attempts = sum(name == "attempt" for report in called for name, _ in report.user_properties)
    if attempts:
        ended = {r.nodeid for r in reports if r.failed}
        through = "0 through" if not ended else f"{len(ended)} tests with some through"
        terminalreporter.write_line(f"security: {attempts} attempts, {through}")
