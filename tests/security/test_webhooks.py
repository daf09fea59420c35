"""The addresses that anybody may call: only who knows an endpoint's secret is heard, once, and about its branch."""

from __future__ import annotations

import gzip
import hashlib
import hmac
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from puna.control.domain.states import DeliveryState
from puna.control.operations import push_events
from security.conftest import Tally
from security.fort import GIT, Fort, differences, standing
from webhook import push, signed

pytestmark = pytest.mark.process

URL = GIT["url"] + ".git"
HOOK = "/api/v1/hooks/yours"


@pytest.fixture(scope="module")
def fort(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fort]:
    with standing(tmp_path_factory.mktemp("f")) as made:
        yield made


def queued(fort: Fort) -> int:
    return sum(d.outcome is DeliveryState.QUEUED for name in ("mine", "yours") for d in fort.store.deliveries(name))


def mac(secret: str, body: bytes, kind: Any = hashlib.sha256) -> str:
    return hmac.new(secret.encode(), body, kind).hexdigest()


def forged(fort: Fort, body: bytes) -> dict[str, dict[str, str]]:
    """Headers of somebody who does not know the secret."""
    right, other = fort.hook_secret("yours"), fort.hook_secret("mine")
    good = mac(right, body)
    signatures = {
        "none": None,
        "empty": "",
        "no digits": "sha256=",
        "zeros": "sha256=" + "0" * 64,
        "no kind": good,
        "another kind": f"sha512={good}",
        "in capitals": f"SHA256={good.upper()}",
        "cut short": f"sha256={good[:-1]}",
        "too long": f"sha256={good}0",
        "two": f"sha256={'0' * 64},sha256={good}",
        "an empty secret's": f"sha256={mac('', body)}",
        "another endpoint's": f"sha256={mac(other, body)}",
        "other bytes'": f"sha256={mac(right, body + b' ')}",
        "no bytes'": f"sha256={mac(right, b'')}",
        "the path's": f"sha256={mac(right, HOOK.encode())}",
        "the name's": f"sha256={mac('yours', body)}",
        "a plain hash": f"sha256={hashlib.sha256(body).hexdigest()}",
        "the secret itself": right,
        "a list": "[]",
        "a wildcard": "*",
    }
    tries = {
        f"signature: {name}": {"x-hub-signature-256": text} for name, text in signatures.items() if text is not None
    }
    tries["signature: none"] = {}
    tries["signature: sha1"] = {"x-hub-signature": "sha1=" + mac(right, body, hashlib.sha1)}
    for header in ("x-gitlab-token", "x-webhook-secret"):
        tokens = {
            "empty": "",
            "another endpoint's": other,
            "cut short": right[:-1],
            "a signature": good,
            "zeros": "0" * 64,
        }
        tries |= {f"{header}: {name}": {header: text} for name, text in tokens.items()}
    tries["an admin's key"] = fort.bearer("admin")
    tries["a key as token"] = {"x-gitlab-token": fort.keys["admin"]}
    return {
        name: {"x-github-event": "push", "x-gitlab-event": "Push Hook"} | headers for name, headers in tries.items()
    }


def test_nobody_is_heard_who_does_not_know_the_secret(fort: Fort, tally: Tally) -> None:
    before, body = fort.dump(), push(URL, "b" * 40)
    for name, headers in forged(fort, body).items():
        reply = fort.call.post(HOOK, content=body, headers=headers)
        tally(f"{name}: {reply.status_code}", refused=reply.status_code == 403)
    for raw in (b"sha256=\xff\xfe", b"sha256=" + "é".encode(), b"\x80" * 64):
        for header in (b"x-hub-signature-256", b"x-gitlab-token", b"x-webhook-secret"):
            reply = fort.call.post(HOOK, content=body, headers=[(header, raw), (b"x-github-event", b"push")])
            tally(f"{header!r}: {raw!r}: {reply.status_code}", refused=reply.status_code == 403)
    assert differences(before, fort.dump()) == []


