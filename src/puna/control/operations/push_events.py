"""Reading what a webhook sent: who sent it, whether they know the secret, and whether it concerns an endpoint. No I/O.

Formats: https://docs.github.com/webhooks (HMAC of the raw body; Gitea and Forgejo send the same);
https://docs.gitlab.com/user/project/integrations/webhooks and https://huggingface.co/docs/hub/webhooks (a token each).
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from puna.config.repository import address
from puna.errors import ForbiddenError, UsageError

Json = dict[str, Any]
MAX_BYTES = 5 << 20
PUSHES = {("github", "push"), ("gitlab", "Push Hook"), ("huggingface", "update repo.content")}
NOBODY = "this is no delivery for an endpoint here, or its secret is wrong"


@dataclass(frozen=True)
class Hook:
    """An authentic delivery, read; a pushed `branch` is without `refs/heads/`."""

    sender: str
    event: str
    key: str
    digest: str
    branch: str = ""
    default_branch: str = ""
    commit: str = ""
    urls: tuple[str, ...] = ()
    is_deletion: bool = False


def secret(key: bytes, endpoint: str, created: float) -> str:
    """The secret of an endpoint's webhook: another one for each endpoint, and after it was deleted and made again."""
    text = f"puna webhook {endpoint} {created!r}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def read(headers: Mapping[str, str], body: bytes, known_secret: str) -> Hook:
    """A delivery whose sender knows the secret; `headers` with names in lower case.

    Raises:
        ForbiddenError: the signature or token is wrong or missing.
        UsageError: the body is not what its sender sends.
    """
    signature, token = headers.get("x-hub-signature-256", ""), headers.get("x-gitlab-token", "")
    wanted = "sha256=" + hmac.new(known_secret.encode(), body, hashlib.sha256).hexdigest()
    digest = hashlib.sha256(body).hexdigest()
    if _same(signature, wanted):
        event = headers.get("x-github-event", "")
        return _github(Hook("github", event[:64], headers.get("x-github-delivery", "")[:128], digest), _json(body))
    if _same(token, known_secret):
        event, key = headers.get("x-gitlab-event", ""), headers.get("x-gitlab-event-uuid", "")
        # A token signs no body, and GitLab tries again with the same id: the id alone tells what came before.
        return _gitlab(Hook("gitlab", event[:64], headers.get("idempotency-key", key)[:128], ""), _json(body))
    if _same(headers.get("x-webhook-secret", ""), known_secret):
        return _huggingface(_json(body))
    raise ForbiddenError(NOBODY, "`puna webhook NAME` shows address and secret")


def ignored_because(hook: Hook, git: Mapping[str, str], auto_rebuild: bool) -> str:
    """The reason why a delivery changes nothing; empty when it is a push to the branch that is served."""
    if (hook.sender, hook.event) not in PUSHES:
        return "the address works" if hook.event == "ping" else f"{hook.event or 'this'} is no push"
    if not git:
        return "the endpoint is not built from a repository"
    mine = address(git["url"]).same
    if mine not in {_same_place(url) for url in hook.urls}:
        return f"it is about another repository, {hook.urls[0] if hook.urls else 'which it does not name'}"
    branch = git.get("branch") or hook.default_branch
    if hook.branch != branch:
        return f"it is about {hook.branch or 'no branch'}, not {branch}"
    if hook.is_deletion:
        return f"{branch} was deleted"
    return "" if auto_rebuild else "automatic rebuilds are off"


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _same_place(url: str) -> str:
    try:
        return address(url).same
    except UsageError:
        return ""


def _json(body: bytes) -> Json:
    try:
        # GitHub's other content type is a form with the JSON in it.
        text = parse_qs(body.decode()).get("payload", [""])[0] if body.startswith(b"payload=") else body
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UsageError("the delivery is not JSON", "choose the content type application/json")
    return values


def _github(hook: Hook, body: Json) -> Hook:
    repository = _section(body, "repository")
    hook = _pushed(hook, body, repository, "clone_url", "ssh_url", "html_url", "git_url")
    return dataclasses.replace(hook, is_deletion=hook.is_deletion or body.get("deleted") is True)


def _gitlab(hook: Hook, body: Json) -> Hook:
    return _pushed(hook, body, _section(body, "project"), "git_http_url", "git_ssh_url", "web_url")


def _pushed(hook: Hook, body: Json, repository: Json, *urls: str) -> Hook:
    """Read the fields that GitHub and GitLab share: where a push went, and what is at its end."""
    commit = _text(body, "after")
    return dataclasses.replace(
        hook,
        branch=_branch(body.get("ref")),
        default_branch=_text(repository, "default_branch"),
        commit=commit,
        urls=_texts(repository, *urls),
        is_deletion=set(commit) == {"0"},
    )


def _huggingface(body: Json) -> Hook:
    event, repo = _section(body, "event"), _section(body, "repo")
    name = f"{_text(event, 'action')} {_text(event, 'scope')}"[:64]
    refs = [ref for ref in body.get("updatedRefs") or [] if isinstance(ref, dict)]
    ref: Json = next((r for r in refs if _branch(r.get("ref"))), {})
    commit = _text(ref, "newSha") or _text(repo, "headSha")
    urls = _texts(_section(repo, "url"), "web")
    deleted = bool(ref) and ref.get("newSha") is None
    return Hook("huggingface", name, "", "", _branch(ref.get("ref")) or "main", "main", commit, urls, deleted)


def _branch(ref: Any) -> str:
    return ref.removeprefix("refs/heads/")[:200] if isinstance(ref, str) and ref.startswith("refs/heads/") else ""


def _section(values: Json, key: str) -> Json:
    section = values.get(key)
    return section if isinstance(section, dict) else {}


def _text(values: Json, key: str) -> str:
    value = values.get(key)
    return value[:128] if isinstance(value, str) else ""


def _texts(values: Json, *keys: str) -> tuple[str, ...]:
    return tuple(value[:500] for key in keys if isinstance(value := values.get(key), str))
