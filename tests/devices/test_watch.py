"""Watching devices: a state machine that tells each change once."""

from __future__ import annotations

import itertools
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from blocks.devices.watch import Known, Watcher
from deployments.simulators.osc import OscSimulator
from tests.devices.conftest import device_of


@given(st.lists(st.booleans()), st.integers(1, 5))
def test_up_at_the_first_look_down_after_so_many(looks: list[bool], down: int) -> None:
    known, told = Known(down), []
    for number, there in enumerate(looks):
        before = known.connected
        change = known.saw(there)
        if change is not None:
            assert change != before  # each change is told once
            told.append(change)
        assert known.connected == (told[-1] if told else None)
        if there:
            assert known.connected is True  # one look is enough
        last = looks[max(0, number + 1 - down) : number + 1]
        if len(last) == down and not any(last):
            assert known.connected is False  # so many in a row, and it is gone
        if any(last) and before:
            assert known.connected is True  # fewer, and it is not
    assert all(a != b for a, b in itertools.pairwise(told))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=20))
def test_devices_do_not_mix(rounds: list[list[bool]]) -> None:
    devices = [device_of(OscSimulator("/nowhere"), device=name, url="http://x") for name in "abc"]
    watcher, alone = Watcher(devices), {name: Known() for name in "abc"}
    for looks in rounds:
        there = dict(zip("abc", looks, strict=True))
        expected = [(n, c) for n in "abc" if (c := alone[n].saw(there[n])) is not None]
        assert watcher.poll(lambda device, there=there: there[device.device]) == expected
        assert watcher.connected() == {n for n in "abc" if alone[n].connected}


def test_a_camera_that_comes_and_goes(osc: OscSimulator, tmp_path: Path) -> None:
    away = device_of(OscSimulator(tmp_path, port=1), device="away")
    watcher = Watcher([device_of(osc), away])
    assert watcher.poll() == [("camera", True), ("away", False)]
    assert watcher.poll() == []
    osc.off()
    assert [watcher.poll() for _ in range(4)] == [[], [], [("camera", False)], []]
    osc.on()
    assert watcher.poll() == [("camera", True)]
    osc.off()
    assert watcher.poll() == []
    osc.on()
    assert watcher.poll() == []  # away for a moment is not away
    watcher.watch([away])
    assert watcher.poll() == []
    assert watcher.connected() == set()
    assert Watcher([]).poll() == []