def test_an_endpoint_that_is_not_there_answers_like_one_that_is(fort: Fort, tally: Tally) -> None:
    before, body = fort.dump(), push(URL, "b" * 40)
    right = signed(body, fort.hook_secret("yours"))
    there = fort.call.post(HOOK, content=body, headers={"x-github-event": "push"})
    for name in (
        "none",
        "Yours",
        "yours%0a",
        "yours%00",
        "yours%20",
        "..%2fyours",
        "yours%2f",
        "%2e%2e",
        "mine",
        "{name}",
    ):
        reply = fort.call.post(f"/api/v1/hooks/{name}", content=body, headers=right)
        alike = reply.status_code in (404, 405, 401) or reply.json() == there.json()
        tally(f"hook {name}: {reply.status_code}", refused=reply.status_code >= 400 and alike)
    assert differences(before, fort.dump()) == []


def test_what_came_before_is_heard_once_however_often_it_comes(fort: Fort, tally: Tally) -> None:
    secret, before = fort.hook_secret("yours"), queued(fort)
    body, ping = push(URL, "c" * 40), json.dumps({"zen": "x", "repository": {"clone_url": URL}}).encode()
    assert fort.call.post(HOOK, content=body, headers=signed(body, secret)).status_code == 202
    assert queued(fort) == before + 1
    rows = len(fort.store.deliveries("yours"))
    for number in range(12):
        # Only the body is signed: its id and its event are whatever somebody writes there.
        again = fort.call.post(HOOK, content=body, headers=signed(body, secret, key=f"d-{number}"))
        tally(f"again, as d-{number}", refused=again.json()["outcome"] == "ignored" and queued(fort) == before + 1)
    assert fort.call.post(HOOK, content=ping, headers=signed(ping, secret, key="p-1", event="ping")).status_code == 200
    for _ in range(12):
        fort.call.post(HOOK, content=ping, headers=signed(ping, secret, key="p-1", event="ping"))
    tally("rows that what came before makes", refused=len(fort.store.deliveries("yours")) == rows + 1)
    other = push(URL, "d" * 40)
    again = fort.call.post(HOOK, content=other, headers=signed(other, secret, key="d-1"))
    tally("another body under an id that was had", refused=again.json()["outcome"] == "ignored")
    token = {"x-gitlab-token": secret, "x-gitlab-event": "Push Hook", "x-gitlab-event-uuid": "u-1"}
    project = {"git_http_url": URL, "default_branch": "main"}
    gitlab = json.dumps({"ref": "refs/heads/main", "after": "e" * 40, "project": project}).encode()
    assert fort.call.post(HOOK, content=gitlab, headers=token).status_code == 202
    again = fort.call.post(HOOK, content=gitlab, headers=token)
    tally("GitLab's, again", refused=again.json()["outcome"] == "ignored")


