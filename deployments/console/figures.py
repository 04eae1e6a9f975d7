"""What the overview, `/api/v1/stats/summary` and `/metrics` tell: counts, bytes, last successes, room on disks. Looked up
once for all who ask, beside them. How it is shown is not here.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

from blocks.home import home
from deployments.console.cached import SOON_S, Cached
from deployments.console.disks import Disks
from flows.ledger.listing import Listing, Waiting
from flows.ledger.states import ACTIVE, State
from flows.ledger.tallies import Last, Tallies

FRESH_S = 3.0
SHARE = 30
"""It costs no more than a thirtieth of a core, until it takes a second."""
DAY_MS, HOUR_MS = 86_400_000, 3_600_000
DAYS = 30
"""So far back runs are looked at."""
HOURS = 48
"""So many hours are plotted."""
FORECAST_DAYS = 7
"""The growth of a disk is that of so many days."""


class Disk(NamedTuple):
    """Room, in bytes, and in how many days it is used up as things go: None where nothing is delivered to it."""

    path: str
    total: int
    free: int
    days_left: float | None


class Snapshot(NamedTuple):
    """What was found out, at one moment (ms since the epoch)."""

    at: int
    counts: dict[tuple[str, State], int]
    waiting: list[Waiting]
    hours: list[tuple[int, int, int]]  # beginning of an hour (ms), files and bytes that runs delivered then
    last: list[Last]
    disks: list[Disk]
    silent: list[str]  # places of this machine that do not answer
    delivered_bytes: dict[str, int]  # by job, in `DAYS`

    def count(self, *states: State) -> int:
        """How many files are in these states."""
        return sum(n for (_, state), n in self.counts.items() if state in states)

    def totals(self) -> dict[str, int]:
        """The sums that people ask for first."""
        deferred = sum(w.files for w in self.waiting if w.state is State.QUEUED and w.kind is not None)
        return {
            "delivered": self.count(State.VERIFIED, State.CLEANUP_ELIGIBLE, State.CLEANED, State.RETIRED),
            "queued": self.count(State.QUEUED) - deferred, "moving": self.count(*ACTIVE), "deferred": deferred,
            "failed": self.count(State.FAILED, State.QUARANTINED), "blocked": self.count(State.BLOCKED),
            "paused": self.count(State.PAUSED), "cancelled": self.count(State.CANCELLED),
            "duplicates": self.count(State.DUPLICATE),
        }  # fmt: skip

    def failures(self) -> dict[str, int]:
        """Files that failed or are in quarantine, by kind."""
        found: Counter[str] = Counter()
        for w in self.waiting:
            if w.state in (State.FAILED, State.QUARANTINED):
                found[w.kind or "UNKNOWN"] += w.files
        return dict(found)


class Figures:
    """They, of a ledger."""

    def __init__(self, listing: Listing, tallies: Tallies):
        self._listing, self._tallies, self._disks = listing, tallies, Disks()
        self.cached: Cached[Snapshot] = Cached(self._look, FRESH_S, share=SHARE)

    def now(self, wait_s: float = SOON_S) -> Snapshot:
        """As of a few seconds ago, where they can be had within `wait_s`; see `at`, and `stale`. Raises NetworkError where
        the ledger never answered."""
        return self.cached.get(wait_s)

    def stale(self) -> str | None:
        """Why they are old ones; None if they are not."""
        return self.cached.stale()

    def _look(self) -> Snapshot:
        now = _now()
        since = now - DAYS * DAY_MS
        first = (now // HOUR_MS - HOURS + 1) * HOUR_MS
        ended = self._tallies.by_time(first, HOUR_MS)
        hours = [(at, ended[at].files, ended[at].bytes) if at in ended else (at, 0, 0)
                 for at in range(first, first + HOURS * HOUR_MS, HOUR_MS)]  # fmt: skip
        counts, waiting, disks = self._listing.counts(), self._listing.waiting(), self._room(now)
        return Snapshot(
            now, counts, waiting, hours, self._tallies.last(since), *disks,
            {job: one.bytes for job, one in self._tallies.by_job(since).items()},
        )  # fmt: skip

    def _room(self, now: int) -> tuple[list[Disk], list[str]]:
        """The disk of ONBLOCK_HOME, and those of this machine that jobs deliver to; and places that do not answer."""
        since = now - FORECAST_DAYS * DAY_MS
        places = {d.removeprefix("local:") for _, d in self._listing.routes() if d.startswith("local:")}
        destinations, grown = self._tallies.destinations(since), Counter[str]()
        for job, tally in self._tallies.by_job(since).items():
            places_of = destinations.get(job, ())
            for one in places_of:  # a file is counted once for each of them
                grown[one["place"].removeprefix("local:")] += tally.bytes // len(places_of)
        rooms, silent = self._disks.now([str(home()), *sorted(places)])
        found: dict[int, Disk] = {}
        for path, room in rooms.items():
            one = found.get(room.device, Disk(path, room.total, room.free, None))
            rate = grown.get(path, 0) / FORECAST_DAYS + (one.free / one.days_left if one.days_left else 0)
            found[room.device] = one._replace(days_left=one.free / rate if rate else None)
        return list(found.values()), silent


def _now() -> int:
    return time.time_ns() // 1_000_000
