"""Rows of dead runs are freed, at once where the process is known to be gone; rows of living ones never, whatever the
clocks say."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from sqlalchemy import create_engine, select

from blocks.errors import OnblockError
from flows.ledger import Ledger
from flows.ledger.models import Run
from tests.ledger.crowd import Held, change_run, elsewhere, enter, killed, states, table, version

PAGE = [version(f"{n}") for n in range(20)]


@pytest.fixture
def route(ledger: Ledger) -> int:
    return ledger.route("job", "local:/archive")


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
    elsewhere(ledger, run_id, silent_s=age_s)
    assert ledger.recover() == (len(PAGE) if lost else 0)


@pytest.mark.parametrize("age_s", [61, 3600, -3600, 86_400 * 365 * 50])
def test_a_process_of_this_machine_that_is_there_is_never_robbed(
    ledger: Ledger, url: str, route: int, age_s: int
) -> None:
    """The clock was set: its heartbeat seems an hour old, or of the year 1976. Its process is there, stopped or not."""
    with Held(url, route, PAGE[:10]) as held:
        change_run(ledger, held.run_id, heartbeat_at=Run.heartbeat_at - age_s * 1000)
        mine = ledger.begin_run("job", flight=None, device=None)
        ledger.claim(mine, [r.id for r in enter(ledger, mine, route, PAGE[10:])])
        change_run(ledger, mine, heartbeat_at=Run.heartbeat_at - age_s * 1000)
        assert ledger.recover() == 0
        os.kill(held.pid, signal.SIGSTOP)
        assert ledger.recover() == 0
        assert set(states(ledger)) == {"DELIVERING"}
        held.kill()
        assert ledger.recover() == 10
        assert not ended(ledger, mine)


CLOCK_AHEAD = """
import sys, time
real = time.time_ns
time.time_ns = lambda: real() + int(sys.argv[2]) * 10**9
time.time = lambda: time.time_ns() / 1e9
from blocks.errors import OnblockError
from flows.ledger import Ledger
with Ledger.open(sys.argv[1]) as ledger:
    print("recovered", ledger.recover())
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.heartbeat(run_id)
    print(run_id, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("ahead_s", [3600, -3600])
def test_a_worker_whose_clock_is_wrong_neither_robs_nor_is_robbed(
    ledger: Ledger, url: str, route: int, ahead_s: int
) -> None:
    """On PostgreSQL the database's clock counts, also of workers on other machines; on SQLite there is one machine."""
    if ledger.engine.dialect.name == "sqlite":
        held = Held(url, route, PAGE)
        beside = held.run_id
    else:
        held, beside = None, ledger.begin_run("job", flight=None, device=None)
        ledger.claim(beside, [r.id for r in enter(ledger, beside, route, PAGE)])
        elsewhere(ledger, beside, silent_s=30)
    other = subprocess.Popen(
        [sys.executable, "-c", CLOCK_AHEAD, url, str(ahead_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "recovered 0\n"
        theirs = other.stdout.readline().strip()
        assert theirs, "it began a run"
        if held is None:
            elsewhere(ledger, theirs)
        assert ledger.recover() == 0
        assert not ended(ledger, theirs)
        assert not ended(ledger, beside)
        assert set(states(ledger)) == {"DELIVERING"}
    finally:
        other.communicate("\n", timeout=60)
        if held is not None:
            held.kill()
    if held is None:  # and its lease ends when it should, not an hour late
        change_run(ledger, theirs, heartbeat_at=Run.heartbeat_at - 61_000)
    assert ledger.recover() == (0 if held is None else len(PAGE))
    assert ended(ledger, theirs)


def test_a_heartbeat_renews_the_lease(ledger: Ledger, route: int) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    elsewhere(ledger, run_id, silent_s=1000)
    ledger.heartbeat(run_id)
    assert ledger.recover() == 0


@pytest.mark.parametrize("host", ["another-machine", socket.gethostname()])
def test_of_another_machine_only_the_heartbeat_tells(ledger: Ledger, route: int, host: str) -> None:
    """Devices are called `raspberrypi`, all of them: the same name does not make it the same machine. With SQLite it is:
    another boot is an earlier one then."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    change_run(ledger, run_id, worker=f"{host}/another-boot/4026531836:1:1")
    if ledger.engine.dialect.name == "postgresql":
        assert ledger.recover() == 0
        change_run(ledger, run_id, heartbeat_at=0)
    assert ledger.recover() == len(PAGE)


def test_a_run_of_this_process_that_ended_badly_is_not_at_work(
    ledger: Ledger, url: str, route: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database did not answer when it ended. The process lives on, and its next run takes the rows up again."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    with monkeypatch.context() as away:
        away.setattr(ledger, "engine", create_engine("sqlite:////nowhere/at/all.db"))
        with pytest.raises(OnblockError):
            ledger.end_run(run_id, {})
    assert set(states(ledger)) == {"DELIVERING"}
    assert ledger.recover() == len(PAGE)


def test_a_process_id_that_was_given_away_again_is_not_the_same_process(ledger: Ledger, route: int) -> None:
    run_id = ledger.begin_run("job", flight=None, device=None)
    ledger.claim(run_id, [r.id for r in enter(ledger, run_id, route, PAGE)])
    killed(ledger, run_id)
    assert ledger.recover() == len(PAGE)


def test_a_run_that_was_declared_dead_and_is_not_can_be_recovered_again(ledger: Ledger, route: int) -> None:
    """A laptop wakes up: its run goes on, takes rows, and is killed. They must not stay taken for ever."""
    run_id = ledger.begin_run("job", flight=None, device=None)
    rows = enter(ledger, run_id, route, PAGE)
    elsewhere(ledger, run_id, silent_s=61)
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
    elsewhere(ledger, run_id, silent_s=61)
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


def test_onblock_recover_says_what_it_did(ledger: Ledger, url: str, route: int) -> None:
    with Held(url, route, PAGE[:7]) as dead, Held(url, route, PAGE[7:]) as alive:
        dead.kill()
        env = {**os.environ, "ONBLOCK_LEDGER_URL": url}
        said = [
            subprocess.run(
                [sys.executable, "-m", "deployments.cli", "recover"],
                env=env,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for _ in range(2)
        ]
        assert f"run {dead.run_id} is dead" in said[0] and "7 files are free again" in said[0]
        assert alive.run_id not in said[0]
        assert said[1] == "no run is dead\n"
