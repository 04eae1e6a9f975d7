"""Runs at a place: who is counted, and reservations that together never exceed what is free."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from flows.ledger import Ledger
from flows.ledger.models import Berth
from tests.ledger.crowd import at_once, elsewhere, killed

HERE = "up sftp://nas/archive"


def begin(ledger: Ledger) -> str:
    return ledger.begin_run("job", flight=None, device=None)


def berths(ledger: Ledger) -> dict[tuple[str, str], int]:
    with ledger.engine.begin() as c:
        return {(r.run_id, r.place): r.reserved for r in c.execute(select(Berth.__table__))}


# -- who is there ---------------------------------------------------------------------------------------------------


def test_runs_at_a_place_are_counted(ledger: Ledger) -> None:
    one, two, three = (begin(ledger) for _ in range(3))
    ledger.moor(one, [HERE, "there"])
    ledger.moor(two, [HERE])
    assert ledger.crowd(one, [HERE, "there", "nowhere"]) == {HERE: 2, "there": 1, "nowhere": 1}
    assert ledger.crowd(three, [HERE]) == {HERE: 3}, "whoever asks is there"
    ledger.moor(one, [HERE])
    assert ledger.crowd(two, [HERE]) == {HERE: 2}, "entered twice is there once"
    ledger.unmoor(one)
    assert ledger.crowd(two, [HERE, "there"]) == {HERE: 1, "there": 1}


@pytest.mark.parametrize(
    ("how", "counted"),
    [
        (lambda ledger, run: ledger.end_run(run, {}), 1),
        (lambda ledger, run: killed(ledger, run), 1),
        (lambda ledger, run: elsewhere(ledger, run, silent_s=61), 1),
        (lambda ledger, run: elsewhere(ledger, run, silent_s=50), 2),
    ],
    ids=["ended", "killed", "silent", "not silent for long"],
)
def test_the_dead_do_not_count(ledger: Ledger, how: Callable[[Ledger, str], object], counted: int) -> None:
    one, other = begin(ledger), begin(ledger)
    for run in (one, other):
        ledger.moor(run, [HERE])
    how(ledger, other)
    assert ledger.crowd(one, [HERE]) == {HERE: counted}


def test_berths_of_those_who_ended_are_cleared_away(ledger: Ledger) -> None:
    runs = one, long_dead, alive, asleep = [begin(ledger) for _ in range(4)]
    for run in runs:
        ledger.moor(run, [HERE, "there"])
    ledger.end_run(one, {})
    elsewhere(ledger, asleep, silent_s=61)
    elsewhere(ledger, long_dead, silent_s=86_461)
    ledger.recover()
    ledger.moor(begin(ledger), [])
    assert {run for run, _ in berths(ledger)} == {alive, asleep}
    assert ledger.crowd(alive, [HERE]) == {HERE: 1}
    ledger.heartbeat(asleep)
    assert ledger.crowd(alive, [HERE]) == {HERE: 2}, "it had only slept"


# -- reservations ---------------------------------------------------------------------------------------------------


def test_reservations_of_all_must_fit(ledger: Ledger) -> None:
    one, two = begin(ledger), begin(ledger)
    assert ledger.reserve(one, "disk", 60, 100) == (True, 0)
    assert ledger.reserve(two, "disk", 41, 100) == (False, 60)
    assert ledger.reserve(two, "disk", 40, 100) == (True, 60)
    assert ledger.reserve(two, "disk", 41, 100) == (False, 60), "what it had counts once"
    assert ledger.reserve(two, "another disk", 100, 100) == (True, 0)
    assert berths(ledger) == {(one, "disk"): 60, (two, "disk"): 40, (two, "another disk"): 100}
    assert ledger.reserve(one, "disk", 20, 100) == (True, 40)
    assert ledger.reserve(two, "disk", 80, 100) == (True, 20)


def test_what_is_not_needed_any_more_is_given_back(ledger: Ledger) -> None:
    one, two = begin(ledger), begin(ledger)
    ledger.reserve(one, "disk", 60, 100)
    ledger.reserved(one, {"disk": 30, "never heard of": 5})
    ledger.reserved(one, {"disk": 50})
    assert berths(ledger) == {(one, "disk"): 30}, "it is never made more without being asked"
    assert ledger.reserve(two, "disk", 70, 100).granted


@pytest.mark.parametrize("how", [lambda ledger, run: ledger.end_run(run, {}), killed], ids=["ended", "killed"])
def test_the_dead_reserve_nothing(ledger: Ledger, how: Callable[[Ledger, str], object]) -> None:
    one, other = begin(ledger), begin(ledger)
    ledger.reserve(other, "disk", 90, 100)
    how(ledger, other)
    ledger.recover()
    assert ledger.reserve(one, "disk", 100, 100).granted


def test_more_than_an_integer_of_32_bits(ledger: Ledger) -> None:
    one, two = begin(ledger), begin(ledger)
    assert ledger.reserve(one, "disk", 9 << 40, 10 << 40).granted
    assert ledger.reserve(two, "disk", 2 << 40, 10 << 40) == (False, 9 << 40)


def _grab(number: int, meet: Callable[[], object], url: str) -> int:
    """Reserve 7 more of 100 as often as it is granted; how often it was."""
    with Ledger.open(url) as ledger:
        run_id = begin(ledger)
        meet()
        got = 0
        while ledger.reserve(run_id, "disk", 7 * (got + 1), 100).granted:
            got += 1
        meet()  # nobody ends before all have been refused
        return got


def test_together_they_never_reserve_more_than_there_is(url: str, ledger: Ledger) -> None:
    count = 2 if "sqlite" in url else 8
    for _ in range(3):
        assert sum(at_once(count, _grab, url)) == 100 // 7
        ledger.recover()


def _come_and_go(number: int, meet: Callable[[], object], url: str) -> None:
    with Ledger.open(url) as ledger:
        meet()
        for _ in range(15):
            run_id = begin(ledger)
            ledger.moor(run_id, ["a", "b", "c"])
            assert 1 <= ledger.crowd(run_id, ["b"])["b"] <= 8
            if number % 2:
                ledger.unmoor(run_id)
            ledger.end_run(run_id, {})


def test_coming_and_going_at_once(url: str, ledger: Ledger) -> None:
    at_once(2 if "sqlite" in url else 8, _come_and_go, url)
    ledger.moor(begin(ledger), [])
    assert berths(ledger) == {}
