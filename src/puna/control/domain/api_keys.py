"""API keys: random, shown once, kept as salted SHA-256, with scope, endpoint list and expiry. No I/O."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from puna import names
from puna.control.domain.key_limits import NO_LIMITS, KeyLimits
from puna.control.domain.records import Key
from puna.errors import ForbiddenError, UnauthorizedError, UsageError

SCOPES = ("infer", "deploy", "admin")
SHAPE = re.compile(r"puna_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
UNKNOWN = "this key is unknown or revoked"
MAKE = "make another: puna key create"
# A wider scope opens what a narrower one opens.
OPENS = {"infer": {"infer"}, "deploy": {"infer", "deploy"}, "admin": {"infer", "deploy", "admin"}}


class HeldKey(Protocol):
    """The fields of a key wherever it is checked; never the secret itself."""

    @property
    def id(self) -> str: ...
    @property
    def salt(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def scope(self) -> tuple[str, ...]: ...
    @property
    def endpoints(self) -> tuple[str, ...] | None: ...
    @property
    def expires(self) -> float | None: ...


Held = TypeVar("Held", bound=HeldKey)


def make(
    name: str,
    scope: Sequence[str],
    endpoints: Sequence[str] | None,
    expires_s: float | None,
    now: float,
    limits: KeyLimits = NO_LIMITS,
) -> tuple[Key, str]:
    """A new key: what is kept, and what its owner is shown once.

    Raises:
        UsageError: an unknown scope, an endpoint that cannot be, or a key that opens nothing.
    """
    for word in scope:
        if word not in SCOPES:
            raise UsageError(f"scope {word!r} is unknown", f"scopes: {', '.join(SCOPES)}")
    if not scope:
        raise UsageError("a key needs a scope", f"scopes: {', '.join(SCOPES)}")
    for endpoint in endpoints or ():
        names.check("endpoint", endpoint)
    if expires_s is not None and not 0 < expires_s < 1e10:
        raise UsageError("expires_s must be over 0", "leave it out for a key that does not expire")
    key_id, secret, salt = secrets.token_hex(4), secrets.token_urlsafe(32), secrets.token_hex(16)
    key = Key(
        id=key_id,
        name=name,
        salt=salt,
        sha256=digest(salt, secret),
        scope=tuple(dict.fromkeys(scope)),
        endpoints=None if endpoints is None else tuple(endpoints),
        expires=None if expires_s is None else now + expires_s,
        created=now,
        limits=None if limits == NO_LIMITS else limits.as_json(),
    )
    return key, f"puna_{key_id}_{secret}"


def digest(salt: str, secret: str) -> str:
    """What is kept of a secret: sha256 of salt and secret, in hex. 256 random bits need no slower hash."""
    return hashlib.sha256((salt + secret).encode()).hexdigest()


def bearer(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer ...` header, or None."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def identify(text: str | None, kept: Mapping[str, Held], now: float) -> Held:
    """The key that `text` is, of those that are kept, by their ids: the one check of gateway and control plane.

    Raises:
        UnauthorizedError: no key, an unknown, revoked or expired one.
    """
    if not text:
        raise UnauthorizedError("a key is needed: send `Authorization: Bearer puna_...`", MAKE)
    match = SHAPE.fullmatch(text)
    found = kept.get(match[1]) if match else None
    # Compared even when the id is unknown: the time taken does not say which ids exist.
    expected = found.sha256 if found else "0" * 64
    same = hmac.compare_digest(digest(found.salt if found else "", match[2] if match else ""), expected)
    if found is None or not same:
        raise UnauthorizedError(UNKNOWN, MAKE)
    check_expiry(found, now)
    return found


def check_expiry(key: HeldKey, now: float) -> None:
    """Check that a key which was good before is so still.

    Raises:
        UnauthorizedError: it has expired.
    """
    if key.expires is not None and now >= key.expires:
        raise UnauthorizedError(f"key {key.id} has expired", MAKE)


def require(key: HeldKey, scope: str, endpoint: str | None = None) -> None:
    """Check that a key opens `scope`, and `endpoint` when one is concerned; an empty one is what belongs to all.

    Raises:
        ForbiddenError: it does not.
    """
    if not any(scope in OPENS.get(mine, ()) for mine in key.scope):
        held = ", ".join(key.scope)
        raise ForbiddenError(f"key {key.id} has scope {held}; this needs {scope}", f"puna key create --scope {scope}")
    if endpoint is not None and key.endpoints is not None and endpoint not in key.endpoints:
        opens = ", ".join(key.endpoints) or "no endpoint"
        raise ForbiddenError(
            f"key {key.id} opens {opens}, and not {endpoint or 'what concerns all endpoints'}", "puna key create"
        )


def restrict(key: Key | None, endpoint: str) -> None:
    """Check that a request's key opens an endpoint which its body or a build names; None is the administrator.

    Raises:
        ForbiddenError: it does not.
    """
    if key is not None:
        require(key, "deploy", endpoint)


def visible(key: HeldKey | None, endpoint: str) -> bool:
    """Whether a request's key may see an endpoint in a list; None is the administrator."""
    return key is None or key.endpoints is None or endpoint in key.endpoints


def masked(text: str) -> str:
    """A text with the secret part of every key in it replaced: for logs and errors."""
    return SHAPE.sub(lambda m: f"puna_{m[1]}_***", text)


def owner(key: Key | None) -> str:
    """Whose builds and fetches are a key's; those of the local administrator are nobody's."""
    return key.id if key is not None else ""
