"""What is meant by pressing the button: a tap, a double press, or holding it. Values in, values out, no clock of its own.

A tap counts when the button is let go. Only where a double press means something is a tap held back for `double_s`, to see
whether another press follows; so a recording stops at once. Holding counts while the button is still down.
"""

from __future__ import annotations

from enum import StrEnum

from blocks.hardware.buttons import Edge

DOUBLE_NS = 500_000_000
HOLD_NS = 5_000_000_000


class Press(StrEnum):
    """What was meant."""

    TAP = "tap"
    DOUBLE = "double"
    HOLD = "hold"


class Presses:
    """One button. Times are CLOCK_MONOTONIC in ns, and do not go back."""

    def __init__(self, double_ns: int = DOUBLE_NS, hold_ns: int = HOLD_NS):
        self._double, self._hold = double_ns, hold_ns
        self._down_at: int | None = None
        self._tapped_at: int | None = None  # a tap that waits for another
        self._second = self._held = self._stale = False

    def edge(self, edge: Edge, doubles: bool) -> list[Press]:
        """The button went down or up; `doubles` says whether a double press means something now."""
        found = self.until(edge.at_ns)
        if edge.pressed:
            self._down_at, self._held, self._stale = edge.at_ns, False, False
            self._second, self._tapped_at = self._tapped_at is not None, None
        elif self._down_at is not None:
            self._down_at = None
            if self._held or self._stale:
                return found
            if self._second:
                found.append(Press.DOUBLE)
            elif doubles:
                self._tapped_at = edge.at_ns
            else:
                found.append(Press.TAP)
        return found

    def until(self, now_ns: int) -> list[Press]:
        """What has become certain by now."""
        found: list[Press] = []
        if self._tapped_at is not None and now_ns - self._tapped_at >= self._double:
            self._tapped_at = None
            found.append(Press.TAP)
        if self._down_at is not None and not self._held and now_ns - self._down_at >= self._hold:
            self._held = True
            found.append(Press.HOLD)
        return found

    def forget(self) -> None:
        """The state is another now: what was pressed was not meant for it. The button that is down may still be held."""
        self._tapped_at, self._second, self._stale = None, False, self._down_at is not None

    @property
    def due_ns(self) -> int | None:
        """When something becomes certain by itself; None if nothing does."""
        times = [
            at + wait for at, wait in ((self._tapped_at, self._double), (self._down_at, self._hold)) if at is not None
        ]
        return None if self._held or not times else min(times)
