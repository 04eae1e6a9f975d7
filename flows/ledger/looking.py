"""Looking into the ledger without changing anything: routes, rows as mappings, counts, what is known of a content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import aliased

from blocks import names
from blocks.storage.base import FileInfo
from flows.ledger.connections import Connections, pages
from flows.ledger.models import File, Route, Run
from flows.ledger.rows import LONGEST_WAIT_MS, MADE
from flows.ledger.runs import crew
from flows.ledger.states import ACTIVE, State

PAGE = 1000
DELIVERED = (State.VERIFIED, State.CLEANUP_ELIGIBLE, State.CLEANED)
"""States of rows whose file is at its final name."""
NAMED = (*DELIVERED, State.RETIRED)
"""States of rows whose file had its final name: the latest of them says what is there, or that nothing is."""


VERSION = (File.path, File.size, File.mtime_ns, File.etag)


def _version(row: Any) -> FileInfo:
    return FileInfo(names.from_text(row.path), row.size, row.mtime_ns, row.etag)


class Looking(Connections):
    """The ledger for those who only look."""

    def find_route(self, job: str, destination: str) -> int | None:
        """The id of a route that exists, or None."""
        with self._read() as c:
            return c.execute(select(Route.id).where(Route.job == job, Route.destination == destination)).scalar()

    def still_queued(self, row_ids: Sequence[int]) -> bool:
        """Whether any of these rows waits to be moved."""
        with self._read() as c:
            return any(
                c.execute(select(File.id).where(File.id.in_(page), File.state == State.QUEUED).limit(1)).first()
                for page in pages(row_ids)
            )

    def known_content(self, route_id: int, sha256: str) -> str | None:
        """Where on this route the same content was delivered, if it was."""
        with self._read() as c:
            path = c.execute(
                select(File.dest_path).where(
                    File.sha256 == sha256, File.route_id == route_id, File.state.in_(DELIVERED)
                ).limit(1)
            ).scalar()  # fmt: skip
        return None if path is None else names.from_text(path)

    def replaced(self, row_ids: Sequence[int]) -> set[int]:
        """Those of these rows whose final name was given to another row of their route later."""
        where = (File.id, File.route_id, File.dest_path, File.done_at)
        found: set[int] = set()
        with self._read() as c:
            for page in pages(row_ids):
                rows = c.execute(select(*where).where(File.id.in_(page))).all()
                rivals: dict[tuple[int, str | None], list[Any]] = {}
                for r in c.execute(select(*where).where(  # one scan a page: there is no index on final names
                    File.route_id.in_({r.route_id for r in rows}), File.dest_path.in_({r.dest_path for r in rows}),
                    File.done_at.is_not(None), File.state.in_(NAMED),
                )):  # fmt: skip
                    rivals.setdefault((r.route_id, r.dest_path), []).append(r)
                found |= {
                    r.id for r in rows if r.done_at is not None
                    and any(o.id != r.id and o.done_at >= r.done_at for o in rivals.get((r.route_id, r.dest_path), ()))
                }  # fmt: skip
        return found

    def files(
        self, *, job: str | None = None, states: Iterable[State] = (), run_id: str | None = None,
        route_id: int | None = None, flight: str | None = None, device: str | None = None, limit: int | None = None,
        after: int = 0,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Rows as mappings of all columns and the route's job and destination, by id, in pages of a bounded size."""
        while limit is None or limit > 0:
            query = (
                select(File.__table__, Route.job, Route.destination)
                .join(Route, Route.id == File.route_id)
                .where(File.id > after).order_by(File.id).limit(min(PAGE, limit or PAGE))
            )  # fmt: skip
            for column, value in ((Route.job, job), (File.run_id, run_id), (File.route_id, route_id),
                                  (File.flight, flight), (File.device, device)):  # fmt: skip
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

    def next_attempt(self, route_ids: Sequence[int], run_id: str, now: int) -> int | None:
        """When the first deferred file of these routes is due (ms since the epoch), None if none waits for a time. What was
        due before `now` counts only if this run has put it off: else nobody may ever come to it again."""
        with self._read() as c:
            return c.execute(
                select(func.min(File.next_attempt_at)).where(
                    File.route_id.in_(route_ids), File.state == State.QUEUED, File.etag != MADE,
                    or_(File.next_attempt_at > now, File.run_id.in_(crew(run_id))),
                    File.next_attempt_at <= now + LONGEST_WAIT_MS,
                )
            ).scalar()  # fmt: skip

    def untimed(self, route_ids: Sequence[int], run_id: str) -> bool:
        """Whether files of these routes are in somebody's hands, or were put back since this run began and are due at no
        time: a run died that had them, or their source changed. Asked by a run whose own work is over."""
        began = select(Run.started_at).where(Run.id == run_id).scalar_subquery()
        back = and_(
            File.state == State.QUEUED, File.next_attempt_at.is_(None), File.etag != MADE,
            or_(File.run_id.in_(crew(run_id)), File.updated_at >= began),
        )  # fmt: skip
        with self._read() as c:
            which = File.route_id.in_(route_ids), or_(File.state.in_(ACTIVE), back)
            return c.execute(select(File.id).where(*which).limit(1)).first() is not None

    def preferred(self, route_id: int, most: int) -> Iterator[list[FileInfo]]:
        """Pages of the versions that wait and go before others, the most urgent first; at most so many. Of one path, the
        newest."""
        newer = aliased(File)
        replaced = select(newer.id).where(
            newer.route_id == route_id, newer.path == File.path, newer.id > File.id
        ).exists()  # fmt: skip
        waiting = (
            File.route_id == route_id, File.state == State.QUEUED, File.priority > 0, File.etag != MADE, ~replaced,
        )  # fmt: skip
        order = (File.priority.desc(), File.id)
        found = self.read_all(select(*VERSION).where(*waiting).order_by(*order).limit(most))
        for start in range(0, len(found), PAGE):
            yield [_version(r) for r in found[start : start + PAGE]]

    def postponed(self, route_id: int, run_id: str) -> Iterator[list[FileInfo]]:
        """Pages of the versions that wait and go after others, among those that a run has listed."""
        after = 0
        while True:
            found = self.read_all(
                select(*VERSION, File.id)
                .where(File.route_id == route_id, File.state == State.QUEUED, File.priority < 0, File.etag != MADE,
                       File.run_id == run_id, File.id > after)
                .order_by(File.id).limit(PAGE)
            )  # fmt: skip
            if not found:
                return
            after = found[-1].id
            yield [_version(r) for r in found]

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
