"""Keeps the device's Prefect worker running: begun when the server is there, begun again when it ended, ended with us.

The worker is `python -m deployments.agent.work`, a process of its own; a recording by the button needs none of it. One that
had nothing to do for long ends by itself (`RESTS`): the server is asked for runs from here then, at a fraction of its memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deployments import up
from deployments.calls import RESTS

log = logging.getLogger("onblock.agent")

LOOK_EVERY_S = 2.0
LEAST_S, MOST_S = 2.0, 60.0
"""Between an end and the next beginning: twice as long each time."""
SETTLED_S = 60.0
"""A worker that lived so long is no failure."""
ASK_EVERY_S = 5.0
"""While the worker rests."""
LOG_BYTES = 10 << 20


class Keeper:
    """A worker that is kept. `told` and `wake` from any thread."""

    def __init__(
        self, module: Sequence[str], env: Mapping[str, str], log_file: Path, healthy: Callable[[], bool],
        wanted: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._module, self._env, self._log = list(module), dict(env), log_file
        self._healthy, self._wanted, self._clock = healthy, wanted, clock
        self._child: up.Child | None = None
        self._began = 0.0
        self._not_before = 0.0
        self._failures = 0
        self._resting = False
        self._ask_at = 0.0
        self._state = "waiting for the server"
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="onblock-keeper", daemon=True)

    def told(self) -> dict[str, Any]:
        """For the status."""
        child = self._child
        return {"state": self._state, "pid": child.process.pid if child else None, "ended": self._failures}

    def start(self) -> None:
        """Begin to keep it."""
        self._thread.start()

    def wake(self) -> None:
        """The server may be there again: look now."""
        self._wake.set()

    def want(self) -> None:
        """There will be something to do: it rests no longer."""
        self._resting = False
        self._wake.set()

    def stop(self) -> None:
        """End the worker: its runs first, so that what they record is sealed."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._child is not None:
            up.end([self._child])
            self._child = None
        self._state = "ended"

    def once(self) -> None:
        """One look."""
        now = self._clock()
        if self._child is not None:
            code = self._child.process.poll()
            if code is None:
                if now - self._began >= SETTLED_S:
                    self._failures = 0
                return
            up.end([self._child])  # what it left behind
            self._child = None
            if code == RESTS:
                self._resting, self._failures, self._ask_at, self._state = True, 0, now, "resting"
                log.info("the worker had nothing to do for long, and rests")
                return
            wait = min(MOST_S, LEAST_S * 2.0 ** min(self._failures, 20))
            self._failures, self._not_before = self._failures + 1, now + wait
            log.warning(
                "the worker ended with %d; begun again in %.0f s at the earliest, see %s", code, wait, self._log
            )
        if self._resting:
            if now < self._ask_at:
                return
            self._ask_at = now + ASK_EVERY_S
            if not self._wanted():
                return
            self._resting = False
        if now < self._not_before:
            self._state = "ended, waits"
        elif not self._healthy():
            self._state = "waiting for the server"
        else:
            self._begin(now)

    def _begin(self, now: float) -> None:
        try:
            if self._log.exists() and self._log.stat().st_size > LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))
            # `up.end` knows by the name that its runs have to end first
            self._child = up.start("the worker", self._module, self._env, self._log)
        except OSError as error:
            self._state, self._not_before = f"cannot be started: {error}", now + MOST_S
            log.error("the worker cannot be started: %s", error)
            return
        self._began, self._state = now, "running"
        log.info("the worker is begun, pid %d", self._child.process.pid)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.once()
            except Exception:
                log.exception("looking after the worker failed; it goes on")
            self._wake.wait(LOOK_EVERY_S)
            self._wake.clear()
