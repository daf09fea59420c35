"""What a key for some endpoints only may give them of what belongs to all: secrets and volumes that they have."""

from __future__ import annotations

from collections.abc import Iterable

from puna.config.repository import address
from puna.control.domain.records import Endpoint, Key, Settings
from puna.errors import ForbiddenError


def check(endpoints: Iterable[Endpoint], key: Key | None, settings: Settings) -> None:
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
        credential(endpoints, key, settings.git.get("credential", ""), settings.git["url"])


def credential(endpoints: Iterable[Endpoint], key: Key | None, name: str, url: str = "") -> None:
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
