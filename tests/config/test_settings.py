"""Settings: one description, by which files, the API and the store read; as they are sent, and as they were kept."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from puna.config import project, recipe
from puna.config.settings import DEFAULTS, FILE_KEYS, LIVE, RANGES, Settings, masked_env, parse
from puna.errors import ProjectError, RecipeError, UsageError
from puna.serve.dispatch import pending_queue
from puna.worker import server
from puna.worker.app import concurrency


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


def test_a_row_of_any_version_is_read_and_nothing_of_it_is_refused() -> None:
    kept = {"min_replica": 5, "max_replica": 0, "inference_time_s": 0, "poll_s": 3, "ram_gib": 0.01, "vcpu": -1}
    kept |= {"env": {"1-A": "x"}, "volumes": {"a b": "/proc"}, "secrets": None, "scale_down_delay_s": 0.5, "git": {}}
    found = Settings.from_row(kept)
    assert (found.min_replica, found.max_replica, found.inference_time_s, found.poll_s) == (5, 1, 180, 30)
    assert (found.ram_gib, found.vcpu, found.scale_down_delay_s) == (0.1, 0, 0.5)
    assert (found.env, found.volumes, found.secrets) == ({"1-A": "x"}, {"a b": "/proc"}, ())
    assert Settings.from_row({}) == Settings() and Settings.from_row(found.as_dict()) == found
    with pytest.raises(UsageError, match="1-A"):
        parse({"max_replica": 5}, found)  # but what is changed is judged as what is new


def edges(name: str) -> list[tuple[float, bool]]:
    """Values about the ends of a range, and whether each lies in it."""
    low, high, is_over, least = RANGES[name]
    edge = [(high, True), (high + 1, False), (high * 10, False), (max(least or low, 1), True), (low - 1, False)]
    return [*edge, (0, low == 0 and not is_over), (least / 2, False) if least else (high, True)]


@pytest.mark.parametrize("name", RANGES)
def test_file_and_api_take_the_same_numbers(name: str, tmp_path: Path) -> None:
    word = {value: key for key, value in FILE_KEYS.items()}.get(name)
    for value, is_good in edges(name):
        others = {"max_replica": RANGES["max_replica"].high} if name == "min_replica" else {}
        if not is_good:
            with pytest.raises(UsageError, match=f"^{name} must"):
                Settings(**others | {name: value})
        else:
            assert getattr(Settings(**others | {name: value}), name) == value
        if word is None:
            continue
        values = {"name": "a", "configuration": {word: value, **others}}
        if not is_good:
            with pytest.raises(ProjectError, match=f"^`configuration.{word}` must"):
                project.parse(values, tmp_path)
        else:
            assert project.parse(values, tmp_path).settings[name] == value


@pytest.mark.parametrize("value", [math.inf, math.nan, -1, -0.5])
def test_what_is_no_amount_is_refused_everywhere(value: float, tmp_path: Path) -> None:
    for word, name in FILE_KEYS.items():
        if name not in RANGES:
            continue
        with pytest.raises(UsageError, match=name):
            Settings(**{name: value})
        with pytest.raises(ProjectError, match=word):
            project.parse({"name": "a", "configuration": {word: value}}, tmp_path)


def test_what_nobody_says_is_the_same_in_file_recipe_and_api(tmp_path: Path) -> None:
    said = project.parse({"name": "a"}, tmp_path).settings
    assert said == {key: value for key, value in DEFAULTS.as_dict().items() if key in said}
    served = recipe.parse({"name": "a", "base": "demo"}).serve.settings
    assert served == {key: value for key, value in DEFAULTS.as_dict().items() if key in served}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_replica": 3}, "serve.min_replica must lie in 0 to max_replica, 1, and is 3"),
        ({"max_replica": 0}, "serve.max_replica must lie in 1 to 1000, and is 0"),
        ({"inference_time_s": "soon"}, "`serve.inference_time_s` must be a number, not 'soon'"),
        ({"max_replicas": 2}, "unknown key `serve.max_replicas`"),
    ],
)
def test_a_recipe_is_refused_in_its_own_words(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe.parse({"name": "a", "base": "demo", "serve": values})
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"min_replica": "two"}, "`settings.min_replica` must be a whole number, not 'two'", ""),
        ({"min_replica": 1.5}, "`settings.min_replica` must be a whole number, not 1.5", ""),
        ({"min_replica": True}, "`settings.min_replica` must be a whole number, not True", ""),
        ({"vcpu": [1]}, "`settings.vcpu` must be a number, not a list", ""),
        ({"zygote": "no"}, "`settings.zygote` must be true or false, not 'no'", ""),
        ({"secrets": "a"}, "`settings.secrets` must be a list, not 'a'", "write [a]"),
        ({"env": ["A=1"]}, "`settings.env` must hold keys and values, not a list", ""),
        ({"env": {"A": [1]}}, "`env` must hold text, not a list", "put quotes around it"),
        ({"max_replica": 0}, "max_replica must lie in 1 to 1000, and is 0", "`puna deactivate`"),
        ({"inference_time_s": 0}, "inference_time_s must lie in over 0, to 7200, and is 0", ""),
        ({"poll_s": 5}, "poll_s must be 0, or 30 to 604800, and is 5", "0: never"),
        ({"volumes": {"a": "/proc/x"}}, "a volume cannot be mounted at '/proc/x'", "/var/nfs-mount"),
        ({"max_que": 3, "vcpu": "x"}, "unknown key `settings.max_que`", "did you mean `max_queue`?"),
    ],
)
def test_what_is_refused_is_named_with_what_was_found_and_what_is_allowed(
    values: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(values)
    assert (caught.value.message, hint in caught.value.hint) == (message, True)


def test_values_of_env_are_the_text_that_yaml_or_json_meant() -> None:
    assert parse({"env": {"A": 1, "B": True, "C": None}}).env == {"A": "1", "B": "true", "C": ""}


def test_what_gateway_and_worker_take_when_they_hear_nothing_is_the_settings_own() -> None:
    assert pending_queue.STARTUP_ALLOWANCE_S == DEFAULTS.startup_timeout_s
    assert server.DEFAULT_DEADLINE_S == DEFAULTS.inference_time_s
    assert concurrency.MOST_ASKED == RANGES["container_concurrency"].high


def test_who_reads_rows_and_counts_only_does_without_pydantic() -> None:
    program = "import sys, puna.control.wire, puna.control.domain.records; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
