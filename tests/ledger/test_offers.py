"""Shipments that are offered: each taken by one, by another when that one has ended, and counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from sqlalchemy import select

from blocks.errors import Kind, NetworkError
from flows.ledger import Ledger, State
from flows.ledger.models import Offer as OfferRow
from flows.ledger.store import Outcome
from tests.ledger.crowd import at_once, enter, killed, version

Meet = Callable[[], object]


def _ids(ledger: Ledger, leader: str, count: int) -> list[int]:
    return [
        row.id
        for row in enter(
            ledger, leader, ledger.route("job", "local:/a"), [version(f"{n:05}.jpg", n) for n in range(count)]
        )
    ]


def _leader(ledger: Ledger) -> str:
    return ledger.begin_run("job", flight=None, device=None)


def test_each_is_taken_by_one(ledger: Ledger, url: str) -> None:
    leader = _leader(ledger)
    ids = _ids(ledger, leader, 300)
    for number in range(60):
        for _ in range(2):  # nobody heard that it was written
            ledger.offer(leader, number, ids[5 * number : 5 * number + 5], large=False)
    ledger.offer(_leader(ledger), 1, ids[:5], large=False)  # another run's
    answers = at_once(4, _take, url, leader)
    assert sorted(i for answer in answers for i in answer) == ids
    assert ledger.open_offers(leader) == 0
    assert ledger.settled_offers(leader).rows == 80, "a few at a time"
    while (settled := ledger.settled_offers(leader)).numbers:
        ledger.drop_offers(leader, settled.numbers)
    assert len(ledger.read_all(select(OfferRow.number))) == 1


def _take(number: int, meet: Meet, url: str, leader: str) -> list[int]:
    taken: list[int] = []
    with Ledger.open(url) as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None, leader=leader)
        meet()
        while (offer := ledger.take_offer(leader, run_id)) is not None:
            taken += [row.id for row in offer.rows]
            ledger.offer_done(leader, offer.number, run_id)
        ledger.end_run(run_id, {})
    return taken


def test_what_somebody_took_who_has_ended_is_free_again(ledger: Ledger) -> None:
    leader = _leader(ledger)
    ids = _ids(ledger, leader, 10)
    ledger.offer(leader, 1, ids, large=True)
    dead = ledger.begin_run("job", flight=None, device=None, leader=leader)
    first = ledger.take_offer(leader, dead)
    assert first is not None and first.large and [r.id for r in first.rows] == ids
    ledger.claim(dead, ids[:4])
    hand = ledger.begin_run("job", flight=None, device=None, leader=leader)
    assert ledger.take_offer(leader, hand) is None
    assert ledger.take_offer(leader, dead, [1]) is None
    untold = ledger.take_offer(leader, dead)
    assert untold is not None and untold.number == 1, "it may never have heard that it is its own"
    killed(ledger, dead)
    assert ledger.recover() == 4
    again = ledger.take_offer(leader, hand)
    assert again is not None and again.number == first.number
    assert [r.attempt for r in again.rows] == [1] * 4 + [0] * 6
    ledger.offer_done(leader, 1, dead)  # it had only slept
    assert ledger.open_offers(leader) == 1
    ledger.offer_done(leader, 1, hand)
    assert ledger.open_offers(leader) == 0


def test_what_became_of_them(ledger: Ledger) -> None:
    leader = _leader(ledger)
    ids = _ids(ledger, leader, 9)
    ledger.offer(leader, 1, ids[:6], large=False)
    ledger.offer(leader, 2, ids[6:], large=False)
    hand = ledger.begin_run("job", flight=None, device=None, leader=leader)
    for _ in range(2):
        offer = ledger.take_offer(leader, hand)
        assert offer is not None
        claims = ledger.claim(hand, [r.id for r in offer.rows])
        ledger.finish([
            Outcome(i, c.attempt, State.VERIFIED, sha256="0" * 64, verified_by="checksum") if i < ids[4] else
            Outcome(i, c.attempt, State.FAILED, failure=NetworkError("gone"), stage="read")
            for i, c in claims.items() if i != ids[8]
        ])  # fmt: skip
        ledger.offer_done(leader, offer.number, hand)
    settled = ledger.settled_offers(leader)
    assert settled.rows == 9
    told = Counter[tuple[State, Kind | None, str | None]]()
    for became in settled.became:
        told[became[:3]] += became.files
    assert told == {
        (State.VERIFIED, None, "checksum"): 4, (State.FAILED, Kind.NETWORK, None): 4, (State.DELIVERING, None, None): 1,
    }  # fmt: skip
    assert sum(b.bytes for b in settled.became) == sum(range(9))
    ledger.drop_offers(leader, settled.numbers)
    assert ledger.settled_offers(leader) == ([], 0, [])


def test_a_leader_that_moved_one_itself_has_counted_it(ledger: Ledger) -> None:
    leader = _leader(ledger)
    ledger.offer(leader, 1, _ids(ledger, leader, 3), large=False)
    offer = ledger.take_offer(leader, leader)
    assert offer is not None
    ledger.offer_done(leader, offer.number, leader)
    assert ledger.settled_offers(leader) == ([1], 3, [])


def test_they_go_with_their_leader(ledger: Ledger) -> None:
    leader = _leader(ledger)
    ids = _ids(ledger, leader, 4)
    for number, i in enumerate(ids):
        ledger.offer(leader, number, [i], large=False)
    hand = ledger.begin_run("job", flight=None, device=None, leader=leader)
    assert ledger.take_offer(leader, hand) is not None
    assert ledger.withdraw_offers(leader) == 3, "not what somebody works on"
    assert ledger.take_offer(leader, hand, [0]) is None
    ledger.end_run(leader, {})
    assert ledger.read_all(select(OfferRow.number)) == []
    found = ledger.leader(leader)
    assert found is not None and (found.over, found.in_order) == (True, True)
    assert ledger.leader("nobody") is None


def test_what_a_hand_put_off_waits_for_its_leader(ledger: Ledger) -> None:
    """It was listed by the leader: it is not gone, and its time is the leader's."""
    leader = _leader(ledger)
    ids = _ids(ledger, leader, 2)
    hand = ledger.begin_run("job", flight=None, device=None, leader=leader)
    ledger.claim(hand, ids)
    failed = NetworkError("away")
    ledger.finish([
        Outcome(i, 1, State.QUEUED, failure=failed, stage="write", tries=1, next_attempt_at=1000) for i in ids
    ])  # fmt: skip
    ledger.end_run(hand, {})
    (route,) = {r["route_id"] for r in ledger.files()}
    assert list(ledger.gone(route, leader)) == []
    assert ledger.next_attempt([route], leader, 2000) == 1000
    another = _leader(ledger)
    assert [r.id for page in [next(ledger.gone(route, another))] for r, _ in page] == ids
    assert ledger.next_attempt([route], another, 2000) is None
