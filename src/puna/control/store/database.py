"""Connections and transactions of the store: SQLite in WAL mode, or PostgreSQL; one writer at a time."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.exc import ArgumentError

from puna.control.domain.timeline import Timeline
from puna.control.store.schema import COUNTERS, EVENTS
from puna.errors import ConflictError, UsageError

BUSY_TIMEOUT_MS = 10_000
CACHE_KIB = 256
"""Pages that each of a pool's connections keeps; the system has the file in its own cache once for all of them."""
EVENTS_KEPT = 20_000

S = TypeVar("S", bound=StrEnum)


class Database:
    """An engine, and `_read` and `_write` transactions on it. Safe to use from many threads."""

    def __init__(self, url: str, migrate: Callable[[Connection], None]) -> None:
        """Open the database at `url` (SQLAlchemy's form); `migrate` brings its tables up to date.

        Raises:
            UsageError: `url` names no database that can be used here.
        """
        self.engine = _engine(url)
        self.timeline: Timeline | None = None
        """GPU time is reckoned by it, once it is set: the wall clock may be."""
        self._lock = threading.RLock()
        self.writer = 0
        """The thread (its id for the kernel) whose turn it is to write; 0: nobody's."""
        self._listeners: list[Callable[[], None]] = []
        self.writes = 0
        """Rises with every transaction that changes what `Store.snapshot` or a list of builds holds."""
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _configure_sqlite)
            event.listen(self.engine, "begin", _begin_sqlite)
        with self._write(routes=False) as connection:
            migrate(connection)
        with self._read() as connection:
            self.version = self._counter(connection, "routes")
            """The version of the gateways' route table; rises with every change that they can see."""

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def touch_routes(self) -> None:
        """Something that the gateways see has changed, though not in this database: their table is a newer version."""
        with self._write():
            pass

    @property
    def is_file(self) -> bool:
        """It is a file here: what holds it up holds it up on this machine."""
        return self.engine.dialect.name == "sqlite"

    def check(self, *, write: bool) -> None:
        """Read, take the lock of those who write, and with `write` change a counter.

        Raises:
            SQLAlchemyError: what the database says.
        """
        with self._read() as connection:
            self._counter(connection, "routes")
        with self._write(routes=False, snapshot=False) as connection:
            if write:
                self._bump(connection, "checks")

    @contextlib.contextmanager
    def subscribed(self, listener: Callable[[], None]) -> Iterator[None]:
        """In the block `listener` is called after each change of the routes, from the thread that made it."""
        self._listeners.append(listener)
        try:
            yield
        finally:
            self._listeners.remove(listener)

    @contextlib.contextmanager
    def _read(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def _write(self, routes: bool = True, snapshot: bool = True) -> Iterator[Connection]:
        """A transaction; `routes`: gateways see what it changes, `snapshot`: so does `Store.snapshot`."""
        # One writer in this process; BEGIN IMMEDIATE keeps other processes out (a deferred transaction that turns
        # from reading to writing fails at once when another writer got between).
        with self._lock:
            outer, self.writer = self.writer, threading.get_native_id()
            try:
                with self.engine.connect().execution_options(puna_write=True) as connection, connection.begin():
                    yield connection
                    version = self._bump(connection, "routes") if routes else None
            finally:
                self.writer = outer
            self.writes += snapshot
            if version is not None:
                self.version = version
        if version is not None:
            for listener in list(self._listeners):
                listener()

    @staticmethod
    def _counter(connection: Connection, name: str) -> int:
        return connection.execute(select(COUNTERS.c.value).where(COUNTERS.c.name == name)).scalar() or 0

    @classmethod
    def _bump(cls, connection: Connection, name: str) -> int:
        changed = COUNTERS.update().where(COUNTERS.c.name == name).values(value=COUNTERS.c.value + 1)
        if connection.execute(changed).rowcount == 0:
            connection.execute(COUNTERS.insert().values(name=name, value=1))
        return cls._counter(connection, name)

    @staticmethod
    def _event(connection: Connection, endpoint: str, kind: str, message: str, now: float) -> None:
        row = EVENTS.insert().values(at=now, endpoint=endpoint, kind=kind, message=message)
        key = connection.execute(row).inserted_primary_key
        if key is not None and key[0] % 500 == 0:
            connection.execute(EVENTS.delete().where(EVENTS.c.id <= key[0] - EVENTS_KEPT))


def _engine(url: str) -> Engine:
    # Without a driver in the URL SQLAlchemy would look for psycopg2, which is no longer developed.
    url = re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)
    try:
        return create_engine(url, pool_size=8, max_overflow=32, pool_timeout=30)
    except (ArgumentError, ModuleNotFoundError) as error:
        hint = "PostgreSQL needs `uv pip install 'psycopg[binary]'` beside Puna" if url.startswith("postgresql") else ""
        kind = url.partition(":")[0]  # no more of it: a URL may hold a password
        raise UsageError(
            f"PUNA_DATABASE_URL ({kind}:...) cannot be used: {type(error).__name__}",
            hint or "unset it to use the SQLite file, or write postgresql://user@host/name",
        ) from None


def check_move(thing: str, moves: Mapping[S, Mapping[S, str]], before: S, after: S) -> None:
    """Refuse a move that is not in the table; `thing` is named in the error, e.g. `revision 3 of my-app`.

    Raises:
        ConflictError: the move is illegal.
    """
    if after not in moves[before]:
        allowed = ", ".join(f"`{s}`" for s in moves[before]) or "nothing: it is final"
        raise ConflictError(
            f"{thing} cannot go from `{before}` to `{after}`", f"from `{before}` it can go to {allowed}"
        )


def _configure_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins transactions; the driver's own habit is off
    # NORMAL: no process's death loses anything; a power cut may lose the last transactions, and damages nothing.
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"busy_timeout = {BUSY_TIMEOUT_MS}",
        f"cache_size = -{CACHE_KIB}",
        "foreign_keys = ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get("puna_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
