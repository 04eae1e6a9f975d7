"""What runs have done, counted by the database: however many there were, a few rows come back. An index answers all of it.

Transfers only: what a cleanup, a retention or a scrub tells is of another kind, and says nothing of deliveries.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, and_, case, func, literal_column, select

from flows.ledger.connections import Connections
from flows.ledger.models import Run


class Tally(NamedTuple):
    """What runs have delivered."""

    files: int
    bytes: int


class Last(NamedTuple):
    """The last runs of a job on a device: one in which nothing failed, and one that ended. ms since the epoch."""

    job: str
    device: str
    succeeded_at: int | None
    ended_at: int


class Tallies(Connections):
    """The ledger for those who count its runs: `Tallies(ledger.engine)`. Moments are ms since the epoch."""

    def by_time(self, since_ms: int, step_ms: int) -> dict[int, Tally]:
        """Of runs that ended since then, by the beginning of the step in which they did."""
        # as a literal: PostgreSQL holds two parameters for two things
        step = Run.ended_at // literal_column(str(int(step_ms)), BigInteger)
        with self._read() as c:
            found = c.execute(select(step, *_SUMS).where(_ended(since_ms)).group_by(step)).all()
        return {begin * step_ms: Tally(int(f), int(b)) for begin, f, b in found}

    def by_job(self, since_ms: int) -> dict[str, Tally]:
        """The same, by job."""
        with self._read() as c:
            found = c.execute(select(Run.job, *_SUMS).where(_ended(since_ms)).group_by(Run.job)).all()
        return {job: Tally(int(f), int(b)) for job, f, b in found}

    def last(self, since_ms: int) -> list[Last]:
        """The last runs since then, by job and device."""
        device, succeeded = func.coalesce(Run.device, ""), func.max(case((Run.well.is_(True), Run.ended_at)))
        query = select(Run.job, device, succeeded, func.max(Run.ended_at)).where(_ended(since_ms))
        with self._read() as c:
            return sorted(Last(*row) for row in c.execute(query.group_by(Run.job, device)))

    def destinations(self, since_ms: int) -> dict[str, list[dict[str, Any]]]:
        """Where jobs deliver to, as the last run of each since then has told: `place`, `folder`, `manifest`."""
        newest = (
            select(Run.job, func.max(Run.ended_at).label("at")).where(_ended(since_ms)).group_by(Run.job).subquery()
        )
        these = and_(Run.job == newest.c.job, Run.ended_at == newest.c.at, Run.well.is_not(None))
        with self._read() as c:
            found = c.execute(select(Run.job, Run.summary).join(newest, these)).all()
        return {job: json.loads(summary)["destinations"] for job, summary in found}


_SUMS = (func.sum(Run.delivered), func.sum(Run.bytes))


def _ended(since_ms: int) -> ColumnElement[bool]:
    return and_(Run.ended_at >= since_ms, Run.well.is_not(None))
