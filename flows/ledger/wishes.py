"""What people want of files and jobs: pause, resume, cancel, retry, another priority. What nobody works on is moved at
once; to whoever works on the rest a wish is left, which runs ask for once a second.

All or nothing: a wish that does not fit one of the rows it names is refused, and nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Connection, case, delete, func, select, true, update

from blocks import names
from blocks.errors import ConfigError, Kind
from flows.ledger.connections import Connections, now_ms, pages
from flows.ledger.models import File, Hold, Product, Route
from flows.ledger.rows import MADE
from flows.ledger.states import ACTIVE, State, check_moves


class Wish(StrEnum):
    """What may be wanted of a file."""

    PAUSE = "pause"
    RESUME = "resume"
    CANCEL = "cancel"
    RETRY = "retry"


class Priority(IntEnum):
    """Which files go first."""

    LOW = -1
    NORMAL = 0
    HIGH = 1
    URGENT = 2


_S = State
AT_REST: dict[Wish, tuple[frozenset[State], State]] = {
    Wish.PAUSE: (frozenset({_S.QUEUED}), _S.PAUSED),
    Wish.RESUME: (frozenset({_S.PAUSED}), _S.QUEUED),
    Wish.CANCEL: (frozenset({_S.QUEUED, _S.PAUSED, _S.BLOCKED, _S.FAILED, _S.QUARANTINED}), _S.CANCELLED),
    Wish.RETRY: (
        frozenset({_S.QUEUED, _S.PAUSED, _S.FAILED, _S.BLOCKED, _S.QUARANTINED, _S.CANCELLED, _S.VERIFIED,
                   _S.DUPLICATE, _S.RETIRED}), _S.QUEUED,
    ),
}  # fmt: skip
"""For each wish: rows in which states it moves at once, and where to."""
LEFT_FOR_THE_RUN: dict[Wish, Wish | None] = {Wish.PAUSE: Wish.PAUSE, Wish.CANCEL: Wish.CANCEL, Wish.RESUME: None}
"""For rows that a run works on: what is left for it. To resume takes a pause back; to retry is refused."""


CLEAR = "{}"
"""The journal of a cancelled file: the next run looks whether something of it lies at the destination."""


class Chosen(NamedTuple):
    """A row that somebody chose."""

    id: int
    state: State
    path: str


class Granted(NamedTuple):
    """How many rows were moved at once, and for how many a wish was left for the run that works on them."""

    moved: int
    left: int


def refusal(wish: Wish, row: Chosen) -> str | None:
    """Why a wish does not fit a row; None if it does."""
    if row.state in AT_REST[wish][0] or (row.state in ACTIVE and wish in LEFT_FOR_THE_RUN):
        return None
    state = "being delivered" if row.state in ACTIVE else row.state
    return f"file {row.id} ({names.display(row.path)}) is {state}: it cannot be asked to {wish}"


class Wishes(Connections):
    """Wishes of a ledger."""

    def choose(
        self, ids: Sequence[int] = (), *, job: str | None = None, flight: str | None = None, device: str | None = None,
        states: Iterable[State] = (),
    ) -> list[Chosen]:  # fmt: skip
        """The rows that are named by number, or by what they have in common. Raises ConfigError for a number that is
        none."""
        columns = select(File.id, File.state, File.path, File.etag).order_by(File.id)
        query = columns.join(Route, Route.id == File.route_id)
        for column, value in ((Route.job, job), (File.flight, flight), (File.device, device)):
            if value is not None:
                query = query.where(column == value)
        if states:
            query = query.where(File.state.in_(list(states)))
        with self._read() as c:
            if not ids:
                found = c.execute(query).all()
            else:
                found = [row for page in pages(ids) for row in c.execute(query.where(File.id.in_(page)))]
        if missing := sorted(set(ids) - {r.id for r in found}):
            raise ConfigError(
                f"there is no file {missing[0]} among these", remedy="`onblock transfers list` shows the numbers"
            )
        # of a product that is at rest, what it was made of may be under way; it is not asked for by that
        wanted = columns.where(File.state.not_in(ACTIVE - set(states))) if states else columns
        return [Chosen(r.id, State(r.state), names.from_text(r.path)) for r in self._as_one(wanted, found)]

    def _as_one(self, wanted: Any, found: Sequence[Any]) -> list[Any]:
        """The same rows, with the files that products were made of in their stead, as far as those are `wanted`: both
        are one to whoever wants something of them."""
        there = {r.id for r in found}
        made = sorted(r.id for r in found if r.etag == MADE)
        if not made:
            return list(found)
        with self._read() as c:
            origins = {
                i for page in pages(made)
                for i in c.execute(select(Product.origin_id).where(Product.product_id.in_(page))).scalars()
            } - there  # fmt: skip
            rest = [r for page in pages(sorted(origins)) for r in c.execute(wanted.where(File.id.in_(page)))]
        return sorted([*(r for r in found if r.etag != MADE), *rest], key=lambda r: r.id)

    def grant(self, wish: Wish, chosen: Sequence[Chosen], *, who: str) -> Granted:
        """Do as somebody wants. Raises ConfigError, and changes nothing, if it does not fit all of the rows."""
        refused = [text for row in chosen if (text := refusal(wish, row))]
        if refused:
            more = f", and {len(refused) - 1} more" if len(refused) > 1 else ""
            raise ConfigError(refused[0] + more, remedy="`onblock transfers list` shows the state of each file")
        states, to = AT_REST[wish]
        check_moves((s, to) for s in states - {to})
        moved = left = 0
        with self._write() as c:
            for page in self._lock_ids(c, [row.id for row in chosen]):
                moved += c.execute(
                    update(File).where(File.id.in_(page), File.state.in_(states)).values(**_changes(wish, to, who))
                ).rowcount
                if to in (State.QUEUED, State.CANCELLED) and wish is not Wish.RESUME:
                    with_products(c, page, wish, who)
                if wish in LEFT_FOR_THE_RUN:
                    given = File.wish == Wish.PAUSE if wish is Wish.RESUME else true()  # a cancel is not taken back
                    left += c.execute(
                        update(File).where(File.id.in_(page), File.state.in_(ACTIVE), given)
                        .values(wish=LEFT_FOR_THE_RUN[wish])
                    ).rowcount  # fmt: skip
        return Granted(moved, left)

    def prioritise(self, chosen: Sequence[Chosen], priority: Priority) -> int:
        """Give rows another priority; how many."""
        with self._write() as c:
            return sum(
                c.execute(update(File).where(File.id.in_(page)).values(priority=priority)).rowcount
                for page in self._lock_ids(c, [row.id for row in chosen])
            )

    def wishes(self, run_id: str) -> dict[int, Wish]:
        """What is wanted of the rows that a run works on."""
        with self._read() as c:
            found = c.execute(
                select(File.id, File.wish).where(File.wish.is_not(None), File.run_id == run_id, File.state.in_(ACTIVE))
            ).all()
        return {i: Wish(w) for i, w in found if w is not None}

    # -- whole jobs ---------------------------------------------------------------------------------------------------

    def hold(self, job: str, *, who: str) -> None:
        """Runs of this job move nothing from now on, until `release`."""
        with self._write() as c:
            self._insert_new(c, Hold, [{"job": job, "who": who, "since": now_ms()}])

    def release(self, job: str) -> bool:
        """Runs of this job move files again; whether it was on hold."""
        with self._write() as c:
            return bool(c.execute(delete(Hold).where(Hold.job == job)).rowcount)

    def held(self, job: str) -> str | None:
        """Who has put the job on hold; None if nobody has."""
        with self._read() as c:
            return c.execute(select(Hold.who).where(Hold.job == job)).scalar()

    def jobs(self) -> list[str]:
        """The jobs that were ever run."""
        with self._read() as c:
            return list(c.execute(select(Route.job).distinct().order_by(Route.job)).scalars())


def _changes(wish: Wish, to: State, who: str) -> dict[str, Any]:
    """The columns that a wish changes in rows nobody works on."""
    now = now_ms()
    changes: dict[str, Any] = {"state": to, "wish": None, "updated_at": now}
    if to is State.QUEUED:
        changes |= {"kind": None, "message": None, "stage": None, "next_attempt_at": None, "tries": 0, "queued_at": now}
        # what retention has removed is not there any more; of anything else the delivery stays proven
        changes |= {c.key: case((File.state == State.RETIRED, None), else_=c) for c in (File.done_at, File.journal)}
    else:
        kind = Kind.PAUSED if wish is Wish.PAUSE else Kind.CANCELLED
        changes |= {"kind": kind, "message": f"{to.lower()} by {who}", "stage": None}
    if to is State.CANCELLED:  # the next run of the job looks whether something of it lies at the destination
        changes |= {"journal": case((File.attempt > 0, func.coalesce(File.journal, CLEAR)), else_=None)}
    return changes


def with_products(c: Connection, origins: Sequence[int], wish: Wish, who: str) -> None:
    """What was made of files that are asked for again is delivered again; of files that are given up, what is not
    delivered is given up too. Of origins that are where the wish wants them."""
    states, to = AT_REST[wish]
    made = select(Product.product_id).join(File, File.id == Product.origin_id).where(
        Product.origin_id.in_(origins), File.state == to
    )  # fmt: skip
    c.execute(update(File).where(File.id.in_(made), File.state.in_(states)).values(**_changes(wish, to, who)))


def fulfil(c: Connection, which: Any) -> None:
    """Rows that nobody works on any more: those that wait are paused or cancelled, if that was wanted of the run."""
    for wish in (Wish.PAUSE, Wish.CANCEL):
        waiting = update(File).where(which, File.wish == wish, File.state == State.QUEUED)
        c.execute(waiting.values(**_changes(wish, AT_REST[wish][1], "wish")))
    c.execute(update(File).where(which, File.wish.is_not(None), File.state.not_in(ACTIVE)).values(wish=None))
