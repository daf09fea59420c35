"""What webhooks send, read: who may, what is about us, and what is not."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any
from urllib.parse import quote

import pytest

from puna.control.operations import push_events
from puna.errors import ForbiddenError, UsageError
from webhook import push, signed

SECRET = "5" * 64
GIT = {"url": "https://github.com/acme/chat", "branch": "main", "commit": "a" * 40}
BODY = push("https://github.com/acme/chat.git", "b" * 40)


def github(changes: dict[str, Any] | None = None, event: str = "push") -> push_events.Hook:
    body = push("https://github.com/acme/chat.git", "b" * 40, **(changes or {}))
    return push_events.read(signed(body, SECRET, event=event), body, SECRET)


def test_a_push_to_the_branch_is_wanted() -> None:
    hook = github()
    assert (hook.sender, hook.key, hook.branch, hook.commit) == ("github", "d-1", "main", "b" * 40)
    assert push_events.ignored_because(hook, GIT, True) == ""
    # The address is of the same repository, however the endpoint writes it; no branch means the repository's choice.
    assert push_events.ignored_because(hook, {"url": "git@github.com:Acme/chat.git"}, True) == ""


@pytest.mark.parametrize(
    ("changes", "event", "git", "auto_rebuild", "why"),
    [
        ({}, "ping", GIT, True, "the address works"),
        ({}, "issues", GIT, True, "issues is no push"),
        ({}, "", GIT, True, "this is no push"),
        ({}, "push", {}, True, "the endpoint is not built from a repository"),
        ({}, "push", {"url": "https://github.com/acme/other"}, True, "it is about another repository, "),
        ({"repository": {}}, "push", GIT, True, "it is about another repository, which it does not name"),
        ({"repository": "x"}, "push", GIT, True, "it is about another repository, which it does not name"),
        ({"ref": "refs/heads/dev"}, "push", GIT, True, "it is about dev, not main"),
        ({"ref": "refs/tags/main"}, "push", GIT, True, "it is about no branch, not main"),
        ({"ref": 7}, "push", GIT, True, "it is about no branch, not main"),
        ({"deleted": True}, "push", GIT, True, "main was deleted"),
        ({"after": "0" * 40}, "push", GIT, True, "main was deleted"),
        ({}, "push", GIT, False, "automatic rebuilds are off"),
    ],
)
def test_what_changes_nothing_is_ignored_with_its_reason(
    changes: dict[str, Any], event: str, git: dict[str, str], auto_rebuild: bool, why: str
) -> None:
    said = push_events.ignored_because(github(changes, event), git, auto_rebuild)
    assert said.startswith(why) and said


def test_gitlab_sends_its_token() -> None:
    project = {"git_http_url": "https://gitlab.com/acme/chat.git", "default_branch": "main"}
    body = json.dumps({"ref": "refs/heads/main", "after": "c" * 40, "project": project}).encode()
    headers = {"x-gitlab-token": SECRET, "x-gitlab-event": "Push Hook", "x-gitlab-event-uuid": "u"}
    hook = push_events.read(headers, body, SECRET)
    assert (hook.sender, hook.key, hook.digest, hook.commit) == ("gitlab", "u", "", "c" * 40)
    assert push_events.ignored_because(hook, {"url": "https://gitlab.com/acme/chat"}, True) == ""
    assert push_events.ignored_because(hook, GIT, True).startswith("it is about another repository")


def test_the_hub_sends_its_secret() -> None:
    body = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": {"type": "model", "name": "acme/chat", "url": {"web": "https://huggingface.co/acme/chat"}},
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "a" * 40, "newSha": "d" * 40}],
    }
    hook = push_events.read({"x-webhook-secret": SECRET}, json.dumps(body).encode(), SECRET)
    assert (hook.sender, hook.event, hook.commit) == ("huggingface", "update repo.content", "d" * 40)
    assert push_events.ignored_because(hook, {"url": "https://huggingface.co/acme/chat"}, True) == ""
    deleted = body | {"updatedRefs": [{"ref": "refs/heads/main", "oldSha": "a" * 40, "newSha": None}]}
    hook = push_events.read({"x-webhook-secret": SECRET}, json.dumps(deleted).encode(), SECRET)
    assert push_events.ignored_because(hook, {"url": "https://huggingface.co/acme/chat"}, True) == "main was deleted"


def test_a_form_holds_the_same_json() -> None:
    body = b"payload=" + quote(BODY).encode()
    assert push_events.ignored_because(push_events.read(signed(body, SECRET), body, SECRET), GIT, True) == ""


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-github-event": "push"},
        {"x-hub-signature-256": ""},
        {"x-hub-signature-256": "sha256="},
        {"x-hub-signature-256": "sha256=" + "0" * 64},
        {"x-hub-signature-256": hmac.new(SECRET.encode(), BODY, hashlib.sha256).hexdigest()},  # without its kind
        {"x-hub-signature": "sha1=" + hmac.new(SECRET.encode(), BODY, hashlib.sha1).hexdigest()},
        signed(BODY, ""),
        signed(BODY, "5" * 63),
        signed(BODY + b" ", SECRET),
        {"x-gitlab-token": ""},
        {"x-gitlab-token": SECRET[:-1]},
        {"x-gitlab-token": SECRET.upper() + "\xff"},
        {"x-webhook-secret": ""},
        {"x-webhook-secret": "wrong"},
        {"authorization": f"Bearer {SECRET}"},
    ],
)
def test_who_does_not_know_the_secret_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ForbiddenError):
        push_events.read(headers, BODY, SECRET)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"payload=%7B", b"[" * 100_000])
def test_a_signed_body_that_is_no_json_is_refused_in_words(body: bytes) -> None:
    with pytest.raises(UsageError, match="not JSON"):
        push_events.read(signed(body, SECRET), body, SECRET)


def test_each_endpoint_has_a_secret_of_its_own() -> None:
    keys = [(b"k", "a", 1.0), (b"k", "b", 1.0), (b"k", "a", 2.0), (b"l", "a", 1.0)]
    assert len({push_events.secret(*one) for one in keys}) == 4
    assert push_events.secret(b"k", "a", 1.0) == push_events.secret(b"k", "a", 1.0)
