"""What retention removes at a destination, in the ledger: which files are there, the oldest first, and who may remove one.

A row is RETIRED before its file is removed, and its `journal` says what it was until the file is gone: where a retention
dies in between, the next one finds it. What is removed, and how, is decided in `flows/upkeep/retire.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, func, or_, select, update

from blocks import names
from flows.ledger.connections import Connections, now_ms, pages
from flows.ledger.looking import DELIVERED, NAMED
from flows.ledger.models import File, Manifest, Product, Route, Run
from flows.ledger.proofs import Proof, proofs_by_id
from flows.ledger.states import State, check_moves

MAY_RETIRE = (State.VERIFIED, State.CLEANED, State.DUPLICATE)
NOTHING_THERE = (State.CANCELLED, State.FAILED, State.BLOCKED, State.RETIRED)
"""States of rows that do not count on what lies at their final name."""


class Kept(NamedTuple):
    """A delivered file, its age by `done_at` (ms since the epoch), and its bytes."""

    id: int
    done_at: int
    size: int


class Retiring(Connections):
    """Delivered files of a ledger, for those who remove them."""

    def weigh(self, route_id: int) -> tuple[int, int]:
        """How many files of a route there are at its destination, and their bytes."""
        latest = _latest(route_id)
        query = select(func.count(), func.coalesce(func.sum(latest.c.size), 0)).where(
            latest.c.rank == 1, latest.c.state.in_(DELIVERED)
        )
        with self._read() as c:
            files, size = c.execute(query).one()
        return int(files), int(size)

    def oldest(self, route_id: int) -> Iterator[Kept]:
        """These files, the first delivered first, streaming: to be read to its end, or closed, soon."""
        latest = _latest(route_id)
        query = (
            select(latest.c.id, latest.c.done_at, latest.c.size)
            .where(latest.c.rank == 1, latest.c.state.in_(DELIVERED))
            .order_by(latest.c.done_at, latest.c.id)
        )
        with self._read() as c:
            for row in c.execution_options(yield_per=2000).execute(query):
                yield Kept(*row)

    def delivered(self, row_ids: Sequence[int]) -> list[Proof]:
        """What is known of these rows, in the order of the ids; a backup of the source is named."""
        with self._read() as c:
            found = {p.id: p for p in proofs_by_id(c, row_ids)}
            for page in pages(row_ids):
                backups = select(File.id, File.journal).where(
                    File.id.in_(page), File.state == State.CLEANED, File.journal.is_not(None)
                )
                for row in c.execute(backups):
                    found[row.id] = found[row.id]._replace(backup=names.from_text(row.journal or ""))
        return [found[i] for i in row_ids if i in found]

    def origins_of(self, row_id: int) -> list[Proof]:
        """The rows of what a file was made of; none if it was delivered as it was."""
        with self._read() as c:
            made_of = c.execute(select(Product.origin_id).where(Product.product_id == row_id))
            return sorted(proofs_by_id(c, list(made_of.scalars())))

    def retire(self, run_id: str, route_id: int, proofs: Sequence[Proof]) -> dict[int, list[int]]:
        """Take delivered files out of the books, before they are removed: of those that could be, all rows that speak of
        their final name, by the row that was given.

        Not one that has moved since it was looked at, and not one whose final name another row counts on: of another job
        with the same destination, of a version that is on its way, of a source file that lies in a backup folder.
        """
        check_moves((s, State.RETIRED) for s in MAY_RETIRE)
        taken: dict[int, list[int]] = {}
        wanted = {names.to_text(p.dest_path): p for p in proofs}
        with self._write() as c:
            place = select(Route.destination).where(Route.id == route_id).scalar_subquery()
            speaks = and_(  # one scan a page: there is no index on final names
                File.route_id.in_(select(Route.id).where(Route.destination == place)), File.dest_path.in_(list(wanted)),
            )  # fmt: skip
            self._lock(c, speaks)
            about: dict[str, list[Any]] = {path: [] for path in wanted}
            for row in c.execute(
                select(File.id, File.route_id, File.dest_path, File.state, File.attempt, File.journal, File.done_at)
                .where(speaks).order_by(File.id)
            ):  # fmt: skip
                about[row.dest_path].append(row)
            for path, rows in about.items():
                mine = _mine(wanted[path], rows)
                if mine:
                    taken[wanted[path].id] = mine
            ids = [i for mine in taken.values() for i in mine]
            for page in pages(ids):
                c.execute(
                    update(File).where(File.id.in_(page), File.state.in_(MAY_RETIRE))
                    .values(state=State.RETIRED, journal=File.state, run_id=run_id, attempt=File.attempt + 1,
                            updated_at=now_ms())
                )  # fmt: skip
            _changed(c, ids)
        return taken

    def holds_retired(self, run_id: str, row_ids: Sequence[int]) -> bool:
        """Whether all of these rows are still ours: asked before something is removed."""
        found = 0
        with self._read() as c:
            for page in pages(row_ids):
                ours = and_(File.id.in_(page), *_in_hand(run_id))
                found += c.execute(select(func.count()).where(ours)).scalar_one()
        return found == len(row_ids)

    def retired(self, run_id: str, row_ids: Iterable[int]) -> None:
        """The files of these rows are gone from the destination."""
        with self._write() as c:
            for page in self._lock_ids(c, row_ids):
                ours = and_(File.id.in_(page), *_in_hand(run_id))
                c.execute(update(File).where(ours).values(journal=None, updated_at=now_ms()))

    def unretire(self, run_id: str, row_ids: Iterable[int]) -> None:
        """The files of these rows are still there: the rows are what they were."""
        check_moves((State.RETIRED, s) for s in MAY_RETIRE)
        ids = sorted(row_ids)
        with self._write() as c:
            for page in self._lock_ids(c, ids):
                ours = and_(File.id.in_(page), *_in_hand(run_id), File.journal.in_(MAY_RETIRE))
                c.execute(update(File).where(ours).values(state=File.journal, journal=None, updated_at=now_ms()))
            _changed(c, ids)

    def take_over_retired(self, run_id: str, route_id: int) -> list[Proof]:
        """Take what retentions have left that are no longer alive; one row of each final name, the latest."""
        alive = select(Run.id).where(Run.ended_at.is_(None), Run.id != run_id)
        left = and_(
            File.route_id == route_id, File.state == State.RETIRED, File.journal.is_not(None),
            or_(File.run_id.is_(None), File.run_id.not_in(alive)),
        )  # fmt: skip
        with self._write() as c:
            self._lock(c, left)
            ids = list(
                c.execute(update(File).where(left).values(run_id=run_id, attempt=File.attempt + 1).returning(File.id))
                .scalars()
            )  # fmt: skip
            return sorted(proofs_by_id(c, ids))


def _latest(route_id: int) -> Any:
    """The rows of a route that had their final name, ranked within it: the first says what is there."""
    rank = func.row_number().over(partition_by=File.dest_path, order_by=(File.done_at.desc(), File.id.desc()))
    return (
        select(File.id, File.done_at, File.size, File.state, rank.label("rank"))
        .where(File.route_id == route_id, File.state.in_(NAMED), File.sha256.is_not(None), File.done_at.is_not(None),
               File.dest_path.is_not(None))
        .subquery()
    )  # fmt: skip


def _mine(proof: Proof, rows: Sequence[Any]) -> list[int]:
    """The rows that go with a file, if nobody else counts on it; none else."""
    mine: list[int] = []
    for row in rows:
        if row.state in MAY_RETIRE and row.route_id == proof.route_id:
            later = row.state != State.DUPLICATE and (row.done_at or 0, row.id) > (proof.done_at or 0, proof.id)
            if later or row.journal is not None or (row.id == proof.id and row.attempt != proof.attempt):
                return []
            mine.append(row.id)
        elif row.state not in NOTHING_THERE:
            return []
    return mine if proof.id in mine else []


def _in_hand(run_id: str) -> tuple[Any, ...]:
    return File.run_id == run_id, File.state == State.RETIRED, File.journal.is_not(None)


def _changed(c: Connection, row_ids: Sequence[int]) -> None:
    """The manifests that name, or named, these rows are behind."""
    found: set[int] = set()
    for page in pages(row_ids):
        query = select(File.manifest_id).distinct().where(File.id.in_(page), File.manifest_id.is_not(None))
        found |= {m for m in c.execute(query).scalars() if m is not None}
    for manifest_id in sorted(found):
        c.execute(update(Manifest).where(Manifest.id == manifest_id).values(version=Manifest.version + 1))
