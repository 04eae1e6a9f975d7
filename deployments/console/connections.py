"""Connections of the console: who is silent is not waited for, and nobody has all of them.

What arrives on them is for `app.py` and `webhooks.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.console.outside import household

MOST = 512
"""Connections at a time; whoever comes then gets a 503."""
MOST_OF_ONE = 64
"""Of them from one address; the next is closed at once."""
HEAD_S = 10.0
"""So long a request's head may take to arrive, from the connection's first moment or the last answer's end."""
TAKEN_S = 60.0
"""So long what is written may wait for whoever has asked for it."""

_of: Counter[str] = Counter()


class Hurried(H11Protocol):
    """HTTP/1.1, with an end to patience."""

    most_of_one = MOST_OF_ONE
    _peer: str | None = None
    _limit: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close it where its address has enough of them; otherwise its first request is waited for."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._peer = household(str(peer[0])) if isinstance(peer, tuple) else ""
        _of[self._peer] += 1
        if _of[self._peer] > self.most_of_one or _of.total() > MOST:
            transport.abort()
            return
        transport.set_write_buffer_limits(1, 0)  # we are told whenever something waits, and when nothing does any more
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._release()
        self._taken()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take the time of a head that does not end; a request under way takes what time it needs."""
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._expect_head()
        else:
            self._arrived()

    def pause_writing(self) -> None:
        """An answer waits: not for ever. Whoever takes nothing would keep the connection, even one that is closed."""
        super().pause_writing()
        if self._untaken is None:
            self._untaken = self.loop.call_later(TAKEN_S, self.transport.abort)

    def resume_writing(self) -> None:
        """All of it is taken."""
        self._taken()
        super().resume_writing()

    def handle_websocket_upgrade(self, event: Any) -> None:
        """It is another protocol's from now on."""
        self._release()
        super().handle_websocket_upgrade(event)

    def _expect_head(self) -> None:
        if self._limit is None and not self.transport.is_closing():
            self._limit = self.loop.call_later(HEAD_S, self.transport.abort)

    def _taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def _arrived(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _release(self) -> None:
        self._arrived()
        if self._peer is not None:
            _of[self._peer] -= 1
            if not _of[self._peer]:
                del _of[self._peer]
            self._peer = None


class Proxied(Hurried):
    """The same behind a proxy, from whose one address all come: `guard.py` counts for whom it asks."""

    most_of_one = MOST
