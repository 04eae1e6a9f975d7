"""Several processes at one ledger: each row entered once, claimed once, nobody waits for ever."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from blocks.errors import ConfigError, NetworkError
from blocks.storage.base import FileInfo
from flows.ledger import Ledger, State
from flows.ledger.store import Outcome
from flows.ledger.wishes import Wish, refusal
from tests.ledger.crowd import at_once, elsewhere, enter, states, table, version

PLACE = "local:/archive"
Meet = Callable[[], object]


@pytest.fixture
def crowd(url: str) -> int:
    """How many processes."""
    return 3 if url.startswith("sqlite") else 8


def _page(size: int) -> list[FileInfo]:
    return [version(f"DCIM/{n:05}.jpg", n) for n in range(size)]


@pytest.mark.parametrize("turn", range(3))
def test_one_row_each_whoever_enters_it(ledger: Ledger, url: str, crowd: int, turn: int) -> None:
    route = ledger.route("job", PLACE)
    answers = at_once(crowd, _enter, url, route, turn)
    assert len(table(ledger, "id")) == 3000
    assert all(a == answers[0] for a in answers), "all see the same rows"
    assert len(set(answers[0])) == 3000


def _enter(number: int, meet: Meet, url: str, route: int, turn: int) -> list[int]:
    page = _page(3000)
    if number % 3 == 1:
        page.reverse()
    elif number % 3 == 2:
        random.Random(number + turn).shuffle(page)
    with Ledger.open(url) as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        ids: dict[str, int] = {}
        meet()
        for start in range(0, len(page), 1500):
            part = page[start : start + 1500]
            ledger.compare(route, part)
            ids |= {r.path: r.id for r in enter(ledger, run_id, route, part)}
        return [ids[f.path] for f in _page(3000)]


def test_routes_and_manifests_are_made_once(url: str, crowd: int) -> None:
    assert len(set(at_once(crowd, _route, url))) == 1


def _route(number: int, meet: Meet, url: str) -> tuple[int, int]:
    with Ledger.open(url) as ledger:
        meet()
        return ledger.route("job", PLACE), ledger.manifest(PLACE, "checksums.sha256")


@pytest.mark.parametrize("turn", range(3))
def test_each_row_is_claimed_by_one(ledger: Ledger, url: str, crowd: int, turn: int) -> None:
    """The lists overlap and come in opposite orders: locks taken in the order of the list would be a deadlock."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    ids = [r.id for r in enter(ledger, run_id, ledger.route("job", PLACE), _page(3000))]
    taken = at_once(crowd, _claim, url, ids, turn)
    assert Counter(i for t in taken for i in t) == Counter(ids)
    assert table(ledger, "attempt") == [(1,)] * 3000


def _claim(number: int, meet: Meet, url: str, ids: list[int], turn: int) -> list[int]:
    ids = ids[::-1] if number % 2 else list(ids)
    if number > 3:
        random.Random(number + turn).shuffle(ids)
    with Ledger.open(url) as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        meet()
        return list(ledger.claim(run_id, ids))


