"""What follows a failure, as functions of values: the table of DESIGN.md. Nothing here waits or writes."""

from __future__ import annotations

import random

from blocks.errors import Kind
from flows.ledger.rows import LONGEST_WAIT_MS
from flows.ledger.states import State

TASK_RETRY_DELAYS_S = (2.0, 4.0, 8.0)
"""Inside a task: at once three times more, before a file is deferred. Jitter is added by whoever waits."""
TASK_JITTER = 0.5

RETRIED = frozenset({Kind.NETWORK, Kind.UNKNOWN})
"""Kinds that may pass by waiting."""
CURABLE = frozenset({
    Kind.AUTH, Kind.PERMISSION, Kind.NOT_FOUND, Kind.CONFLICT, Kind.DISK_FULL, Kind.TOOL_MISSING, Kind.CONFIG,
    Kind.SOURCE_VANISHED, Kind.SOURCE_CHANGED, Kind.NETWORK, Kind.UNKNOWN,
})  # fmt: skip
"""Failures that somebody may have cured since: a new run that sees the file tries it once more. The others
(CORRUPT, HASH_MISMATCH) wait until somebody asks."""

WINDOW_MS = 7 * 86_400_000
MOST_TRIES = 500


def delay_s(tries: int) -> float:
    """Seconds to wait after the `tries`-th failure: 2, 4 ... 60, from the tenth on growing by half to an hour."""
    if tries < 10:
        return min(2.0**tries, 60.0)
    return min(60.0 * 1.5 ** min(tries - 9, 20), 3600.0)


def after(kind: Kind, tries: int, queued_at: int, now: int) -> tuple[State, int | None]:
    """State and time of the next attempt (ms) of a row that failed for the `tries`-th time."""
    if kind in RETRIED:
        if tries >= MOST_TRIES or now - queued_at > WINDOW_MS:
            return State.FAILED, None
        return State.QUEUED, now + int(1000 * min(delay_s(tries) * random.uniform(0.8, 1.2), LONGEST_WAIT_MS / 1000))
    if kind is Kind.HASH_MISMATCH:
        return State.QUARANTINED, None
    if kind in (Kind.SOURCE_CHANGED, Kind.CANCELLED):
        return State.QUEUED, None
    if kind is Kind.PAUSED:
        return State.PAUSED, None
    return State.FAILED, None
