"""The ranges of settings: the file and the API refuse the same values, in the words of whoever wrote them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from puna.config import project
from puna.config.ranges import LEAST, OVER_ZERO, RANGES
from puna.control.domain.records import Settings
from puna.errors import ProjectError, UsageError

FILE = {
    "min_replica": "min_replica",
    "max_replica": "max_replica",
    "scale_down_delay_s": "scale_down_delay",
    "inference_time_s": "inference_time",
    "container_concurrency": "container_concurrency",
    "evict_after_s": "evict_after",
    "vcpu": "vcpu",
    "ram_gib": "ram",
}
"""Settings that inferless.yaml has too, by its word."""


def edges(name: str) -> list[tuple[float, bool]]:
    """Values about the ends of a range, and whether each lies in it."""
    low, high = RANGES[name]
    least = LEAST.get(name, low)
    return [
        (high, True),
        (high + 1, False),
        (high * 10, False),
        (max(least, 1), True),
        (0, low == 0 and name not in OVER_ZERO),
        (least / 2 if name in LEAST else high, name not in LEAST),
    ]


@pytest.mark.parametrize("name", sorted(RANGES))
def test_file_and_api_take_the_same_numbers(name: str, tmp_path: Path) -> None:
    for value, is_good in edges(name):
        others = {"max_replica": RANGES["max_replica"][1]} if name == "min_replica" else {}
        if not is_good:
            with pytest.raises(UsageError, match=name):
                Settings(**others | {name: value})
        else:
            assert getattr(Settings(**others | {name: value}), name) == value
        if name not in FILE:
            continue
        values = {"name": "a", "configuration": {FILE[name]: value, **others}}
        if not is_good:
            with pytest.raises(ProjectError, match=FILE[name]):
                project.parse(values, tmp_path)
        else:
            assert project.parse(values, tmp_path).settings[name] == value


@pytest.mark.parametrize("value", [math.inf, -1, -0.5])
def test_what_is_no_amount_is_refused_everywhere(value: float, tmp_path: Path) -> None:
    for name, word in FILE.items():
        with pytest.raises(UsageError, match=name):
            Settings(**{name: value})
        with pytest.raises(ProjectError, match=word):
            project.parse({"name": "a", "configuration": {word: value}}, tmp_path)


def test_what_the_file_knows_and_says_nothing_of_is_what_the_api_takes_by_default(tmp_path: Path) -> None:
    said = project.parse({"name": "a"}, tmp_path).settings
    assert said == {key: value for key, value in Settings().as_dict().items() if key in said}
