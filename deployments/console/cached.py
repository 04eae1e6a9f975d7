"""What takes a while to find out, remembered: a thread of its own asks, whoever comes gets what is known, and a failure is
not repeated by everybody. What is asked is none of its affair.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from blocks.errors import NetworkError, OnblockError, UnknownError

T = TypeVar("T")
log = logging.getLogger("onblock.console")

SOON_S = 0.1
"""So long an answer that is under way is waited for, where an older one is there."""
FIRST_S = 5.0
"""And where there is none."""
RARELY_S = 30.0
"""However much it costs, it is asked for as often as this."""
HANGS_S = 30.0
"""What has not been answered for so long is not going to be soon."""


class Cached(Generic[T]):
    """A value that is asked for, if somebody wants it, when it is older than `fresh_s`; where asking costs this machine, only
    after `share` times as long as it took. Shared by threads."""

    def __init__(self, ask: Callable[[], T], fresh_s: float, *, share: float = 0.0):
        self._ask, self._fresh_s, self._share = ask, fresh_s, share
        self._turn = threading.Condition()
        self._value: T | None = None
        self._error: OnblockError | None = None
        self._defect = ""  # the last that was logged
        self._until = 0.0
        self._since: float | None = None  # it is being asked
        self._forgotten = self._seen = 0  # how often it was, and had been when what is known was asked for

    def get(self, wait_s: float = SOON_S) -> T:
        """The value; one that is out of date where a newer one cannot be had within `wait_s`. Raises the OnblockError of the
        last try where there never was one."""
        with self._turn:
            for _ in range(2):  # what was being asked when it was forgotten may not have seen why
                self._begin()
                if self._since is not None:
                    known = self._value is not None or self._error is not None
                    left = self._since + (wait_s if known else max(wait_s, FIRST_S)) - time.monotonic()
                    self._turn.wait_for(lambda: self._since is None, max(left, 0.0))
                if self._seen == self._forgotten:
                    break
            if self._value is not None:
                return self._value
            if self._error is not None:
                raise self._error
        raise NetworkError("it takes long to find out: there is no answer yet", remedy="look again in a while")

    def want(self) -> None:
        """Somebody will ask soon."""
        with self._turn:
            self._begin()

    def stale(self) -> str | None:
        """Why the value is an old one; None if it is not."""
        with self._turn:
            if self._error is not None:
                return self._error.what
            if self._since is not None and (silent := time.monotonic() - self._since) > HANGS_S:
                return f"there has been no answer for {silent:.0f} s"
        return None

    def forget(self) -> None:
        """Something has changed it: the next one asks."""
        with self._turn:
            self._until = 0.0
            self._forgotten += 1

    def _begin(self) -> None:
        if self._since is None and time.monotonic() >= self._until:
            self._since = time.monotonic()
            threading.Thread(target=self._renew, args=(self._forgotten,), name="onblock-ask", daemon=True).start()

    def _renew(self, forgotten: int) -> None:
        value, error = None, None
        try:
            value = self._ask()
        except OnblockError as failure:
            error = failure
            if self._error is None or self._error.what != failure.what:  # once, however often it is tried again
                log.warning("%s%s", failure, f": {failure.__cause__}" if failure.__cause__ else "")
        except Exception as defect:
            error = UnknownError("that is a defect; the console's log has its trace")
            if self._defect != repr(defect):
                self._defect = repr(defect)
                log.exception("what is shown could not be found out")
        with self._turn:
            assert self._since is not None
            now = time.monotonic()
            if error is None:
                self._value, self._error = value, None
                pause = max(self._fresh_s, min(self._share * (now - self._since), RARELY_S))
            else:
                self._error, pause = error, self._fresh_s
            self._until, self._seen = (now + pause if forgotten == self._forgotten else 0.0), forgotten
            self._since = None
            self._turn.notify_all()
