"""API keys: random, shown once, kept as salted SHA-256, with scope, endpoints, expiry, limits and grants. No I/O."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from puna import names
from puna.config.repository import address
from puna.control.domain.records import Endpoint, HeldKey, Key
from puna.errors import ForbiddenError, UnauthorizedError, UsageError

if TYPE_CHECKING:  # `puna up` itself does without pydantic
    from puna.config.settings import Settings

PERIODS = {"s": 1.0, "min": 60.0, "h": 3600.0}
WRITTEN = {"s": "s", "sec": "s", "second": "s", "min": "min", "m": "min", "minute": "min", "h": "h", "hour": "h"}
FACTORS = {"": 1, "k": 1_000, "m": 1_000_000}
RATE_SHAPE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKmM]?)\s*/\s*([a-z]+)")
MAX_COUNT = 10**12


@dataclass(frozen=True)
class Rate:
    """So many in any period of that length."""

    count: int
    unit: str

    @property
    def period_s(self) -> float:
        """The length, in seconds."""
        return PERIODS[self.unit]

    def __str__(self) -> str:
        for letter, factor in (("M", FACTORS["m"]), ("k", FACTORS["k"])):
            if self.count >= factor and self.count % factor == 0:
                return f"{self.count // factor}{letter}/{self.unit}"
        return f"{self.count}/{self.unit}"


@dataclass(frozen=True)
class KeyLimits:
    """Limits of one key; None is no limit."""

    rate: Rate | None = None
    """Calls."""
    tokens: Rate | None = None
    """Tokens, read and written."""
    concurrency: int | None = None
    """Calls at once, those that wait included."""

    def as_json(self) -> dict[str, Any]:
        """The limits as they are written."""
        rate, tokens = self.rate and str(self.rate), self.tokens and str(self.tokens)
        return {"rate": rate, "tokens": tokens, "concurrency": self.concurrency}


NO_LIMITS = KeyLimits()


def parse_limits(values: Mapping[str, Any] | None) -> KeyLimits:
    """Limits from their written form, as `KeyLimits.as_json` gives it.

    Raises:
        UsageError: one of them means nothing.
    """
    values = values or {}
    concurrency = values.get("concurrency")
    if concurrency is not None and not 1 <= concurrency <= MAX_COUNT:
        raise UsageError(f"concurrency {concurrency} lets no call through", "give 1 or more, or leave it out")
    return KeyLimits(_rate("rate", values.get("rate")), _rate("tokens", values.get("tokens")), concurrency)


def _rate(name: str, text: str | None) -> Rate | None:
    if text is None:
        return None
    example = {"rate": "10/s, 600/min or 5k/h", "tokens": "100k/min or 2M/h"}[name]
    match = RATE_SHAPE.fullmatch(text.strip())
    unit = WRITTEN.get(match[3]) if match else None
    if match is None or unit is None:
        raise UsageError(f"{name} {text!r} is no limit", f"write it as {example}")
    count = float(match[1]) * FACTORS[match[2].lower()]
    if not 1 <= count <= MAX_COUNT or count != int(count):
        raise UsageError(
            f"{name} {text!r} is no limit: it must be a whole number, at least 1", f"write it as {example}"
        )
    return Rate(int(count), unit)


SCOPES = ("infer", "deploy", "admin")
SHAPE = re.compile(r"puna_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
UNKNOWN = "this key is unknown or revoked"
MAKE = "make another: puna key create"
# A wider scope opens what a narrower one opens.
OPENS = {"infer": {"infer"}, "deploy": {"infer", "deploy"}, "admin": {"infer", "deploy", "admin"}}


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
    """The kept form of a secret: sha256 of salt and secret, in hex. 256 random bits need no slower hash."""
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
    """True when a request's key may see an endpoint in a list; None is the administrator."""
    return key is None or key.endpoints is None or endpoint in key.endpoints


def masked(text: str) -> str:
    """A text with the secret part of every key in it replaced: for logs and errors."""
    return SHAPE.sub(lambda m: f"puna_{m[1]}_***", text)


def owner(key: Key | None) -> str:
    """Whose builds and fetches are a key's; those of the local administrator are nobody's."""
    return key.id if key is not None else ""


def check_grants(endpoints: Iterable[Endpoint], key: Key | None, settings: Settings) -> None:
    """Check what an endpoint is to have; whoever runs an app reads all that it is given.

    Raises:
        ForbiddenError: a secret or a volume that none of the key's own endpoints has.
    """
    if key is None or key.endpoints is None:
        return
    mine = _mine(endpoints, key)
    held = [
        ("secret", settings.secrets, {name for one in mine for name in one.secrets}),
        ("volume", settings.volumes, {name for one in mine for name in one.volumes}),
    ]
    for kind, wanted, known in held:
        for name in wanted:
            if name not in known:
                raise _refused(key, f"{kind} `{name}`")
    if settings.git:
        check_credential(endpoints, key, settings.git.get("credential", ""), settings.git["url"])


def check_credential(endpoints: Iterable[Endpoint], key: Key | None, name: str, url: str = "") -> None:
    """Check that a secret may be sent to where `url` is: it is shown to whoever answers there.

    Raises:
        ForbiddenError: none of the key's own endpoints has it, or has it for that repository.
    """
    if key is None or key.endpoints is None or not name:
        return
    mine = _mine(endpoints, key)
    places = {address(one.git["url"]).same for one in mine if one.git.get("credential") == name}
    if not any(name in one.secrets for one in mine) and not (url and address(url).same in places):
        raise _refused(key, f"secret `{name}`" + (f" for {url}" if url and places else ""))


def _mine(endpoints: Iterable[Endpoint], key: Key) -> list[Settings]:
    return [endpoint.settings for endpoint in endpoints if endpoint.name in (key.endpoints or ())]


def _refused(key: Key, what: str) -> ForbiddenError:
    return ForbiddenError(
        f"key {key.id} opens some endpoints only, and {what} is none of theirs", "a key for all endpoints may add it"
    )
