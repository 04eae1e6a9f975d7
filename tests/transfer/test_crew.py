"""One job, many workers: what a run offers is moved by others, each file once, whoever dies meanwhile. Hands are real
processes on one ledger; how Prefect starts them is shown in `tests/deployments/test_crew.py`."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

import pytest
from sqlalchemy import func, select, update

from blocks.errors import Cancelled, ConfigError, Kind, NetworkError
from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.ledger.models import File, Run
from flows.ledger.models import Offer as OfferRow
from flows.ledger.states import ACTIVE
from flows.transfer import crew
from flows.transfer.crew import Crew, lend_a_hand
from flows.transfer.job import TransferJob
from flows.transfer.run import TransferRun
from flows.transfer.story import carry_out, here
from tests.transfer.conftest import Bench
from tests.transfer.phases import ZSTD

FORKS = multiprocessing.get_context("forkserver")  # forks of a process that has imported everything, and no threads
FORKS.set_forkserver_preload(["flows.transfer.crew", "flows.transfer.story", "flows.transfer.process"])
SMALL = {"max_files": 5, "at_once": 1, "workers": 4}
"""Shipping: a shipment is soon full, and somebody who moves one has no room for another."""


def hand(job: TransferJob, leader: str, env: dict[str, str]) -> None:
    """One that helps, in a process of its own."""
    os.environ.update(env)
    with Ledger.open() as ledger, TransferRun(job, ledger, leader=leader) as run:
        lend_a_hand(run, here(run))


class Lead:
    """A run that is helped, and the processes that it hires: before it goes on, each has begun, and one has work."""

    def __init__(self, job: TransferJob, *, hands: int = 3):
        self.job, self.most, self.hands = job, hands, list[BaseProcess]()
        self.id = ""
        self.after_hire: Callable[[], None] = lambda: None

    def hire(self, number: int) -> None:
        if len(self.hands) == self.most:
            return
        env = {k: v for k, v in os.environ.items() if k.startswith("ONBLOCK")}
        process = FORKS.Process(target=hand, args=(self.job, self.id, env))
        process.start()
        self.hands.append(process)
        until(lambda: (taken() and begun() >= number) or not process.is_alive())
        self.after_hire()

    def run(self) -> dict[str, Any]:
        with Ledger.open() as ledger:
            with TransferRun(self.job, ledger) as run:
                self.id = run.id
                summary = carry_out(run, Crew(run, here(run), self.hire))
            for process in self.hands:
                process.join(60)
                assert process.exitcode is not None, "a hand goes when its leader is over"
        return summary

    def end(self) -> None:
        for process in self.hands:
            process.kill()
            process.join()


@contextmanager
def lead(job: TransferJob, **given: Any) -> Iterator[Lead]:
    leader = Lead(job, **given)
    try:
        yield leader
    finally:
        leader.end()


def until(look: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(query: Any) -> list[Any]:
    with Ledger.open() as ledger:
        return list(ledger.read_all(query))


def taken() -> int:
    """How many have taken something, now or before."""
    at_work = ask(select(OfferRow.taker_id).where(OfferRow.taker_id.is_not(None)))
    moved = ask(select(File.run_id).where(File.attempt > 0))
    hands = ask(select(Run.id).where(Run.leader_id.is_not(None)))
    return len({r[0] for r in [*at_work, *moved]} & {r[0] for r in hands})


def begun() -> int:
    return len(ask(select(Run.id).where(Run.leader_id.is_not(None))))


def movers() -> dict[str, int]:
    return dict(ask(select(File.run_id, func.count()).group_by(File.run_id)))


def check_whole(bench: Bench, count: int) -> None:
    """Everything is there, the books are closed, and nothing is left lying about."""
    assert bench.files() == bench.files(bench.card) and len(bench.files()) == count
    bench.check_manifest()
    assert {r[0] for r in ask(select(File.state))} == {State.VERIFIED}
    assert ask(select(OfferRow.number)) == []
    assert ask(select(Run.id).where(Run.ended_at.is_(None))) == []


def fill(bench: Bench, count: int = 60, size: int = 2000) -> None:
    for n in range(count):
        bench.put(f"DCIM/{n:04}.jpg", os.urandom(size))


def test_all_take_part_and_each_file_is_moved_once(bench: Bench) -> None:
    fill(bench)
    with lead(bench.job(shipping=SMALL)) as leader:
        summary = leader.run()
    assert (summary["delivered"], summary["bytes"], summary["scanned"]) == (60, 120_000, 60)
    assert summary["verified_by"] == {"checksum": 60} and not summary["problems"]
    check_whole(bench, 60)
    assert 2 <= len(movers()) <= 4
    assert {r[0] for r in ask(select(File.attempt))} == {1}
    assert ask(select(Run.delivered, Run.well).where(Run.leader_id.is_(None))) == [(60, True)]
    assert set(ask(select(Run.well).where(Run.leader_id.is_not(None)))) == {(None,)}, "their leader counts it"
    assert bench.run()["duplicates"] == 60


def test_nobody_comes(bench: Bench) -> None:
    fill(bench)
    with lead(bench.job(shipping=SMALL), hands=0) as leader:
        assert leader.run()["delivered"] == 60
    check_whole(bench, 60)


def test_what_is_small_enough_is_not_offered(bench: Bench) -> None:
    fill(bench, 5)
    with lead(bench.job(shipping=SMALL)) as leader:
        assert leader.run()["delivered"] == 5
        assert leader.hands == []


def test_several_destinations(bench: Bench) -> None:
    fill(bench)
    other = bench.folder / "other"
    other.mkdir()
    both = [LocalStorage(root=str(bench.archive)), LocalStorage(root=str(other))]
    with lead(bench.job(shipping=SMALL, destinations=both)) as leader:
        assert leader.run()["delivered"] == 120
    check_whole(bench, 60)
    assert bench.files(other) == bench.files()
    rows = ask(select(File.path, func.count(func.distinct(File.run_id))).group_by(File.path))
    assert {n for _, n in rows} == {1}, "a file is read once for both"


def test_jobs_with_steps(bench: Bench) -> None:
    """Fetched, processed and delivered by whoever takes it."""
    fill(bench, 40)
    steps = ZSTD
    with lead(bench.job(shipping=SMALL, steps=steps)) as leader:
        summary = leader.run()
    assert summary["delivered"] == 40, summary
    assert len(bench.files()) == 40
    bench.check_manifest()
    assert len(movers()) > 1
    assert bench.run(steps=steps)["duplicates"] == 40


def test_a_hand_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a file: another one takes what it had, and the run accounts for everything."""
    monkeypatch.setattr(crew, "RECOVER_EVERY_S", 0.2)
    fill(bench, 30, 200_000)
    job = bench.job(shipping=SMALL, bandwidth={"up": "2 MiB"})
    with lead(job, hands=1) as leader:
        killed: list[int] = []

        def kill() -> None:
            (process,) = leader.hands
            mine = select(File.id).join(Run, Run.id == File.run_id).where(
                Run.leader_id.is_not(None), File.state.in_(ACTIVE)
            )  # fmt: skip
            until(lambda: ask(mine))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            killed.extend(r[0] for r in ask(mine))

        leader.after_hire = kill
        summary = leader.run()
    assert killed and summary["delivered"] + summary["adopted"] == 30, summary
    assert not summary["deferred"] and not summary["failed"]
    check_whole(bench, 30)
    again = dict(ask(select(File.id, File.attempt).where(File.attempt > 1)))
    assert set(again) <= set(killed) and again


