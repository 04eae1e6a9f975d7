from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.agent.keeper import Keeper
from deployments.calls import RESTS
from tests.agent.test_recording import alive, until


class Kept:
    """A worker that only waits, a server that is there or not, and time that passes when it is told to."""

    def __init__(self, folder: Path):
        module = folder / "kept_worker.py"
        module.write_text(
            "import os, pathlib, sys, time\n"
            "with open(sys.argv[1], 'a') as f: f.write(f'{os.getpid()}\\n')\n"
            "time.sleep(0 if pathlib.Path(sys.argv[1] + '.dies').exists() else 3600)\n"
            f"sys.exit({RESTS} if pathlib.Path(sys.argv[1] + '.rests').exists() else 0)\n"
        )
        self.there, self.now, self.file = True, 0.0, folder / "begun"
        self.wanted, self.asked = False, 0
        self.keeper = Keeper(
            ["kept_worker", str(self.file)], {**os.environ, "PYTHONPATH": str(folder)}, folder / "worker.log",
            lambda: self.there, self._is_wanted, lambda: self.now,
        )  # fmt: skip

    def _is_wanted(self) -> bool:
        self.asked += 1
        return self.wanted

    def begun(self) -> list[int]:
        return [int(line) for line in self.file.read_text().splitlines()] if self.file.exists() else []

    def look(self, now: float) -> str:
        self.now = now
        self.keeper.once()
        return self.keeper.told()["state"]

    def ended(self) -> None:
        child = self.keeper._child
        assert child is not None
        until("it has ended", lambda: child.process.poll() is not None)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    one = Kept(tmp_path)
    yield one
    one.keeper.stop()


def test_it_is_begun_when_the_server_is_there(kept: Kept):
    kept.there = False
    assert [kept.look(n) for n in range(3)] == ["waiting for the server"] * 3
    assert kept.begun() == []
    kept.there = True
    assert kept.look(4) == "running"
    until("it is begun", kept.begun)
    assert kept.look(5) == "running" and len(kept.begun()) == 1


def test_it_is_left_alone_while_the_server_is_away(kept: Kept):
    kept.look(0)
    until("it is begun", kept.begun)
    kept.there = False
    assert kept.look(100) == "running" and alive(kept.begun()[0])


def test_one_that_ends_is_begun_again_ever_more_seldom_but_not_while_the_server_is_away(kept: Kept):
    Path(f"{kept.file}.dies").touch()
    assert kept.look(0) == "running"
    begun, now = [0.0], 0.0
    while len(begun) < 9:
        kept.ended()
        while kept.look(now) != "running":
            now += 1
        begun.append(now)
    assert [b - a for a, b in itertools.pairwise(begun)] == [2, 4, 8, 16, 32, 60, 60, 60]
    kept.ended()
    kept.there = False
    kept.look(now)
    assert kept.look(now + 100) == "waiting for the server"


def test_one_that_lived_long_is_no_failure(kept: Kept):
    kept.look(0)
    until("it is begun", kept.begun)
    kept.look(61)
    os.kill(kept.begun()[0], signal.SIGKILL)
    kept.ended()
    assert kept.look(62) == "ended, waits" and kept.look(64) == "running"


def test_one_that_rests_is_begun_when_it_is_wanted(kept: Kept):
    for mark in (".dies", ".rests"):
        Path(f"{kept.file}{mark}").touch()
    assert kept.look(0) == "running"
    kept.ended()
    assert [kept.look(n) for n in range(12)] == ["resting"] * 12
    assert kept.asked == 3, "every 5 s"
    kept.wanted = True
    assert [kept.look(n) for n in (12, 14)] == ["resting"] * 2
    assert kept.look(16) == "running"
    until("it is begun", lambda: len(kept.begun()) == 2)
    kept.ended()
    kept.wanted = False
    assert kept.look(17) == "resting" and kept.keeper.told()["ended"] == 0, "it is no failure"
    kept.keeper.want()
    assert kept.look(18) == "running", "somebody here knows of work"
    kept.ended()
    kept.there = False
    kept.look(19)
    kept.keeper.want()
    assert kept.look(20) == "waiting for the server"


def test_it_ends_with_us(tmp_path: Path):
    kept = Kept(tmp_path)
    kept.keeper.start()
    try:
        pid = until("it is begun", kept.begun)[0]
    finally:
        kept.keeper.stop()
    assert not alive(pid) and kept.keeper.told()["state"] == "ended"


def test_a_log_that_has_grown_is_put_aside(kept: Kept, tmp_path: Path):
    with (tmp_path / "worker.log").open("wb") as log:
        log.truncate(11 << 20)
    kept.look(0)
    assert (tmp_path / "worker.log.1").stat().st_size == 11 << 20
    assert (tmp_path / "worker.log").stat().st_size < 1 << 20
