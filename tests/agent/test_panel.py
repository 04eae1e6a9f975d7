from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blocks.hardware.buttons import Edge
from blocks.hardware.lights import Pattern
from deployments.agent.panel import BUZZER, GREEN, LIGHTS, RED, TABLE, Effect, Panel, Shown, Signal, State, step

MS = 1_000_000


class Finger:
    """Presses the button of a panel; times in ms from 0."""

    def __init__(self, state: State = State.IDLE):
        self.panel = Panel()
        self.effects: list[str] = []
        if state is not State.BOOT:
            self.signal(Signal.READY, 0)
        before = {State.RECORDING: Signal.TAP, State.PREVIEW: Signal.DOUBLE, State.WIFI_SETUP: Signal.HOLD,
                  State.SHUTDOWN: Signal.TERMINATE}.get(state)  # fmt: skip
        if before:
            self.signal(before, 0)
        assert self.panel.state is state
        self.effects.clear()

    def press(self, down: int, up: int) -> None:
        self.edge(True, down)
        self.edge(False, up)

    def edge(self, pressed: bool, at: int) -> None:
        self.effects += self.panel.edge(Edge("button", pressed, at * MS))

    def signal(self, signal: Signal, at: int) -> None:
        self.effects += self.panel.signal(signal, at * MS)

    def until(self, at: int) -> State:
        self.effects += self.panel.until(at * MS)
        return self.panel.state

    def beeps(self, begin: int, end: int) -> int:
        levels = [False, *(self.panel.shown.at(at / 1000)[BUZZER] for at in range(begin, end))]
        return sum(on and not before for before, on in itertools.pairwise(levels))


# -- the button ---------------------------------------------------------------------------------------------------


def test_a_short_press_begins_a_recording_once_no_second_one_can_follow():
    finger = Finger()
    finger.press(100, 250)
    assert finger.until(749) is State.IDLE
    assert finger.until(750) is State.RECORDING
    assert finger.effects == [Effect.START_RECORDING]


def test_a_short_press_ends_a_recording_at_once():
    finger = Finger(State.RECORDING)
    finger.press(100, 250)
    assert finger.panel.state is State.IDLE and finger.effects == [Effect.STOP_RECORDING]


@pytest.mark.parametrize(("down", "preview"), [(300, True), (749, True), (750, False), (900, False)])
def test_a_second_press_within_half_a_second_is_the_preview(down: int, preview: bool):
    finger = Finger()
    finger.press(100, 250)
    finger.press(down, down + 100)
    if preview:
        assert finger.panel.state is State.PREVIEW and finger.effects == [Effect.START_PREVIEW]
    else:  # it began a recording, and the second press ended it
        assert finger.until(5000) is State.IDLE
        assert finger.effects == [Effect.START_RECORDING, Effect.STOP_RECORDING]


@pytest.mark.parametrize("state", [State.BOOT, State.IDLE])
def test_five_seconds_are_the_wifi_while_the_button_is_still_down(state: State):
    finger = Finger(state)
    finger.edge(True, 100)
    assert finger.until(5099) is state
    assert finger.until(5100) is State.WIFI_SETUP
    finger.edge(False, 9000)
    assert finger.until(20_000) is State.WIFI_SETUP and finger.effects == [Effect.START_WIFI]
    finger.press(20_000, 20_100)
    assert finger.panel.state is State.IDLE and finger.effects[-1] is Effect.STOP_WIFI


def test_leaning_on_the_button_does_not_lose_a_recording():
    finger = Finger(State.RECORDING)
    finger.edge(True, 100)
    assert finger.until(5100) is State.RECORDING
    assert finger.beeps(5100, 6000) == 1  # heard, and refused
    finger.edge(False, 20_000)
    assert finger.until(30_000) is State.RECORDING and finger.effects == []


def test_a_release_that_is_told_late_is_judged_by_its_own_time():
    finger = Finger()
    finger.press(100, 200)
    finger.press(400, 500)  # nobody looked in between
    assert finger.panel.state is State.PREVIEW


def test_a_press_that_was_meant_for_another_state_does_nothing():
    finger = Finger(State.RECORDING)
    finger.edge(True, 100)
    finger.signal(Signal.ENDED, 200)  # at that moment its time was over
    finger.edge(False, 300)
    assert finger.until(5000) is State.IDLE and finger.effects == []

    finger = Finger()
    finger.press(100, 200)
    finger.signal(Signal.STARTED, 300)  # a flow run was faster
    assert finger.until(5000) is State.RECORDING and finger.effects == []


