"""Several runs do anything at any time with a handful of rows; a model of a few lines says what must come of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from blocks.errors import ConfigError, NetworkError
from flows.ledger import Ledger, State
from flows.ledger.states import ACTIVE, DONE, MOVES, IllegalMove
from flows.ledger.store import Claim, Outcome, Row
from flows.ledger.wishes import AT_REST, Wish
from tests.ledger.crowd import elsewhere, enter, look, table, version

S = State
WRONG = NetworkError("wrong")
VERSIONS = [version(p, n) for p in ("a", "b\n", "c\udcff") for n in (1, 2)]
jobs = itertools.count()
few = st.lists(st.integers(0, len(VERSIONS) - 1), max_size=4, unique=True)
who = st.integers(0, 2)
aside = [S.CANCELLED, S.FAILED, S.VERIFIED, S.DUPLICATE]


class Rows(RuleBasedStateMachine):
    """Real rows on one side, `state`, `attempt` and `holder` of each on the other."""

    ledger: ClassVar[Ledger]

    def __init__(self) -> None:
        super().__init__()
        self.job = f"job-{next(jobs)}"
        self.route = self.ledger.route(self.job, "local:/archive")
        self.runs = [self.begin() for _ in range(3)]
        self.ids: dict[int, int] = {}  # of a version
        self.state: dict[int, State] = {}
        self.attempt: dict[int, int] = {}
        self.holder: dict[int, str] = {}
        self.wish: dict[int, Wish | None] = {}  # left for whoever works on it
        self.claims: list[Claim] = []  # all there ever were: late writers
        self.seen: list[Row] = []  # all that anybody ever looked at
        self.finished: set[tuple[int, int]] = set()
        self.was: dict[int, tuple[State, int]] = {}

    def begin(self) -> str:
        return self.ledger.begin_run(self.job, flight=None, device=None)

    def picked(self, numbers: list[int]) -> list[int]:
        return [self.ids[n] for n in numbers if n in self.ids]

    def release(self, run_id: str) -> int:
        held = [i for i, h in self.holder.items() if h == run_id and self.state[i] in ACTIVE]
        for i in held:
            self.state[i] = S.QUEUED
            self.fulfil(i)
        return len(held)

    @rule(run=who, numbers=few)
    def enter(self, run: int, numbers: list[int]) -> None:
        rows = enter(self.ledger, self.runs[run], self.route, [VERSIONS[n] for n in numbers])
        for number, row in zip(numbers, rows, strict=True):
            assert self.ids.setdefault(number, row.id) == row.id, "each version is entered once"
            if row.id not in self.state:
                self.state[row.id], self.attempt[row.id], self.holder[row.id] = S.QUEUED, 0, self.runs[run]

    @rule(numbers=few)
    def compare(self, numbers: list[int]) -> None:
        new, rows = self.ledger.compare(self.route, [VERSIONS[n] for n in numbers])
        assert {numbers[n] for n in new} == set(numbers) - set(self.ids)
        assert {r.id for r in rows} == {i for i in self.picked(numbers) if self.state[i] not in DONE}
        self.seen += rows

    @rule(run=who, numbers=few, to=st.sampled_from([S.DELIVERING, S.FETCHING, S.PROCESSING]))
    def claim(self, run: int, numbers: list[int], to: State) -> None:
        ids = self.picked(numbers)
        taken = self.ledger.claim(self.runs[run], ids, to)
        free = {S.QUEUED, S.FETCHED, S.PROCESSED}
        assert set(taken) == {i for i in ids if self.state[i] in free and to in MOVES[self.state[i]]}
        for i, claim in taken.items():
            self.attempt[i] += 1
            assert claim.attempt == self.attempt[i]
            self.state[i], self.holder[i] = to, self.runs[run]
            self.claims.append(claim)

    @rule(data=st.data(), to=st.sampled_from(sorted(State)))
    def finish(self, data: st.DataObject, to: State) -> None:
        """By whoever holds it, or ever did."""
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims[-8:]))
        old = self.state[claim.id]
        written = self.ledger.finish([Outcome(claim.id, claim.attempt, to, failure=WRONG, tries=1, sha256="a" * 64)])
        may = claim.attempt == self.attempt[claim.id] and old in ACTIVE and to in MOVES[old]
        assert written == ({claim.id} if may else set())
        if may:
            self.state[claim.id] = to
            self.fulfil(claim.id)

    @rule(run=who, data=st.data())
    def requeue(self, run: int, data: st.DataObject) -> None:
        """Of rows as they were seen, perhaps long ago."""
        candidates = {r.id: r for r in self.seen[-12:] if S.QUEUED in MOVES[r.state]}
        if not candidates:
            return
        rows = data.draw(st.lists(st.sampled_from(list(candidates.values())), unique=True, max_size=3))
        moved = self.ledger.requeue(self.runs[run], rows)
        expected = {r.id for r in rows if r.state not in ACTIVE and self.state[r.id] is r.state}
        assert {r.id for r in moved} == expected
        for i in expected:
            self.state[i], self.holder[i] = S.QUEUED, self.runs[run]

    @rule(data=st.data(), to=st.sampled_from(aside))
    def settle(self, data: st.DataObject, to: State) -> None:
        if not self.seen:
            return
        row = data.draw(st.sampled_from(self.seen[-12:]))
        if to not in MOVES[row.state]:
            with pytest.raises(IllegalMove):
                self.ledger.settle_rows([(row, to, WRONG)], "scan")
            return
        self.ledger.settle_rows([(row, to, WRONG)], "scan")
        if (self.state[row.id], self.attempt[row.id]) == (row.state, row.attempt):
            self.state[row.id] = to

    @rule(numbers=few, wish=st.sampled_from(sorted(Wish)))
    def grant(self, numbers: list[int], wish: Wish) -> None:
        """All of it or nothing."""
        ids = self.picked(numbers)
        chosen = self.ledger.choose(ids) if ids else []
        assert {row.id: row.state for row in chosen} == {i: self.state[i] for i in ids}
        states, to = AT_REST[wish]
        fits = {i for i in ids if self.state[i] in states or (self.state[i] in ACTIVE and wish is not Wish.RETRY)}
        if fits != set(ids):
            with pytest.raises(ConfigError):
                self.ledger.grant(wish, chosen, who="x")
            return
        moved = [i for i in ids if self.state[i] in states]
        left = [i for i in ids if self.state[i] in ACTIVE]
        if wish is Wish.RESUME:  # takes back a pause, never a cancel
            left = [i for i in left if self.wish.get(i) is Wish.PAUSE]
        assert self.ledger.grant(wish, chosen, who="x") == (len(moved), len(left))
        self.state |= dict.fromkeys(moved, to)
        for i in left:
            self.wish[i] = None if wish is Wish.RESUME else wish

    def fulfil(self, i: int) -> None:
        """Nobody works on the row any more."""
        if self.state[i] in ACTIVE:
            return
        wish = self.wish.pop(i, None)
        if wish is not None and self.state[i] is S.QUEUED:
            self.state[i] = AT_REST[wish][1]

    @rule(run=who, numbers=few)
    def mark_seen(self, run: int, numbers: list[int]) -> None:
        ids = self.picked(numbers)
        self.ledger.mark_seen(self.runs[run], look(self.ledger, ids))
        self.holder |= {i: self.runs[run] for i in ids if self.state[i] not in ACTIVE}

    @rule(numbers=few)
    def damage(self, numbers: list[int]) -> None:
        for i in self.picked(numbers)[:1]:
            self.ledger.mark_damaged([(i, WRONG)])
            if self.state[i] is S.VERIFIED:
                self.state[i] = S.QUARANTINED

    @rule(run=who)
    def end(self, run: int) -> None:
        self.ledger.end_run(self.runs[run], {})
        self.release(self.runs[run])
        self.runs[run] = self.begin()

    @rule(run=who)
    def sleep(self, run: int) -> None:
        """Its lease runs out, somebody notices; it may well wake up again."""
        elsewhere(self.ledger, self.runs[run], silent_s=61)
        assert self.ledger.recover() == self.release(self.runs[run])

    @rule(run=who)
    def heartbeat(self, run: int) -> None:
        self.ledger.heartbeat(self.runs[run])

    @rule()
    def recover(self) -> None:
        assert self.ledger.recover() == 0, "nobody is dead"

    @invariant()
    def rows_are_as_the_model_says(self) -> None:
        rows: dict[int, Any] = {
            i: (State(s), a) for i, s, a in table(self.ledger, "id", "state", "attempt", route=self.route)
        }
        assert rows == {i: (self.state[i], self.attempt[i]) for i in self.state}
        for i, (state, attempt) in rows.items():
            old, before = self.was.get(i, (state, 0))
            steps = {old, *MOVES[old]} | {t for m in MOVES[old] & {S.QUEUED} for t in (S.PAUSED, S.CANCELLED)}
            assert state in steps, f"no such move: {old} to {state}"
            assert before <= attempt <= before + 1
        self.was = rows
        for run_id in self.runs:
            mine = {i: w for i, w in self.wish.items() if w and self.holder[i] == run_id and self.state[i] in ACTIVE}
            assert self.ledger.wishes(run_id) == mine

    def teardown(self) -> None:
        for run_id in self.runs:
            self.ledger.end_run(run_id, {})


@pytest.fixture
def machine(ledger: Ledger) -> Iterator[type[Rows]]:
    yield type("RowsOfThisLedger", (Rows,), {"ledger": ledger})


def test_anything_at_any_time(machine: type[Rows]) -> None:
    calm = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=40, suppress_health_check=calm)
    )
