"""The states of a device and all that moves it from one to another, in one table; what its lights and buzzer say.

Pure: nothing here starts or stops anything. What is to be done is told as effects, which `front.py` has carried out
elsewhere than on the thread of the button. Light patterns, beeps and times are those of PARITY C12 and C14.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from blocks.hardware.buttons import Edge
from blocks.hardware.lights import FAST, OFF, ON, SLOW, Pattern, beeps
from deployments.agent.presses import Press, Presses


class State(StrEnum):
    """What the device is doing."""

    BOOT = "boot"
    IDLE = "idle"
    RECORDING = "recording"
    PREVIEW = "preview"
    WIFI_SETUP = "wifi_setup"
    SHUTDOWN = "shutdown"


class Signal(StrEnum):
    """What happens to the panel. The first three come from the button."""

    TAP = "tap"
    DOUBLE = "double"
    HOLD = "hold"
    READY = "ready"  # everything that is there is open
    STARTED = "started"  # a recording runs that nobody here began: a flow run's
    ENDED = "ended"  # the recording is over, not by us
    FAILED = "failed"  # it could not begin, or broke off
    PREVIEW_ENDED = "preview_ended"
    PREVIEW_FAILED = "preview_failed"
    WIFI_ENDED = "wifi_ended"
    WIFI_FAILED = "wifi_failed"
    TERMINATE = "terminate"  # SIGTERM


class Effect(StrEnum):
    """What is to be done, in the order it is told."""

    START_RECORDING = "start_recording"
    STOP_RECORDING = "stop_recording"
    START_PREVIEW = "start_preview"
    STOP_PREVIEW = "stop_preview"
    START_WIFI = "start_wifi"
    STOP_WIFI = "stop_wifi"


class Step(NamedTuple):
    """Where a signal leads, what is to be done for it, and what the buzzer says."""

    state: State
    effects: tuple[Effect, ...] = ()
    beep: Pattern | None = None


STARTED, STOPPED = beeps(1), beeps(2)
FAILURE = beeps(5)
WIFI_OPEN = beeps(3, 0.3)
REFUSED = beeps(1, 0.5)
"""For a press that means nothing now: the button was heard."""

_S, _N, _E = State, Signal, Effect
TABLE: dict[tuple[State, Signal], Step] = {
    (_S.BOOT, _N.READY): Step(_S.IDLE),
    (_S.BOOT, _N.HOLD): Step(_S.WIFI_SETUP, (_E.START_WIFI,), WIFI_OPEN),
    (_S.BOOT, _N.TERMINATE): Step(_S.SHUTDOWN),

    (_S.IDLE, _N.TAP): Step(_S.RECORDING, (_E.START_RECORDING,), STARTED),
    (_S.IDLE, _N.STARTED): Step(_S.RECORDING, (), STARTED),
    (_S.IDLE, _N.DOUBLE): Step(_S.PREVIEW, (_E.START_PREVIEW,), STOPPED),
    (_S.IDLE, _N.HOLD): Step(_S.WIFI_SETUP, (_E.START_WIFI,), WIFI_OPEN),
    (_S.IDLE, _N.TERMINATE): Step(_S.SHUTDOWN),

    (_S.RECORDING, _N.TAP): Step(_S.IDLE, (_E.STOP_RECORDING,), STOPPED),
    (_S.RECORDING, _N.ENDED): Step(_S.IDLE, (), STOPPED),
    (_S.RECORDING, _N.FAILED): Step(_S.IDLE, (), FAILURE),
    (_S.RECORDING, _N.TERMINATE): Step(_S.SHUTDOWN, (_E.STOP_RECORDING,)),

    (_S.PREVIEW, _N.TAP): Step(_S.IDLE, (_E.STOP_PREVIEW,), STARTED),
    (_S.PREVIEW, _N.PREVIEW_ENDED): Step(_S.IDLE, (), STARTED),
    (_S.PREVIEW, _N.PREVIEW_FAILED): Step(_S.IDLE, (), FAILURE),
    (_S.PREVIEW, _N.STARTED): Step(_S.RECORDING, (_E.STOP_PREVIEW,), STARTED),
    (_S.PREVIEW, _N.TERMINATE): Step(_S.SHUTDOWN, (_E.STOP_PREVIEW,)),

    (_S.WIFI_SETUP, _N.TAP): Step(_S.IDLE, (_E.STOP_WIFI,), STOPPED),
    (_S.WIFI_SETUP, _N.WIFI_ENDED): Step(_S.IDLE),
    (_S.WIFI_SETUP, _N.WIFI_FAILED): Step(_S.IDLE, (), FAILURE),
    (_S.WIFI_SETUP, _N.STARTED): Step(_S.RECORDING, (_E.STOP_WIFI,), STARTED),
    (_S.WIFI_SETUP, _N.TERMINATE): Step(_S.SHUTDOWN, (_E.STOP_WIFI,)),
}  # fmt: skip
"""Every move there is. What is not here changes nothing: a recording is not lost to somebody who leans on the button."""

PRESSES = {Press.TAP: Signal.TAP, Press.DOUBLE: Signal.DOUBLE, Press.HOLD: Signal.HOLD}


def step(state: State, signal: Signal) -> Step:
    """Where a signal leads. What means nothing leads nowhere; a press that means nothing is answered by a beep."""
    if found := TABLE.get((state, signal)):
        return found
    heard = signal in PRESSES.values() and state is not State.SHUTDOWN
    return Step(state, (), REFUSED if heard else None)


def doubles(state: State) -> bool:
    """Whether a double press means something of its own in this state."""
    return state is State.IDLE


# -- lights ---------------------------------------------------------------------------------------------------------

RED, GREEN, BUZZER = "red", "green", "buzzer"
LIGHTS: dict[State, dict[str, Pattern]] = {
    State.BOOT: {RED: OFF, GREEN: ON},
    State.IDLE: {RED: OFF, GREEN: ON},
    State.RECORDING: {RED: SLOW, GREEN: OFF},
    State.PREVIEW: {RED: OFF, GREEN: SLOW},
    State.WIFI_SETUP: {RED: FAST, GREEN: FAST},
    State.SHUTDOWN: {RED: OFF, GREEN: OFF},
}


class Shown:
    """What the lights and the buzzer show at a time: the patterns of the state since it began, and one beep after
    another. Times in s, on the monotonic clock."""

    def __init__(self, now_s: float = 0.0):
        self._state, self._since = State.BOOT, now_s
        self._beeps: list[tuple[float, Pattern]] = []

    def enter(self, state: State, now_s: float) -> None:
        """Show this state from now on."""
        if state is not self._state:
            self._state, self._since = state, now_s
        if state is State.SHUTDOWN:
            self._beeps = []

    def beep(self, pattern: Pattern, now_s: float) -> None:
        """Sound it, after what sounds already. Where two wait, it takes the place of the last: that is long over."""
        self._beeps = self._live(now_s)[:2]
        begins = now_s
        if self._beeps:
            at, last = self._beeps[-1]
            begins = max(now_s, at + (last.length_s or 0.0) + 0.3)
        self._beeps.append((begins, pattern))

    def at(self, now_s: float) -> dict[str, bool]:
        """What is lit."""
        self._beeps = self._live(now_s)
        lit = {name: pattern.lit(now_s - self._since) for name, pattern in LIGHTS[self._state].items()}
        return lit | {BUZZER: any(pattern.lit(now_s - at) for at, pattern in self._beeps)}

    def _live(self, now_s: float) -> list[tuple[float, Pattern]]:
        return [(at, pattern) for at, pattern in self._beeps if now_s < at + (pattern.length_s or 0.0)]


# -- the panel ------------------------------------------------------------------------------------------------------


class Panel:
    """The state, the button and what is shown, together. Times are CLOCK_MONOTONIC in ns. Of one thread."""

    def __init__(self, now_ns: int = 0):
        self.state = State.BOOT
        self.presses = Presses()
        self.shown = Shown(now_ns / 1e9)

    def edge(self, edge: Edge) -> list[Effect]:
        """The button went down or up; what is to be done."""
        effects = self.until(edge.at_ns)
        for press in self.presses.edge(edge, doubles(self.state)):
            effects += self.signal(PRESSES[press], edge.at_ns)
        return effects

    def until(self, now_ns: int) -> list[Effect]:
        """Time has passed."""
        effects: list[Effect] = []
        for press in self.presses.until(now_ns):
            effects += self.signal(PRESSES[press], now_ns)
        return effects

    def signal(self, signal: Signal, now_ns: int) -> list[Effect]:
        """Something has happened."""
        found = step(self.state, signal)
        if found.state is not self.state:
            self.state = found.state
            self.presses.forget()
            self.shown.enter(found.state, now_ns / 1e9)
        if found.beep is not None:
            self.shown.beep(found.beep, now_ns / 1e9)
        return list(found.effects)

    def lit(self, now_ns: int) -> dict[str, bool]:
        """What is lit now."""
        return self.shown.at(now_ns / 1e9)
