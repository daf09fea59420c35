"""The client has a call for every operation of the OpenAPI document, and every answer is as the document says."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi.testclient import TestClient
from starlette.routing import compile_path

from control.place import Place, document, furnished, own_place
from puna.client import Client
from puna.control.api import openapi
from puna.errors import PunaError
from webhook import push, signed

Call = Callable[[Client, dict[str, Any]], Any]
YAML = "build:\n  python_packages: []\n"


def deliver(client: Client, _: dict[str, Any]) -> Any:
    hook = client.webhook("app")
    body = push(hook["git"]["url"], "c" * 40)
    return client.deliver("app", body, signed(body, hook["secret"]))


def session(client: Client, _: dict[str, Any]) -> Any:
    return client.open_session(client.console_link()["url"].rpartition("/")[2])


# An operation's id -> the call that makes it. `n` are names of what is there.
CALLS: dict[str, Call] = {
    "health": lambda c, n: c.health(),
    "list_endpoints": lambda c, n: c.endpoints(),
    "get_endpoint": lambda c, n: c.endpoint("app"),
    "post_endpoint": lambda c, n: c.deploy_source("app", n["digest"], None, {"env": {"N": "1"}}),
    "patch_endpoint": lambda c, n: c.patch("app", max_replica=3),
    "post_activate": lambda c, n: c.activate("app"),
    "post_deactivate": lambda c, n: c.deactivate("app"),
    "post_rebuild": lambda c, n: c.rebuild("plain"),
    "post_rollback": lambda c, n: c.rollback("plain", 1),
    "put_traffic": lambda c, n: c.set_traffic("plain", {1: 10, 2: 90}),
    "post_promote": lambda c, n: c.promote("plain", 1),
    "get_revision_diff": lambda c, n: c.diff("plain", 1, 2),
    "delete_endpoint": lambda c, n: c.delete("app"),
    "list_events": lambda c, n: c.events("app"),
    "get_logs": lambda c, n: list(c.logs("app")),
    "list_log_lines": lambda c, n: c.log_lines("app"),
    "get_metrics": lambda c, n: c.metrics("app"),
    "get_webhook": lambda c, n: c.webhook("app"),
    "post_hook": deliver,
    "list_deliveries": lambda c, n: c.deliveries("app"),
    "post_replay": lambda c, n: c.replay_delivery("app", n["number"]),
    "put_source": lambda c, n: c.put_source(n["archive"]),
    "get_source": lambda c, n: c.source(n["digest"]),
    "post_from_git": lambda c, n: c.source_from_git({"url": "https://127.0.0.1/a.git"}),
    "post_from_model": lambda c, n: c.source_from_model("acme/chat"),
    "post_runtime": lambda c, n: c.upload_runtime("other", YAML),
    "list_runtimes": lambda c, n: c.runtimes(),
    "get_runtime": lambda c, n: c.runtime("rt"),
    "get_diff": lambda c, n: c.runtime_diff("rt", 1, 1),
    "delete_version": lambda c, n: c.delete_runtime("old", 1),
    "delete_runtime": lambda c, n: c.delete_runtime("old"),
    "post_lint_settings": lambda c, n: c.check_settings("app", {"max_replica": 2}),
    "post_lint": lambda c, n: c.lint_runtime(YAML),
    "list_builds": lambda c, n: c.builds(),
    "get_build": lambda c, n: c.build(n["build_id"]),
    "get_build_log": lambda c, n: list(c.build_log(n["build_id"])),
    "post_cancel": lambda c, n: c.cancel_build(c.runtime("rt")["build_id"]),
    "post_key": lambda c, n: c.create_key(["infer"]),
    "list_keys": lambda c, n: c.keys(),
    "delete_key": lambda c, n: c.delete_key(n["key_id"]),
    "post_secret": lambda c, n: c.set_secret("more", {"A": "1"}),
    "list_secrets": lambda c, n: c.secrets(),
    "delete_secret": lambda c, n: c.delete_secret("hub"),
    "post_volume": lambda c, n: c.create_volume("more"),
    "list_volumes": lambda c, n: c.volumes(),
    "get_volume": lambda c, n: c.volume("data"),
    "delete_volume": lambda c, n: c.delete_volume("data"),
    "list_entries": lambda c, n: c.volume_entries("data", recursive=True),
    "get_file": lambda c, n: list(c.volume_file("data", "a/b.txt")),
    "put_file": lambda c, n: c.put_volume_file("data", "c.txt", io.BytesIO(b"x")),
    "delete_file": lambda c, n: c.delete_volume_file("data", "a"),
    "list_models": lambda c, n: c.models(),
    "put_model_alias": lambda c, n: c.alias_model("acme/chat", 1, "champion"),
    "delete_model_alias": lambda c, n: c.unalias_model("acme/chat", "latest"),
    "delete_model_version": lambda c, n: c.delete_model("acme/chat", 1, force=True),
    "list_runs": lambda c, n: c.runs(),
    "get_run": lambda c, n: c.run("tiny-1"),
    "post_merge": lambda c, n: c.merge_run("tiny-1"),
    "post_publish": lambda c, n: c.publish_run("tiny-1", "acme/tiny", adapter=True),
    "get_usage": lambda c, n: c.usage(by="endpoint,key,hour"),
    "get_usage_csv": lambda c, n: c.usage_csv(),
    "get_machine": lambda c, n: c.machine(weights_bytes=10**9),
    "post_link": lambda c, n: c.console_link(),
    "post_session": session,
    "get_whoami": lambda c, n: c.whoami(),
}
REFUSED = {"post_from_git", "post_from_model"}
"""What needs the network, or a model of gigabytes: their refusals are looked at, and stories have them succeed."""
ENDLESS = {"get_stream"}
"""Read as far as its first events in test_connection.py, from a real server: more come as long as somebody listens."""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place that is only read."""
    yield from furnished(tmp_path_factory.mktemp("read"))