def test_files_that_fail_are_told(bench: Bench) -> None:
    """By the run that was helped, wherever it happened."""
    fill(bench, 30)
    with lead(bench.job(shipping=SMALL), hands=1) as leader:
        leader.after_hire = lambda: [
            (bench.card / path).unlink() for (path,) in ask(select(File.path).order_by(File.id.desc()).limit(3))
        ]
        summary = leader.run()
    assert (summary["delivered"], summary["failed"]) == (27, 3), summary
    assert {r[0] for r in ask(select(File.kind).where(File.state == State.FAILED))} == {Kind.SOURCE_VANISHED}


def test_hands_count_for_nothing_that_is_not_theirs(bench: Bench) -> None:
    """All that was offered is moved by the hand: the run that it helps tells of it as if it had moved it itself."""
    fill(bench, 28)
    job = bench.job(shipping=SMALL)
    with lead(job, hands=1) as leader, Ledger.open() as ledger, TransferRun(job, ledger) as run:
        leader.id = run.id
        by_crew = Crew(run, here(run), leader.hire)
        by_crew._taken.work = lambda: False  # type: ignore[method-assign]
        summary = carry_out(run, by_crew)
    assert (summary["delivered"], summary["verified_by"]) == (28, {"checksum": 28}), summary
    assert sorted(movers().values()) == [5, 23]
    assert (run.meter.files_planned, run.meter.files_done, run.meter.bytes_done) == (28, 28, 56_000)


