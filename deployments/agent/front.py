"""The panel at work: two threads. One hears the button and switches the lights, every 20 ms, and does nothing else; the
other has hands, and carries out what the panel decides: it may wait for cameras and disks as long as it takes.

Hardware that is missing or fails is told as trouble and tried again every 30 s. Without any, the panel goes on by signals.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from blocks.errors import OnblockError, as_onblock
from blocks.hardware.buttons import Buttons
from blocks.hardware.lights import Lights
from deployments.agent.panel import Effect, Panel, Signal, State

log = logging.getLogger("onblock.agent")

TICK_S = 0.02
RETRY_S = 30.0

Trouble = Callable[[str, "str | None"], None]
"""Told what is not well and why, or None once it is well again."""


class Hands(Protocol):
    """What carries out effects, each to its end. Raises an OnblockError where it cannot."""

    def __call__(self, effect: Effect) -> None: ...  # noqa: D102


FAILED: dict[Effect, Signal | None] = {
    Effect.START_RECORDING: Signal.FAILED, Effect.START_PREVIEW: Signal.PREVIEW_FAILED, Effect.START_WIFI: Signal.WIFI_FAILED,
    Effect.STOP_RECORDING: None, Effect.STOP_PREVIEW: None, Effect.STOP_WIFI: None,
}  # fmt: skip
"""What the panel hears when an effect fails."""


class Front:
    """The panel, its button and its lights. `signal` from any thread."""

    def __init__(
        self, hands: Hands, *, open_buttons: Callable[[], Buttons] | None = None, open_lights: Callable[[], Lights] | None = None,
        trouble: Trouble = lambda what, why: None, changed: Callable[[State], None] = lambda state: None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ):  # fmt: skip
        self._hands, self._trouble, self._changed, self._clock = hands, trouble, changed, clock_ns
        self._open_buttons, self._open_lights = open_buttons, open_lights
        self._buttons: Buttons | None = None
        self._lights: Lights | None = None
        self._retry_at = {"buttons": 0.0, "lights": 0.0}
        self.panel = Panel(clock_ns())
        self._since_ns = clock_ns()
        self._signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()
        self._todo: queue.SimpleQueue[Effect | None] = queue.SimpleQueue()
        self._doing: Effect | None = None
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, name="onblock-panel", daemon=True),
            threading.Thread(target=self._work, name="onblock-hands", daemon=True),
        ]

    @property
    def state(self) -> State:
        """What the device is doing."""
        return self.panel.state

    @property
    def busy(self) -> bool:
        """Whether something that was decided is still to be done, or a signal to be taken up."""
        return self._doing is not None or not self._todo.empty() or not self._signals.empty()

    def told(self) -> Mapping[str, Any]:
        """For the status."""
        doing = self._doing
        return {
            "state": self.panel.state.value, "state_since_s": round((self._clock() - self._since_ns) / 1e9, 1),
            "doing": doing.value if doing else None,
        }  # fmt: skip

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def signal(self, signal: Signal) -> None:
        """Something has happened; the panel takes it up within a tick."""
        self._signals.put(signal)

    def stop(self, patience_s: float) -> bool:
        """End, as by SIGTERM; whether all that was to be done is done."""
        self.signal(Signal.TERMINATE)
        self._ended.wait(10)
        self._threads[1].join(patience_s)
        self._threads[0].join(10)
        return not any(t.is_alive() for t in self._threads)

    # -- the panel --------------------------------------------------------------------------------------------------

    def once(self, wait_s: float = TICK_S) -> None:
        """One tick: edges, signals, time, lights."""
        before = self.panel.state
        for effect in self._happened(wait_s):
            self._todo.put(effect)
        if self.panel.state is not before:
            self._since_ns = self._clock()
            log.info("panel: %s, was %s", self.panel.state, before)
            self._changed(self.panel.state)
        self._show()

    def _happened(self, wait_s: float) -> list[Effect]:
        effects: list[Effect] = []
        buttons = self._hardware("buttons")
        if buttons is None:
            with contextlib.suppress(queue.Empty):
                effects += self.panel.signal(self._signals.get(timeout=wait_s), self._clock())
        else:
            try:
                for edge in buttons.wait(wait_s):
                    if edge.pressed:
                        log.debug("button pressed")
                    effects += self.panel.edge(edge)
            except OnblockError as error:
                self._lost("buttons", error)
        while not self._signals.empty():
            effects += self.panel.signal(self._signals.get(), self._clock())
        return effects + self.panel.until(self._clock())

    def _show(self) -> None:
        if (lights := self._hardware("lights")) is not None:
            try:
                lights.show(self.panel.lit(self._clock()))
            except OnblockError as error:
                self._lost("lights", error)

    def _hardware(self, what: str) -> Any:
        there = self._buttons if what == "buttons" else self._lights
        opens = self._open_buttons if what == "buttons" else self._open_lights
        if there is not None or opens is None or self._clock() / 1e9 < self._retry_at[what]:
            return there
        try:
            there = opens()
        except OnblockError as error:
            self._lost(what, error)
            return None
        self._trouble(what, None)
        if what == "buttons":
            self._buttons = there  # type: ignore[assignment]
        else:
            self._lights = there  # type: ignore[assignment]
        return there

    def _lost(self, what: str, error: OnblockError) -> None:
        self._retry_at[what] = self._clock() / 1e9 + RETRY_S
        self._trouble(what, str(error))
        there = self._buttons if what == "buttons" else self._lights
        if what == "buttons":
            self._buttons = None
            self.panel.presses.forget()  # its release is not going to be heard
        else:
            self._lights = None
        if there is not None:
            there.close()

    def _watch(self) -> None:
        try:
            while self.panel.state is not State.SHUTDOWN:
                try:
                    self.once()
                except Exception:  # whatever it was, the button of a recording device stays alive
                    log.exception("the panel stumbled; it goes on")
                    time.sleep(TICK_S)
        finally:
            self._todo.put(None)
            self._ended.set()
            for hardware in (self._buttons, self._lights):
                if hardware is not None:
                    hardware.close()

    # -- the hands --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (effect := self._todo.get()) is not None:
            self._doing = effect  # a look between these two lines sees nobody busy: it takes two looks
            self.carry_out(effect)
            self._doing = None

    def carry_out(self, effect: Effect) -> None:
        """Do one thing, to its end; tell the panel if it fails."""
        what = effect.value.partition("_")[2]
        try:
            self._hands(effect)
        except Exception as error:  # told below, as trouble, with its cause in the log
            failure = as_onblock(error)
            if failure is not error:
                log.exception("%s failed", effect.value)
            self._trouble(what, str(failure))
            if (signal := FAILED[effect]) is not None:
                self.signal(signal)
        else:
            if effect.value.startswith("start_"):
                self._trouble(what, None)
