"""What the rooms of the ledger share: transactions, temporary tables, locks in one order, and the clock.

What is read and written with them is in `runs.py`, `manifests.py`, `looking.py` and `store.py`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any

from sqlalchemy import ARRAY, BigInteger, ColumnElement, Connection, Engine, Table, any_, cast, func, literal, select
from sqlalchemy.schema import CreateTable

from blocks.errors import NetworkError
from flows.ledger.database import told
from flows.ledger.models import File
from flows.ledger.patience import PATIENCE_S, Waiting

TEMPORARY: dict[str, Any] = {"prefixes": ["TEMPORARY"], "postgresql_on_commit": "DELETE ROWS"}
"""How a temporary table is declared. Without the latter PostgreSQL, which never vacuums one, keeps every row it ever had:
after some ten pages it took the table for so large that it read a whole route for each page."""


def now_ms() -> int:
    """The wall clock of this machine, as the ledger keeps times."""
    return time.time_ns() // 1_000_000


class Connections:
    """The database, for the threads of a process; each call takes a connection of its own."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self._sqlite = engine.dialect.name == "sqlite"
        self._placeholder = "?" if engine.dialect.paramstyle == "qmark" else "%s"
        self.patience_s = PATIENCE_S
        self.giving_up = threading.Event()
        """Set when whoever works with this ledger is to stop: then nobody waits long for a database that is away."""

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._begun(write=False) as c:
            yield c

    def read_all(self, query: Any) -> Sequence[Any]:
        """The rows of a query: what generators ask page by page, each of which may be asked twice (`patience.py`)."""
        with self._read() as c:
            return c.execute(query).all()

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that will write: SQLite takes its lock at once, so that it never has to fail half-way."""
        with self._begun(write=True) as c:
            yield c

    @contextmanager
    def _begun(self, *, write: bool) -> Iterator[Connection]:
        """A transaction that has begun, as soon as the database lets it. Raises NetworkError when it was waited for long
        enough."""
        waiting = Waiting(self.patience_s, self.giving_up)
        while True:
            stack = ExitStack()
            try:
                with told():
                    c = stack.enter_context(self.engine.connect().execution_options(onblock_write=write))
                    stack.enter_context(c.begin())
                break
            except NetworkError as error:
                stack.close()
                waiting.pause(error)
        with told(), stack:
            yield c

    def _clock(self) -> ColumnElement[int]:
        """Milliseconds since the epoch by the clock that all who share the ledger share: the database's, or, with
        SQLite, this machine's. Times of two machines are compared only if both are of it."""
        if self._sqlite:
            return literal(now_ms(), BigInteger)
        return cast(func.floor(func.extract("epoch", func.clock_timestamp()) * 1000), BigInteger)

    def _now(self, c: Connection) -> int:
        """What that clock says."""
        return now_ms() if self._sqlite else c.execute(select(self._clock())).scalar_one()

    def _fill(self, c: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
        """Put rows into a temporary table of this connection, at the driver's own speed."""
        c.execute(CreateTable(table, if_not_exists=True))
        c.exec_driver_sql(f"DELETE FROM {table.name}")
        if not rows:
            return
        if self._sqlite:
            marks = ", ".join([self._placeholder] * len(table.columns))
            c.exec_driver_sql(f"INSERT INTO {table.name} VALUES ({marks})", rows)
            return
        # a statement with a list for each column, and not one for each row: half the work, of both sides
        kinds = (column.type.compile(c.dialect) for column in table.columns)
        lists = ", ".join(f"{self._placeholder}::{kind}[]" for kind in kinds)
        columns = tuple([v.value if isinstance(v, Enum) else v for v in values] for values in zip(*rows, strict=True))
        c.exec_driver_sql(f"INSERT INTO {table.name} SELECT * FROM unnest({lists})", columns)

    def _among(self, column: Any, ids: Sequence[int]) -> ColumnElement[bool]:
        """Whether a column is one of these. One parameter however many there are, so that the statement is always the
        same and nobody builds it anew."""
        if self._sqlite:
            return column.in_(select(func.json_each(json.dumps(ids)).table_valued("value").c.value))
        return column == any_(literal(list(ids), ARRAY(BigInteger)))

    def _lock(self, c: Connection, which: Any) -> None:
        """Take the locks of rows in one order everywhere, so that no two writers wait for each other crosswise."""
        if not self._sqlite:  # whose writer is alone
            c.execute(select(File.id).where(which).order_by(File.id).with_for_update(key_share=True))

    def _lock_ids(self, c: Connection, ids: Iterable[int]) -> list[Sequence[int]]:
        """The same for rows by id; the ids in pages."""
        found = list(pages(sorted(ids)))
        for page in found:
            self._lock(c, self._among(File.id, page))
        return found

    def _insert(self, model: Any) -> Any:
        """An INSERT of this dialect, which knows ON CONFLICT."""
        if self._sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert
        return insert(model.__table__)

    def _insert_new(self, c: Connection, model: Any, values: list[dict[str, Any]]) -> None:
        """Insert rows, leaving alone those whose unique key is there."""
        c.execute(self._insert(model).on_conflict_do_nothing(), values)


def pages(ids: Sequence[int], size: int = 5000) -> Iterator[Sequence[int]]:
    """Ids in pieces that fit into one statement."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]
