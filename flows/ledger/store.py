"""Reading and writing the ledger: pages of rows, one transaction each, never one per small file.

One room of over 500 lines, since all of it is one thing: the statements that may change a row, beside each other, so
that the order of locks and the fencing can be checked by reading. A `Ledger` is shared by the threads of a process; each call takes a connection of its own. What is decided with the
rows is in `flows/transfer`. Every write that changes a row's state names the attempt it was claimed with: a row that
somebody else has claimed since is left alone (fencing), and the caller is told.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    func,
    insert,
    literal,
    or_,
    select,
    true,
    update,
)  # fmt: skip
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import aliased
from sqlalchemy.schema import CreateTable

from blocks import names
from blocks.errors import (
    ConfigError,
    OnblockError,
)
from blocks.home import home
from blocks.storage.base import FileInfo
from flows.ledger import migrate
from flows.ledger.database import HOW_TO_NAME_IT, make_engine, told
from flows.ledger.models import File, Identity, Manifest, Route, Run
from flows.ledger.rows import COLUMNS, Claim, Entered, NewFile, Outcome, Row, message_of, row_of
from flows.ledger.states import ACTIVE, DONE, State, check_moves, sources
from flows.ledger.worker import is_dead, this_worker

LEASE_MS = 60_000
"""A run without a heartbeat for so long has lost its rows."""
HEARTBEAT_S = 10.0
PROBLEM = "!problem"
"""The etag of rows that stand for something that cannot be taken: a socket, a folder that cannot be read."""

_temp = MetaData()
_seen = Table(
    "seen", _temp, Column("n", Integer), Column("path", Text), Column("size", BigInteger),
    Column("mtime_ns", BigInteger), Column("etag", Text), prefixes=["TEMPORARY"],
)  # fmt: skip
_new = Table(
    "entering", _temp, Column("n", Integer), Column("path", Text), Column("size", BigInteger),
    Column("mtime_ns", BigInteger), Column("etag", Text), Column("state", String), Column("kind", String),
    Column("stage", String), Column("message", Text), Column("dest_path", Text), prefixes=["TEMPORARY"],
)  # fmt: skip
_done = Table(
    "outcome", _temp, Column("id", BigInteger), Column("attempt", Integer), Column("state", String),
    Column("kind", String), Column("stage", String), Column("message", Text), Column("dest_path", Text),
    Column("sha256", String), Column("verified_by", String), Column("bytes_done", BigInteger),
    Column("tries", Integer), Column("next_attempt_at", BigInteger), prefixes=["TEMPORARY"],
)  # fmt: skip


def now_ms() -> int:
    """The wall clock, as the ledger keeps it."""
    return time.time_ns() // 1_000_000


def default_url() -> str:
    """ONBLOCK_LEDGER_URL, or SQLite in ONBLOCK_HOME."""
    return os.environ.get("ONBLOCK_LEDGER_URL") or f"sqlite:///{home() / 'ledger.db'}"


class Ledger:
    """The database. Open it with `Ledger.open()`; close it, or use it as a context manager."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.identity = ""  # of this database, so that nothing cached outlives it
        self._sqlite = engine.dialect.name == "sqlite"
        self._placeholder = "?" if engine.dialect.paramstyle == "qmark" else "%s"

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = True) -> Self:
        """Connect, and bring the tables up to date. Without `create`, a missing SQLite file is an empty ledger in memory."""
        url = url or default_url()
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "postgresql" and parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            engine = make_engine(parsed, create)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
            # without its cause: a mangled URL is quoted there, and the password may be anywhere in it
            why = "its port is no number" if type(error) is ValueError else error
            raise ConfigError(f"the ledger cannot be opened: {why}", remedy=HOW_TO_NAME_IT) from None
        ledger = cls(engine)
        try:
            with ledger._write() as connection:
                migrate.upgrade(connection)
                ledger.identity = connection.execute(select(Identity.id)).scalar_one()
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Let go of the connections."""
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- runs -----------------------------------------------------------------------------------------------------

    def begin_run(self, job: str, *, flight: str | None, device: str | None, flow_run_id: str | None = None) -> str:
        """Enter a run; its id."""
        run_id, now = str(uuid.uuid4()), now_ms()
        with self._write() as c:
            c.execute(
                insert(Run).values(
                    id=run_id, job=job, flight=flight, device=device, worker=this_worker(), flow_run_id=flow_run_id,
                    started_at=now, heartbeat_at=now,
                )
            )  # fmt: skip
        return run_id

    def heartbeat(self, run_id: str) -> None:
        """Renew the lease of all rows that the run holds. One that was declared dead, and only slept, is alive again."""
        with self._write() as c:
            self._renew(c, run_id)

    @staticmethod
    def _renew(c: Connection, run_id: str) -> None:
        alive = update(Run).where(Run.id == run_id, Run.summary.is_(None))  # it has one when it has really ended
        c.execute(alive.values(heartbeat_at=now_ms(), ended_at=None))

    def end_run(self, run_id: str, summary: dict[str, Any]) -> None:
        """The run is over: rows it still holds are free again."""
        with self._write() as c:
            c.execute(update(Run).where(Run.id == run_id).values(ended_at=now_ms(), summary=json.dumps(summary)))
            self._release(c, [run_id])

    def recover(self) -> int:
        """End the runs that are dead and free their rows: no heartbeat for a lease, or a process that is gone."""
        with self._read() as c:
            runs = c.execute(select(Run.id, Run.worker, Run.heartbeat_at).where(Run.ended_at.is_(None))).all()
        expired = now_ms() - LEASE_MS
        dead = {r.id: r.heartbeat_at for r in runs if r.heartbeat_at < expired or is_dead(r.worker)}
        if not dead:
            return 0
        ended: list[str] = []
        with self._write() as c:
            for run_id, seen in sorted(dead.items()):  # one that has stirred since is left alone
                ended += c.execute(
                    update(Run).where(Run.id == run_id, Run.ended_at.is_(None), Run.heartbeat_at == seen)
                    .values(ended_at=now_ms()).returning(Run.id)
                ).scalars()  # fmt: skip
            return self._release(c, ended)

    def _release(self, c: Connection, run_ids: list[str]) -> int:
        check_moves((s, State.QUEUED) for s in ACTIVE)
        held = and_(File.run_id.in_(run_ids), File.state.in_(ACTIVE))
        self._lock(c, held)
        return c.execute(
            update(File).where(held)
            .values(state=State.QUEUED, next_attempt_at=None, updated_at=now_ms())
        ).rowcount  # fmt: skip

    def route(self, job: str, destination: str) -> int:
        """The id of a job's way to a destination, made at need."""
        found = select(Route.id).where(Route.job == job, Route.destination == destination)
        with self._write() as c:
            self._insert_new(c, Route, [{"job": job, "destination": destination, "created_at": now_ms()}])
            return c.execute(found).scalar_one()

    def find_route(self, job: str, destination: str) -> int | None:
        """The id of a route that exists, or None."""
        with self._read() as c:
            return c.execute(select(Route.id).where(Route.job == job, Route.destination == destination)).scalar()

    # -- files: what is known, what is to be done -------------------------------------------------------------------

    def compare(self, route_id: int, page: Sequence[FileInfo]) -> tuple[list[int], list[Row]]:
        """Hold a page of a listing against the ledger, in one query: (indices of new versions, rows not yet done).

        Versions that are done are in neither: a run over known files writes nothing and builds nothing.
        """
        with self._read() as c:
            self._fill(c, _seen, [(n, names.to_text(f.path), f.size, f.mtime_ns, f.etag) for n, f in enumerate(page)])
            found = c.execute(
                select(_seen.c.n, File.id)
                .select_from(_seen.outerjoin(File, self._same_version(route_id, _seen)))
                .where(or_(File.id.is_(None), File.state.not_in(DONE)))
            ).all()
            rows: list[Row] = []
            for ids in _pages([i for _, i in found if i is not None]):
                rows += map(row_of, c.execute(select(*COLUMNS).where(File.id.in_(ids))))
        return [n for n, i in found if i is None], rows

    def enter(self, run_id: str, files: Sequence[NewFile], *, flight: str | None, device: str | None) -> list[Entered]:
        """Enter new versions, all of one route; their rows, also those that another run entered meanwhile."""
        if not files:
            return []
        now, route_id = now_ms(), files[0].route_id
        given = {
            "route_id": route_id, "bytes_done": 0, "attempt": 0, "tries": 0, "priority": 0, "run_id": run_id,
            "flight": flight, "device": device, "manifest_id": files[0].manifest_id, "queued_at": now, "updated_at": now,
        }  # fmt: skip
        columns = [c for c in _new.c if c.name != "n"]
        select_new = select(*columns, *(literal(v, File.__table__.c[k].type) for k, v in given.items())).where(
            true()
        )  # the grammar of SQLite wants a WHERE before ON CONFLICT
        if not self._sqlite:  # in one order everywhere: two runs that enter a page do not wait for each other crosswise
            select_new = select_new.order_by(_new.c.path, _new.c.size, _new.c.mtime_ns, _new.c.etag)
        with self._write() as c:
            self._fill(c, _new, [
                (
                    n, names.to_text(f.info.path), f.info.size, f.info.mtime_ns, f.info.etag, f.state,
                    f.failure.kind if f.failure else None, f.stage, message_of(f.failure),
                    None if f.dest_path is None else names.to_text(f.dest_path),
                )
                for n, f in enumerate(files)
            ])  # fmt: skip
            c.execute(
                self._insert(File)
                .from_select([*(k.name for k in columns), *given], select_new)
                .on_conflict_do_nothing()
            )
            found = c.execute(
                select(File.id, File.state, File.attempt)
                .select_from(_new.join(File, self._same_version(route_id, _new)))
                .order_by(_new.c.n)
            ).all()
        return [Entered(*r) for r in found]

    def requeue(self, run_id: str, rows: Sequence[Row]) -> list[Row]:
        """Put rows that failed or were blocked back into the queue; those that are still as they were seen."""
        if not rows:
            return []
        check_moves({(r.state, State.QUEUED) for r in rows})
        moved: set[int] = set()
        pages = [(state, page) for state in sorted({r.state for r in rows} - ACTIVE)
                 for page in _pages([r.id for r in rows if r.state is state])]  # fmt: skip
        with self._write() as c:
            self._lock_ids(c, [r.id for r in rows])
            for state, page in pages:
                moved |= set(c.execute(
                    update(File).where(File.id.in_(page), File.state == state)
                    .values(state=State.QUEUED, run_id=run_id, tries=0, next_attempt_at=None, queued_at=now_ms(),
                            updated_at=now_ms())
                    .returning(File.id)
                ).scalars())  # fmt: skip
        return [r._replace(state=State.QUEUED, tries=0) for r in rows if r.id in moved]

    def mark_seen(self, run_id: str, rows: Sequence[Row]) -> None:
        """Note that this run's listing still shows these versions, which nobody works on."""
        with self._write() as c:
            for page in self._lock_ids(c, [r.id for r in rows]):
                c.execute(update(File).where(File.id.in_(page), File.state.not_in(ACTIVE)).values(run_id=run_id))

    def gone(self, route_id: int, run_id: str) -> Iterator[list[tuple[Row, bool]]]:
        """Pages of rows that wait for a file which a complete listing by `run_id` did not show.

        With each, whether a newer version of its path is known. Rows of other runs that are alive are not among
        them: their listing may be younger. The caller moves the rows on before it asks for the next page.
        """
        gone, newer = aliased(File), aliased(File)
        alive = select(Run.id).where(Run.ended_at.is_(None), Run.id != run_id)
        newer_version = select(newer.id).where(
            newer.route_id == route_id, newer.path == gone.path, newer.id > gone.id
        ).exists()  # fmt: skip
        waiting = or_(
            gone.state == State.QUEUED,
            and_(gone.etag == PROBLEM, gone.state.in_((State.FAILED, State.BLOCKED))),
        )
        while True:
            with self._read() as c:
                found = c.execute(
                    select(*[getattr(gone, name) for name in Row._fields], newer_version)
                    .where(
                        gone.route_id == route_id, waiting,
                        or_(gone.run_id.is_(None), and_(gone.run_id != run_id, gone.run_id.not_in(alive))),
                    ).limit(1000)
                ).all()  # fmt: skip
            if not found:
                return
            yield [(row_of(r[:-1]), bool(r[-1])) for r in found]

    # -- files: claim and finish --------------------------------------------------------------------------------------

    def claim(self, run_id: str, row_ids: Sequence[int], to: State = State.DELIVERING) -> dict[int, Claim]:
        """Take queued rows, in one statement a page: those that were free."""
        taken: dict[int, Claim] = {}
        free = sources(to) & {State.QUEUED, State.FETCHED, State.PROCESSED}
        with self._write() as c:
            self._renew(c, run_id)  # whoever holds rows has a lease
            for page in self._lock_ids(c, row_ids):
                taken |= {r.id: Claim(*r) for r in c.execute(
                    update(File).where(File.id.in_(page), File.state.in_(free))
                    .values(state=to, attempt=File.attempt + 1, run_id=run_id, updated_at=now_ms())
                    .returning(File.id, File.attempt, File.tries, File.queued_at)
                )}  # fmt: skip
        return taken

    def still_queued(self, row_ids: Sequence[int]) -> bool:
        """Whether any of these rows waits to be moved."""
        with self._read() as c:
            return any(
                c.execute(select(File.id).where(File.id.in_(page), File.state == State.QUEUED).limit(1)).first()
                for page in _pages(row_ids)
            )

    def finish(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write what became of claimed rows, in one transaction; the ids that were still ours.

        A row whose attempt is another by now, or whose state does not allow the move, is not touched.
        """
        if not outcomes:
            return set()
        now = now_ms()
        written: set[int] = set()
        with self._write() as c:
            self._fill(c, _done, [
                (
                    o.id, o.attempt, o.state, o.failure.kind if o.failure else None, o.stage,
                    message_of(o.failure), None if o.dest_path is None else names.to_text(o.dest_path),
                    o.sha256, o.verified_by, o.bytes_done, o.tries, o.next_attempt_at,
                )
                for o in outcomes
            ])  # fmt: skip
            self._lock_ids(c, [o.id for o in outcomes])
            for state in {o.state for o in outcomes}:
                written |= set(c.execute(
                    update(File)
                    .where(File.id == _done.c.id, File.attempt == _done.c.attempt, _done.c.state == state,
                           File.state.in_(sources(state) & ACTIVE))
                    .values(
                        state=_done.c.state, kind=_done.c.kind, stage=_done.c.stage, message=_done.c.message,
                        dest_path=func.coalesce(_done.c.dest_path, File.dest_path), sha256=_done.c.sha256,
                        verified_by=_done.c.verified_by, bytes_done=_done.c.bytes_done, tries=_done.c.tries,
                        next_attempt_at=_done.c.next_attempt_at, updated_at=now,
                        done_at=now if state in DONE else None,
                    )
                    .returning(File.id)
                ).scalars())  # fmt: skip
            changed = c.execute(
                select(File.manifest_id).distinct().where(
                    File.id == _done.c.id, File.attempt == _done.c.attempt, File.state == State.VERIFIED,
                    File.manifest_id.is_not(None),
                )
            ).scalars().all()  # fmt: skip
            for manifest_id in sorted(m for m in changed if m is not None):
                c.execute(update(Manifest).where(Manifest.id == manifest_id).values(version=Manifest.version + 1))
        return written

    def settle_rows(self, rows: Sequence[Row], state: State, failure: OnblockError, stage: str) -> None:
        """Move rows that nobody holds aside, with the reason."""
        check_moves({(r.state, state) for r in rows})
        with self._write() as c:
            for row in sorted(rows):
                c.execute(
                    update(File).where(File.id == row.id, File.state == row.state, File.attempt == row.attempt)
                    .values(state=state, kind=failure.kind, message=message_of(failure), stage=stage, updated_at=now_ms())
                )  # fmt: skip

    def known_content(self, route_id: int, sha256: str) -> str | None:
        """Where on this route the same content was delivered, if it was."""
        with self._read() as c:
            path = c.execute(
                select(File.dest_path).where(
                    File.sha256 == sha256, File.route_id == route_id, File.state == State.VERIFIED
                ).limit(1)
            ).scalar()  # fmt: skip
        return None if path is None else names.from_text(path)

    # -- manifests ----------------------------------------------------------------------------------------------------

    def manifest(self, destination: str, path: str) -> int:
        """The id of a manifest, made at need."""
        text = names.to_text(path)
        with self._write() as c:
            self._insert_new(c, Manifest, [{"destination": destination, "path": text, "version": 0, "written": 0}])
            return c.execute(
                select(Manifest.id).where(Manifest.destination == destination, Manifest.path == text)
            ).scalar_one()

    def claim_manifest(self, destination: str, run_id: str) -> tuple[int, str, int] | None:
        """(id, path, version) of a manifest that is behind the ledger and that nobody alive is writing."""
        writer = aliased(Run)
        behind = (
            select(Manifest.id, Manifest.path, Manifest.version, writer.worker)
            .outerjoin(writer, writer.id == Manifest.writer)
            .where(
                Manifest.destination == destination, Manifest.written < Manifest.version,
                or_(Manifest.writer.is_(None), Manifest.writer == run_id, writer.ended_at.is_not(None),
                    writer.heartbeat_at < now_ms() - LEASE_MS),
            ).limit(1)
        )  # fmt: skip
        with self._write() as c:
            if not self._sqlite:
                behind = behind.with_for_update(of=Manifest)
            found = c.execute(behind).one_or_none()
            if found is None:
                return None
            c.execute(update(Manifest).where(Manifest.id == found.id).values(writer=run_id))
            return found.id, names.from_text(found.path), found.version

    def manifest_written(self, manifest_id: int, run_id: str, version: int) -> None:
        """The file on the destination now holds `version`."""
        with self._write() as c:
            c.execute(
                update(Manifest).where(Manifest.id == manifest_id, Manifest.writer == run_id)
                .values(written=version, writer=None)
            )  # fmt: skip

    def manifest_lines(self, manifest_id: int) -> Iterator[tuple[str, str]]:
        """(dest_path, sha256) of all verified files of a manifest, in the order of the path's text, streaming."""
        key = File.dest_path if self._sqlite else File.dest_path.collate("C")
        last: str | None = None
        query = (
            select(File.dest_path, File.sha256)
            .where(
                File.manifest_id == manifest_id, File.state.in_((State.VERIFIED, State.CLEANUP_ELIGIBLE, State.CLEANED))
            )
            .order_by(key, File.done_at.desc(), File.id.desc())
        )
        with self._read() as c:
            for path, sha256 in c.execution_options(yield_per=2000).execute(query):
                if path != last and sha256 is not None:  # a replaced file: what was delivered last
                    yield names.from_text(path), sha256
                last = path

    # -- looking ------------------------------------------------------------------------------------------------------

    def files(
        self, *, job: str | None = None, states: Iterable[State] = (), run_id: str | None = None,
        route_id: int | None = None, limit: int | None = None, after: int = 0,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Rows as mappings of all columns and the route's job and destination, by id, in pages of a bounded size."""
        while limit is None or limit > 0:
            query = (
                select(File.__table__, Route.job, Route.destination)
                .join(Route, Route.id == File.route_id)
                .where(File.id > after).order_by(File.id).limit(min(1000, limit or 1000))
            )  # fmt: skip
            for column, value in ((Route.job, job), (File.run_id, run_id), (File.route_id, route_id)):
                if value is not None:
                    query = query.where(column == value)
            if states:
                query = query.where(File.state.in_(list(states)))
            with self._read() as c:
                page = [dict(r) for r in c.execute(query).mappings()]
            for row in page:
                row["path"] = names.from_text(row["path"])
                row["dest_path"] = None if row["dest_path"] is None else names.from_text(row["dest_path"])
                yield row
            if not page:
                return
            after = page[-1]["id"]
            limit = None if limit is None else limit - len(page)

    def counts(self, job: str | None = None) -> list[tuple[str, str, str, int, int]]:
        """(job, destination, state, files, bytes) for all routes, or those of one job."""
        query = (
            select(Route.job, Route.destination, File.state, func.count(), func.sum(File.size))
            .join(Route, Route.id == File.route_id).group_by(Route.job, Route.destination, File.state)
            .order_by(Route.job, Route.destination, File.state)
        )  # fmt: skip
        if job is not None:
            query = query.where(Route.job == job)
        with self._read() as c:
            return [(j, d, s, n, int(b or 0)) for j, d, s, n, b in c.execute(query)]

    def ask_again(self, ids: Sequence[int]) -> int:
        """Queue rows once more on somebody's wish, at once: delivered and deferred ones too; how many could be."""
        allowed = sources(State.QUEUED) - ACTIVE | {State.QUEUED}
        count = 0
        with self._write() as c:
            for page in self._lock_ids(c, ids):
                count += c.execute(
                    update(File).where(File.id.in_(page), File.state.in_(allowed))
                    .values(state=State.QUEUED, tries=0, next_attempt_at=None, kind=None, message=None, stage=None,
                            queued_at=now_ms(), updated_at=now_ms())
                ).rowcount  # fmt: skip
        return count

    def was_replaced(self, row_id: int, route_id: int, dest_path: str) -> bool:
        """Whether a later row was delivered to the same final name."""
        with self._read() as c:
            return bool(c.execute(
                select(File.id).where(
                    File.route_id == route_id, File.dest_path == names.to_text(dest_path), File.id != row_id,
                    File.done_at >= select(File.done_at).where(File.id == row_id).scalar_subquery(),
                    File.state.in_((State.VERIFIED, State.CLEANUP_ELIGIBLE, State.CLEANED)),
                ).limit(1)
            ).scalar())  # fmt: skip

    def mark_damaged(self, row_id: int, failure: OnblockError) -> None:
        """A delivered file is not what was delivered: quarantined, until somebody asks for it again."""
        with self._write() as c:
            c.execute(
                update(File).where(File.id == row_id, File.state.in_(sources(State.QUARANTINED) - ACTIVE))
                .values(state=State.QUARANTINED, kind=failure.kind, message=message_of(failure), stage="verify",
                        done_at=None, updated_at=now_ms())
            )  # fmt: skip

    # -- the database -------------------------------------------------------------------------------------------------

    @staticmethod
    def _same_version(route_id: int, page: Table) -> Any:
        return and_(
            File.route_id == route_id, File.path == page.c.path, File.size == page.c.size,
            File.mtime_ns == page.c.mtime_ns, File.etag == page.c.etag,
        )  # fmt: skip

    def _fill(self, c: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
        """Put rows into a temporary table of this connection, at the driver's own speed."""
        c.execute(CreateTable(table, if_not_exists=True))
        c.exec_driver_sql(f"DELETE FROM {table.name}")
        marks = ", ".join([self._placeholder] * len(table.columns))
        if rows:
            c.exec_driver_sql(f"INSERT INTO {table.name} VALUES ({marks})", rows)

    def _lock(self, c: Connection, which: Any) -> None:
        """Take the locks of rows in one order everywhere, so that no two writers wait for each other crosswise."""
        if not self._sqlite:  # whose writer is alone
            c.execute(select(File.id).where(which).order_by(File.id).with_for_update(key_share=True))

    def _lock_ids(self, c: Connection, ids: Iterable[int]) -> list[Sequence[int]]:
        """The same for rows by id; the ids in pages."""
        pages = list(_pages(sorted(ids)))
        for page in pages:
            self._lock(c, File.id.in_(page))
        return pages

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

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with told(), self.engine.begin() as c:
            yield c

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction that will write: SQLite takes its lock at once, so that it never has to fail half-way."""
        with told(), self.engine.connect().execution_options(onblock_write=True) as c, c.begin():
            yield c


def _pages(ids: Sequence[int], size: int = 4000) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


__all__ = [
    "HEARTBEAT_S",
    "LEASE_MS",
    "PROBLEM",
    "Claim",
    "Ledger",
    "NewFile",
    "Outcome",
    "Row",
    "default_url",
    "now_ms",
]