def test_a_run_that_is_cancelled_takes_its_hands_with_it(bench: Bench) -> None:
    fill(bench, 30, 200_000)
    with lead(bench.job(shipping=SMALL, bandwidth={"up": "1 MiB"}), hands=1) as leader:

        def cancel() -> None:
            raise Cancelled("somebody does not want it any more")

        leader.after_hire = cancel
        with pytest.raises(Cancelled):
            leader.run()
        (process,) = leader.hands
        process.join(60)
        assert process.exitcode == 0
    assert not {r[0] for r in ask(select(File.state))} & ACTIVE
    assert ask(select(OfferRow.number)) == []
    assert bench.run()["duplicates"] < 30
    check_whole(bench, 30)


def test_a_job_that_is_paused(bench: Bench) -> None:
    """Nobody takes anything more, and everybody goes home."""
    fill(bench, 30, 200_000)
    with lead(bench.job(shipping=SMALL, bandwidth={"up": "1 MiB"}), hands=1) as leader:

        def pause() -> None:
            with Ledger.open() as ledger:
                ledger.hold("job", who="me")

        leader.after_hire = pause
        summary = leader.run()
    assert any("paused by me" in p for p in summary["problems"])
    assert summary["delivered"] < 30
    assert not {r[0] for r in ask(select(File.state))} & ACTIVE
    assert ask(select(OfferRow.number)) == []
    with Ledger.open() as ledger:
        ledger.release("job")
        ledger.grant("resume", ledger.choose(job="job", states=[State.PAUSED]), who="me")  # type: ignore[arg-type]
    bench.run()
    check_whole(bench, 30)


def test_a_run_that_was_thought_dead_says_what_it_missed(bench: Bench) -> None:
    """Its offers are gone, and nobody moves them: they are deferred, not forgotten."""
    fill(bench, 30)
    job = bench.job(shipping=SMALL)
    with lead(job, hands=0) as leader, Ledger.open() as ledger, TransferRun(job, ledger) as run:
        alone = Crew(run, here(run), leader.hire)
        collect = alone.collect
        forgotten: list[int] = []

        def forget(*, wait: bool = False) -> None:
            if wait:
                forgotten.append(ledger.open_offers(run.id))
                ledger.withdraw_offers(run.id)
            collect(wait=wait)

        alone.collect = forget  # type: ignore[method-assign]
        summary = carry_out(run, alone)
    assert forgotten[0] > 0
    assert summary["delivered"] + summary["deferred"] == 30 and summary["deferred"] > 0


@pytest.mark.parametrize("shared", [False, True])
def test_a_folder_of_another_machine(bench: Bench, shared: bool) -> None:
    fill(bench, 20)
    places = {
        "source": LocalStorage(root=str(bench.card), shared=shared),
        "destinations": [LocalStorage(root=str(bench.archive), shared=shared)],
    }
    job = bench.job(shipping=SMALL, **places)
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:
        with ledger.engine.begin() as c:
            c.execute(update(Run).values(worker="nas-7/boot/4026531836:1:1"))
        with TransferRun(job, ledger, leader=run.id) as other:
            if shared:
                crew.fit(other, run.id)
                return
            with pytest.raises(ConfigError, match=r"another folder on another machine.*shared: true"):
                lend_a_hand(other, here(other))
    assert bench.files() == {}


def test_another_ledger(bench: Bench) -> None:
    job = bench.job(shipping=SMALL)
    with (
        Ledger.open() as ledger,
        TransferRun(job, ledger, leader="4cf5b4b6-0000-4000-8000-000000000000") as run,
        pytest.raises(ConfigError, match="ONBLOCK_LEDGER_URL"),
    ):
        lend_a_hand(run, here(run))


def test_what_goes_wrong_beyond_files_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger goes away while a run waits for its hands."""
    fill(bench, 30)
    with lead(bench.job(shipping=SMALL), hands=0) as leader, Ledger.open() as ledger:

        def away(*_: object) -> int:
            raise NetworkError("the database is away")

        monkeypatch.setattr(ledger, "open_offers", away)
        with pytest.raises(NetworkError), TransferRun(leader.job, ledger) as run:
            carry_out(run, Crew(run, here(run), leader.hire))
