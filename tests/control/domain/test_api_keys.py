"""API keys: what opens what, and that nothing but the whole key does."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from puna.control import wire
from puna.control.api.routes import internal
from puna.control.api.routes.keys import key_view
from puna.control.domain import api_keys
from puna.control.domain.api_keys import NO_LIMITS, KeyLimits, Rate, parse_limits
from puna.control.store.store import Store
from puna.control.wire import KeyRoute
from puna.errors import ForbiddenError, UnauthorizedError, UsageError
from puna.serve.admission import Keyring


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
    limits = parse_limits({"rate": text, "tokens": text})
    assert limits == KeyLimits(rate, rate) and str(rate) == written
    assert parse_limits(limits.as_json()) == limits


@pytest.mark.parametrize(
    "text", ["", "10", "10/", "/s", "0/s", "0.5/s", "-3/s", "10/day", "1e3/s", "10 per s", "99999999999999/s"]
)
@pytest.mark.parametrize("name", ["rate", "tokens"])
def test_what_is_no_rate_is_refused_with_an_example(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        parse_limits({name: text})
    assert "/min" in caught.value.hint


@pytest.mark.parametrize("concurrency", [0, -1])
def test_a_concurrency_that_lets_nothing_through_is_refused(concurrency: int) -> None:
    with pytest.raises(UsageError, match="concurrency"):
        parse_limits({"concurrency": concurrency})


def test_no_limits_are_none() -> None:
    assert parse_limits(None) == parse_limits({}) == parse_limits({"rate": None, "concurrency": None}) == NO_LIMITS


def test_a_key_opens_its_scope_and_what_lies_below() -> None:
    for scope, opens in {"infer": ["infer"], "deploy": ["infer", "deploy"], "admin": list(api_keys.SCOPES)}.items():
        key, text = api_keys.make("k", [scope], None, None, 0.0)
        assert api_keys.SHAPE.fullmatch(text) and api_keys.identify(text, {key.id: key}, 1.0) == key
        for wanted in api_keys.SCOPES:
            if wanted in opens:
                api_keys.require(key, wanted)
            else:
                with pytest.raises(ForbiddenError, match=f"this needs {wanted}"):
                    api_keys.require(key, wanted)


def test_nothing_but_the_whole_key_is_the_key() -> None:
    key, text = api_keys.make("k", ["admin"], None, None, 0.0)
    other, _ = api_keys.make("k", ["admin"], None, None, 0.0)
    changed = text[:-1] + ("A" if text[-1] != "A" else "B")
    for wrong in (None, "", "puna_", text[:-1], text + "A", changed, text.replace(key.id, other.id), " " + text):
        with pytest.raises(UnauthorizedError):
            api_keys.identify(wrong, {other.id: other, key.id: key}, 1.0)
    with pytest.raises(UnauthorizedError):
        api_keys.identify(text, {}, 1.0)


def test_the_text_of_a_key_is_not_kept() -> None:
    key, text = api_keys.make("k", ["infer"], None, None, 0.0)
    secret = text.rsplit("_", 1)[-1] if text.count("_") == 2 else text[14:]
    assert secret not in str(dataclasses.asdict(key)) and key.sha256 == api_keys.digest(key.salt, text[14:])


def test_a_key_expires() -> None:
    key, text = api_keys.make("k", ["infer"], None, 10.0, 100.0)
    assert api_keys.identify(text, {key.id: key}, 109.9) == key
    with pytest.raises(UnauthorizedError, match="expired"):
        api_keys.identify(text, {key.id: key}, 110.0)


def test_a_key_for_some_endpoints_opens_no_other() -> None:
    key, _ = api_keys.make("k", ["deploy"], ["mine"], None, 0.0)
    api_keys.require(key, "deploy", "mine")
    with pytest.raises(ForbiddenError, match="opens mine, and not yours"):
        api_keys.require(key, "deploy", "yours")
    assert api_keys.visible(key, "mine") and not api_keys.visible(key, "yours") and api_keys.visible(None, "yours")


@pytest.mark.parametrize("scope", [[], ["root"], ["infer", "everything"]])
def test_a_key_without_sense_is_refused(scope: list[str]) -> None:
    with pytest.raises(UsageError):
        api_keys.make("k", scope, None, None, 0.0)


def test_bearer_reads_the_header_and_nothing_else() -> None:
    assert api_keys.bearer("Bearer abc") == api_keys.bearer("bearer  abc ") == "abc"
    assert [api_keys.bearer(h) for h in (None, "", "Basic abc", "Bearer ", "abc")] == [None] * 5


def test_keys_in_a_text_are_masked() -> None:
    _, text = api_keys.make("k", ["infer"], None, None, 0.0)
    assert api_keys.masked(f"curl -H 'Bearer {text}' x") == f"curl -H 'Bearer {text[:13]}_***' x"


def test_a_home_of_before_keys_had_limits_opens_and_its_keys_work(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'puna.db'}")
    key, text = api_keys.make("old", ["infer"], ["mine"], None, 1.0)
    store.add_key(key)
    store.close()
    with sqlite3.connect(tmp_path / "puna.db") as database:
        database.execute("ALTER TABLE keys DROP COLUMN limits")
        database.execute("DELETE FROM schema_version WHERE number >= 8")
    store = Store(f"sqlite:///{tmp_path / 'puna.db'}")
    assert api_keys.identify(text, {one.id: one for one in store.keys()}, 2.0) == key
    view = key_view(store.keys()[0])
    assert view["name"] == "old" and (view["rate"], view["tokens"], view["concurrency"]) == (None, None, None)
    limits = api_keys.parse_limits({"rate": "10/s", "concurrency": 8})
    store.add_key(api_keys.make("new", ["infer"], None, None, 3.0, limits)[0])
    old, new = store.keys()
    assert old.limits is None and api_keys.parse_limits(new.limits) == limits
    table = wire.encode(wire.RouteTable(1, tuple(internal.key_route(key) for key in (old, new))))
    read = {key.id: key for key in wire.decode(wire.RouteTable, table).keys}
    assert read[old.id].limits is None and read[new.id].parsed_limits == limits and read[new.id].name == "new"
    store.close()


def answer(ask: Callable[[str, float], api_keys.HeldKey], header: str, now: float) -> str:
    try:
        return ask(header, now).id
    except UnauthorizedError as error:
        return error.message


def test_control_plane_and_gateway_take_the_same_texts_for_a_key() -> None:
    key, text = api_keys.make("k", ["infer"], ["mine"], 100.0, 0.0)
    other, _ = api_keys.make("o", ["infer"], None, None, 0.0)
    kept, gateway = {one.id: one for one in (key, other)}, Keyring()
    gateway.use({k.id: KeyRoute(k.id, k.salt, k.sha256, k.scope, k.endpoints, k.expires) for k in (key, other)})
    _, id, secret = text.split("_", 2)
    wrong = [f"anything_{id}_{secret}", f"PUNA_{id}_{secret}", f"_{id}_{secret}", f"puna__{secret}", f"{id}_{secret}"]
    wrong += [
        f"puna_{other.id}_{secret}",
        f"puna_{id}_{secret}A",
        f"puna_{id}_{secret[:-1]}",
        f"puna_{id}_",
        "puna",
        "",
    ]
    for now in (1.0, 99.9, 100.0):
        for one in (text, *wrong):
            header = f"Bearer {one}"
            said = answer(lambda h, at: api_keys.identify(api_keys.bearer(h), kept, at), header, now)
            assert said == answer(gateway.check, header, now), one
            assert (said == id) == (one == text and now < 100), (one, said)
