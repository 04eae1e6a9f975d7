"""Rows of the ledger: entered, claimed, finished, set aside; in pages, one transaction each, never one per small file.

The statements that may change a row are here, beside each other, so that the order of locks and the fencing can be
checked by reading; only the one that frees the rows of dead runs is in `runs.py`. Every one of them names what it saw
of the row, a claimed one by its attempt: a row that somebody else has changed since is left alone (fencing), and the
caller is told. A `Ledger` is shared by the threads of a process. What is decided with the rows is in `flows/transfer`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, Self

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    true,
    update,
)  # fmt: skip
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import aliased

from blocks import names
from blocks.errors import ConfigError, Kind, OnblockError
from blocks.home import home
from blocks.storage.base import FileInfo
from flows.ledger import migrate
from flows.ledger.berths import Berths
from flows.ledger.connections import TEMPORARY, now_ms, pages
from flows.ledger.database import HOW_TO_NAME_IT, make_engine
from flows.ledger.looking import Looking
from flows.ledger.manifests import Manifests
from flows.ledger.models import File, Identity, Manifest, Product, Route, Run
from flows.ledger.offers import Offers
from flows.ledger.overrides import Overrides
from flows.ledger.patience import PATIENCE_S, once_more
from flows.ledger.products import BY_PRODUCTS, Products
from flows.ledger.proofs import Proofs
from flows.ledger.retiring import Retiring
from flows.ledger.rows import COLUMNS, MADE, Claim, Entered, Judged, NewFile, Outcome, Row, message_of, row_of
from flows.ledger.runs import HEARTBEAT_S, LEASE_MS, crew
from flows.ledger.states import ACTIVE, CLEANING, DONE, State, check_moves, sources
from flows.ledger.turns import Turns
from flows.ledger.wishes import CLEAR, Wish, Wishes, fulfil, with_products

PROBLEM = "!problem"
"""The etag of rows that stand for something that cannot be taken: a socket, a folder that cannot be read."""

_temp = MetaData()
_seen = Table(
    "seen", _temp, Column("n", Integer), Column("path", Text), Column("size", BigInteger),
    Column("mtime_ns", BigInteger), Column("etag", Text), **TEMPORARY,
)  # fmt: skip
_new = Table(
    "entering", _temp, Column("n", Integer), Column("path", Text), Column("size", BigInteger),
    Column("mtime_ns", BigInteger), Column("etag", Text), Column("state", String), Column("kind", String),
    Column("stage", String), Column("message", Text), Column("dest_path", Text), Column("findings", Text),
    **TEMPORARY,
)  # fmt: skip
_done = Table(
    "outcome", _temp, Column("id", BigInteger), Column("attempt", Integer), Column("state", String),
    Column("kind", String), Column("stage", String), Column("message", Text), Column("dest_path", Text),
    Column("sha256", String), Column("verified_by", String), Column("bytes_done", BigInteger),
    Column("tries", Integer), Column("next_attempt_at", BigInteger), Column("journal", Text), **TEMPORARY,
)  # fmt: skip


_SET_ASIDE = (State.CANCELLED, State.BLOCKED)
"""Rows that keep nothing at the destination for a resume."""
_CLAIM = (File.id, File.attempt, File.tries, File.queued_at, File.journal)
FRESH_MS = 10 * 60_000
"""A row that was entered since then and never claimed is taken without being read."""
_STILL_PROVEN = and_(File.done_at.is_not(None), File.sha256.is_not(None), File.dest_path.is_not(None))
"""Of a row that was delivered, and asked for again: its delivery was never found wanting."""
_BACK = {
    "state": State.VERIFIED, "kind": None, "stage": None, "next_attempt_at": None,
    "message": "was asked for again, but the source does not have it any more: what was delivered before stays",
}  # fmt: skip


def _back(c: Connection, ids: Sequence[int], which: ColumnElement[bool]) -> set[int | None]:
    """Rows whose source is gone, and whose delivery, or that of everything made of them, was never found wanting, are
    as they were. The manifests they stand in."""
    made = aliased(File)
    whole = and_(made.done_at.is_not(None), made.sha256.is_not(None), made.dest_path.is_not(None))
    links = select(Product.product_id).join(made, made.id == Product.product_id).where(Product.origin_id == File.id)
    by_products = and_(
        File.verified_by == BY_PRODUCTS, File.done_at.is_not(None), links.exists(), ~links.where(~whole).exists()
    )
    back = c.execute(
        update(File).where(File.id.in_(ids), which, or_(_STILL_PROVEN, by_products)).values(_BACK)
        .returning(File.id, File.manifest_id, File.dest_path)
    ).all()  # fmt: skip
    manifests = {r.manifest_id for r in back}
    if origins := [r.id for r in back if r.dest_path is None]:
        theirs = select(Product.product_id).where(Product.origin_id.in_(origins))
        aside = (State.QUEUED, State.FAILED, State.CANCELLED)
        manifests |= set(c.execute(
            update(File).where(File.id.in_(theirs), File.state.in_(aside), _STILL_PROVEN).values(_BACK)
            .returning(File.manifest_id)
        ).scalars())  # fmt: skip
    return manifests


def _proof_after(state: State, now: int) -> dict[str, Any]:
    """What is proven of a row after an attempt. One that failed takes nothing from what was delivered before it."""
    if state in DONE:
        return {"sha256": _done.c.sha256, "verified_by": _done.c.verified_by, "done_at": now, "verify_passes": 0,
                "proven_at": None}  # fmt: skip
    if state is State.QUARANTINED:
        return {"sha256": _done.c.sha256, "verified_by": None, "done_at": None, "verify_passes": 0, "proven_at": None}
    return {}


def default_url() -> str:
    """ONBLOCK_LEDGER_URL, or SQLite in ONBLOCK_HOME."""
    return os.environ.get("ONBLOCK_LEDGER_URL") or f"sqlite:///{home() / 'ledger.db'}"


def engine_of(url: str, *, create: bool = True) -> Engine:
    """The database at a URL, its tables as they are. Raises ConfigError for one that is none."""
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "postgresql" and parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        return make_engine(parsed, create)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
        # without its cause: a mangled URL is quoted there, and the password may be anywhere in it
        why = "its port is no number" if type(error) is ValueError else error
        raise ConfigError(f"the ledger cannot be opened: {why}", remedy=HOW_TO_NAME_IT) from None


@once_more
class Ledger(Manifests, Berths, Turns, Offers, Looking, Wishes, Overrides, Proofs, Products, Retiring):
    """The database. Open it with `Ledger.open()`; close it, or use it as a context manager."""

    def __init__(self, engine: Engine):
        super().__init__(engine)
        self.identity = ""  # of this database, so that nothing cached outlives it

    @classmethod
    def open(cls, url: str | None = None, *, create: bool = True) -> Self:
        """Connect, and bring the tables up to date. Without `create`, a missing SQLite file is an empty ledger in memory."""
        ledger = cls(engine_of(url or default_url(), create=create))
        if not ledger._sqlite:  # an address that leads nowhere is told at once
            ledger.patience_s = 0.0
        try:
            with ledger._write() as connection:
                migrate.upgrade(connection)
                ledger.identity = connection.execute(select(Identity.id)).scalar_one()
            ledger.patience_s = PATIENCE_S
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

    def route(self, job: str, destination: str) -> int:
        """The id of a job's way to a destination, made at need."""
        found = select(Route.id).where(Route.job == job, Route.destination == destination)
        with self._write() as c:
            self._insert_new(c, Route, [{"job": job, "destination": destination, "created_at": now_ms()}])
            return c.execute(found).scalar_one()

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
            for ids in pages([i for _, i in found if i is not None]):
                rows += map(row_of, c.execute(select(*COLUMNS).where(self._among(File.id, ids))).all())
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
                    n, names.to_text(f.info.path), f.info.size, f.info.mtime_ns, f.info.etag, f.state.value,
                    f.failure.kind if f.failure else None, f.stage, f.said or message_of(f.failure),
                    None if f.dest_path is None else names.to_text(f.dest_path), f.findings,
                )
                for n, f in enumerate(files)
            ])  # fmt: skip
            c.execute(
                self._insert(File)
                .from_select([*(k.name for k in columns), *given], select_new)
                .on_conflict_do_nothing()
            )
            found = c.execute(
                select(File.id, File.state, File.attempt, File.dest_path)
                .select_from(_new.join(File, self._same_version(route_id, _new)))
                .order_by(_new.c.n)
            ).all()
        return [Entered(r[0], r[1], r[2], None if r[3] is None else names.from_text(r[3])) for r in found]

    def requeue(self, run_id: str, rows: Sequence[Row]) -> list[Row]:
        """Put rows that failed or were blocked back into the queue; those that are still as they were seen."""
        return self._requeue(run_id, rows, set()) if rows else []

    def _requeue(self, run_id: str, rows: Sequence[Row], before: set[int]) -> list[Row]:
        """`before` is filled with what was moved, in case nobody hears of the commit."""
        check_moves({(r.state, State.QUEUED) for r in rows})
        moved: set[int] = set()
        parts = [(state, page) for state in sorted({r.state for r in rows} - ACTIVE)
                 for page in pages([r.id for r in rows if r.state is state])]  # fmt: skip
        with self._write() as c:
            self._lock_ids(c, [r.id for r in rows])
            for state, page in parts:
                cured = {"kind": None, "message": None, "stage": None} if state is State.BLOCKED else {}
                moved |= set(c.execute(
                    update(File).where(File.id.in_(page), File.state == state)
                    .values(state=State.QUEUED, run_id=run_id, tries=0, next_attempt_at=None, queued_at=now_ms(),
                            updated_at=now_ms(), **cured)
                    .returning(File.id)
                ).scalars())  # fmt: skip
            if lost := before - moved:
                mine = and_(self._among(File.id, sorted(lost)), File.state == State.QUEUED, File.run_id == run_id)
                moved |= set(c.execute(select(File.id).where(mine)).scalars())
            before |= moved
        return [r._replace(state=State.QUEUED, tries=0) for r in rows if r.id in moved]

    def mark_seen(self, run_id: str, rows: Sequence[Row]) -> None:
        """Note that this run's listing still shows these versions, which nobody works on."""
        with self._write() as c:
            for page in self._lock_ids(c, [r.id for r in rows]):
                c.execute(
                    update(File).where(self._among(File.id, page), File.state.not_in(ACTIVE)).values(run_id=run_id)
                )

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
            found = self.read_all(
                select(*[getattr(gone, name) for name in Row._fields], newer_version)
                .where(
                    gone.route_id == route_id, waiting, gone.etag != MADE,
                    or_(gone.run_id.is_(None), and_(gone.run_id.not_in(crew(run_id)), gone.run_id.not_in(alive))),
                ).limit(1000)
            )  # fmt: skip
            if not found:
                return
            yield [(row_of(r[:-1]), bool(r[-1])) for r in found]

    def cancelled(self, route_id: int) -> Iterator[list[Row]]:
        """Pages of rows that were cancelled or blocked, of which something may lie at the destination. The caller clears
        them before it asks for the next page."""
        while True:
            found = self.read_all(
                select(*COLUMNS).where(
                    File.route_id == route_id, File.state.in_(_SET_ASIDE), File.journal.is_not(None)
                ).limit(1000)
            )  # fmt: skip
            if not found:
                return
            yield [row_of(r) for r in found]

    def cleared(self, rows: Sequence[Row]) -> None:
        """Nothing of these rows, which were cancelled or blocked, lies at the destination any more."""
        with self._write() as c:
            for page in self._lock_ids(c, [r.id for r in rows]):
                c.execute(update(File).where(File.id.in_(page), File.state.in_(_SET_ASIDE)).values(journal=None))

    # -- files: claim and finish --------------------------------------------------------------------------------------

    def claim(self, run_id: str, row_ids: Sequence[int], to: State = State.DELIVERING) -> dict[int, Claim]:
        """Take queued rows, in one statement a page: those that were free. `queued_at` of a row that is younger than
        `FRESH_MS` may be as late as now."""
        return self._claim(run_id, row_ids, to, {})

    def _claim(self, run_id: str, row_ids: Sequence[int], to: State, before: dict[int, Claim]) -> dict[int, Claim]:
        """`before` is filled with what was taken, in case nobody hears of the commit."""
        taken: dict[int, Claim] = {}
        free = sources(to) & {State.QUEUED, State.FETCHED, State.PROCESSED}
        with self._renewing(run_id) as c:  # whoever holds rows has a lease
            now = now_ms()
            for page in self._lock_ids(c, row_ids):
                among = self._among(File.id, page)
                take = (
                    update(File).where(among, File.state.in_(free))
                    .values(state=to, attempt=File.attempt + 1, run_id=run_id, updated_at=now)
                )  # fmt: skip
                if self._sqlite:  # nobody else writes meanwhile, and RETURNING costs as much as the rest
                    new = and_(
                        File.state == State.QUEUED, File.attempt == 0, File.tries == 0, File.journal.is_(None),
                        File.queued_at > now - FRESH_MS,
                    )  # fmt: skip
                    other = c.execute(select(*_CLAIM, File.state).where(among, ~new)).all()
                    claims = {i: Claim(i, 1, 0, now) for i in page} if State.QUEUED in free else {}
                    for r in other:
                        claims.pop(r.id, None)
                        if r.state in free:
                            claims[r.id] = Claim(r.id, r.attempt + 1, r.tries, r.queued_at, r.journal)
                    if c.execute(take).rowcount != len(claims):
                        there = set(c.execute(select(File.id).where(among)).scalars())
                        claims = {i: claim for i, claim in claims.items() if i in there}
                    taken |= claims
                else:
                    taken |= {r[0]: Claim._make(r) for r in c.execute(take.returning(*_CLAIM)).all()}
            if lost := before.keys() - taken.keys():
                mine = and_(self._among(File.id, sorted(lost)), File.state == to, File.run_id == run_id)
                for row_id, attempt in c.execute(select(File.id, File.attempt).where(mine)).all():
                    if attempt == before[row_id].attempt:
                        taken[row_id] = before[row_id]
            before |= taken
        return taken

    def note(self, claim: Claim, bytes_done: int, journal: str) -> bool:
        """Write down how far a large file is; whether the row is still ours."""
        with self._write() as c:
            mine = and_(File.id == claim.id, File.attempt == claim.attempt, File.state.in_(ACTIVE))
            noted = update(File).where(mine).values(bytes_done=bytes_done, journal=journal, updated_at=now_ms())
            return bool(c.execute(noted).rowcount)

    def finish(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write what became of claimed rows, in one transaction; the ids that were still ours.

        A row whose attempt is another by now, or whose state does not allow the move, is not touched.
        """
        return self._finish(outcomes, set()) if outcomes else set()

    def _finish(self, outcomes: Sequence[Outcome], before: set[int]) -> set[int]:
        """`before` is filled with what was written, in case nobody hears of the commit."""
        written: set[int] = set()
        with self._write() as c:
            now = self._now(c)  # of two deliveries to one final name, on two machines, the later one must show
            self._fill(c, _done, [
                (
                    o.id, o.attempt, o.state.value, o.failure.kind if o.failure else None, o.stage,
                    message_of(o.failure), None if o.dest_path is None else names.to_text(o.dest_path),
                    o.sha256, o.verified_by, o.bytes_done, o.tries, o.next_attempt_at, o.journal,
                )
                for o in outcomes
            ])  # fmt: skip
            self._lock_ids(c, [o.id for o in outcomes])
            changed: set[int | None] = set()  # manifests
            for state in {o.state for o in outcomes}:
                moved = c.execute(
                    update(File)
                    .where(File.id == _done.c.id, File.attempt == _done.c.attempt, _done.c.state == state,
                           File.state.in_(sources(state) & ACTIVE))
                    .values(
                        state=state, kind=_done.c.kind, stage=_done.c.stage, message=_done.c.message,
                        dest_path=func.coalesce(_done.c.dest_path, File.dest_path), bytes_done=_done.c.bytes_done,
                        tries=_done.c.tries, next_attempt_at=_done.c.next_attempt_at, journal=_done.c.journal,
                        updated_at=now, **_proof_after(state, now),
                    )
                    .returning(File.id, File.manifest_id)
                ).all()  # fmt: skip
                written.update(r[0] for r in moved)
                if state is State.VERIFIED:
                    changed.update(r[1] for r in moved)
            if judged := [{"row": o.id, "found": o.findings} for o in outcomes if o.findings and o.id in written]:
                c.execute(update(File).where(File.id == bindparam("row")).values(findings=bindparam("found")), judged)
            if any(o.failure is not None and o.failure.kind is Kind.SOURCE_VANISHED for o in outcomes):
                for page in pages(sorted(written)):
                    vanished = and_(File.state == State.FAILED, File.kind == Kind.SOURCE_VANISHED)
                    changed |= _back(c, page, vanished)
            wanted = written & set(c.execute(select(File.id).where(File.wish.is_not(None))).scalars())
            for page in pages(sorted(wanted)):
                fulfil(c, self._among(File.id, page))
            if len(written) < len(outcomes):  # a commit may have been lost on its way back, and this be the second time
                done = and_(File.sha256 == _done.c.sha256, File.state.in_(DONE))
                written |= set(c.execute(
                    select(File.id).where(
                        File.id == _done.c.id, File.attempt == _done.c.attempt, File.state == _done.c.state,
                        or_(done, self._among(File.id, sorted(before))),
                    )
                ).scalars())  # fmt: skip
            before |= written
            for manifest_id in sorted(m for m in changed if m is not None):
                c.execute(update(Manifest).where(Manifest.id == manifest_id).values(version=Manifest.version + 1))
        return written

    def settle_rows(self, settled: Sequence[tuple[Row, State, OnblockError]], stage: str) -> None:
        """Move rows that nobody holds aside, each with its reason; those that are still as they were seen."""
        if not settled:
            return
        check_moves({(row.state, state) for row, state, _ in settled})
        with self._write() as c:
            self._lock_ids(c, [row.id for row, _, _ in settled])
            c.execute(
                update(File)
                .where(File.id == bindparam("row"), File.state == bindparam("seen"), File.attempt == bindparam("held"))
                .values(state=bindparam("to"), kind=bindparam("why"), message=bindparam("said"), stage=stage,
                        updated_at=now_ms()),
                [
                    {"row": row.id, "seen": row.state, "held": row.attempt, "to": state, "why": failure.kind,
                     "said": message_of(failure)}
                    for row, state, failure in settled
                ],
            )  # fmt: skip
            for page in pages([row.id for row, _, _ in settled]):
                _back(c, page, File.state.in_((State.FAILED, State.CANCELLED)))
                with_products(c, page, Wish.CANCEL, "the run that did not find its file any more")

    def judged(self, judged: Sequence[Judged]) -> None:
        """Write down what the gate finds now of rows that wait or are blocked; those that are still as they were seen."""
        if not judged:
            return
        check_moves({(j.row.state, j.state) for j in judged if j.state is not j.row.state})
        now = now_ms()
        with self._write() as c:
            self._lock_ids(c, [j.row.id for j in judged])
            as_seen = update(File).where(
                File.id == bindparam("row"), File.state == bindparam("seen"), File.attempt == bindparam("held")
            ).values(findings=bindparam("found"), updated_at=now)  # fmt: skip
            stopped = as_seen.values(
                state=bindparam("to"),
                kind=bindparam("why"),
                message=bindparam("said"),
                stage=bindparam("at"),
                journal=case((File.attempt > 0, func.coalesce(File.journal, CLEAR)), else_=None),
            )
            for statement, rows in (
                (as_seen, [j for j in judged if j.failure is None]), (stopped, [j for j in judged if j.failure is not None]),
            ):  # fmt: skip
                if rows:
                    c.execute(statement, [
                        {
                            "row": j.row.id, "seen": j.row.state, "held": j.row.attempt, "found": j.findings,
                            "to": j.state, "why": j.failure and j.failure.kind, "said": message_of(j.failure), "at": j.stage,
                        }
                        for j in rows
                    ])  # fmt: skip

    def mark_damaged(self, damaged: Sequence[tuple[int, OnblockError]]) -> None:
        """Delivered files are not what was delivered: quarantined, until somebody asks for them again. One transaction.

        Not those that a cleanup works on, which sees for itself."""
        if not damaged:
            return
        with self._write() as c:
            self._lock_ids(c, [i for i, _ in damaged])
            c.execute(
                update(File)
                .where(File.id == bindparam("row"),
                       or_(*(File.state == s for s in sorted(sources(State.QUARANTINED) - ACTIVE - CLEANING))))
                .values(state=State.QUARANTINED, kind=bindparam("why"), message=bindparam("said"), stage="verify",
                        done_at=None, verify_passes=0, proven_at=None, updated_at=now_ms()),
                [{"row": i, "why": failure.kind, "said": message_of(failure)} for i, failure in damaged],
            )  # fmt: skip

    @staticmethod
    def _same_version(route_id: int, page: Table) -> Any:
        return and_(
            File.route_id == route_id, File.path == page.c.path, File.size == page.c.size,
            File.mtime_ns == page.c.mtime_ns, File.etag == page.c.etag,
        )  # fmt: skip


__all__ = [
    "HEARTBEAT_S",
    "LEASE_MS",
    "MADE",
    "PROBLEM",
    "Claim",
    "Judged",
    "Ledger",
    "NewFile",
    "Outcome",
    "Row",
    "default_url",
    "now_ms",
]
