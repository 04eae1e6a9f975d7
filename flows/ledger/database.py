"""The database under the ledger: how it is opened, and what its failures mean.

What is read and written is in `store.py` and its neighbours.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as AllInUse
from sqlalchemy.pool import StaticPool

from blocks.errors import AuthError, ConfigError, DiskFull, NetworkError, OnblockError, PermissionRefused, UnknownError

HOW_TO_NAME_IT = (
    "set ONBLOCK_LEDGER_URL to sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE with "
    "`pip install 'onblock[postgres]'`"
)

BUSY_MS = 2000
"""So long SQLite itself waits for a lock, and nobody can stop it; then it is tried again (`patience.py`)."""
POOL: dict[str, Any] = {"pool_size": 8, "pool_timeout": 5}
"""Connections of a process that stay open, and how long (s) one is waited for where all are in use."""
LOST = {
    "connect_timeout": 10, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}  # fmt: skip
"""A PostgreSQL whose machine is gone, without a word, is known to be gone after half a minute."""


LET_GO = {
    "idle_in_transaction_session_timeout": 30_000, "tcp_keepalives_idle": 10, "tcp_keepalives_interval": 5,
    "tcp_keepalives_count": 4, "tcp_user_timeout": 30_000,
}  # fmt: skip
"""The other way round, for PostgreSQL: a machine that lost its power in the middle of a transaction lets go of its locks
after half a minute. Without this it holds them for hours, and everybody waits."""


def _let_go(connection: Any, record: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("; ".join(f"SET {name} = {value}" for name, value in LET_GO.items()))
    connection.commit()


def make_engine(url: Any, create: bool) -> Engine:
    """An engine for a URL; without `create`, a missing SQLite file is an empty database in memory."""
    if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise ArgumentError(f"{url.drivername!r} is no database that onblock knows")
    if url.get_backend_name() == "postgresql":
        if "@" in (url.host or ""):
            raise ArgumentError("write an '@' in its password as %40")
        engine = create_engine(url, pool_pre_ping=True, max_overflow=16, connect_args=LOST, **POOL)
        event.listen(engine, "connect", _let_go)
        return engine
    path = None if url.database in (None, "", ":memory:") else Path(url.database)
    if path is None or (not create and not path.exists()):
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"the folder of the ledger cannot be made: {os.strerror(error.errno or 0)}", path=str(path.parent),
                remedy="set ONBLOCK_HOME to a folder you may write to",
            ) from error  # fmt: skip
        engine = create_engine(url, max_overflow=40, connect_args={"timeout": BUSY_MS / 1000}, **POOL)

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, in the mode that fits
        _write_ahead(connection)
        for pragma in (
            # a power cut may lose the last commits but never tears the database; files of lost rows are found
            # at their final names by the next run and taken as delivered after a comparison
            "synchronous=NORMAL",
            "foreign_keys=ON", f"busy_timeout={BUSY_MS}",
        ):  # fmt: skip
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get("onblock_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _write_ahead(connection: Any) -> None:
    """Turn on WAL. While another process does the same to a new file, SQLite says "locked" at once and does not wait."""
    deadline = time.monotonic() + 30
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


_WRITABLE = "set ONBLOCK_HOME to a folder you may write to"
_REACH = "check that the database is on and reachable, and its address in ONBLOCK_LEDGER_URL"
_SAID: tuple[tuple[str, type[OnblockError], str, str], ...] = (
    (r"disk is full|No space left", DiskFull, "cannot be written", "make room on the ledger's disk"),
    (r"readonly|unable to open", ConfigError, "cannot be used", _WRITABLE),
    (r"file is not a database|malformed", ConfigError, "is damaged", "restore it, or move it away"),
    (r"authentication failed|no password supplied|no pg_hba.conf entry(?!.*no encryption)", AuthError, "refused the login",
     "check user name and password in ONBLOCK_LEDGER_URL"),
    (r"no pg_hba.conf entry", ConfigError, "cannot be opened", "it asks for TLS: `?sslmode=verify-full&sslrootcert=CA` in ONBLOCK_LEDGER_URL"),
    (r"certificate verify failed|root certificate|server certificate for|does not support SSL", ConfigError, "cannot be opened",
     "check the CA after `sslrootcert=` in ONBLOCK_LEDGER_URL, and that the host there is the name in the certificate"),
    (r'database ".*" does not exist', ConfigError, "cannot be opened", "make it with `createdb`, or correct " + HOW_TO_NAME_IT[4:]),
    (r"invalid connection option|invalid URI|sslmode", ConfigError, "cannot be opened", HOW_TO_NAME_IT),
    (r"permission denied", PermissionRefused, "cannot be used", "give its user the right to make tables there"),
    (r"too many clients|connection slots are reserved|too many connections", NetworkError, "takes no more connections",
     "have fewer runs at a time (`onblock worker --limit`), or raise `max_connections` of PostgreSQL"),
    (r"deadlock detected", NetworkError, "had two wait for each other, and gave up one of them", "tried again by itself"),
    (r"connect|locked|resolve host|server closed|timeout expired|shutting down|starting up|canceling statement",
     NetworkError, "does not answer", _REACH),
)  # fmt: skip
"""What SQLite and PostgreSQL say, and what it is: the first that fits. Connecting to PostgreSQL gives no error codes."""


@contextmanager
def told() -> Iterator[None]:
    """A failure of the database becomes one of the taxonomy, by `_SAID`."""
    try:
        yield
    except AllInUse as error:
        raise NetworkError(
            "the ledger does not answer: all connections to it are in use", remedy="try again"
        ) from error
    except DBAPIError as error:
        said = " ".join(str(error.orig).split())
        for pattern, kind, what, remedy in _SAID:
            if re.search(pattern, said):
                raise kind(f"the ledger {what}: {said}", remedy=remedy) from error
        if error.connection_invalidated:
            raise NetworkError(f"the ledger does not answer: {said}", remedy=_REACH) from error
        raise UnknownError(f"the ledger failed: {said}") from error