def test_a_mill_of_claims_outcomes_and_wishes(ledger: Ledger, url: str, crowd: int) -> None:
    """Everybody claims, finishes, requeues, settles and asks again, over the same rows in any order, and nobody
    waits for ever; whoever was told that a row was his has moved it, and nobody else has."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    manifests = [ledger.manifest(PLACE, name) for name in "ab"]
    route = ledger.route("job", PLACE)
    rows = enter(ledger, run_id, route, _page(600), manifests[0]) + enter(
        ledger, run_id, route, [version(f"more/{n}") for n in range(600)], manifests[1]
    )
    wrote = at_once(crowd, _mill, url, route, [r.id for r in rows])
    assert sum((w[0] for w in wrote), Counter()) == sum((w[1] for w in wrote), Counter()), "one finish for each claim"
    claims = sum((w[0] for w in wrote), Counter())
    assert {i: a for i, a in table(ledger, "id", "attempt") if a} == dict(claims), "an attempt for each claim"
    assert not set(states(ledger)) & {"DELIVERING", "FETCHING"}


def _mill(number: int, meet: Meet, url: str, route: int, ids: list[int]) -> tuple[Counter[int], Counter[int]]:
    dice = random.Random(number)
    claimed: Counter[int] = Counter()
    finished: Counter[int] = Counter()
    kinds = [State.VERIFIED, State.FAILED, State.QUEUED, State.DUPLICATE]
    page = [*_page(600), *(version(f"more/{n}") for n in range(600))]
    with Ledger.open(url) as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        meet()
        for _ in range(12):
            wanted = dice.sample(ids, 800)
            taken = ledger.claim(run_id, wanted)
            claimed.update(list(taken))
            outcomes = [
                Outcome(c.id, c.attempt, dice.choice(kinds), sha256="a" * 64, failure=NetworkError("x"))
                for c in taken.values()
            ]
            dice.shuffle(outcomes)
            finished.update(ledger.finish(outcomes))
            _, seen = ledger.compare(route, dice.sample(page, 600))
            ledger.mark_seen(run_id, seen)
            ledger.requeue(run_id, [r for r in seen if r.state is State.FAILED])
            chosen = ledger.choose(dice.sample(ids, 300))
            wish = dice.choice(list(Wish))
            ledger.grant(wish, [row for row in chosen if refusal(wish, row) is None], who="x")
            queued = [r for r in seen if r.state is State.QUEUED]
            some = dice.sample(queued, min(20, len(queued)))
            ledger.settle_rows([(row, State.FAILED, ConfigError("x")) for row in some], "scan")
            ledger.recover()
            ledger.heartbeat(run_id)
        ledger.end_run(run_id, {})
    return claimed, finished


def test_dead_runs_are_recovered_once(ledger: Ledger, url: str, crowd: int) -> None:
    route = ledger.route("job", PLACE)
    for n in range(20):
        run_id = ledger.begin_run("job", flight=None, device=None)
        rows = enter(ledger, run_id, route, [version(f"{n}/{i}") for i in range(50)])
        ledger.claim(run_id, [r.id for r in rows])
        elsewhere(ledger, run_id, silent_s=61)
    assert sum(at_once(crowd, _recover, url)) == 1000
    assert set(states(ledger)) == {"QUEUED"}


def _recover(number: int, meet: Meet, url: str) -> int:
    with Ledger.open(url) as ledger:
        meet()
        return ledger.recover()


def test_a_manifest_has_one_writer_and_loses_no_version(ledger: Ledger, url: str, crowd: int) -> None:
    route, manifest = ledger.route("job", PLACE), ledger.manifest(PLACE, "checksums.sha256")
    at_once(crowd, _deliver_and_write, url, route, manifest)
    run_id = ledger.begin_run("job", flight=None, device=None)
    assert ledger.claim_manifest(PLACE, run_id) is None, "what is written is what is delivered"
    with ledger.engine.connect() as c:
        version_, written = c.exec_driver_sql("SELECT version, written FROM manifests").one()
    assert version_ == written == crowd * 15


def _deliver_and_write(number: int, meet: Meet, url: str, route: int, manifest: int) -> None:
    with Ledger.open(url) as ledger:
        run_id = ledger.begin_run("job", flight=None, device=None)
        meet()
        for n in range(15):
            (row,) = enter(ledger, run_id, route, [version(f"{number}/{n}")], manifest)
            (claim,) = ledger.claim(run_id, [row.id]).values()
            ledger.finish([Outcome(claim.id, claim.attempt, State.VERIFIED, sha256="a" * 64)])
            while (found := ledger.claim_manifest(PLACE, run_id)) is not None:
                assert len(list(ledger.manifest_lines(manifest))) >= found[2]
                ledger.manifest_written(found[0], run_id, found[2])
        ledger.end_run(run_id, {})
