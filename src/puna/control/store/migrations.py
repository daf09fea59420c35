"""How the store's tables came to be: a numbered list of functions, run once each, in order, in one transaction each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Connection, func, inspect, select, text

from puna.control.store.tables import (
    BUILDS,
    DELIVERIES,
    KEYS,
    METADATA,
    REPLIES,
    REVISIONS,
    SCHEMA_VERSION,
    SPLITS,
    USAGE,
    USAGE_MARKS,
)
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


def migration_004_arguments_of_builds(connection: Connection) -> None:
    """What a merge or a publishing was told."""
    _add_column(connection, BUILDS.c.arguments)


def migration_005_usage(connection: Connection) -> None:
    """What was asked of endpoints, and what they held of GPUs."""
    for table in (USAGE, USAGE_MARKS):
        table.create(connection, checkfirst=True)


def migration_006_splits(connection: Connection) -> None:
    """Two revisions that share an endpoint's requests, and the share that one is to have."""
    SPLITS.create(connection, checkfirst=True)
    _add_column(connection, REVISIONS.c.percent)


def migration_007_owners_of_builds(connection: Connection) -> None:
    """Who asked for a build."""
    _add_column(connection, BUILDS.c.owner)


def migration_008_limits_of_keys(connection: Connection) -> None:
    """What a key may ask for."""
    _add_column(connection, KEYS.c.limits)


MIGRATIONS: tuple[Callable[[Connection], None], ...] = (
    migration_001_all_tables,
    migration_002_deliveries,
    migration_003_replies,
    migration_004_arguments_of_builds,
    migration_005_usage,
    migration_006_splits,
    migration_007_owners_of_builds,
    migration_008_limits_of_keys,
)


def _add_column(connection: Connection, column: Column[Any]) -> None:
    """Give a table a column that may be null, unless it has it."""
    table = column.table.name
    if column.name not in {found["name"] for found in inspect(connection).get_columns(table)}:
        kind = column.type.compile(connection.dialect)
        connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column.name} {kind}"))


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
