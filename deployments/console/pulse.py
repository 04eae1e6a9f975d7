"""What moves, told once a second to all who watch: one look into the ledger, however many pages are open, none where
nobody watches. How it is shown is not here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi.concurrency import run_in_threadpool

from blocks.errors import OnblockError
from deployments.console.problems import Problem
from deployments.console.shown import row_as_json
from flows.ledger.listing import Listing
from flows.ledger.states import ACTIVE

log = logging.getLogger("onblock.console")

EVERY_S = 1.0
MOST = 200
"""Rows that are told of, and pages that may watch."""
MOST_OF_ONE = 64
"""Of them of one person."""
BEAT_S = 15.0
"""So often something is sent where nothing happens: proxies close what is silent."""
QUIET_S, STALLED_S = 3.0, 30.0
"""Progress is written once a second: who has written none for so long is slower than he was; and then stands still."""
TOLD = ("id", "state", "phase", "size", "bytes_done", "wish")
"""What is told of a row, of what `row_as_json` knows. The rest is asked for by its id."""


class Pulse:
    """Of one event loop."""

    def __init__(self, listing: Listing):
        self._listing = listing
        self._watchers: dict[asyncio.Queue[str], str] = {}  # and whose they are
        self._task: asyncio.Task[None] | None = None
        self._last = ""
        self._before: dict[int, tuple[float, int]] = {}  # when a row was seen first with so many bytes
        self._speed: dict[int, float] = {}
        self._closed = False

    async def watch(self, who: str) -> AsyncIterator[str]:
        """Messages as `text/event-stream` has them; ends when the console does. Raises Problem 503 before the first where
        too many watch, 429 where too many of this person do."""
        if len(self._watchers) >= MOST:
            raise Problem(503, f"{MOST} watch already; look again later")
        if sum(whose == who for whose in self._watchers.values()) >= MOST_OF_ONE:
            raise Problem(429, f"{who} watches on {MOST_OF_ONE} pages already; close some")
        mine: asyncio.Queue[str] = asyncio.Queue(2)
        self._watchers[mine] = who
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        try:
            yield "retry: 2000\n\n" + self._last
            while not self._closed:
                try:
                    yield await asyncio.wait_for(mine.get(), BEAT_S)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            del self._watchers[mine]

    async def close(self) -> None:
        """No more of it."""
        self._closed = True
        for one in self._watchers:
            _put(one, ": goodbye\n\n")
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while self._watchers:
            began = time.monotonic()
            try:
                told = await run_in_threadpool(self._look)
            except OnblockError as error:
                told = _message("trouble", {"what": error.what})
            except Exception:  # a defect: told in the log, and looked at again
                log.exception("what moves could not be told")
                told = self._last
            if told != self._last:
                self._last = told
                for one in self._watchers:
                    _put(one, told)
            await asyncio.sleep(max(EVERY_S - (time.monotonic() - began), EVERY_S / 2))
        self._last = ""

    def _look(self) -> str:
        now, rows = time.monotonic(), self._listing.active(MOST)
        moving = len(rows) if len(rows) < MOST else self._listing.count(ACTIVE)
        gone = sorted(set(self._before) - {r["id"] for r in rows})
        self._before = {r["id"]: self._measure(r["id"], r["bytes_done"], now) for r in rows}
        self._speed = {i: v for i, v in self._speed.items() if i in self._before}
        after = self._listing.rows(gone[:MOST]) if gone else []
        return _message("rows", {"moving": moving, "rows": [self._told(r, now) for r in (*rows, *after)]})

    def _measure(self, row: int, done: int, now: float) -> tuple[float, int]:
        """When a row was seen with so many bytes. Its speed is that between two marks, smoothed."""
        seen, before = self._before.get(row, (now, done))
        if done < before:  # from the beginning again
            self._speed.pop(row, None)
            return now, done
        if done > before:
            rate = (done - before) / max(now - seen, 1e-3)
            self._speed[row] = rate if row not in self._speed else 0.7 * self._speed[row] + 0.3 * rate
            return now, done
        return seen, before

    def _told(self, row: dict[str, Any], now: float) -> dict[str, Any]:
        known = row_as_json(row)
        quiet = now - self._before.get(row["id"], (now, 0))[0]
        speed = still_moving(self._speed.get(row["id"], 0.0), quiet)
        left = row["size"] - row["bytes_done"]
        return {key: known[key] for key in TOLD} | {
            "bytes_per_s": round(speed) or None, "seconds_left": round(left / speed) if speed >= 1 else None,
        }  # fmt: skip


def still_moving(speed: float, quiet_s: float) -> float:
    """A speed (bytes/s) that was measured `quiet_s` ago, when the last byte was told: less the longer that is, and 0 of
    what stands still."""
    return speed * min(1.0, QUIET_S / max(quiet_s, QUIET_S)) if quiet_s < STALLED_S else 0.0


def _message(event: str, data: dict[str, Any]) -> str:
    return f"event: {event}\ndata: {json.dumps(data)}\n\n"  # JSON has no line breaks


def _put(queue: asyncio.Queue[str], message: str) -> None:
    """Who is slow misses what is old."""
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(message)