def test_nothing_catches_up_when_the_log_has_turned_over(
    fort: Fort, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.control.store.deliveries.KEPT", 5)
    secret, body = fort.hook_secret("mine"), push(URL, "1" * 40)
    url, before = HOOK.replace("yours", "mine"), queued(fort)
    fort.call.post(url, content=body, headers=signed(body, secret))
    for number in range(20):
        reply = fort.call.post(url, content=body, headers=signed(body, secret, key=f"x-{number}"))
        tally(f"the {number}th time", refused=reply.json()["outcome"] == "ignored")
    assert queued(fort) == before + 1


def test_nothing_else_is_rebuilt_though_its_sender_knows_the_secret(fort: Fort, tally: Tally) -> None:
    secret, before = fort.hook_secret("yours"), queued(fort)
    good: dict[str, Any] = json.loads(push(URL, "f" * 40))
    repository = good["repository"]
    changes: dict[str, dict[str, Any]] = {
        "another repository": {"repository": {**repository, "clone_url": "https://github.com/acme/other.git"}},
        "a name that begins alike": {"repository": {"clone_url": GIT["url"] + "-evil"}},
        "another host": {"repository": {"clone_url": "https://github.com.evil.example/acme/chat"}},
        "credentials before the host": {"repository": {"clone_url": "https://github.com@evil.example/acme/chat"}},
        "no repository": {"repository": None},
        "a list of repositories": {"repository": [repository]},
        "a branch": {"ref": "refs/heads/dev"},
        "a branch that ends alike": {"ref": "refs/heads/x/main"},
        "a tag": {"ref": "refs/tags/main"},
        "a short name": {"ref": "main"},
        "no branch": {"ref": None},
        "a deletion": {"deleted": True},
        "the end of a branch": {"after": "0" * 40},
    }
    for number, (name, change) in enumerate(changes.items()):
        known = {"clone_url", "ssh_url", "html_url", "git_url"}
        value = good | change
        if isinstance(value["repository"], dict) and "repository" in change:
            value["repository"] = {k: v for k, v in value["repository"].items() if k not in known - {"clone_url"}}
        body = json.dumps(value).encode()
        reply = fort.call.post(HOOK, content=body, headers=signed(body, secret, key=f"o-{number}"))
        tally(f"{name}: {reply.text[:80]}", refused=queued(fort) == before)
    for event in ("", "ping", "issues", "pull_request", "workflow_run", "PUSH", "pushed"):
        body = push(URL, "9" * 39 + str(len(event)))
        fort.call.post(HOOK, content=body, headers=signed(body, secret, key=f"e-{event or 0}", event=event or "x"))
        tally(f"event {event!r}", refused=queued(fort) == before)


def test_bodies_that_would_fill_or_hold_it_are_refused(fort: Fort, tally: Tally) -> None:
    secret, before = fort.hook_secret("yours"), fort.dump()
    large = b"x" * (push_events.MAX_BYTES + 1)

    def pieces() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * (1 << 18)

    reply = fort.call.post(HOOK, content=large, headers=signed(large, secret))
    tally(f"a long body: {reply.status_code}", refused=reply.status_code == 413)
    reply = fort.call.post(HOOK, content=pieces(), headers={"x-hub-signature-256": "sha256="})
    tally(f"a long body in pieces: {reply.status_code}", refused=reply.status_code == 413)
    packed = gzip.compress(b"0" * (50 << 20))
    texts = {
        "packed": packed,
        "nested": b"[" * 1_000_000,
        "nested objects": b'{"a":' * 300_000,
        "no JSON": b"<xml/>",
        "a number": b"7",
        "digits": b"9" * 1_000_000,
        "nothing": b"",
        "no text": b"\xff\xfe",
        "a form": b"payload=%7B",
        "a form of many": b"payload=&" + b"a&" * 1_000_000,
    }
    for name, body in texts.items():
        headers = signed(body, secret, key=name.replace(" ", "-")) | (
            {"content-encoding": "gzip"} if name == "packed" else {}
        )
        reply = fort.call.post(HOOK, content=body, headers=headers)
        tally(f"{name}: {reply.status_code}", refused=reply.status_code == 400)
    assert differences(before, fort.dump()) == []


def test_a_flood_changes_nothing_and_is_one_rebuild_for_who_knows_the_secret(fort: Fort, tally: Tally) -> None:
    before, secret = fort.dump(), fort.hook_secret("yours")
    bodies = [push(URL, f"{number:040x}") for number in range(300)]

    def forge(body: bytes) -> int:
        return fort.call.post(HOOK, content=body, headers=signed(body, "x" * 64)).status_code

    with ThreadPoolExecutor(16) as pool:
        for status in pool.map(forge, bodies):
            tally(f"one of a flood: {status}", refused=status == 403)
    assert differences(before, fort.dump()) == []
    for number, body in enumerate(bodies[:40]):
        fort.call.post(HOOK, content=body, headers=signed(body, secret, key=f"flood-{number}"))
    # All that wait are given to the rebuilder at once: one fetch, one build.
    assert list(fort.store.queued_deliveries()).count("yours") == 1
