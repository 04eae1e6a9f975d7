"""Runs that wait for their turn: limits that change are heard of, a stop ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.ledger import Ledger
from flows.transfer import turns
from flows.transfer.turns import Turns
from tests.deployments.conftest import until

TAGS = ["onblock", "device:a"]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
        yield ledger


def of(ledger: Ledger, limits: dict[str, int], now: dict[str, int] | None = None) -> tuple[Turns, threading.Event]:
    stop = threading.Event()
    run = ledger.begin_run("job", flight=None, device=None)
    return Turns(ledger, run, stop, limits, lambda: now or {}), stop


def waiting(run: Turns) -> tuple[threading.Thread, threading.Event]:
    """A thread that wants a turn, and whether it has got there."""
    through = threading.Event()

    def want() -> None:
        with run.turn(TAGS):
            through.set()

    thread = threading.Thread(target=want)
    thread.start()
    return thread, through


def test_one_after_the_other(ledger: Ledger) -> None:
    (one, _), (other, _) = of(ledger, {"onblock": 1}), of(ledger, {"onblock": 1})
    with one.turn(TAGS):
        thread, through = waiting(other)
        assert not through.wait(3 * turns.LOOK_S)
    thread.join()
    assert through.is_set()


def test_a_run_that_is_to_stop_does_not_wait(ledger: Ledger) -> None:
    (one, _), (other, stop) = of(ledger, {"onblock": 1}), of(ledger, {"onblock": 1})
    with one.turn(TAGS):
        thread, through = waiting(other)
        stop.set()
        thread.join()
        assert through.is_set()
    with one.turn(TAGS):  # who had no turn has none to give back
        pass


def test_a_limit_that_somebody_changes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LIMITS_S", 0.0)
    (one, _), (other, _) = of(ledger, {"onblock": 1}), of(ledger, {"onblock": 1}, {"onblock": 2})
    with one.turn(TAGS):
        thread, through = waiting(other)
        until("a second slot", through.is_set)
    thread.join()
