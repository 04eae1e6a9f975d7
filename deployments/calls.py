"""When a worker asks for runs: at once when the server has told of one, else now and then.

Asking costs the worker and the server 15 ms of a processor, so asking twice a second, all day, is 3 % of a core for each
worker. The server tells of every run that is scheduled (`prefect.flow-run.Scheduled`, over the web socket of its events);
while it does not, for whatever reason, it is asked as often as ever.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

log = logging.getLogger("onblock.worker")

RESTS = 3
"""Exit code of a worker that had nothing to do for so long as it was told to wait."""
QUIET_S = 5.0
"""So long nobody asks while nothing is told."""
AWAKE_S = 5.0
"""So long everybody asks after something was told: it may be due in a moment only, or wait for its turn."""
AGAIN_S = 5.0
"""Between two tries to listen."""
SCHEDULED = "prefect.flow-run.Scheduled"


class Calls:
    """Whether it is time to ask."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.listening = False
        self._asked = self._awake_until = float("-inf")

    def due(self, *, full: bool = False) -> bool:
        """Whether to ask now; whoever is told so does. One that is `full`, who could take none, asks only so often that the
        server knows he is there."""
        now = self._clock()
        if (full or (self.listening and now >= self._awake_until)) and now - self._asked < QUIET_S:
            return False
        self._asked = now
        return True

    def wake(self) -> None:
        """There is something to do, or was a moment ago."""
        self._awake_until = self._clock() + AWAKE_S

    async def listen(self) -> None:
        """Hear what the server tells, until this is cancelled."""
        from prefect.events.clients import get_events_subscriber
        from prefect.events.filters import EventFilter, EventNameFilter

        while True:
            try:
                async with get_events_subscriber(EventFilter(event=EventNameFilter(name=[SCHEDULED]))) as events:
                    self.listening = True
                    self.wake()  # for what was told meanwhile
                    async for _ in events:
                        self.wake()
            except Exception as error:  # noqa: BLE001 - whatever it is, runs are asked for all the same
                log.debug("the server's events are not heard: %s", error)
            self.listening = False
            await asyncio.sleep(AGAIN_S)
