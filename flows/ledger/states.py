"""The states of a row and the legal moves between them, as one table. Who moves a row, and when, is elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class State(StrEnum):
    """Where a file version is on its way."""

    QUEUED = "QUEUED"
    FETCHING = "FETCHING"
    FETCHED = "FETCHED"
    PROCESSING = "PROCESSING"
    PROCESSED = "PROCESSED"
    DELIVERING = "DELIVERING"
    AWAITING_VERIFY = "AWAITING_VERIFY"
    VERIFIED = "VERIFIED"
    CLEANUP_ELIGIBLE = "CLEANUP_ELIGIBLE"
    CLEANED = "CLEANED"
    DUPLICATE = "DUPLICATE"
    RETIRED = "RETIRED"  # was delivered, and removed at the destination by retention
    BLOCKED = "BLOCKED"
    PAUSED = "PAUSED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    QUARANTINED = "QUARANTINED"


_S = State
_ASIDE = {_S.QUEUED, _S.PAUSED, _S.CANCELLED, _S.FAILED}  # from any state in which somebody works on the row

MOVES: dict[State, frozenset[State]] = {
    # VERIFIED again: what was asked for again, and is not at the source any more
    _S.QUEUED: frozenset({_S.FETCHING, _S.DELIVERING, _S.DUPLICATE, _S.BLOCKED, _S.VERIFIED} | _ASIDE - {_S.QUEUED}),
    _S.FETCHING: frozenset({_S.FETCHED, _S.DUPLICATE, _S.QUARANTINED} | _ASIDE),
    _S.FETCHED: frozenset({_S.PROCESSING, _S.DELIVERING, _S.DUPLICATE, _S.BLOCKED} | _ASIDE),
    _S.PROCESSING: frozenset({_S.PROCESSED, _S.FETCHED, _S.DUPLICATE, _S.BLOCKED, _S.QUARANTINED} | _ASIDE),
    _S.PROCESSED: frozenset({_S.DELIVERING, _S.BLOCKED} | _ASIDE),
    _S.DELIVERING: frozenset({_S.AWAITING_VERIFY, _S.VERIFIED, _S.DUPLICATE, _S.BLOCKED, _S.QUARANTINED} | _ASIDE),
    _S.AWAITING_VERIFY: frozenset({_S.VERIFIED, _S.QUARANTINED} | _ASIDE),
    _S.VERIFIED: frozenset({_S.CLEANUP_ELIGIBLE, _S.QUARANTINED, _S.QUEUED, _S.RETIRED}),
    _S.CLEANUP_ELIGIBLE: frozenset({_S.CLEANED, _S.VERIFIED, _S.QUARANTINED, _S.QUEUED}),
    _S.CLEANED: frozenset({_S.QUARANTINED, _S.RETIRED}),
    _S.DUPLICATE: frozenset({_S.QUEUED, _S.RETIRED}),
    # asked for again; or back to what it was, where a retention died before it removed the file
    _S.RETIRED: frozenset({_S.QUEUED, _S.VERIFIED, _S.CLEANED, _S.DUPLICATE}),
    _S.BLOCKED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
    _S.FAILED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.QUARANTINED: frozenset({_S.QUEUED, _S.CANCELLED}),
}
"""From each state to where it may go. CLEANED is the end, unless what was delivered is found damaged."""

DONE = frozenset({_S.VERIFIED, _S.CLEANUP_ELIGIBLE, _S.CLEANED, _S.DUPLICATE, _S.RETIRED})
"""States in which a file version is known and not sent again."""
ACTIVE = frozenset({_S.FETCHING, _S.FETCHED, _S.PROCESSING, _S.PROCESSED, _S.DELIVERING, _S.AWAITING_VERIFY})
"""States in which a run holds the row."""
CLEANING = frozenset({_S.CLEANUP_ELIGIBLE})
"""States in which the row belongs to a cleanup, to one that has died too: the next one takes it over. Nobody else
moves it, so that no cleanup and no delivery ever meet."""


class IllegalMove(Exception):
    """A defect in onblock: somebody wanted to move a row where the table does not lead."""


def sources(to: State) -> frozenset[State]:
    """The states from which a row may move to `to`."""
    return frozenset(s for s, targets in MOVES.items() if to in targets)


def check_moves(moves: Iterable[tuple[State, State]]) -> None:
    """Raise IllegalMove for the first move that is not in the table."""
    for old, new in moves:
        if new not in MOVES[old]:
            raise IllegalMove(f"a row cannot go from {old} to {new}")
