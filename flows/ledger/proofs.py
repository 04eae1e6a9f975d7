"""What is proven of delivered files, and who may clean up after them: verify passes, cleanup claims, what was removed.

A row that is CLEANUP_ELIGIBLE belongs to the cleanup that claimed it: nobody else moves it, and when that one has died
the next cleanup takes it over. What may be cleaned, and how, is decided in `flows/upkeep/clean.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    and_,
    bindparam,
    case,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import aliased

from blocks import names
from blocks.errors import OnblockError
from blocks.storage.base import FileInfo
from flows.ledger.connections import TEMPORARY, Connections, now_ms, pages
from flows.ledger.models import File, Manifest, Product, Run
from flows.ledger.rows import message_of
from flows.ledger.states import State, check_moves

APART_MS = 3_600_000
"""Two verify passes of a file are at least so far apart, unless a job says otherwise."""
MISSED = "?"
"""The journal of a delivered row whose source file was not found after a cleanup that had it in hand had died: another
card may have been in. The file may lie aside on the right one, so that each cleanup looks for it."""
KEPT = (State.VERIFIED, State.CLEANED)
"""States of rows whose file is at its final name, and that no cleanup works on."""

_wanted = Table(
    "wanted", MetaData(), Column("n", Integer), Column("path", Text), Column("size", BigInteger),
    Column("mtime_ns", BigInteger), Column("etag", Text), **TEMPORARY,
)  # fmt: skip


class Proof(NamedTuple):
    """What is known of one delivered file at one destination. `manifest` is the path of the list it stands in."""

    id: int
    route_id: int
    path: str
    size: int
    mtime_ns: int
    etag: str
    state: State
    attempt: int
    dest_path: str
    sha256: str | None
    verify_passes: int
    proven_at: int | None
    done_at: int | None
    findings: str | None  # JSON, of the gate
    manifest: str | None
    backup: str | None = None
    made: tuple[Proof, ...] = ()  # what was made of it, which is delivered in its stead

    @property
    def delivered(self) -> tuple[Proof, ...]:
        """What lies at the destination for it: itself, or what was made of it."""
        return self.made or (self,)

    @property
    def version(self) -> tuple[int, int, str]:
        """The fingerprint of the source file that was delivered."""
        return (self.size, self.mtime_ns, self.etag)


_COLUMNS = (
    File.id, File.route_id, File.path, File.size, File.mtime_ns, File.etag, File.state, File.attempt, File.dest_path,
    File.sha256, File.verify_passes, File.proven_at, File.done_at, File.findings, Manifest.path.label("manifest"),
)  # fmt: skip


def _proof(row: Row[Any]) -> Proof:
    proof = Proof(*row[: len(_COLUMNS)])
    return proof._replace(
        path=names.from_text(proof.path), state=State(proof.state), dest_path=names.from_text(proof.dest_path or ""),
        manifest=None if proof.manifest is None else names.from_text(proof.manifest),
    )  # fmt: skip


def proofs_by_id(c: Any, ids: Sequence[int]) -> list[Proof]:
    """What is known of these rows, in no order."""
    query = select(*_COLUMNS).outerjoin(Manifest, Manifest.id == File.manifest_id)
    return _with_made(c, [_proof(r) for page in pages(ids) for r in c.execute(query.where(File.id.in_(page)))])


def _with_made(c: Any, proofs: Sequence[Proof]) -> list[Proof]:
    """The same, with what was made of those that have no final name of their own."""
    made: dict[int, list[Proof]] = {p.id: [] for p in proofs if not p.dest_path}
    for page in pages(sorted(made)):
        for row in c.execute(
            select(*_COLUMNS, Product.origin_id).join(Product, Product.product_id == File.id)
            .outerjoin(Manifest, Manifest.id == File.manifest_id).where(Product.origin_id.in_(page)).order_by(File.id)
        ):  # fmt: skip
            made[row.origin_id].append(_proof(row))
    return [p._replace(made=tuple(made[p.id])) if p.id in made else p for p in proofs]


class Proofs(Connections):
    """Proofs of a ledger."""

    def clock(self) -> int:
        """What the clock of the ledger says, in ms: ages of rows are judged by it."""
        with self._read() as c:
            return self._now(c)

    def proofs_of(self, route_ids: Sequence[int], page: Sequence[FileInfo]) -> list[list[Proof]]:
        """For each file version of a page, its rows on these routes. One query."""
        found: list[list[Proof]] = [[] for _ in page]
        with self._read() as c:
            self._fill(c, _wanted, [(n, names.to_text(f.path), f.size, f.mtime_ns, f.etag) for n, f in enumerate(page)])
            rows = c.execute(
                select(*_COLUMNS, _wanted.c.n)
                .select_from(_wanted.join(File, and_(
                    File.path == _wanted.c.path, File.size == _wanted.c.size, File.mtime_ns == _wanted.c.mtime_ns,
                    File.etag == _wanted.c.etag, File.route_id.in_(route_ids),
                )).outerjoin(Manifest, Manifest.id == File.manifest_id))
                .order_by(_wanted.c.n, File.route_id)
            )  # fmt: skip
            for row in rows:
                found[row.n].append(_proof(row))
            return [_with_made(c, group) for group in found]

    def longest_unproven(self, route_id: int, most: int) -> list[Proof]:
        """Delivered files of a route, those that nobody has looked at for longest first; at most so many."""
        with self._read() as c:
            return [_proof(r) for r in c.execute(
                select(*_COLUMNS).outerjoin(Manifest, Manifest.id == File.manifest_id)
                .where(File.route_id == route_id, File.state.in_(KEPT), File.sha256.is_not(None),
                       File.dest_path.is_not(None))
                .order_by(func.coalesce(File.proven_at, 0), File.done_at, File.id).limit(most)
            )]  # fmt: skip

    def count_kept(self, route_id: int) -> int:
        """How many files of a route there are to be proven."""
        with self._read() as c:
            return c.execute(
                select(func.count()).where(
                    File.route_id == route_id,
                    File.state.in_(KEPT),
                    File.sha256.is_not(None),
                    File.dest_path.is_not(None),
                )
            ).scalar_one()

    def proven(self, seen: Iterable[tuple[int, int]], apart_ms: int = APART_MS) -> None:
        """Somebody has just looked at these delivered files, (row, attempt) each, and found what was delivered.

        That is a verify pass, if the last look (or the delivery) was at least `apart_ms` ago. One transaction.
        """
        looked = [{"row": i, "held": attempt} for i, attempt in seen]
        if not looked:
            return
        with self._write() as c:
            now = self._now(c)
            due = func.coalesce(File.proven_at, File.done_at) <= now - apart_ms
            self._lock_ids(c, [v["row"] for v in looked])
            c.execute(
                update(File)
                .where(File.id == bindparam("row"), File.attempt == bindparam("held"),
                       or_(*(File.state == s for s in KEPT)),
                       or_(due, File.proven_at.is_(None)))
                .values(verify_passes=File.verify_passes + case((due, 1), else_=0), proven_at=now),
                looked,
            )  # fmt: skip

    def made_of(self, product_id: int) -> list[Proof]:
        """The rows of what a product was made of; none if it is none."""
        with self._read() as c:
            ids = c.execute(select(Product.origin_id).where(Product.product_id == product_id)).scalars()
            return proofs_by_id(c, list(ids))

    def queue_again(self, run_id: str, proofs: Iterable[Proof]) -> set[int]:
        """Have quarantined files sent again, whose source has them still; those that are still quarantined."""
        check_moves([(State.QUARANTINED, State.QUEUED)])
        moved: set[int] = set()
        with self._write() as c:
            for page in self._lock_ids(c, [proof.id for proof in proofs]):
                now = now_ms()
                moved |= set(c.execute(
                    update(File).where(File.id.in_(page), File.state == State.QUARANTINED)
                    .values(state=State.QUEUED, run_id=run_id, tries=0, next_attempt_at=None, journal=None, queued_at=now,
                            updated_at=now)
                    .returning(File.id)
                ).scalars())  # fmt: skip
            for page in pages(sorted(moved)):  # what they were made of is made anew, or is still in the spool
                c.execute(
                    update(File)
                    .where(File.id.in_(select(Product.origin_id).where(Product.product_id.in_(page))),
                           File.state == State.VERIFIED)
                    .values(state=State.QUEUED, run_id=run_id, tries=0, next_attempt_at=None, queued_at=now_ms(),
                            done_at=None, updated_at=now_ms())
                )  # fmt: skip
        return moved

    # -- cleanup ------------------------------------------------------------------------------------------------------

    def claim_cleanup(
        self, run_id: str, route_ids: Sequence[int], row_ids: Sequence[int], *, min_passes: int, min_age_ms: int
    ) -> list[Proof]:
        """Take rows for a cleanup, in the statement that decides: verified, looked at often enough, old enough, in a
        manifest, and so on every one of the routes. Those that were free."""
        check_moves([(State.VERIFIED, State.CLEANUP_ELIGIBLE)])
        other = aliased(File)
        taken: list[Proof] = []
        with self._write() as c:
            now = self._now(c)
            everywhere = (
                select(func.count())
                .where(other.route_id.in_(route_ids), other.path == File.path, other.size == File.size,
                       other.mtime_ns == File.mtime_ns, other.etag == File.etag, other.sha256 == File.sha256,
                       _ready(other, now, min_passes, min_age_ms))
                .scalar_subquery()
            )  # fmt: skip
            for page in self._lock_ids(c, row_ids):
                ids = list(c.execute(
                    update(File)
                    .where(File.id.in_(page), File.route_id.in_(route_ids), _ready(File, now, min_passes, min_age_ms),
                           everywhere == len(route_ids))
                    .values(state=State.CLEANUP_ELIGIBLE, attempt=File.attempt + 1, run_id=run_id, updated_at=now)
                    .returning(File.id)
                ).scalars())  # fmt: skip
                taken += proofs_by_id(c, ids)
        return taken

    def take_over_cleanups(self, run_id: str, route_ids: Sequence[int]) -> tuple[list[Proof], list[Proof]]:
        """Take what cleanups have left that are no longer alive (`recover` has ended those that died); and what was
        MISSED when it was looked for before."""
        alive = select(Run.id).where(Run.ended_at.is_(None), Run.id != run_id)
        mine = File.route_id.in_(route_ids)
        left = and_(mine, File.state == State.CLEANUP_ELIGIBLE, or_(File.run_id.is_(None), File.run_id.not_in(alive)))
        taken: list[list[Proof]] = []
        with self._write() as c:
            for which in (left, and_(mine, File.state == State.VERIFIED, File.journal == MISSED)):
                self._lock(c, which)
                taken.append(proofs_by_id(c, list(c.execute(
                    update(File).where(which)
                    .values(state=State.CLEANUP_ELIGIBLE, attempt=File.attempt + 1, run_id=run_id, updated_at=now_ms())
                    .returning(File.id)
                ).scalars())))  # fmt: skip
        return taken[0], taken[1]

    def holds_cleanup(self, run_id: str, claims: Iterable[Proof]) -> bool:
        """Whether all of these rows are still ours: asked in the moment before something is deleted."""
        held = {claim.id: claim.attempt for claim in claims}
        found: dict[int, int] = {}
        with self._read() as c:
            for page in pages(sorted(held)):
                mine = and_(File.id.in_(page), File.run_id == run_id, File.state == State.CLEANUP_ELIGIBLE)
                found.update((r.id, r.attempt) for r in c.execute(select(File.id, File.attempt).where(mine)))
        return found == held

    def cleaned(self, run_id: str, claims: Iterable[Proof]) -> set[int]:
        """The source files of these rows are gone, or in the `backup` they name. Those that were still ours."""
        return self._end_cleanup(run_id, claims, State.CLEANED)

    def spared(self, run_id: str, claims: Iterable[Proof], *, missed: bool = False) -> set[int]:
        """Nothing was done to the source files of these rows, as far as anybody knows of those that were `missed`."""
        return self._end_cleanup(run_id, claims, State.VERIFIED, MISSED if missed else None)

    def _end_cleanup(
        self, run_id: str, claims: Iterable[Proof], to: State, journal: str | None = None
    ) -> set[int]:  # fmt: skip
        check_moves([(State.CLEANUP_ELIGIBLE, to)])
        written: set[int] = set()
        claims = sorted(claims)
        if not claims:
            return written
        with self._write() as c:
            self._lock_ids(c, [claim.id for claim in claims])
            for claim in claims:
                if to is State.CLEANED:
                    journal = None if claim.backup is None else names.to_text(claim.backup)
                if c.execute(
                    update(File).where(_ours(run_id, claim)).values(state=to, journal=journal, updated_at=now_ms())
                ).rowcount:
                    written.add(claim.id)
        return written

    def condemn_cleanup(self, run_id: str, claims: Iterable[tuple[Proof, OnblockError]]) -> None:
        """Rows of ours whose file at the destination is not what was delivered."""
        check_moves([(State.CLEANUP_ELIGIBLE, State.QUARANTINED)])
        claims = sorted(claims, key=lambda pair: pair[0].id)
        if not claims:
            return
        with self._write() as c:
            for claim, failure in claims:
                c.execute(
                    update(File).where(_ours(run_id, claim))
                    .values(state=State.QUARANTINED, kind=failure.kind, message=message_of(failure), stage="clean",
                            done_at=None, verify_passes=0, proven_at=None, updated_at=now_ms())
                )  # fmt: skip

    # -- backups ------------------------------------------------------------------------------------------------------

    def backups(self, route_ids: Sequence[int]) -> Iterator[Proof]:
        """Rows whose source file lies in a backup folder, by id, in pages."""
        after = 0
        query = (
            select(*_COLUMNS, File.journal).outerjoin(Manifest, Manifest.id == File.manifest_id)
            .where(File.route_id.in_(route_ids), File.state == State.CLEANED, File.journal.is_not(None))
            .order_by(File.id).limit(1000)
        )  # fmt: skip
        while True:
            with self._read() as c:
                found = c.execute(query.where(File.id > after)).all()
            if not found:
                return
            after = found[-1].id
            for row in found:
                yield _proof(row)._replace(backup=names.from_text(row.journal))

    def missed(self, route_ids: Sequence[int]) -> list[Proof]:
        """Rows whose source file a killed cleanup had in hand, and that was not found since."""
        with self._read() as c:
            which = and_(File.route_id.in_(route_ids), File.state == State.VERIFIED, File.journal == MISSED)
            return proofs_by_id(c, list(c.execute(select(File.id).where(which).order_by(File.id)).scalars()))

    def forget_missed(self, proofs: Iterable[Proof]) -> None:
        """Nobody looks for the source files of these rows any more."""
        with self._write() as c:
            for page in self._lock_ids(c, [proof.id for proof in proofs]):
                mine = and_(File.id.in_(page), File.state == State.VERIFIED, File.journal == MISSED)
                c.execute(update(File).where(mine).values(journal=None))

    def backup_gone(self, claims: Iterable[Proof]) -> None:
        """The backups of these rows are no more."""
        with self._write() as c:
            for page in self._lock_ids(c, [claim.id for claim in claims]):
                c.execute(update(File).where(File.id.in_(page), File.state == State.CLEANED).values(journal=None))


def _ready(file: Any, now: int, min_passes: int, min_age_ms: int) -> ColumnElement[bool]:
    """`flows.upkeep.clean.may_be_cleaned` in SQL."""
    made = aliased(File)
    whole = _ready_itself(made, now, min_passes, min_age_ms)
    links = select(Product.product_id).join(made, made.id == Product.product_id).where(Product.origin_id == file.id)
    by_products = and_(
        file.state == State.VERIFIED, file.sha256.is_not(None), file.dest_path.is_(None), file.done_at <= now,
        links.exists(), ~links.where(~func.coalesce(whole, false())).exists(),
    )  # fmt: skip
    return or_(_ready_itself(file, now, min_passes, min_age_ms), by_products)


def _ready_itself(file: Any, now: int, min_passes: int, min_age_ms: int) -> ColumnElement[bool]:
    return and_(
        file.state == State.VERIFIED, file.sha256.is_not(None), file.manifest_id.is_not(None),
        file.dest_path.is_not(None), file.verify_passes >= min_passes, file.done_at <= now,
        file.done_at <= now - min_age_ms, file.proven_at <= now,
    )  # fmt: skip


def _ours(run_id: str, claim: Proof) -> ColumnElement[bool]:
    return and_(
        File.id == claim.id, File.attempt == claim.attempt, File.run_id == run_id,
        File.state == State.CLEANUP_ELIGIBLE,
    )  # fmt: skip
