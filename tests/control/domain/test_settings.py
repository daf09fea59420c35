"""Settings as somebody sends them: numbers in quotes, nulls, misspelt keys, and what belongs to a revision."""

from __future__ import annotations

import pytest

from puna.control.domain.records import LIVE, Settings
from puna.control.domain.settings import parse
from puna.control.views import masked_env
from puna.errors import UsageError


def test_the_tutorials_values_in_quotes_are_read() -> None:
    sent = {"gpu_type": "A100", "inference_time_s": "180", "min_replica": "0", "max_replica": "1", "env": {"N": 1}}
    settings = parse(sent | {"scale_down_delay_s": "600", "secrets": None})
    assert settings == Settings(gpu_type="A100", env={"N": "1"})


def test_what_is_not_sent_stays_as_it_was() -> None:
    before = Settings(max_replica=4, env={"A": "1"}, secrets=("s",))
    assert parse({"min_replica": 1}, before) == Settings(min_replica=1, max_replica=4, env={"A": "1"}, secrets=("s",))


def test_a_misspelt_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        parse({"max_replicas": 2})
    assert caught.value.hint == "did you mean `max_replica`?"


@pytest.mark.parametrize(
    "values",
    [
        {"min_replica": 2},
        {"max_replica": 0},
        {"min_replica": -1},
        {"inference_time_s": 0},
        {"inference_time_s": 7201},
        {"container_concurrency": -1},
        {"container_concurrency": 101},
        {"startup_timeout_s": 0},
        {"startup_timeout_s": 7201},
        {"startup_timeout_s": float("nan")},
        {"startup_timeout_s": 0},
        {"env": {"1A": "x"}},
        {"env": {"A": "x\0y"}},
        {"is_dedicated": "yes"},
    ],
)
def test_values_without_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        parse(values)


def test_a_row_of_another_version_of_puna_is_read() -> None:
    row = Settings(max_replica=3, secrets=("a",)).as_dict() | {"from_the_future": 1}
    assert Settings.from_row(row) == Settings(max_replica=3, secrets=("a",))


def test_every_setting_is_live_or_belongs_to_the_revision() -> None:
    assert set(Settings().launch) | LIVE == set(Settings().as_dict()) and not set(Settings().launch) & LIVE


def test_a_hidden_value_that_is_sent_back_stays_what_it_was() -> None:
    base = parse({"env": {"API_KEY": "secret", "MODE": "fast"}})
    shown = masked_env(base.env)
    assert shown == {"API_KEY": "***", "MODE": "fast"}
    assert parse({"env": {**shown, "MODE": "slow"}}, base).env == {"API_KEY": "secret", "MODE": "slow"}
    assert parse({"env": {"API_KEY": "other"}}, base).env == {"API_KEY": "other"}
    assert parse({"env": {"NEW": "***"}}, base).env == {"NEW": "***"}, "there is nothing that it could stand for"


def test_what_another_version_allowed_is_brought_down_to_what_is_the_most_today() -> None:
    kept = {**Settings().as_dict(), "startup_timeout_s": 90000.0, "container_concurrency": 256}
    assert Settings.from_row(kept) == Settings(startup_timeout_s=7200, container_concurrency=100)
