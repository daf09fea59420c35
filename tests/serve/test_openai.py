"""OpenAI's paths in the gateway, over real HTTP: what a `model` means, who may ask, errors, streams, departures."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from puna.control.wire import EndpointRoute, ReplicaRoute
from puna.errors import UsageError
from puna.serve import openai
from puna.serve.openai import Target, find
from puna.worker import protocol
from serve.conftest import StubWorker, echo, until
from serve.test_gateway import KEY, SECRET, World, story

CHAT = "/v1/chat/completions"
ASK = {"model": "e", "messages": [{"role": "user", "content": "hi"}]}
ENGINE = {"inputs": [], "engine": {"kind": "vllm", "model": "m"}}


def route(name: str, replicas: int = 0, **adapters: str) -> EndpointRoute:
    ready = tuple(ReplicaRoute(f"r{i}", 1, "/s", 1) for i in range(replicas))
    named = {name.replace("__", "/"): path for name, path in adapters.items()}
    return EndpointRoute(name, 1, True, "ready", "", 5, 5, 1, 0, None, ready, named)


def test_a_model_is_an_endpoint_or_an_adapter_of_one() -> None:
    routes = [route("b", acme__tone="/t", acme__law="/l"), route("a", acme__tone="/t"), route("c", 1, acme__tone="/t")]
    assert find("a", routes) == Target("a")
    assert find("b:acme/law", routes) == find("b:law", routes) == find("acme/law", routes) == Target("b", "acme/law")
    assert find("acme/tone", routes) == Target("c", "acme/tone")
    for unknown in ("d", "b:none", "d:law", "law", "acme/none", ":"):
        assert find(unknown, routes) is None


def test_a_short_adapter_name_that_two_owners_have_means_neither() -> None:
    routes = [route("a", acme__tone="/t", other__tone="/u")]
    assert find("a:tone", routes) is None and find("a:other/tone", routes) == Target("a", "other/tone")


def in_a_world(play: Callable[[World], Awaitable[None]]) -> Callable[[Path], None]:
    """A test that plays with a gateway, its client holding a good key."""

    @pytest.mark.process
    def test(sockets: Path) -> None:
        async def with_key(world: World) -> None:
            world.client.headers.update(KEY)
            await play(world)

        story(sockets, with_key, max_body_bytes=100_000)

    test.__name__ = play.__name__
    return test


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


@in_a_world
async def test_a_chat_reaches_the_engines_path_with_its_body_untouched(world: World) -> None:
    worker = await world.serve()
    reply = await world.client.post(CHAT, json=ASK, headers={"x-request-id": "mine"})
    assert (reply.status_code, reply.json()) == (200, ASK)
    head = worker.heads[0]
    assert (head["path"], head["model_name"], head["trace"], "adapter" in head) == ("chat", "e", "mine", False)
    assert reply.headers["x-puna-request-id"] == "mine" and float(reply.headers["x-puna-infer-ms"]) >= 0
    assert (await world.client.post("/v1/completions", json=ASK)).status_code == 200
    assert worker.heads[1]["path"] == "completion"
    metrics = (await world.client.get("/metrics")).text
    assert 'puna_requests_total{endpoint="e",status="200"} 2.0' in metrics


@in_a_world
async def test_an_adapters_name_brings_its_folder_to_the_worker(world: World) -> None:
    worker = await world.serve(adapters={"acme/tone": "/adapters/tone"})
    for model in ("acme/tone", "e:acme/tone", "e:tone"):
        assert (await world.client.post(CHAT, json={**ASK, "model": model})).status_code == 200
    assert [head["adapter"] for head in worker.heads] == [{"name": "acme/tone", "path": "/adapters/tone"}] * 3
    listed = (await world.client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["e", "acme/tone"]


@in_a_world
async def test_models_are_those_that_may_answer(world: World) -> None:
    await world.serve(created=12.5, schema=ENGINE)
    expected = {"id": "e", "object": "model", "created": 12, "owned_by": "puna"}
    assert (await world.client.get("/v1/models")).json() == {"object": "list", "data": [expected]}
    assert (await world.client.get("/v1/models/e")).json() == expected
    assert error_of(await world.client.get("/v1/models/f"), 404)["code"] == "model_not_found"
    world.control.set(*world.workers, schema={"inputs": []})
    await until(lambda: world.gateway.pool.by_name["e"].route.schema == {"inputs": []})
    assert (await world.client.get("/v1/models")).json()["data"] == []


@in_a_world
async def test_errors_have_openais_shape_and_statuses(world: World) -> None:
    worker = await world.serve()
    post = world.client.post
    wrong = {"authorization": "Bearer puna_0123abcd_wrong"}
    assert error_of(await post(CHAT, json=ASK, headers=wrong), 401)["code"] == "invalid_api_key"
    missing = await post(CHAT, json=ASK, headers={"authorization": ""})
    assert error_of(missing, 401)["code"] == "invalid_api_key" and missing.headers["www-authenticate"] == "Bearer"
    unknown = error_of(await post(CHAT, json={**ASK, "model": "f"}), 404)
    assert (unknown["code"], unknown["param"], unknown["type"]) == ("model_not_found", "model", "invalid_request_error")
    for body in (b"", b"{", b"[]", b"{}", b'{"model": 5}', b'{"model": ""}'):
        assert error_of(await post(CHAT, content=body), 400)["type"] == "invalid_request_error"
    assert error_of(await post("/v1/embeddings", json=ASK), 404)["code"] == "unknown_url"
    assert error_of(await world.client.get(CHAT), 405)["code"] == "method_not_supported"
    too_large = await post(CHAT, content=b"x" * (world.gateway.settings.max_body_bytes + 1))
    assert error_of(too_large, 413)["code"] == "request_too_large"
    assert not worker.heads
    world.control.set(worker, active=False)
    await until(lambda: not world.gateway.pool.by_name["e"].route.active)
    assert error_of(await post(CHAT, json=ASK), 503)["type"] == "server_error"


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"model": ""}', b'{"model": 7}', b'{"model": null}'])
def test_a_request_without_a_model_is_told_so(body: bytes) -> None:
    with pytest.raises(UsageError, match="must be a JSON object with a `model`: the endpoint's name"):
        openai.asked_of(body)


def test_a_request_has_its_model_and_whether_it_streams() -> None:
    assert openai.asked_of(b'{"model": "m"}') == ("m", False)
    assert openai.asked_of(b'{"model": "m", "stream": true}') == ("m", True)
    assert openai.asked_of(b'{"model": "m", "stream": 1}') == ("m", False)
    with pytest.raises(UsageError, match="is not JSON"):
        openai.asked_of(b"{")


def test_long_bodies_wait_on_the_disk_and_those_of_endless_values_are_refused(sockets: Path) -> None:
    async def play(world: World) -> None:
        await world.serve(echo)
        image = json.dumps({**ASK, "messages": [{"role": "user", "content": "A" * (12 << 20)}]}).encode()
        asking = (world.client.post(CHAT, headers=KEY, content=image) for _ in range(3))
        assert [reply.content == image for reply in await asyncio.gather(*asking)] == [True] * 3
        nested = b'{"model": "e", "x": [' + b"[]," * 400_000 + b"[]]}"
        refused = await world.client.post(CHAT, headers=KEY, content=nested)
        assert "values" in error_of(refused, 413)["message"]
        await until(lambda: world.gateway.spool.files == 0)

    story(sockets, play)


@in_a_world
async def test_a_full_waiting_room_says_when_to_come_back(world: World) -> None:
    world.control.set(max_queue=1)
    await until(lambda: "e" in world.gateway.pool.by_name)
    first = asyncio.ensure_future(world.client.post(CHAT, json=ASK))
    await until(lambda: len(world.gateway.pool.by_name["e"].queue) == 1)
    reply = await world.client.post(CHAT, json=ASK)
    assert error_of(reply, 429)["code"] == "rate_limit_exceeded" and int(reply.headers["retry-after"]) >= 1
    worker = await world.worker()
    world.control.set(worker, max_queue=1)
    assert (await first).status_code == 200


@in_a_world
async def test_a_key_for_other_endpoints_hears_neither_yes_nor_no(world: World) -> None:
    await world.serve()
    digest = hashlib.sha256(("salt" + SECRET).encode()).hexdigest()
    key = {"id": "0123abcd", "salt": "salt", "sha256": digest, "scope": ["infer"], "endpoints": ["f"], "expires": None}
    table = world.control.table()
    world.control.table = lambda: table | {"keys": [key], "version": table["version"] + 1}  # type: ignore[method-assign]
    world.control.set(*world.workers)
    await until(lambda: next(iter(world.gateway.admission.access._keys.values())).endpoints == ("f",))
    for model in ("e", "g"):
        assert error_of(await world.client.post(CHAT, json={**ASK, "model": model}), 403)["code"] == "permission_denied"
    assert (await world.client.get("/v1/models")).json()["data"] == []


@in_a_world
async def test_an_adapter_that_nobody_serves_does_not_exist_and_what_is_served_is_named(world: World) -> None:
    await world.serve(adapters={"acme/tone": "/adapters/tone"}, schema=ENGINE)
    digest = hashlib.sha256(("salt" + SECRET).encode()).hexdigest()
    key: dict[str, Any] = {"id": "0123abcd", "salt": "salt", "sha256": digest, "scope": ["infer"], "expires": None}
    table = world.control.table
    for endpoints in (["e"], ["f"], None):
        keys = {"keys": [key | {"endpoints": endpoints}]}
        world.control.table = lambda keys=keys: table() | keys  # type: ignore[method-assign,misc]
        world.control.set(*world.workers, adapters={"acme/tone": "/adapters/tone"}, schema=ENGINE)
        wanted = None if endpoints is None else tuple(endpoints)
        await until(lambda wanted=wanted: next(iter(world.gateway.admission.access._keys.values())).endpoints == wanted)  # type: ignore[misc]
        for model in ("acme/law", "acme/law:2", "e:law"):
            reply = await world.client.post(CHAT, json={**ASK, "model": model})
            if endpoints == ["f"] and model == "e:law":
                assert error_of(reply, 403)["code"] == "permission_denied"
                continue
            error = error_of(reply, 404)
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            assert ("acme/tone" in error["message"]) is (endpoints != ["f"]), error
        if endpoints == ["f"]:  # one that is served to others is as unknown as one that is not
            assert error_of(await world.client.post(CHAT, json={**ASK, "model": "acme/tone"}), 404)


async def two_words(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
    """A stream of two events; breaks off when the body says so, and waits for ever before its end when told to."""
    worker.send(protocol.encode(protocol.STARTED, request_id))
    worker.send(protocol.encode(protocol.BEGIN, request_id))
    for text in ("a", "b"):
        worker.event(request_id, text=text)
    asked = json.loads(body).get("user")
    if asked != "wait":
        worker.send(protocol.encode(protocol.END, request_id, {"error": "out of memory"} if asked == "break" else {}))


@in_a_world
async def test_a_stream_ends_with_done_and_a_broken_one_with_its_error(world: World) -> None:
    await world.serve(two_words)
    whole = await world.client.post(CHAT, json={**ASK, "stream": True})
    assert whole.headers["content-type"].startswith("text/event-stream")
    assert whole.text == 'data: {"text": "a"}\n\ndata: {"text": "b"}\n\ndata: [DONE]\n\n'
    broken = await world.client.post(CHAT, json={**ASK, "stream": True, "user": "break"})
    last = json.loads(broken.text.strip().split("data: ")[-1])
    assert last["error"]["message"] == "out of memory" and "[DONE]" not in broken.text


@in_a_world
async def test_a_client_that_leaves_a_stream_is_reported_to_the_worker(world: World) -> None:
    worker = await world.serve(two_words)
    async with world.client.stream("POST", CHAT, json={**ASK, "stream": True, "user": "wait"}) as reply:
        async for line in reply.aiter_lines():
            if "b" in line:
                break
    await worker.until_seen(protocol.CANCEL)


@in_a_world
async def test_an_error_of_the_worker_passes_as_it_is(world: World) -> None:
    told = {"error": {"message": "no", "type": "invalid_request_error", "param": "n", "code": None}}

    async def refuse(worker: StubWorker, request_id: int, head: dict[str, Any], body: bytes) -> None:
        worker.send(protocol.encode(protocol.STARTED, request_id))
        worker.send(protocol.encode_reply(request_id, 400, json.dumps(told).encode()))

    await world.serve(refuse)
    reply = await world.client.post(CHAT, json=ASK, headers=KEY)
    assert (reply.status_code, reply.json()) == (400, told)