def test_held_since_boot():
    finger = Finger(State.BOOT)
    finger.edge(True, 0)
    finger.signal(Signal.READY, 2000)
    assert finger.until(5000) is State.WIFI_SETUP


# -- the table ------------------------------------------------------------------------------------------------------


def test_every_state_is_reached_and_every_one_but_the_last_is_left():
    assert {found.state for found in TABLE.values()} == set(State) - {State.BOOT}
    assert {state for state, _ in TABLE} == set(State) - {State.SHUTDOWN}
    assert set(LIGHTS) == set(State)


def test_what_was_begun_is_ended():
    """Whoever leaves a state other than by its end from outside ends what runs there."""
    ends = {
        State.RECORDING: (Effect.STOP_RECORDING, {Signal.ENDED, Signal.FAILED}),
        State.PREVIEW: (Effect.STOP_PREVIEW, {Signal.PREVIEW_ENDED, Signal.PREVIEW_FAILED}),
        State.WIFI_SETUP: (Effect.STOP_WIFI, {Signal.WIFI_ENDED, Signal.WIFI_FAILED}),
    }
    for (state, signal), found in TABLE.items():
        if state in ends and found.state is not state:
            effect, by_itself = ends[state]
            assert (effect in found.effects) != (signal in by_itself), (state, signal)


@pytest.mark.parametrize("state", [s for s in State if s is not State.SHUTDOWN])
def test_sigterm_ends_every_state(state: State):
    assert step(state, Signal.TERMINATE).state is State.SHUTDOWN


@pytest.mark.parametrize("signal", Signal)
def test_nothing_comes_after_the_end(signal: Signal):
    assert step(State.SHUTDOWN, signal) == (State.SHUTDOWN, (), None)


# -- lights and beeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "red_hz", "green_hz"),  # 0: on, None: off
    [
        (State.BOOT, None, 0), (State.IDLE, None, 0), (State.RECORDING, 1, None), (State.PREVIEW, None, 1),
        (State.WIFI_SETUP, 5, 5), (State.SHUTDOWN, None, None),
    ],
)  # fmt: skip
def test_lights_of_each_state(state: State, red_hz: int | None, green_hz: int | None):
    shown = Shown(100.0)
    shown.enter(state, 100.0)
    for name, hertz in ((RED, red_hz), (GREEN, green_hz)):
        levels = [shown.at(100 + n / 1000)[name] for n in range(10_000)]
        if hertz is None:
            assert not any(levels)
        elif hertz == 0:
            assert all(levels)
        else:
            assert sum(on and not before for before, on in zip([False, *levels], levels, strict=False)) == hertz * 10


@pytest.mark.parametrize(
    ("state", "signal", "count"),
    [
        (State.IDLE, Signal.TAP, 1), (State.RECORDING, Signal.TAP, 2), (State.RECORDING, Signal.FAILED, 5),
        (State.IDLE, Signal.DOUBLE, 2), (State.PREVIEW, Signal.TAP, 1),
        (State.IDLE, Signal.HOLD, 3), (State.WIFI_SETUP, Signal.TAP, 2), (State.RECORDING, Signal.HOLD, 1),
        (State.IDLE, Signal.ENDED, 0), (State.RECORDING, Signal.TERMINATE, 0),
    ],
)  # fmt: skip
def test_beeps(state: State, signal: Signal, count: int):
    finger = Finger(state)
    finger.panel.shown.at(60.0)
    finger.signal(signal, 60_000)
    assert finger.beeps(60_000, 70_000) == count


def test_beeps_come_one_after_another_and_do_not_pile_up():
    finger = Finger()
    for n in range(50):
        finger.signal(Signal.TAP, 1000 + n)
        finger.signal(Signal.FAILED, 1000 + n)
    assert 5 <= finger.beeps(1000, 60_000) <= 20
    finger.signal(Signal.TAP, 60_000)
    finger.signal(Signal.TERMINATE, 60_001)
    assert finger.beeps(60_001, 70_000) == 0


@given(st.lists(st.floats(0.01, 2), min_size=1, max_size=6), st.integers(1, 4), st.floats(0, 100))
def test_a_pattern_that_repeats_ends(times: list[float], repeat: int, elapsed: float):
    pattern = Pattern(tuple(times), repeat)
    assert not pattern.lit((pattern.length_s or 0) + elapsed)
    assert pattern.lit(times[0] / 2) is True


