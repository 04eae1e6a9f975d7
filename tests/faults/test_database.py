"""The ledger's database is away for a while in the middle of a job: locked, stopped, hanging, or gone after a commit that
nobody heard of. Longer each time than any single try waits; the run goes on, or ends with rows that are true."""

from __future__ import annotations

import os
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from blocks.errors import NetworkError
from flows.ledger import Ledger, database, patience
from flows.transfer.story import all_well, run_here
from tests.servers import postgres
from tests.servers.base import family
from tests.transfer.conftest import Bench, bench
from tests.transfer.phases import ZSTD
from tests.upkeep.test_by_mistake import WatchedSession, WatchedStorage, once

__all__ = ["bench"]

COUNT = 12
STEPPED = 22
"""At least so many transactions write in a job with steps of two files."""


def test_it_is_waited_for_longer_than_half_a_minute() -> None:
    assert patience.PATIENCE_S >= 30 > database.BUSY_MS / 1000


class Refusals:
    """How often the ledger was not let in. Whoever gives the database back waits for some of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count, self._more = 0, threading.Condition()
        pause = patience.Waiting.pause

        def counted(waiting: patience.Waiting, error: NetworkError) -> None:
            with self._more:
                self.count += 1
                self._more.notify_all()
            pause(waiting, error)

        monkeypatch.setattr(patience.Waiting, "pause", counted)

    def wait(self, most: int) -> None:
        with self._more:
            assert self._more.wait_for(lambda: self.count >= most, 100)


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> Refusals:
    return Refusals(monkeypatch)


@pytest.fixture
def full(bench: Bench) -> Bench:
    for n in range(COUNT):
        bench.put(f"DCIM/{n:02}.bin", bytes([n]) * (n + 1))
    return bench


class Archive(WatchedStorage):
    """Something may happen before an upload is begun."""

    _block_type_slug = "archive-of-a-database-test"

    def open(self) -> WatchedSession:
        return ArchiveSession(self.root, self._hooks)


class ArchiveSession(WatchedSession):
    def upload(self, path: str, size: int, **options: Any) -> Any:  # type: ignore[override]
        self._before("upload", path)
        return super().upload(path, size, **options)


def run(bench: Bench, path: str, outage: Callable[[], object]) -> dict[str, Any]:
    """The job, four files at a time, with an outage that begins when one of them is about to be written."""
    archive = Archive.at(bench.archive, once("upload", outage, path))
    return run_here(bench.job(destinations=[archive], shipping={"max_files": 4}))


def all_there(bench: Bench) -> None:
    """Each file once, rows that say so, a manifest that names them, nothing else; and nothing left to do."""
    assert bench.files() == {f"DCIM/{n:02}.bin": bytes([n]) * (n + 1) for n in range(COUNT)}
    bench.check_manifest()
    with Ledger.open() as ledger:
        assert [r["state"] for r in ledger.files()] == ["VERIFIED"] * COUNT
    again = bench.run()
    assert (again["delivered"], again["duplicates"]) == (0, COUNT)


# -- SQLite -------------------------------------------------------------------------------------------------------------


class Lock:
    """Somebody writes to the ledger's file, and does not end."""

    def __init__(self) -> None:
        self._db = sqlite3.connect(
            Path(os.environ["ONBLOCK_HOME"], "ledger.db"), isolation_level=None, check_same_thread=False
        )

    def take(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")

    def give(self) -> None:
        self._db.rollback()
        self._db.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite itself waits only for a moment."""
    monkeypatch.setattr(database, "BUSY_MS", 50)


def test_locked_for_longer_than_sqlite_waits(impatient: None, full: Bench, refusals: Refusals) -> None:
    Ledger.open().close()
    lock = Lock()
    release = threading.Thread(target=lambda: (refusals.wait(5), lock.give()))

    def outage() -> None:
        lock.take()
        release.start()

    summary = run(full, "DCIM/05.bin", outage)
    release.join()
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (COUNT, 0, [])
    assert refusals.count >= 5
    all_there(full)


def test_locked_for_half_a_minute(full: Bench) -> None:
    """As it stands, with nothing made shorter."""
    Ledger.open().close()
    lock = Lock()
    release = threading.Timer(31, lock.give)

    def outage() -> None:
        lock.take()
        release.start()

    summary = run(full, "DCIM/05.bin", outage)
    assert release.finished.is_set(), "the run did not wait for the ledger"
    release.join()
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (COUNT, 0, [])
    all_there(full)


def test_locked_for_longer_than_anybody_waits(impatient: None, full: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends, nothing under a final name is untrue, and the next one finishes."""
    monkeypatch.setattr("flows.ledger.store.PATIENCE_S", 0.5)
    Ledger.open().close()
    lock = Lock()
    with pytest.raises(NetworkError, match="the ledger does not answer"):
        run(full, "DCIM/05.bin", lock.take)
    lock.give()
    for path, data in full.files().items():
        assert data == bytes([int(path[5:7])]) * (int(path[5:7]) + 1)
    full.run()
    all_there(full)


# -- a commit that nobody heard of --------------------------------------------------------------------------------------


class Lossy:
    """The n-th transaction that writes, from `begin` on, is committed, and its connection gone before it can say so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int):
        self.count, self._nth, self._begun = 0, nth, False
        real, changes = SQLiteDialect_pysqlite.do_commit, dict[int, int]()

        def commit(dialect: Any, connection: Any) -> None:
            dbapi = connection.dbapi_connection
            before, changes[id(dbapi)] = changes.get(id(dbapi), 0), dbapi.total_changes
            real(dialect, connection)
            if self._begun and dbapi.total_changes > before:
                self.count += 1
                if self.count == self._nth:
                    raise sqlite3.OperationalError("server closed the connection unexpectedly")

        monkeypatch.setattr(SQLiteDialect_pysqlite, "do_commit", commit)

    def begin(self) -> None:
        self._begun = True

    def end(self) -> None:
        self._begun = False


@pytest.mark.parametrize("nth", range(1, 17))
def test_lost_after_the_commit(full: Bench, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The run takes what it wrote for its own, and nothing is left for another one."""
    Ledger.open().close()
    lossy = Lossy(monkeypatch, nth)
    lossy.begin()
    summary = full.run(shipping={"max_files": 4})
    lossy.end()
    assert lossy.count >= nth
    assert all_well(summary) and summary["delivered"] == COUNT, summary
    all_there(full)


@pytest.mark.parametrize("nth", range(1, STEPPED + 1))
def test_lost_after_the_commit_of_a_job_with_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    for name in ("a", "b"):
        bench.put(f"{name}.log", name.encode() * 1000)
    Ledger.open().close()
    lossy = Lossy(monkeypatch, nth)
    lossy.begin()
    summary = bench.run(steps=ZSTD)
    lossy.end()
    assert lossy.count >= nth
    assert all_well(summary) and summary["delivered"] == 2, summary
    assert set(bench.files()) >= {"a.log.zst", "b.log.zst"}
    assert bench.run(steps=ZSTD)["delivered"] == 0


@pytest.mark.parametrize("nth", [1, 2])
def test_lost_after_the_commit_of_what_is_tried_again(full: Bench, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Rows that failed are put back into the queue."""
    with Ledger.open() as ledger:
        (full.archive / "DCIM").mkdir()
        for n in range(COUNT):
            (full.archive / f"DCIM/{n:02}.bin").write_bytes(b"another")
        assert full.run(on_conflict="fail")["failed"] == COUNT
        for n in range(COUNT):
            (full.archive / f"DCIM/{n:02}.bin").unlink()
        rows = list(ledger.files())
        assert {r["state"] for r in rows} == {"FAILED"}
    lossy = Lossy(monkeypatch, nth)
    requeue = Ledger.requeue
    monkeypatch.setattr(Ledger, "requeue", lambda *given: (lossy.begin(), requeue(*given))[1])
    summary = full.run(on_conflict="fail")
    lossy.end()
    assert lossy.count >= nth
    assert all_well(summary) and summary["delivered"] == COUNT, summary
    all_there(full)


# -- PostgreSQL ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keeper() -> Iterator[ThreadPoolExecutor]:
    """A thread that outlives a test: a server ends with the thread that started it."""
    with ThreadPoolExecutor(1) as keeper:
        yield keeper


@pytest.fixture(scope="module")
def server(keeper: ThreadPoolExecutor) -> Iterator[postgres.Postgres]:
    """A server of these tests' own: it is stopped under way."""
    if not postgres.installed():
        pytest.skip("PostgreSQL is not installed: python -m tests.servers.install")
    with tempfile.TemporaryDirectory(prefix="onblock-pg-") as folder:
        Path(folder).chmod(0o755)
        with postgres.Postgres(Path(folder, "server")) as server:
            yield server


@pytest.fixture
def on_postgres(server: postgres.Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[postgres.Postgres]:
    monkeypatch.setenv("ONBLOCK_LEDGER_URL", server.info["url"])
    yield server
    import psycopg

    where = {key: server.info[key] for key in ("host", "port", "user", "password")}
    with psycopg.connect(**where, dbname="postgres", autocommit=True) as admin:
        admin.execute("DROP SCHEMA public CASCADE")
        admin.execute("CREATE SCHEMA public")


@pytest.mark.parametrize("at", ["DCIM/00.bin", "DCIM/05.bin", "checksums.sha256"])
def test_stopped_and_started_again(
    on_postgres: postgres.Postgres, full: Bench, keeper: ThreadPoolExecutor, refusals: Refusals, at: str
) -> None:
    Ledger.open().close()
    back: list[Future[Any]] = []

    def outage() -> None:
        on_postgres.stop()
        back.append(keeper.submit(lambda: (refusals.wait(3), on_postgres.start())))

    summary = run(full, at, outage)
    back[0].result()
    assert refusals.count >= 3
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (COUNT, 0, [])
    all_there(full)


@pytest.mark.parametrize(
    ("moment", "statement", "nth"),
    [
        ("after_cursor_execute", "INSERT INTO outcome", 2),  # the second shipment's rows are being written
        ("before_cursor_execute", "SELECT files.path", 1),  # a listing is asked for the first page of what waits
    ],
)
def test_stopped_in_the_middle_of_a_transaction(
    on_postgres: postgres.Postgres, full: Bench, keeper: ThreadPoolExecutor, refusals: Refusals, moment: str, statement: str,
    nth: int,
) -> None:  # fmt: skip
    Ledger.open().close()
    back: list[Future[Any]] = []
    seen = 0

    def outage(*args: Any) -> None:
        nonlocal seen
        if args[2].startswith(statement):
            seen += 1
            if seen == nth:
                on_postgres.stop()
                back.append(keeper.submit(lambda: (refusals.wait(3), on_postgres.start())))

    event.listen(Engine, moment, outage)
    try:
        summary = full.run(shipping={"max_files": 4})
    finally:
        event.remove(Engine, moment, outage)
    back[0].result()
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (COUNT, 0, [])
    all_there(full)


def test_hanging(on_postgres: postgres.Postgres, full: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of the server stands still, and goes on when somebody has waited for it."""
    Ledger.open().close()
    asked, frozen = threading.Event(), threading.Event()
    assert on_postgres.process is not None
    pid = on_postgres.process.pid

    def signal_all(number: int) -> None:
        for one, _ in family(pid):
            os.kill(one, number)

    ping = PGDialect_psycopg.do_ping

    def asks(dialect: Any, connection: Any) -> bool:
        if frozen.is_set():
            asked.set()
        return ping(dialect, connection)

    monkeypatch.setattr(PGDialect_psycopg, "do_ping", asks)

    def release() -> None:
        assert asked.wait(100)
        signal_all(signal.SIGCONT)

    thread = threading.Thread(target=release)

    def outage() -> None:
        signal_all(signal.SIGSTOP)
        frozen.set()
        thread.start()

    summary = run(full, "DCIM/05.bin", outage)
    thread.join()
    assert (summary["delivered"], summary["failed"], summary["problems"]) == (COUNT, 0, [])
    all_there(full)
