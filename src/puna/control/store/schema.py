"""The tables of the store, JSON where nobody searches in them, and the migrations that made them.

Migrations are a numbered list of functions, run once each, in order, in one transaction each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
)

from puna.errors import MachineError

METADATA = MetaData()


def _text(name: str) -> Column[str]:
    return Column(name, Text, nullable=False, default="", server_default="")


def _number(name: str) -> Column[float]:
    return Column(name, Float, nullable=False, default=0.0, server_default="0")


def _count(name: str) -> Column[int]:
    return Column(name, Integer, nullable=False, default=0, server_default="0")


SCHEMA_VERSION = Table("schema_version", METADATA, Column("number", Integer, primary_key=True))

# `routes` is the version of the gateways' table; `asked` orders deploys; `epoch` numbers replicas; one more for each
# endpoint's revisions.
RUNTIME_COUNTER = "runtime "
"""The prefix of counters that remember the highest version which has been deleted."""
COUNTERS = Table("counters", METADATA, Column("name", String(80), primary_key=True), _count("value"))

RUNTIMES = Table(
    "runtimes",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    _text("yaml"),
    Column("state", String(16), nullable=False),
    _number("created"),
    Column("build_id", String(32), nullable=False),
)

ENDPOINTS = Table(
    "endpoints",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("active", Boolean, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("serving", Integer, nullable=True),
    _text("reason"),
    _number("created"),
)

# In the database it has its name of before: a rename would keep a home from going back to the Puna that it comes from.
SCALING = Table(
    "wishes",
    METADATA,
    Column("endpoint", String(64), ForeignKey("endpoints.name", ondelete="CASCADE"), primary_key=True),
    _count("replicas"),
    _text("reason"),
    _number("at"),
)

# One of two revisions that share an endpoint's requests; the other is the one that serves.
SPLITS = Table(
    "splits",
    METADATA,
    Column("endpoint", String(64), ForeignKey("endpoints.name", ondelete="CASCADE"), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("percent", Integer, nullable=False),
    _count("replicas"),
    _text("reason"),
    _number("at"),
)

REVISIONS = Table(
    "revisions",
    METADATA,
    Column("endpoint", String(64), ForeignKey("endpoints.name", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("source", String(64), nullable=False),
    Column("runtime", String(64), nullable=True),
    Column("runtime_version", Integer, nullable=True),
    _text("environment"),
    _text("bundle"),
    Column("settings", JSON, nullable=False),
    Column("schema", JSON, nullable=True),
    _number("created"),
    _number("since"),
    _count("asked"),
    _count("failures"),
    _number("failed_at"),
    Column("weights_bytes", Float, nullable=False, default=0, server_default="0"),
    _text("error"),
    _text("hint"),
    _text("detail"),
    Column("build_id", String(32), nullable=True),
    Column("percent", Integer, nullable=True),
)

# No foreign key: a replica outlives its endpoint until its process is gone.
REPLICAS = Table(
    "replicas",
    METADATA,
    Column("id", String(64), primary_key=True),
    _count("epoch"),
    Column("endpoint", String(64), nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    _text("gpu"),
    Column("fraction", Float, nullable=False, default=1.0),
    _number("since"),
    _number("created"),
    _count("pid"),
    Column("concurrency", Integer, nullable=False, default=1),
    _text("tier"),
    _text("reason"),
    _number("deadline"),
)

BUILDS = Table(
    "builds",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("subject", String(64), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    _number("created"),
    Column("cancel", Boolean, nullable=False, default=False),
    _text("gpu"),
    _number("fraction"),
    _text("error"),
    _text("hint"),
    _text("detail"),
    Column("arguments", JSON, nullable=True),
    Column("owner", String(16), nullable=True),
)

BUILD_STEPS = Table(
    "build_steps",
    METADATA,
    Column("build_id", String(32), ForeignKey("builds.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("seconds", Float, nullable=True),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    _number("at"),
    Column("endpoint", String(64), nullable=False, index=True),
    Column("kind", String(32), nullable=False),
    _text("message"),
)

KEYS = Table(
    "keys",
    METADATA,
    Column("id", String(16), primary_key=True),
    _text("name"),
    Column("salt", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("scope", JSON, nullable=False),
    Column("endpoints", JSON, nullable=True),
    Column("expires", Float, nullable=True),
    _number("created"),
    Column("limits", JSON, nullable=True),
)

SECRETS = Table(
    "secrets",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("names", JSON, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    _number("created"),
)

# Replies to calls with an idempotency key. `id` and `fingerprint` are keyed digests; `sealed` opens with the key file.
REPLIES = Table(
    "replies",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    _text("route"),
    Column("sealed", LargeBinary, nullable=False),
    Column("at", Float, nullable=False, index=True),
)

DELIVERIES = Table(
    "deliveries",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("endpoint", String(64), ForeignKey("endpoints.name", ondelete="CASCADE"), nullable=False, index=True),
    _number("at"),
    Column("sender", String(16), nullable=False),
    _text("event"),
    _text("key"),
    _text("digest"),
    _text("commit"),
    Column("outcome", String(16), nullable=False, index=True),
    _text("message"),
    _text("hint"),
    _text("detail"),
    Column("revision", Integer, nullable=True),
)

# Neither knows an endpoint or a key by reference: what was used is told long after both are gone.
USAGE = Table(
    "usage",
    METADATA,
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("endpoint", String(64), primary_key=True),
    Column("key", String(16), primary_key=True),
    _text("key_name"),
    _count("requests"),
    _count("failed"),
    _number("infer_s"),
    _number("gpu_s"),
)

# How far something has been counted: the number of a gateway's last report, or when a replica was counted last.
USAGE_MARKS = Table(
    "usage_marks", METADATA, Column("name", String(80), primary_key=True), _number("value"), _number("at")
)


def migration_001_all_tables(connection: Connection) -> None:
    """The first set of tables. A later migration that adds a column must do so only when it is missing:
    a fresh database gets the newest `tables.py` here."""
    METADATA.create_all(connection)


def migration_002_deliveries(connection: Connection) -> None:
    """Deliveries of webhooks."""
    DELIVERIES.create(connection, checkfirst=True)


def migration_003_replies(connection: Connection) -> None:
    """Replies to calls with an idempotency key."""
    REPLIES.create(connection, checkfirst=True)


def migration_004_arguments_of_builds(connection: Connection) -> None:
    """Arguments of merges and publishings."""
    _add_column(connection, BUILDS.c.arguments)


def migration_005_usage(connection: Connection) -> None:
    """Use by the hour: requests, and GPU time."""
    for table in (USAGE, USAGE_MARKS):
        table.create(connection, checkfirst=True)


def migration_006_splits(connection: Connection) -> None:
    """Two revisions that share an endpoint's requests, and the share that one is to have."""
    SPLITS.create(connection, checkfirst=True)
    _add_column(connection, REVISIONS.c.percent)


def migration_007_owners_of_builds(connection: Connection) -> None:
    """The owner of a build."""
    _add_column(connection, BUILDS.c.owner)


def migration_008_limits_of_keys(connection: Connection) -> None:
    """Limits of keys."""
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
