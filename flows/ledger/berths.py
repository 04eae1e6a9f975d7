"""Who is at work at a place, and the bytes reserved there. What is done with the answers is in `flows/transfer`.

A place is any text that all who share it write alike. Berths of runs that have ended or died count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Text, and_, bindparam, delete, func, or_, select, tuple_, update

from flows.ledger.models import Berth, Run
from flows.ledger.runs import Runs

DAY_MS = 86_400_000


class Reserved(NamedTuple):
    """Whether the bytes were granted, and how many the other runs held there at that moment."""

    granted: bool
    others: int


_wanted = bindparam("wanted", type_=BigInteger)
_others = (
    select(func.coalesce(func.sum(Berth.reserved), 0)).join(Run, Run.id == Berth.run_id)
    .where(Berth.place == bindparam("at"), Berth.run_id != bindparam("me"), Run.ended_at.is_(None)).scalar_subquery()
)  # fmt: skip
"""Bytes that other runs have reserved at a place."""


class Berths(Runs):
    """The berths of a ledger."""

    def moor(self, run_id: str, places: Sequence[str]) -> None:
        """Enter a run at places. Berths of runs that have ended are cleared away; of those that died, and may only have
        slept, after a day."""
        with self._write() as c:
            over = or_(Run.summary.is_not(None), Run.heartbeat_at < self._clock() - DAY_MS)
            ended = (
                select(Berth.run_id, Berth.place)
                .join(Run, Run.id == Berth.run_id).where(Run.ended_at.is_not(None), over, Run.id != run_id)
                .with_for_update(of=Berth, skip_locked=True)  # whom another clears away we leave to him
            )  # fmt: skip
            if gone := [tuple(r) for r in c.execute(ended)]:
                c.execute(delete(Berth).where(tuple_(Berth.run_id, Berth.place).in_(gone)))
            if places:
                self._insert_new(c, Berth, [{"run_id": run_id, "place": p, "reserved": 0} for p in sorted(places)])

    def crowd(self, run_id: str, places: Sequence[str]) -> dict[str, int]:
        """How many runs that are alive are at each place, this one included whether it is entered there or not."""
        query = self._signs_of_life().add_columns(Berth.place).join(Berth, Berth.run_id == Run.id)
        with self._read() as c:
            found = c.execute(query.where(Berth.place.in_(places), Run.ended_at.is_(None), Run.id != run_id)).all()
        alive = [r.place for r in found if not self._is_dead(r.id, r.worker, r.silence)]
        return {place: 1 + alive.count(place) for place in places}

    def reserve(self, run_id: str, place: str, wanted: int, free: int) -> Reserved:
        """Make the reservation of a run at a place `wanted` bytes in all, if with those of the others it is at most `free`.

        Checked and written in one statement; where several may write at once, one place at a time.
        """
        asked = {"me": run_id, "at": place, "wanted": wanted, "free": free}
        with self._write() as c:
            if not self._sqlite:
                c.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(place, 0))))
            granted = c.execute(self._reservation, asked).first()
            return Reserved(granted is not None, int(c.execute(select(_others), asked).scalar_one()))

    @cached_property
    def _reservation(self) -> Any:
        """The statement of `reserve`, made once: to build it takes longer than to carry it out."""
        row = select(bindparam("me", type_=Text), bindparam("at", type_=Text), _wanted).where(
            _others + _wanted <= bindparam("free", type_=BigInteger)
        )
        entered = self._insert(Berth).from_select(["run_id", "place", "reserved"], row)
        return entered.on_conflict_do_update(
            index_elements=["run_id", "place"], set_={"reserved": entered.excluded.reserved}
        ).returning(Berth.reserved)

    def reserved(self, run_id: str, now: Mapping[str, int]) -> None:
        """A run needs only so much at these places any more."""
        with self._write() as c:
            for place, left in sorted(now.items()):
                mine = and_(Berth.run_id == run_id, Berth.place == place, Berth.reserved > left)
                c.execute(update(Berth).where(mine).values(reserved=left))

    def unmoor(self, run_id: str) -> None:
        """A run is nowhere any more."""
        with self._write() as c:
            c.execute(delete(Berth).where(Berth.run_id == run_id))
