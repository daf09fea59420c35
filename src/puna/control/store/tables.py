"""The tables of the store; rows are JSON where nobody searches in them."""

from __future__ import annotations

from sqlalchemy import JSON, Boolean, Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text

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
"""What the names of the counters begin with that remember the highest version which has been deleted."""
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
