"""The table of legal moves, and when a failure is tried again: values in, values out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.errors import Kind
from flows.ledger import State
from flows.ledger.rows import Row
from flows.ledger.states import ACTIVE, DONE, MOVES, IllegalMove, check_moves, sources
from flows.transfer.retry import CURABLE, MOST_TRIES, RETRIED, WINDOW_MS, after, delay_s

S = State
HAPPY = [
    S.QUEUED, S.FETCHING, S.FETCHED, S.PROCESSING, S.PROCESSED, S.DELIVERING, S.AWAITING_VERIFY, S.VERIFIED,
    S.CLEANUP_ELIGIBLE, S.CLEANED,
]  # fmt: skip
DAY = 86_400_000


def reachable(start: State) -> set[State]:
    seen, todo = set(), [start]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo += MOVES[state]
    return seen


def test_every_state_has_its_moves_and_can_be_reached() -> None:
    assert set(MOVES) == set(State)
    assert reachable(S.QUEUED) == set(State)


def test_the_long_way_and_the_short_way_are_legal() -> None:
    check_moves(pairwise(HAPPY))
    check_moves([(S.QUEUED, S.DELIVERING), (S.DELIVERING, S.VERIFIED), (S.FETCHED, S.DELIVERING)])


def test_the_end_is_the_end() -> None:
    """Unless what was delivered is found damaged, which is a row like any other damage."""
    assert all(MOVES.values())
    assert MOVES[S.CLEANED] == {S.QUARANTINED, S.RETIRED}


def test_no_state_leads_to_itself() -> None:
    assert all(s not in MOVES[s] for s in State)


def test_work_is_never_skipped() -> None:
    """Nothing is verified that nobody delivered, nothing cleaned that was not verified."""
    assert sources(S.VERIFIED) == {S.QUEUED, S.DELIVERING, S.AWAITING_VERIFY, S.CLEANUP_ELIGIBLE, S.RETIRED}
    assert sources(S.CLEANUP_ELIGIBLE) == {S.VERIFIED}
    assert sources(S.CLEANED) == {S.CLEANUP_ELIGIBLE, S.RETIRED}
    assert sources(S.RETIRED) == {S.VERIFIED, S.CLEANED, S.DUPLICATE}, "only what was delivered is removed there"
    assert sources(S.FETCHING) == {S.QUEUED}
    assert S.CLEANED not in sources(S.QUEUED), "the source is gone: there is nothing to send again"


@pytest.mark.parametrize("state", sorted(ACTIVE))
def test_whatever_somebody_works_on_can_be_put_down(state: State) -> None:
    assert {S.QUEUED, S.PAUSED, S.CANCELLED, S.FAILED} <= MOVES[state]


@pytest.mark.parametrize("state", sorted(set(State) - {S.CLEANED}))
def test_everything_but_the_end_can_be_asked_for_again(state: State) -> None:
    assert S.QUEUED in reachable(state)
    if state not in ACTIVE and state is not S.QUEUED:
        assert S.QUEUED in MOVES[state]


def test_done_and_active_are_apart() -> None:
    assert not DONE & ACTIVE
    assert {S.VERIFIED, S.CLEANUP_ELIGIBLE, S.CLEANED, S.DUPLICATE, S.RETIRED} == DONE
    assert set(HAPPY[1:7]) == ACTIVE
    # a row that is done is not lost by a failure: only damage found later takes it back
    for state in DONE:
        assert MOVES[state] <= DONE | {S.QUARANTINED, S.QUEUED}


@pytest.mark.parametrize("old", sorted(State))
def test_an_illegal_move_raises_and_says_which(old: State) -> None:
    for new in State:
        if new in MOVES[old]:
            check_moves([(old, new)])
        else:
            with pytest.raises(IllegalMove, match=f"from {old} to {new}"):
                check_moves([(S.QUEUED, S.DELIVERING), (old, new)])


# -- what follows a failure ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "state", "waits"),
    [
        (Kind.NETWORK, S.QUEUED, True),
        (Kind.UNKNOWN, S.QUEUED, True),
        (Kind.HASH_MISMATCH, S.QUARANTINED, False),
        (Kind.SOURCE_CHANGED, S.QUEUED, False),
        (Kind.AUTH, S.FAILED, False),
        (Kind.PERMISSION, S.FAILED, False),
        (Kind.NOT_FOUND, S.FAILED, False),
        (Kind.CONFLICT, S.FAILED, False),
        (Kind.DISK_FULL, S.FAILED, False),
        (Kind.CORRUPT, S.FAILED, False),
        (Kind.TOOL_MISSING, S.FAILED, False),
        (Kind.CONFIG, S.FAILED, False),
        (Kind.SOURCE_VANISHED, S.FAILED, False),
        (Kind.CANCELLED, S.QUEUED, False),
        (Kind.PAUSED, S.PAUSED, False),
    ],
)
def test_after_the_first_failure(kind: Kind, state: State, waits: bool) -> None:
    found, at = after(kind, 1, queued_at=1000, now=2000)
    assert found is state
    assert (at is not None) == waits


def test_the_table_speaks_of_every_kind() -> None:
    for kind in Kind:
        state, _ = after(kind, 1, 0, 0)
        assert state in MOVES[S.DELIVERING]
    assert RETRIED <= CURABLE
    assert not {Kind.CORRUPT, Kind.HASH_MISMATCH} & CURABLE


@pytest.mark.parametrize(
    ("tries", "seconds"),
    [(1, 2), (2, 4), (3, 8), (4, 16), (5, 32), (6, 60), (9, 60), (10, 90), (11, 135), (20, 3600), (500, 3600)],
)
def test_delays(tries: int, seconds: float) -> None:
    assert delay_s(tries) == pytest.approx(seconds, rel=0.01)


@given(st.integers(1, 10_000))
def test_delays_grow_to_an_hour_and_no_further(tries: int) -> None:
    assert 0 < delay_s(tries) <= delay_s(tries + 1) <= 3600


@given(
    st.sampled_from(sorted(RETRIED)), st.integers(1, 1000), st.integers(0, 2**42), st.integers(0, 10 * DAY),
)  # fmt: skip
def test_deferred_until_seven_days_or_five_hundred_tries(kind: Kind, tries: int, queued_at: int, age: int) -> None:
    now = queued_at + age
    state, at = after(kind, tries, queued_at, now)
    if tries >= 500 or age > 7 * DAY:
        assert (state, at) == (S.FAILED, None)
    else:
        assert state is S.QUEUED
        assert at is not None
        delay = (at - now) / 1000
        assert 0.79 * delay_s(tries) <= delay <= 1.21 * delay_s(tries)
        assert delay <= 3600, "an hour is the most"


@given(st.integers(0, 2**42), st.integers(-10 * DAY, 4000 * DAY))
def test_a_time_beyond_the_longest_wait_was_written_by_a_wrong_clock(now: int, ahead: int) -> None:
    row = Row(1, 1, "a", 1, 1, "", S.QUEUED, Kind.NETWORK, 1, 1, now + ahead, "a", now, "away", None, 0, None)
    assert row.waits(now) == (0 < ahead <= 3_600_000)
    assert not row._replace(next_attempt_at=None).waits(now)


def test_the_limits_are_those_of_the_design() -> None:
    assert (WINDOW_MS, MOST_TRIES) == (7 * DAY, 500)
    assert after(Kind.NETWORK, 499, 0, 7 * DAY)[0] is S.QUEUED
    assert after(Kind.NETWORK, 500, 0, 0)[0] is S.FAILED
    assert after(Kind.NETWORK, 1, 0, 7 * DAY + 1)[0] is S.FAILED
