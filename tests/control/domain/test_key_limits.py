"""What a key may ask for, as people write it."""

from __future__ import annotations

import pytest

from puna.control.domain.key_limits import NO_LIMITS, KeyLimits, Rate, parse
from puna.errors import UsageError


@pytest.mark.parametrize(
    ("text", "rate", "written"),
    [
        ("10/s", Rate(10, "s"), "10/s"),
        ("600/min", Rate(600, "min"), "600/min"),
        ("100k/min", Rate(100_000, "min"), "100k/min"),
        (" 1.5K / minute", Rate(1500, "min"), "1500/min"),
        ("2M/h", Rate(2_000_000, "h"), "2M/h"),
        ("5/sec", Rate(5, "s"), "5/s"),
    ],
)
def test_a_rate_is_a_count_and_a_period_and_is_written_in_one_way(text: str, rate: Rate, written: str) -> None:
    limits = parse({"rate": text, "tokens": text})
    assert limits == KeyLimits(rate, rate) and str(rate) == written
    assert parse(limits.as_json()) == limits


@pytest.mark.parametrize(
    "text", ["", "10", "10/", "/s", "0/s", "0.5/s", "-3/s", "10/day", "1e3/s", "10 per s", "99999999999999/s"]
)
@pytest.mark.parametrize("name", ["rate", "tokens"])
def test_what_is_no_rate_is_refused_with_an_example(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        parse({name: text})
    assert "/min" in caught.value.hint


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_concurrency_that_lets_nothing_through_is_refused(concurrency: int) -> None:
    with pytest.raises(UsageError, match="concurrency"):
        parse({"concurrency": concurrency})


def test_no_limits_are_none() -> None:
    assert parse(None) == parse({}) == parse({"rate": None, "concurrency": None}) == NO_LIMITS
