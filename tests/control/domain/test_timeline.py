"""Moments on a line that no setting of a clock bends: kept as they were first seen, and none lies ahead."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from puna.control.domain.timeline import MOST_MOMENTS, Timeline

HOURS = 3600.0


@dataclass
class Clocks:
    """A wall clock that is set, and one that nobody sets."""

    steady: float = 5_000.0
    ahead: float = 1_764_072_000.0

    @property
    def wall(self) -> float:
        return self.steady + self.ahead

    def timeline(self) -> Timeline:
        return Timeline(lambda: self.wall, lambda: self.steady)


@pytest.mark.parametrize("jump_s", [-26 * HOURS, -2 * HOURS, -5.0, 5.0, 2 * HOURS, 26 * HOURS])
@pytest.mark.parametrize("is_seen_before", [True, False])
def test_the_age_of_a_moment_is_the_same_when_the_clock_is_set(jump_s: float, is_seen_before: bool) -> None:
    clocks = Clocks()
    line = clocks.timeline()
    clocks.steady += 100
    line.now()
    died = clocks.wall
    if is_seen_before:
        assert line.age_s(died) == 0
    clocks.steady += 3
    clocks.ahead += jump_s
    assert line.age_s(died) == pytest.approx(3)
    written = clocks.wall  # after the jump, before anybody looks
    clocks.steady += 4
    assert line.age_s(written) == pytest.approx(4) and line.age_s(died) == pytest.approx(7)
    assert line.between(died, written) == pytest.approx(3)


def test_a_moment_that_an_earlier_process_wrote_and_that_lies_ahead_counts_as_now() -> None:
    clocks = Clocks()
    line = clocks.timeline()
    assert line.age_s(clocks.wall + 2 * HOURS) == 0 and line.age_s(clocks.wall - 50) == pytest.approx(50)
    ahead = clocks.wall + HOURS
    line.of(ahead)
    clocks.steady += 8
    assert line.age_s(ahead) == pytest.approx(8), "its back-off ends eight seconds after it was first seen"


def test_a_clock_that_drifts_or_is_slewed_was_not_set(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    line = clocks.timeline()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            clocks.steady += 10
            clocks.ahead += 0.005
            line.now()
        assert not caplog.records
        clocks.ahead -= 2 * HOURS
        line.now()
        line.now()
    assert [r.getMessage() for r in caplog.records] == ["the clock was set back by 7200 s; nothing is decided by that"]


def test_the_memory_is_bounded_and_what_is_asked_for_again_stays() -> None:
    clocks = Clocks()
    line = clocks.timeline()
    died = clocks.wall
    line.of(died)
    clocks.ahead -= 2 * HOURS
    for number in range(MOST_MOMENTS + 10):
        line.of(clocks.wall - number)
        if number % 1000 == 0:
            line.of(died)
    clocks.steady += 1
    assert len(line._known) == MOST_MOMENTS and line.age_s(died) == pytest.approx(1)
    for number in range(500):  # nor does a clock that is set again and again fill it
        clocks.ahead += HOURS * (-1) ** number
        line.now()
    assert len(line._spans) <= 101
