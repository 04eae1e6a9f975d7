"""Whose turn it is, where more want to work than may: slots of tags, shared fairly among all runs of a ledger.

Prefect's limits say how many may work, and hold; but whoever waits for one sleeps and tries again, and whoever has just
let go of a slot takes it again at once: a device with many files keeps all of them, and another one waits until it is
done. So runs ask here first, and go to Prefect when it is their turn. `may_go` decides, of values alone.

    the one that holds the least is first; among equals, who waits the longest

It is a courtesy: who cannot ask goes to Prefect all the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, delete, func, or_, select, tuple_, update

from flows.ledger.models import Run, Turn
from flows.ledger.runs import Runs

GIVEN_WAY_MS = 2_000
"""Who waits for less than this lets those go on that are at work, so that a slot is not handed on for each small shipment."""
GONE_MS = 5_000
"""Who has not asked for so long does not wait any more."""


class Waiter(NamedTuple):
    """A run that wants a slot of each of its tags, and has waited for `waited_ms`."""

    run_id: str
    tags: tuple[str, ...]
    waited_ms: int


Held = Mapping[tuple[str, tuple[str, ...]], int]
"""How many slots each run holds, by the run and its tags."""


def may_go(me: Waiter, others: Sequence[Waiter], held: Held, limits: Mapping[str, int]) -> bool:
    """Whether it is the turn of `me`: whether a slot of each tag is left when all who come before have theirs. A tag
    without a limit is not limited."""
    taken: Counter[str] = Counter()
    for (_, tags), slots in held.items():
        taken.update(dict.fromkeys(tags, slots))
    rivals = [other for other in others if not set(me.tags).isdisjoint(other.tags)]
    at_work = [tags for _, tags in held if not set(me.tags).isdisjoint(tags)]
    shared = set(me.tags).intersection(*at_work, *(rival.tags for rival in rivals))

    def before(one: Waiter) -> tuple[int, int, str]:
        # what tells one from the others is its device, or its destination; where nothing does, the run
        own = [taken[tag] for tag in one.tags if tag not in shared]
        return max(own) if own else held.get((one.run_id, one.tags), 0), -one.waited_ms, one.run_id

    for one in sorted([me, *(rival for rival in rivals if rival.waited_ms >= GIVEN_WAY_MS)], key=before):
        free = all(taken[tag] < limits[tag] for tag in one.tags if tag in limits)
        if one is me:
            return free
        if free:
            taken.update(one.tags)
    raise AssertionError("I am in the line")


class Turns(Runs):
    """The turns of a ledger. Tags are sorted."""

    def ask_turn(self, run_id: str, tags: tuple[str, ...], holding: int, limits: Mapping[str, int]) -> bool:
        """Whether a run that holds so many slots of these tags may take one more now. If so it holds it until `let_go`;
        if not it is in the line, as long as it asks again and again."""
        mine = {"run_id": run_id, "tags": json.dumps(tags)}
        with self._write() as c:
            if not self._sqlite:
                c.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("onblock turns", 0))))
            now = self._now(c)
            entered = self._insert(Turn).values(**mine, held=holding, since=now, asked_at=now)
            wants = {"held": holding, "since": func.coalesce(Turn.since, now), "asked_at": now}
            c.execute(entered.on_conflict_do_update(index_elements=list(mine), set_=wants))
            waiters, held = self._line(c, now)
            me = next((w for w in waiters if (w.run_id, w.tags) == (run_id, tags)), Waiter(run_id, tags, 0))
            if not may_go(me, [w for w in waiters if w is not me], held, limits):
                return False
            c.execute(update(Turn).where(_is(run_id, tags)).values(held=holding + 1, since=None, asked_at=None))
            return True

    def let_go(self, run_id: str, tags: tuple[str, ...], holding: int) -> None:
        """A run holds only so many slots any more."""
        with self._write() as c:
            c.execute(update(Turn).where(_is(run_id, tags)).values(held=holding))

    def leave_line(self, run_id: str) -> None:
        """A run wants nothing any more, and holds nothing. What others left behind is cleared away."""
        with self._write() as c:
            ended = select(Run.id).where(Run.id == Turn.run_id, Run.ended_at.is_not(None)).exists()
            gone = select(Turn.run_id, Turn.tags).where(or_(Turn.run_id == run_id, ended))
            if found := [tuple(r) for r in c.execute(gone.with_for_update(skip_locked=True))]:
                c.execute(delete(Turn).where(tuple_(Turn.run_id, Turn.tags).in_(found)))

    def _line(self, c: Connection, now: int) -> tuple[list[Waiter], dict[tuple[str, tuple[str, ...]], int]]:
        """Who waits, and what is held, by runs that are alive."""
        query = self._signs_of_life().add_columns(Turn.tags, Turn.held, Turn.since, Turn.asked_at)
        waiters: list[Waiter] = []
        held: dict[tuple[str, tuple[str, ...]], int] = {}
        for r in c.execute(query.join(Turn, Turn.run_id == Run.id).where(Run.ended_at.is_(None))):
            if self._is_dead(r.id, r.worker, r.silence):
                continue
            tags = tuple(json.loads(r.tags))
            if r.held:
                held[r.id, tags] = r.held
            if r.since is not None and now - r.asked_at <= GONE_MS:
                waiters.append(Waiter(r.id, tags, now - r.since))
        return waiters, held


def _is(run_id: str, tags: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(Turn.run_id == run_id, Turn.tags == json.dumps(tags))
