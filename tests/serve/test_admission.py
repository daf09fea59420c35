"""Bearer keys against the table in memory."""

import hashlib

import pytest

from puna.control.wire import KeyRoute
from puna.errors import ForbiddenError, NotYetError, UnauthorizedError
from puna.serve.admission import Keyring

SECRET = "s_with-under_scores" + "x" * 24


def key(id: str = "0123abcd", **changes: object) -> KeyRoute:
    digest = hashlib.sha256(("salt" + SECRET).encode()).hexdigest()
    fields = {"id": id, "salt": "salt", "sha256": digest, "scope": ("infer",), "endpoints": None, "expires": None}
    return KeyRoute(**(fields | changes))  # type: ignore[arg-type]


def access(*keys: KeyRoute) -> Keyring:
    made = Keyring()
    made.use({k.id: k for k in keys})
    return made


BEARER = f"Bearer puna_0123abcd_{SECRET}"


def test_a_good_key_opens_its_endpoint_the_second_time_too() -> None:
    keys = access(key())
    assert keys.check(BEARER, 0, "e").id == "0123abcd"
    assert keys.check(BEARER, 0, "e").id == "0123abcd"


def test_before_the_first_table_nobody_is_told_that_a_key_is_unknown() -> None:
    made = Keyring()
    with pytest.raises(NotYetError):
        made.check(BEARER, 0, "e")
    with pytest.raises(UnauthorizedError, match="a key is needed"):
        made.check("", 0, "e")
    made.use({})
    with pytest.raises(UnauthorizedError, match="unknown or revoked"):
        made.check(BEARER, 0, "e")


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer ",
        f"Basic puna_0123abcd_{SECRET}",
        "Bearer nonsense",
        f"Bearer puna_0123abcd_{SECRET}x",
        f"Bearer puna_ffffffff_{SECRET}",
        "Bearer puna_0123abcd_",
    ],
)
def test_anything_else_is_refused(header: str) -> None:
    with pytest.raises(UnauthorizedError):
        access(key()).check(header, 0, "e")


def test_a_revoked_key_is_refused_with_the_next_table() -> None:
    keys = access(key())
    keys.check(BEARER, 0, "e")
    keys.use({})
    with pytest.raises(UnauthorizedError, match="revoked"):
        keys.check(BEARER, 0, "e")


def test_a_key_ends_when_it_expires() -> None:
    keys = access(key(expires=100.0))
    keys.check(BEARER, 99, "e")
    with pytest.raises(UnauthorizedError, match="expired"):
        keys.check(BEARER, 100, "e")


def test_a_key_for_other_endpoints_or_another_scope_is_forbidden() -> None:
    with pytest.raises(ForbiddenError, match="not e"):
        access(key(endpoints=("other",))).check(BEARER, 0, "e")
    with pytest.raises(ForbiddenError, match="scope"):
        access(key(scope=())).check(BEARER, 0, "e")
    access(key(scope=("admin",))).check(BEARER, 0, "e")


def test_a_key_for_some_endpoints_does_not_open_what_concerns_all() -> None:
    with pytest.raises(ForbiddenError):
        access(key(endpoints=("e",))).check(BEARER, 0, "")
    assert access(key(endpoints=("e",))).check(BEARER, 0).id == "0123abcd", "it opens something"
