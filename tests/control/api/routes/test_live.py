"""Changes as they come: the texts that a stream sends, and what of them is new."""

from __future__ import annotations

import json

from control.conftest import World, control_of
from control.rows import build_revision
from puna.control.api.routes.live import Board, _difference
from puna.control.domain.api_keys import make


def board(world: World) -> Board:
    return Board(control_of(world.store, world.home, world.loads))


def test_the_first_event_has_every_endpoint_and_build_as_json_and_the_next_what_has_changed(world: World) -> None:
    world.deploy("app", min_replica=1)
    world.settle(10)
    build = build_revision(world.store, "app", 1, 1.0)
    event, sent = _difference(board(world), None, None)
    assert event is not None
    first = json.loads(event)
    (endpoint,), (shown,), gone = first["endpoints"], first["builds"], first["gone"]
    assert (endpoint["name"], endpoint["state"], gone) == ("app", "ready", [])
    assert endpoint["scaling_reason"] == endpoint["wish_reason"]
    assert shown["id"] == build.id and [step["state"] for step in shown["steps"]] == ["pending"] * 3
    looked = board(world)
    assert _difference(looked, None, looked.look())[0] is None
    world.store.delete_endpoint("app", world.now)
    event, _ = _difference(board(world), None, sent)
    assert event is not None and json.loads(event)["gone"] == ["app"]


def test_a_key_for_some_endpoints_hears_of_those_only(world: World) -> None:
    world.deploy("mine")
    world.deploy("yours")
    key, _ = make("k", ["deploy"], ["mine"], None, 1.0)
    event, _ = _difference(board(world), key, None)
    assert event is not None and b"yours" not in event and b"mine" in event


def test_builds_of_what_is_no_endpoint_are_nobodys_but_the_administrators(world: World) -> None:
    world.deploy("mine")
    mine = build_revision(world.store, "mine", 1, 1.0)
    merge = world.store.add_build("merge", "mine", 0, 2.0)  # of a training run that has the endpoint's name
    key, _ = make("k", ["deploy"], ["mine"], None, 1.0)
    for whose, shown in ((key, {mine.id}), (None, {mine.id, merge.id})):
        event, _ = _difference(board(world), whose, None)
        assert event is not None and {build["id"] for build in json.loads(event)["builds"]} == shown
