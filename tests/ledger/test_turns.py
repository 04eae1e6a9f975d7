"""Whose turn it is: as a table, and asked by many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import func, select, update

from blocks.errors import NetworkError
from flows.ledger import Ledger, database
from flows.ledger.models import Turn
from flows.ledger.turns import GIVEN_WAY_MS, GONE_MS, Waiter, may_go
from tests.ledger.crowd import elsewhere, killed

LIMITS = {"onblock": 4, "device:a": 2, "device:b": 2, "device:c": 2, "destination:nas": 1, "cpu": 2}
LONG = GIVEN_WAY_MS


def of(name: str, *places: str, waited: int = 0) -> Waiter:
    return Waiter(name, tuple(sorted(["onblock", *(places or [f"device:{name[0]}"])])), waited)


def held(**runs: int) -> dict[tuple[str, tuple[str, ...]], int]:
    return {(name, of(name).tags): slots for name, slots in runs.items()}


@pytest.mark.parametrize(
    ("me", "others", "at_work", "answer"),
    [
        pytest.param(of("a1"), [], {}, True, id="alone"),
        pytest.param(of("a1"), [], held(a1=1), True, id="once more"),
        pytest.param(of("a1"), [], held(a1=2), False, id="as many as its device may"),
        pytest.param(of("a1"), [], held(a1=1, a2=1), False, id="another run of its device"),
        pytest.param(of("c1"), [], held(a1=2, b1=2), False, id="as many as all may"),
        pytest.param(of("c1"), [], held(a1=2, b1=1), True, id="one is left"),
        pytest.param(of("a1"), [of("c1", waited=LONG)], held(a1=1, b1=2), False, id="who has none is first"),
        pytest.param(of("c1"), [of("a1", waited=9 * LONG)], held(a1=1, b1=2), True, id="however long others wait"),
        pytest.param(of("a1"), [of("c1", waited=LONG - 1)], held(a1=1, b1=2), True, id="who has just come waits a little"),
        pytest.param(of("a1", waited=1), [of("b1", waited=LONG)], held(c1=2, d1=1), False, id="who waits longer is first"),
        pytest.param(of("a1", waited=9 * LONG), [of("b1", waited=LONG)], held(c1=2, d1=1), True, id="as I am"),
        pytest.param(of("a1"), [of("b1", waited=LONG)], held(b2=2, c1=1), True, id="who may not go is in nobody's way"),
        pytest.param(of("a1"), [of("c1", waited=LONG)], held(b1=2), True, id="there is one for each"),
        pytest.param(of("a1"), [of("a2", waited=LONG)], held(a1=1), False, id="one device, and the other run has none"),
        pytest.param(of("a2"), [of("a1", waited=9 * LONG)], held(a1=1), True, id="of one device, as the other run"),
        pytest.param(
            Waiter("p", ("cpu",), 0), [of("a1", waited=LONG)], held(a2=2, b1=2), True, id="who wants nothing of it"
        ),
        pytest.param(
            of("x", "destination:nas"), [], {("y", of("y", "destination:nas").tags): 1}, False, id="a destination"
        ),
        pytest.param(Waiter("z", ("no limit",), 0), [], {("y", ("no limit",)): 99}, True, id="no limit"),
    ],
)  # fmt: skip
def test_whose_turn_it_is(
    me: Waiter, others: list[Waiter], at_work: dict[tuple[str, tuple[str, ...]], int], answer: bool
) -> None:
    assert may_go(me, others, at_work, LIMITS) is answer


A, B = ("device:a", "onblock"), ("device:b", "onblock")
TWO = {"onblock": 2, "device:a": 2, "device:b": 2}


def begin(ledger: Ledger) -> str:
    return ledger.begin_run("job", flight=None, device=None)


def waits_since(ledger: Ledger, run: str, ms: int) -> None:
    """As if a run had come to the line earlier."""
    with ledger.engine.begin() as c:
        c.execute(update(Turn).where(Turn.run_id == run).values(since=Turn.since - ms))


def test_a_slot_goes_to_who_has_none(ledger: Ledger) -> None:
    greedy, small = begin(ledger), begin(ledger)
    assert ledger.ask_turn(greedy, A, 0, TWO) and ledger.ask_turn(greedy, A, 1, TWO)
    assert not ledger.ask_turn(small, B, 0, TWO)
    waits_since(ledger, small, GIVEN_WAY_MS)
    ledger.let_go(greedy, A, 1)
    assert not ledger.ask_turn(greedy, A, 1, TWO), "it is not its turn"
    assert ledger.ask_turn(small, B, 0, TWO)
    ledger.let_go(small, B, 0)
    assert ledger.ask_turn(greedy, A, 1, TWO)


def test_who_does_not_ask_any_more_is_in_nobodys_way(ledger: Ledger) -> None:
    greedy, small = begin(ledger), begin(ledger)
    assert ledger.ask_turn(greedy, A, 0, TWO) and ledger.ask_turn(greedy, A, 1, TWO)
    assert not ledger.ask_turn(small, B, 0, TWO)
    waits_since(ledger, small, GIVEN_WAY_MS)
    ledger.let_go(greedy, A, 1)
    with ledger.engine.begin() as c:
        c.execute(update(Turn).where(Turn.run_id == small).values(asked_at=Turn.asked_at - GONE_MS - 1))
    assert ledger.ask_turn(greedy, A, 1, TWO)


@pytest.mark.parametrize(
    ("how", "free"),
    [
        (lambda ledger, run: ledger.end_run(run, {}), True),
        (lambda ledger, run: ledger.leave_line(run), True),
        (lambda ledger, run: killed(ledger, run), True),
        (lambda ledger, run: elsewhere(ledger, run, silent_s=61), True),
        (lambda ledger, run: elsewhere(ledger, run, silent_s=50), False),
    ],
    ids=["ended", "left", "killed", "silent", "not silent for long"],
)
def test_the_dead_hold_nothing(ledger: Ledger, how: Callable[[Ledger, str], object], free: bool) -> None:
    one, other = begin(ledger), begin(ledger)
    assert ledger.ask_turn(other, A, 0, TWO) and ledger.ask_turn(other, A, 1, TWO)
    how(ledger, other)
    assert ledger.ask_turn(one, B, 0, TWO) is free


def test_what_those_left_who_ended_is_cleared_away(ledger: Ledger) -> None:
    one, ended, alive = (begin(ledger) for _ in range(3))
    for run in (one, ended, alive):
        ledger.ask_turn(run, A, 0, {})
    ledger.end_run(ended, {})
    ledger.leave_line(one)
    with ledger.engine.begin() as c:
        assert list(c.execute(select(Turn.run_id)).scalars()) == [alive]


def test_asked_twice_for_once(ledger: Ledger) -> None:
    """As after a database that went away in the middle: what a run says that it holds is what counts."""
    run = begin(ledger)
    for _ in range(3):
        assert ledger.ask_turn(run, A, 0, TWO)
    with ledger.engine.begin() as c:
        assert c.execute(select(func.sum(Turn.held))).scalar_one() == 1


def test_many_at_once_never_hold_more_than_there_are(ledger: Ledger) -> None:
    lock, at_work, most, turns = threading.Lock(), 0, 0, 0

    def work(run: str, tags: tuple[str, ...]) -> None:
        nonlocal at_work, most, turns
        for _ in range(8):
            while not ledger.ask_turn(run, tags, 0, TWO):
                stop.wait(0.01)
            with lock:
                at_work += 1
                most, turns = max(most, at_work), turns + 1
            stop.wait(0.005)
            with lock:
                at_work -= 1
            ledger.let_go(run, tags, 0)

    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(begin(ledger), (A, B)[n % 2])) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns == 48 and most <= 2


def test_a_machine_that_is_gone_in_the_middle_holds_up_nobody(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is still there, with a transaction that has the lock, and nobody is left to end it."""
    monkeypatch.setitem(database.LET_GO, "idle_in_transaction_session_timeout", 500)
    with Ledger.open(postgres_url) as gone, Ledger.open(postgres_url) as ledger:
        run = ledger.begin_run("job", flight=None, device="b")
        with pytest.raises(NetworkError, match="does not answer"), gone._write() as c:
            c.execute(select(func.pg_advisory_xact_lock(func.hashtextextended("onblock turns", 0))))
            assert ledger.ask_turn(run, B, 0, TWO), "as soon as the server has broken it off"
            c.execute(select(1))