# -- against a plain model --------------------------------------------------------------------------------------------


class Polled:
    """The panel as somebody would write it who looks at the button every 10 ms and has `if` for all he knows."""

    def __init__(self) -> None:
        self.now, self.down, self.state = 0, False, "boot"
        self.down_since, self.tap_at, self.dead, self.second = 0, -1, False, False
        self.did: list[str] = []

    def go(self, state: str, *did: str) -> None:
        if state != self.state:
            self.state, self.tap_at, self.second = state, -1, False
            self.dead = self.dead or self.down
        self.did += did

    def tick(self) -> None:
        if self.tap_at >= 0 and self.now - self.tap_at >= 500:
            self.tap_at = -1
            self.tap()
        if self.down and self.now - self.down_since >= 5000 and self.down_since >= 0:
            self.down_since, self.dead = -1, True
            if self.state in ("boot", "idle"):
                self.go("wifi_setup", "start_wifi")

    def button(self, down: bool) -> None:
        self.tick()
        if down and not self.down:
            self.down_since, self.dead = self.now, False
            self.second, self.tap_at = self.tap_at >= 0, -1
        elif self.down and not down and not self.dead:
            if self.second:
                if self.state == "idle":
                    self.go("preview", "start_preview")
            elif self.state == "idle":
                self.tap_at = self.now
            else:
                self.down = False
                self.tap()
        self.down = down

    def tap(self) -> None:
        if self.state == "idle":
            self.go("recording", "start_recording")
        elif self.state == "recording":
            self.go("idle", "stop_recording")
        elif self.state == "preview":
            self.go("idle", "stop_preview")
        elif self.state == "wifi_setup":
            self.go("idle", "stop_wifi")

    def signal(self, name: str) -> None:
        stop = {"recording": ["stop_recording"], "preview": ["stop_preview"], "wifi_setup": ["stop_wifi"]}.get(
            self.state, []
        )
        if self.state == "shutdown":
            return
        if name == "terminate":
            self.go("shutdown", *stop)
        elif name == "ready" and self.state == "boot":
            self.go("idle")
        elif name == "started" and self.state in ("idle", "preview", "wifi_setup"):
            self.go("recording", *stop)
        elif (name, self.state) in [
            ("ended", "recording"), ("failed", "recording"), ("preview_ended", "preview"), ("preview_failed", "preview"),
            ("wifi_ended", "wifi_setup"), ("wifi_failed", "wifi_setup"),
        ]:  # fmt: skip
            self.go("idle")


class AgainstTheModel(RuleBasedStateMachine):
    """Edges, signals and time in any order; the panel is asked as rarely as it likes, the model every 10 ms."""

    @initialize(ready=st.booleans())
    def begin(self, ready: bool) -> None:
        self.panel, self.model, self.did = Panel(), Polled(), []
        if ready:
            self.happens(Signal.READY)

    @rule(down=st.booleans())
    def button(self, down: bool) -> None:
        if down != self.model.down:
            self.model.button(down)
            self.did += self.panel.edge(Edge("button", down, self.model.now * MS))

    @rule(
        signal=st.sampled_from(
            [s for s in Signal if s not in (Signal.TAP, Signal.DOUBLE, Signal.HOLD, Signal.TERMINATE)]
        )
    )
    def happens(self, signal: Signal) -> None:
        self.model.tick()
        self.did += self.panel.until(self.model.now * MS)
        self.model.signal(signal)
        self.did += self.panel.signal(signal, self.model.now * MS)

    @rule(ms=st.sampled_from([10, 50, 200, 490, 500, 510, 4990, 5000, 7000]), looked=st.booleans())
    def time_passes(self, ms: int, looked: bool) -> None:
        for _ in range(ms // 10):
            self.model.now += 10
            self.model.tick()
        if looked:
            self.did += self.panel.until(self.model.now * MS)

    @rule()
    def terminated(self) -> None:
        if len(self.did) > 5:
            self.happens(Signal.TERMINATE)

    @invariant()
    def they_agree(self) -> None:
        if hasattr(self, "panel"):
            due = self.panel.presses.due_ns
            if due is None or due > self.model.now * MS:  # else the panel has not been asked since
                assert (self.panel.state, self.did) == (self.model.state, self.model.did)


AgainstTheModel.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_whatever_happens_the_panel_is_as_the_model = AgainstTheModel.TestCase