@pytest.fixture
def place(operation_id: str, read: Place, tmp_path: Path) -> Iterator[Place]:
    yield from own_place(operation_id, read, tmp_path)


def operation_of(request: httpx.Request) -> dict[str, Any]:
    """The operation that a request makes; only files have names with slashes in them."""
    for path, method, operation in openapi.operations(document()):
        pattern, _, _ = compile_path(path.replace("/files/{path}", "/files/{path:path}"))
        if method.upper() == request.method and pattern.match(request.url.path):
            return operation
    raise AssertionError(f"{request.method} {request.url.path} is in no document")


def hold(operation: dict[str, Any], reply: httpx.Response) -> None:
    """Fail unless a reply is as the document says."""
    told = operation["responses"].get(str(reply.status_code))
    assert told, f"{reply.status_code} is not in the document: {reply.text}"
    media_type = reply.headers["content-type"].partition(";")[0]
    assert media_type in told["content"], f"{media_type} is not in the document"
    if media_type == "application/json":
        schema = told["content"][media_type]["schema"] | {"components": document()["components"]}
        jsonschema_rs.validate(schema, reply.json())


def test_no_operation_is_without_a_call() -> None:
    found = {operation["operationId"] for _, _, operation in openapi.operations(document())}
    assert found - set(CALLS) - ENDLESS == set(), "give puna.calls a method for these, and CALLS the call"
    assert set(CALLS) | ENDLESS == found


@pytest.mark.parametrize("operation_id", CALLS)
def test_the_client_makes_it_and_the_answer_is_as_told(place: Place, operation_id: str) -> None:
    seen: dict[str, int] = {}

    def look(reply: httpx.Response) -> None:
        reply.read()
        operation = operation_of(reply.request)
        seen[operation["operationId"]] = reply.status_code
        hold(operation, reply)

    names = {key: value for part in place.names.values() for key, value in part.items()}
    with TestClient(place.app) as api:
        api.event_hooks["response"].append(look)
        client = Client(http=api)
        try:
            CALLS[operation_id](client, names)
        except PunaError:
            assert operation_id in REFUSED
    assert operation_id in seen and (operation_id in REFUSED or seen[operation_id] < 300), seen
