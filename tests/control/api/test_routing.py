"""Routes: each declares its right and its answer, and what it answers is shown as it is."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from fastapi.routing import APIRoute

from control.conftest import World, control_of
from puna.control.api import openapi
from puna.control.api.app import create_app
from puna.control.api.routing import Json, Right, Routes, declared
from puna.control.domain.records import Step

MACHINE_WIDE = ("/runtimes", "/models", "/runs", "/volumes")


def rights(world: World) -> dict[Right, set[str]]:
    """The calls of the application by what they need."""
    found = defaultdict(set)
    for route in declared(create_app(control_of(world.store, world.home)).routes):
        found[route.needs] |= {f"{method} {route.path}" for method in route.methods or ()}
    return found


def test_every_route_needs_what_is_said_here(world: World) -> None:
    found = rights(world)
    assert found[Right.OPEN] == {
        "GET /api/v1/health",
        "GET /api/docs",
        "GET /api/openapi.json",
        "GET /",
        "GET /console/{digest}/{name:path}",
        "POST /api/v1/console/sessions",
        "POST /api/v1/hooks/{name}",
    }
    assert found[Right.LOCAL] == {"POST /api/v1/console/links"}
    assert found[Right.INTERNAL] == {"GET /internal/routes", "POST /internal/load"}
    own = {call.partition(" ")[2].removeprefix("/api/v1") for call in found[Right.OWN]}
    assert {path.split("/")[1].partition(".")[0] for path in own} == {
        *(
            "endpoints",
            "sources",
            "builds",
            "usage",
            "whoami",
            "machine",
            "lint",
            "events",
            "rest",
            "models",
            "runtimes",
        )
    }
    assert {call for call in found[Right.OWN] if any(part in call for part in MACHINE_WIDE)} == {
        "GET /api/v1/models",
        "GET /api/v1/runtimes",
    }
    assert all("/endpoints/{name}" in call for call in found[Right.ENDPOINT]) and len(found[Right.ENDPOINT]) > 15
    assert all(call.partition("/v1")[2].startswith(MACHINE_WIDE) for call in found[Right.ALL])
    assert all(call.partition("/v1")[2].startswith(("/keys", "/secrets")) for call in found[Right.ADMIN])


def test_an_application_with_a_route_that_needs_nothing_said_is_not_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from puna.control.api import app

    def unsaid() -> dict[str, str]:
        return {}

    monkeypatch.setattr(app, "PARTS", (*app.PARTS, lambda control: [APIRoute("/api/v1/unsaid", unsaid)]))
    with pytest.raises(TypeError, match="/api/v1/unsaid.* does not say whose key opens it"):
        create_app(control_of(world.store, world.home))


def test_a_handler_that_does_not_say_what_it_answers_is_told_by_the_document(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from puna.control.api import app

    route = Routes("keys")

    @route("GET /unsaid", Right.ALL)
    def unsaid():  # type: ignore[no-untyped-def]
        return {}

    monkeypatch.setattr(app, "PARTS", (*app.PARTS, lambda control: route))
    with pytest.raises(TypeError, match="/api/v1/unsaid does not say what it answers"):
        create_app(control_of(world.store, world.home)).openapi()


def test_handlers_are_read_when_their_routes_or_the_document_are_first_asked(world: World) -> None:
    from fastapi.testclient import TestClient

    app = create_app(control_of(world.store, world.home))
    routes = declared(app.routes)
    with TestClient(app) as api:
        assert [api.get("/api/v1/health").status_code for _ in range(2)] == [200, 200]
        assert api.post("/api/v1/health").status_code == 405 and api.get("/api/v1/nothing").status_code == 404
    assert [route.path for route in routes if "dependant" in vars(route)] == ["/api/v1/health"]
    with pytest.raises(AttributeError, match="nothing"):
        _ = routes[0].nothing
    app.openapi()
    assert all("dependant" in vars(route) for route in routes if route.include_in_schema)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"loss": float("nan"), "n": [float("inf")]}, b'{"loss":null,"n":[null]}'),
        ({"big": 2**70}, b'{"big":%d}' % 2**70),
        ({1: "one"}, b'{"1":"one"}'),
        ([Step("bundle")], b'[{"name":"bundle","state":"pending","seconds":null}]'),
        ([2**64, Step("bundle")], b'[%d,{"name":"bundle","state":"pending","seconds":null}]' % 2**64),
        ({"text": "\u00e9"}, '{"text":"\u00e9"}'.encode()),
    ],
)
def test_what_json_has_no_word_for_is_no_error(value: Any, text: bytes) -> None:
    assert Json(value).body == text


def test_a_row_that_no_model_knows_is_shown_as_it_is(world: World) -> None:
    """The answer is documented, and not validated: an older Puna's row is no reason for a 500."""
    from fastapi.testclient import TestClient

    world.deploy(min_replica=1)
    world.store.add_event("app", "kind-of-before", "text", 1.0)
    app = create_app(control_of(world.store, world.home))
    world.store.events_page = lambda *_, **__: [{"id": "seven", "was": None}]  # type: ignore[assignment, method-assign, return-value]
    with TestClient(app) as api:
        assert api.get("/api/v1/endpoints/app/events").json()["items"] == [{"id": "seven", "was": None}]
    shown = openapi.operations(app.openapi())
    events = next(operation for path, _, operation in shown if path.endswith("/events"))
    assert events["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["items"]["items"] == {
        "$ref": "#/components/schemas/Event"
    }
