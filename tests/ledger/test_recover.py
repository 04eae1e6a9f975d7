"""Rows of dead runs are freed, at once where the process is known to be gone; rows of living ones never."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from sqlalchemy import select, text

from flows.ledger import Ledger
from flows.ledger.models import Run
from tests.ledger.crowd import Held, enter, states, table, version

PAGE = [version(f"{n}") for n in range(20)]


@pytest.fixture
def route(ledger: Ledger) -> int:
    return ledger.route("job", "local:/archive")


def change_run(ledger: Ledger, run_id: str, **values: Any) -> None:
    with ledger.engine.begin() as c:
        c.execute(Run.__table__.update().where(Run.id == run_id).values(**values))


def ended(ledger: Ledger, run_id: str) -> bool:
    with ledger.engine.connect() as c:
        return c.execute(select(Run.ended_at).where(Run.id == run_id)).scalar_one() is not None


def test_a_process_that_is_alive_keeps_its_rows_and_a_killed_one_loses_them(
    ledger: Ledger, url: str, route: int
) -> None:
    with Held(url, route, PAGE[:10]) as dead, Held(url, route, PAGE[10:]) as alive:
        assert ledger.recover() == 0
        dead.kill()
        assert ledger.recover() == 10
        assert states(ledger, dead.ids) == ["QUEUED"] * 10
        assert states(ledger, alive.ids) == ["DELIVERING"] * 10
        assert ended(ledger, dead.run_id)
        assert not ended(ledger, alive.run_id)
        assert ledger.recover() == 0
        mine = ledger.begin_run("job", flight=None, device=None)
        claims = ledger.claim(mine, [*dead.ids, *alive.ids])
        assert {c.id: c.attempt for c in claims.values()} == dict.fromkeys(dead.ids, 2)


def test_our_own_run_is_alive(ledger: Ledger, route: int) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    assert ledger.recover() == 0
    assert set(states(ledger)) == {"DELIVERING"}


@pytest.mark.parametrize(("age_s", "lost"), [(0, False), (50, False), (61, True), (86_400, True)])
def test_a_run_without_heartbeat_for_a_minute_is_dead(ledger: Ledger, route: int, age_s: int, lost: bool) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    rows = enter(ledger, run_id, route, PAGE)
    ledger.claim(run_id, [r.id for r in rows])
    with ledger.engine.begin() as c:
        c.execute(text("UPDATE runs SET heartbeat_at = heartbeat_at - :age"), {"age": age_s * 1000})
    assert ledger.recover() == (len(PAGE) if lost else 0)


def test_a_heartbeat_renews_the_lease(ledger: Ledger, route: int) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    change_run(ledger, run_id, heartbeat_at=0)
    ledger.heartbeat(run_id)
    assert ledger.recover() == 0


@pytest.mark.parametrize("host", ["another-machine", socket.gethostname()])
def test_of_another_machine_only_the_heartbeat_tells(ledger: Ledger, route: int, host: str) -> None:
    """Devices are called `raspberrypi`, all of them: the same name does not make it the same machine."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    change_run(ledger, run_id, worker=f"{host}/another-boot/4026531836:1:1")
    assert ledger.recover() == 0
    change_run(ledger, run_id, heartbeat_at=0)
    assert ledger.recover() == len(PAGE)


def test_a_process_id_that_was_given_away_again_is_not_the_same_process(ledger: Ledger, route: int) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    with ledger.engine.connect() as c:
        worker: str = c.execute(select(Run.worker)).scalar_one()
    host, pid, started = worker.rsplit(":", 2)
    change_run(ledger, run_id, worker=f"{host}:{pid}:{int(started) - 1}")
    assert ledger.recover() == len(PAGE)


def test_a_run_that_was_declared_dead_and_is_not_can_be_recovered_again(ledger: Ledger, route: int) -> None:
    """A laptop wakes up: its run goes on, takes rows, and is killed. They must not stay taken for ever."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    rows = enter(ledger, run_id, route, PAGE)
    change_run(ledger, run_id, heartbeat_at=0)
    ledger.recover()
    assert ended(ledger, run_id)
    ledger.heartbeat(run_id)  # it was only asleep
    assert len(ledger.claim(run_id, [r.id for r in rows])) == len(PAGE)
    assert ledger.recover() == 0, "it is alive again"
    assert set(states(ledger)) == {"DELIVERING"}
    change_run(ledger, run_id, heartbeat_at=0)
    assert ledger.recover() == len(PAGE)
    assert set(states(ledger)) == {"QUEUED"}


def test_a_run_that_claims_before_it_notices_that_it_was_declared_dead(ledger: Ledger, route: int) -> None:
    """The claim comes before the next heartbeat: it is a sign of life, and begins a lease that ends like any other."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    rows = enter(ledger, run_id, route, PAGE)
    change_run(ledger, run_id, heartbeat_at=0)
    ledger.recover()
    ledger.claim(run_id, [r.id for r in rows])
    assert ledger.recover() == 0
    change_run(ledger, run_id, heartbeat_at=0)
    assert ledger.recover() == len(PAGE)
    assert set(states(ledger)) == {"QUEUED"}
    assert table(ledger, "attempt") == [(1,)] * len(PAGE)


def test_a_heartbeat_that_is_late_does_not_revive_a_run_that_has_ended(ledger: Ledger) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.end_run(run_id, {"delivered": 0})
    ledger.heartbeat(run_id)
    assert ended(ledger, run_id)


def test_the_end_of_a_run_frees_what_it_holds(ledger: Ledger, route: int) -> None:
    run_id, other = (ledger.begin_run("job", flight=None, device=None) for _ in range(2))
    rows = enter(ledger, run_id, route, PAGE)
    ledger.claim(run_id, [r.id for r in rows[:10]])
    ledger.claim(other, [r.id for r in rows[10:]])
    ledger.end_run(run_id, {"delivered": 0})
    assert states(ledger, [r.id for r in rows[:10]]) == ["QUEUED"] * 10
    assert states(ledger, [r.id for r in rows[10:]]) == ["DELIVERING"] * 10
