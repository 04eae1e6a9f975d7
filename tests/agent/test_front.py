"""The panel's threads, on a simulated GPIO chip and by hand."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blocks.errors import NotFound
from blocks.hardware.buttons import GpioButtons
from blocks.hardware.lights import GpioLights
from deployments.agent.front import Front
from deployments.agent.panel import Effect, Signal, State
from tests.agent.test_recording import until
from tests.hardware.gpio_chip import Chip

BUTTON, RED, GREEN, BUZZER = 24, 23, 17, 12


class Bench:
    """A front on a chip whose time passes only when it is asked; its hands are carried out by `work`."""

    def __init__(self, hands: Callable[[Effect], None] | None = None, **keys: Any):
        self.chip, self.did, self.troubles = Chip(), [], {}
        self.front = Front(
            hands or self.did.append,
            open_buttons=lambda: GpioButtons({"button": BUTTON}, open_lines=self.chip.open, clock_ns=self.chip.clock_ns),
            open_lights=lambda: GpioLights({"red": RED, "green": GREEN, "buzzer": BUZZER}, open_lines=self.chip.open),
            trouble=self.trouble, clock_ns=self.chip.clock_ns, **keys,
        )  # fmt: skip
        self.front.signal(Signal.READY)
        self.run(0.1)
        assert self.front.state is State.IDLE

    def trouble(self, what: str, why: str | None) -> None:
        self.troubles.pop(what, None)
        if why is not None:
            self.troubles[what] = why

    def run(self, seconds: float) -> None:
        """Ticks, until so much time has passed."""
        end = self.chip.now_ns + int(seconds * 1e9)
        while self.chip.now_ns < end:
            before = self.chip.now_ns
            self.front.once()
            if self.chip.now_ns == before:  # an edge was there: nobody waited
                self.chip.now_ns += 1_000_000
            while not self.front._todo.empty():
                effect = self.front._todo.get()
                assert effect is not None
                self.front.carry_out(effect)

    def press(self, seconds: float = 0.15) -> None:
        self.chip.drive(BUTTON, False)
        self.run(seconds)
        self.chip.drive(BUTTON, True)
        self.run(0.05)

    def rises(self, line: int, begin: int = 0) -> int:
        levels = [lit[line] for at, lit in self.chip.writes if line in lit and at >= begin]
        return sum(levels)


def test_from_the_wire_of_the_button_to_the_hands_and_the_lights():
    bench = Bench()
    bench.press()
    bench.run(0.6)
    assert bench.did == [Effect.START_RECORDING] and bench.front.state is State.RECORDING
    begun = bench.chip.now_ns
    bench.run(10)
    assert bench.rises(RED, begun) == 10 and not bench.chip.driven[GREEN]
    bench.press()
    bench.run(2)
    assert bench.did == [Effect.START_RECORDING, Effect.STOP_RECORDING]
    assert bench.chip.driven[GREEN] and not bench.chip.driven[RED]
    assert bench.rises(BUZZER) == 3  # one at the start, two at the end


def test_a_double_press_and_a_long_one():
    bench = Bench()
    bench.press()
    bench.press()
    assert bench.did == [Effect.START_PREVIEW]
    bench.press()
    bench.run(1)
    bench.press(5.1)
    assert bench.front.state is State.WIFI_SETUP
    assert bench.did == [Effect.START_PREVIEW, Effect.STOP_PREVIEW, Effect.START_WIFI]


def test_what_fails_is_told_and_the_panel_goes_back():
    def hands(effect: Effect) -> None:
        raise NotFound("there is no such camera", path="/dev/video7", remedy="plug it in")

    bench = Bench(hands)
    begun = bench.chip.now_ns
    bench.press()
    bench.run(5)
    assert bench.front.state is State.IDLE
    assert bench.troubles == {"recording": "/dev/video7: there is no such camera (plug it in)"}
    assert bench.rises(BUZZER, begun) == 6  # the one of the start, and five


def test_a_mistake_of_ours_is_told_too():
    bench = Bench(lambda effect: {}["a mistake"])
    bench.press()
    bench.run(5)
    assert bench.front.state is State.IDLE and "KeyError" in bench.troubles["recording"]


def test_a_chip_that_goes_away_is_tried_again_and_signals_go_on():
    bench = Bench()
    bench.chip.refuses = errno.ENODEV
    bench.run(0.1)
    assert set(bench.troubles) == {"buttons"}  # the lights need not change
    bench.front.signal(Signal.STARTED)
    ticks = 0
    while bench.front.state is not State.RECORDING:
        bench.front.once(0.0)
        ticks += 1
        assert ticks < 5
    bench.front.once(0.0)
    assert set(bench.troubles) == {"buttons", "lights"}
    bench.chip.refuses = 0
    bench.chip.now_ns += 31_000_000_000
    bench.front.once()
    assert bench.troubles == {}
    bench.press()
    assert bench.did == [Effect.STOP_RECORDING]


def test_the_button_is_heard_while_the_hands_are_busy():
    """A recording that takes long to begin, or to seal, holds up nobody: in threads, as it really runs."""
    begun, go, did = threading.Event(), threading.Event(), []

    def hands(effect: Effect) -> None:
        did.append(effect)
        begun.set()
        assert go.wait(60)

    front = Front(hands)
    front.start()
    try:
        front.signal(Signal.READY)
        front.signal(Signal.TAP)
        assert begun.wait(60)
        assert front.told()["doing"] == "start_recording"
        front.signal(Signal.TAP)
        until("the panel has gone on", lambda: front.state is State.IDLE)
        front.signal(Signal.TAP)
        until("and on", lambda: front.state is State.RECORDING)
        assert did == [Effect.START_RECORDING]
        go.set()
        until(
            "all of it is done", lambda: did == [Effect.START_RECORDING, Effect.STOP_RECORDING, Effect.START_RECORDING]
        )
    finally:
        go.set()
        assert front.stop(60)
    assert did[-1] is Effect.STOP_RECORDING and front.state is State.SHUTDOWN


@pytest.fixture
def stumbling() -> Iterator[Front]:
    front = Front(lambda effect: None)
    once, left = front.once, [3]

    def stumble(wait_s: float = 0.02) -> None:
        if left[0]:
            left[0] -= 1
            raise RuntimeError("nobody thought of this")
        once(wait_s)

    front.once = stumble  # type: ignore[method-assign]
    yield front
    front.stop(60)


def test_the_panel_survives_what_nobody_thought_of(stumbling: Front):
    stumbling.start()
    stumbling.signal(Signal.READY)
    until("it goes on", lambda: stumbling.state is State.IDLE)
