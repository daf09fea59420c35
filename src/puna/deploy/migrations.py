"""How the store's tables came to be: a numbered list of functions, run once each, in order, in one transaction each."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, func, inspect, select

from puna.deploy.tables import DELIVERIES, METADATA, REPLIES, SCHEMA_VERSION
from puna.errors import MachineError


def migration_001_all_tables(connection: Connection) -> None:
    """The first set of tables. A later migration that adds a column must do so only when it is missing:
    a fresh database gets the newest `tables.py` here."""
    METADATA.create_all(connection)


def migration_002_deliveries(connection: Connection) -> None:
    """What repositories said of their changes."""
    DELIVERIES.create(connection, checkfirst=True)


def migration_003_replies(connection: Connection) -> None:
    """Replies to calls with an idempotency key."""
    REPLIES.create(connection, checkfirst=True)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    migration_001_all_tables,
    migration_002_deliveries,
    migration_003_replies,
)


def schema_number(connection: Connection) -> int:
    """The number of the last migration that ran; 0 for an empty database."""
    if not inspect(connection).has_table(SCHEMA_VERSION.name):
        return 0
    return connection.execute(select(func.max(SCHEMA_VERSION.c.number))).scalar() or 0


def migrate(connection: Connection, migrations: tuple[Callable[[Connection], None], ...] = MIGRATIONS) -> None:
    """Run what has not run yet, within the caller's transaction.

    Raises:
        MachineError: the database was written by a newer Puna.
    """
    done = schema_number(connection)
    if done > len(migrations):
        raise MachineError(
            f"the database is at schema {done}, and this Puna knows {len(migrations)}",
            "use the newer Puna that wrote it, or another PUNA_HOME",
        )
    for number, migration in enumerate(migrations[done:], start=done + 1):
        migration(connection)
        connection.execute(SCHEMA_VERSION.insert().values(number=number))
