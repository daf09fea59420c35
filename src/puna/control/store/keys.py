"""The store's part about API keys and sealed secrets."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select

from puna.control.domain.records import Key
from puna.control.store.database import Database
from puna.control.store.schema import KEYS, SECRETS
from puna.errors import NotFoundError


class KeyStore(Database):
    """Keys, and sets of sealed values."""

    def keys(self) -> list[Key]:
        """Every API key, oldest first."""
        with self._read() as connection:
            return self._keys(connection)

    @staticmethod
    def _keys(connection: Connection) -> list[Key]:
        return [_key(row) for row in connection.execute(select(KEYS).order_by(KEYS.c.created))]

    def add_key(self, key: Key) -> None:
        """Keep a new key."""
        with self._write() as connection:
            values = {**key.__dict__, "scope": list(key.scope)}
            values["endpoints"] = None if key.endpoints is None else list(key.endpoints)
            connection.execute(KEYS.insert().values(**values))

    def delete_key(self, key_id: str) -> None:
        """Revoke a key: the gateways learn of it with their next table.

        Raises:
            NotFoundError: there is none of that id.
        """
        with self._write() as connection:
            if not connection.execute(KEYS.delete().where(KEYS.c.id == key_id)).rowcount:
                raise NotFoundError(f"there is no key `{key_id}`", "`puna key list`")

    def save_secret(self, name: str, names: list[str], sealed: bytes, now: float) -> None:
        """Keep a sealed set of values; one of that name is replaced."""
        with self._write(routes=False) as connection:
            values = {"names": names, "sealed": sealed, "created": now}
            if not connection.execute(SECRETS.update().where(SECRETS.c.name == name).values(**values)).rowcount:
                connection.execute(SECRETS.insert().values(name=name, **values))

    def secrets(self) -> dict[str, list[str]]:
        """Names of the sets, with the names of their values."""
        with self._read() as connection:
            rows = connection.execute(select(SECRETS.c.name, SECRETS.c.names).order_by(SECRETS.c.name))
            return {row.name: list(row.names) for row in rows}

    def sealed_secret(self, name: str) -> bytes:
        """One set, still sealed.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._read() as connection:
            row = connection.execute(select(SECRETS.c.sealed).where(SECRETS.c.name == name)).scalar()
        if row is None:
            raise NotFoundError(f"there is no secret `{name}`", f"`puna secret set {name} KEY=VALUE`")
        return bytes(row)

    def delete_secret(self, name: str) -> None:
        """Forget a set of values.

        Raises:
            NotFoundError: there is none of that name.
        """
        with self._write(routes=False) as connection:
            if not connection.execute(SECRETS.delete().where(SECRETS.c.name == name)).rowcount:
                raise NotFoundError(f"there is no secret `{name}`", "`puna secret list`")


def _key(row: Row[Any]) -> Key:
    values = {**row._mapping, "scope": tuple(row.scope)}
    values["endpoints"] = None if row.endpoints is None else tuple(row.endpoints)
    return Key(**values)
