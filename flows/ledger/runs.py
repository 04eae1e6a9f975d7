"""Runs in the ledger: who is at work, who is dead, and the rows of the dead, which are freed here.

A run that works on this machine is told by its process, whatever the clocks say; others by their heartbeat, taken
and judged by the clock of the database. What runs do with their rows is in `store.py`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, and_, delete, insert, or_, select, update

from flows.ledger.connections import Connections, now_ms, pages
from flows.ledger.models import File, Offer, Run
from flows.ledger.rows import Claim
from flows.ledger.states import ACTIVE, State, check_moves
from flows.ledger.wishes import fulfil
from flows.ledger.worker import is_alive, is_of_an_earlier_boot, this_worker

LEASE_MS = 60_000
"""A run without a heartbeat for so long has lost its rows, unless its process is known to be there."""
HEARTBEAT_S = 10.0

AMISS = ("failed", "blocked", "deferred", "problems")
"""What says in a transfer's summary that not everything is where it belongs."""


@dataclass
class Lease:
    """When it was last renewed (`awake_ms`, before the ledger was asked), and how often that was too late."""

    renewed: int
    lapses: int = 0


_at_work: dict[str, Lease] = {}
"""Runs of this process that have begun and not ended: a process that lives on does not hold the rows of its past."""


def awake_ms() -> int:
    """Milliseconds since this machine was started, those that it slept included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Recovered(NamedTuple):
    """A run that was found dead: since when nothing was heard of it (s), and how many files it held."""

    run_id: str
    job: str
    worker: str
    silent_s: float
    files: int


class Runs(Connections):
    """The runs of a ledger."""

    def begin_run(
        self, job: str, *, flight: str | None, device: str | None, flow_run_id: str | None = None,
        leader: str | None = None,
    ) -> str:  # fmt: skip
        """Enter a run; its id. `leader` is the run that it helps."""
        run_id = str(uuid.uuid4())
        asked = awake_ms()
        with self._write() as c:
            now = self._now(c)
            c.execute(
                insert(Run).values(
                    id=run_id, job=job, flight=flight, device=device, worker=this_worker(), flow_run_id=flow_run_id,
                    started_at=now, heartbeat_at=now, leader_id=leader,
                )
            )  # fmt: skip
        _at_work[run_id] = Lease(asked)
        return run_id

    def heartbeat(self, run_id: str) -> None:
        """Renew the lease of all rows that the run holds. One that was declared dead, and only slept, is alive again."""
        with self._renewing(run_id):
            pass

    @contextmanager
    def _renewing(self, run_id: str) -> Iterator[Connection]:
        """A transaction that renews the lease of a run."""
        with self._write() as c:
            asked = awake_ms()
            alive = update(Run).where(Run.id == run_id, Run.summary.is_(None))  # it has one when it has really ended
            c.execute(alive.values(heartbeat_at=self._clock(), ended_at=None))
            yield c
        if (lease := _at_work.get(run_id)) is not None:
            lease.lapses += asked - lease.renewed > LEASE_MS
            lease.renewed = asked

    def lapses(self, run_id: str) -> int:
        """How often the lease of a run of this process has lapsed, now included. If the number is another than before a
        claim, others may have taken the rows since: the machine slept, or the ledger was out of reach."""
        lease = _at_work.get(run_id)
        return 0 if lease is None else lease.lapses + (awake_ms() - lease.renewed > LEASE_MS)

    def still_held(self, claims: Collection[Claim]) -> set[int]:
        """The ids of those rows that nobody else has taken, or may take."""
        held: set[int] = set()
        attempts = {claim.id: claim.attempt for claim in claims}
        for page in pages(list(attempts)):
            mine = select(File.id, File.attempt).where(self._among(File.id, page), File.state.in_(ACTIVE))
            held.update(r.id for r in self.read_all(mine) if r.attempt == attempts[r.id])
        return held

    def end_run(self, run_id: str, summary: dict[str, Any]) -> None:
        """The run is over: rows it still holds are free again."""
        _at_work.pop(run_id, None)
        with self._write() as c:
            told = {"ended_at": self._clock(), "summary": json.dumps(summary), **_counted(summary)}
            c.execute(update(Run).where(Run.id == run_id).values(told))
            self._release(c, [run_id])

    def recover(self) -> int:
        """End the runs that are dead and free their rows; how many."""
        return sum(one.files for one in self.recover_runs())

    def recover_runs(self) -> list[Recovered]:
        """The same; what was done for each. See `_is_dead`."""
        with self._read() as c:
            runs = c.execute(self._signs_of_life().where(Run.ended_at.is_(None))).all()
        dead = {r.id: r for r in runs if self._is_dead(r.id, r.worker, r.silence)}
        if not dead:
            return []
        done: list[Recovered] = []
        with self._write() as c:
            ended: list[str] = []
            for run_id, run in sorted(dead.items()):  # one that has stirred since is left alone
                ended += c.execute(
                    update(Run).where(Run.id == run_id, Run.ended_at.is_(None), Run.heartbeat_at == run.heartbeat_at)
                    .values(ended_at=self._clock()).returning(Run.id)
                ).scalars()  # fmt: skip
            self._lock(c, and_(File.run_id.in_(ended), File.state.in_(ACTIVE)))
            for run_id in ended:
                run = dead[run_id]
                files = self._release(c, [run_id])
                done.append(Recovered(run_id, run.job, run.worker, run.silence / 1000, files))
        return done

    def _signs_of_life(self) -> Select[Any]:
        return select(
            Run.id,
            Run.job,
            Run.worker,
            Run.heartbeat_at,
            (self._clock() - Run.heartbeat_at).label("silence"),
            Run.ended_at,
        )

    def _has_ended(self, c: Connection, run_id: str) -> bool:
        """Whether a run has ended, or is dead."""
        run = c.execute(self._signs_of_life().where(Run.id == run_id)).one()
        return run.ended_at is not None or self._is_dead(run.id, run.worker, run.silence)

    def _is_dead(self, run_id: str, worker: str, silence: int) -> bool:
        """Whether a run that has not ended is dead. `silence` is how long ago its heartbeat was, in ms.

        A process of this machine is there or it is not. SQLite is one machine: what was at work before it was started
        is gone. Where nobody can tell (another machine, another container), the lease decides.
        """
        if worker == this_worker():
            return run_id not in _at_work
        alive = is_alive(worker)
        if alive is not None:
            return not alive
        return silence > LEASE_MS or (self._sqlite and is_of_an_earlier_boot(worker))

    def _release(self, c: Connection, run_ids: list[str]) -> int:
        check_moves((s, State.QUEUED) for s in ACTIVE)
        c.execute(delete(Offer).where(Offer.leader_id.in_(run_ids)))
        held = and_(File.run_id.in_(run_ids), File.state.in_(ACTIVE))
        self._lock(c, held)
        freed = list(c.execute(
            update(File).where(held)
            .values(state=State.QUEUED, next_attempt_at=None, updated_at=now_ms()).returning(File.id)
        ).scalars())  # fmt: skip
        for page in pages(freed):
            fulfil(c, File.id.in_(page))
        return len(freed)


def crew(run_id: str) -> Select[Any]:
    """A query for the ids of a run and of those that help it, or have helped it."""
    return select(Run.id).where(or_(Run.id == run_id, Run.leader_id == run_id))


def _counted(summary: dict[str, Any]) -> dict[str, Any]:
    """The columns for what is counted of a run: of a transfer, which alone names its destinations, and helps no other."""
    if "destinations" not in summary or summary.get("leader"):  # whose leader counts what it has moved
        return {}
    return {
        "delivered": summary["delivered"], "bytes": summary["bytes"],
        "well": not any(summary[what] for what in AMISS),
    }  # fmt: skip
