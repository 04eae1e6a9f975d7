"""What is told to those who watch: how much moves, how fast it still is, how little is sent, and how many may watch."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from deployments.console import pulse as module
from deployments.console.problems import Problem
from deployments.console.pulse import MOST, MOST_OF_ONE, QUIET_S, STALLED_S, Pulse, still_moving
from flows.ledger import State
from tests.console.conftest import Site


def told(pulse: Pulse) -> dict[str, Any]:
    return json.loads(pulse._look().partition("data: ")[2])


def test_all_that_moves_is_counted_and_few_of_it_are_told(site: Site) -> None:
    site.rows(*((f"f{i}", State.DELIVERING) for i in range(MOST + 30)), ("x", State.QUEUED))
    said = told(Pulse(site.office.listing))
    assert (said["moving"], len(said["rows"])) == (MOST + 30, MOST)


def test_of_a_row_only_what_a_page_shows_is_told(site: Site) -> None:
    site.rows(("a" * 4000, State.DELIVERING), message="x" * 2000)
    (row,) = told(Pulse(site.office.listing))["rows"]
    assert set(row) == {"id", "state", "phase", "size", "bytes_done", "wish", "bytes_per_s", "seconds_left"}
    assert len(json.dumps(row)) < 250


@pytest.mark.parametrize(
    ("quiet_s", "speed"),
    [(0, 1000.0), (QUIET_S, 1000.0), (2 * QUIET_S, 500.0), (10 * QUIET_S - 1e-9, 100.0), (STALLED_S, 0.0), (1e9, 0.0)],
)
def test_what_is_silent_is_slower_and_then_stands_still(quiet_s: float, speed: float) -> None:
    assert still_moving(1000.0, quiet_s) == pytest.approx(speed)


def test_a_transfer_that_stands_still_has_no_speed(site: Site) -> None:
    pulse = Pulse(site.office.listing)
    measured = pulse._measure(1, 0, 100.0), pulse._measure(1, 0, 101.0)
    assert measured == ((100.0, 0), (101.0, 0)) and pulse._speed == {}
    (number,) = site.rows(("a", State.DELIVERING), bytes_done=500, size=10_000)
    pulse._before[number], pulse._speed[number] = (100.0, 500), 1000.0
    found = site.office.row(number)
    fast, slow, still = (pulse._told(found, at) for at in (101.0, 106.0, 131.0))
    assert (fast["bytes_per_s"], slow["bytes_per_s"], still["bytes_per_s"]) == (1000, 500, None)
    assert still["seconds_left"] is None and slow["seconds_left"] == 19


def test_who_watches_counts_before_he_is_answered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", MOST_OF_ONE + 2)

    async def watch() -> list[int]:
        pulse, refused = Pulse(site.office.listing), []
        watching = []
        for who in ["a"] * (MOST_OF_ONE + 1) + ["b", "c", "d"]:
            told = pulse.watch(who)
            try:
                await anext(told)
                watching.append(told)
            except Problem as problem:
                refused.append(problem.status_code)
        assert len(watching) == MOST_OF_ONE + 2
        await watching.pop().aclose()  # one goes, another may come
        watching.append(pulse.watch("d"))
        assert (await anext(watching[-1])).startswith("retry")
        await pulse.close()
        for told in watching:
            await told.aclose()
        return refused

    assert asyncio.run(watch()) == [429, 503]
