"""What ends a recording before something else does: a disk that fills up, a battery that runs down.

Pure decisions of numbers; who reads the battery is `blocks/hardware`.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flows.capture.spec import LimitsSpec

WINDOW_NS = 60_000_000_000
"""The rate at which the disk fills is that of so long."""
SHORTEST_NS = 2_000_000_000
"""Nothing is said of the rate before."""
BELOW_FOR = 3
"""Readings in a row below the limit before a battery is believed to be empty: a motor that starts pulls it down."""


class Reading(Protocol):
    """A look at a battery."""

    @property
    def percent(self) -> float:
        """0 to 100."""
        ...

    @property
    def volts(self) -> float:
        """Between its poles."""
        ...

    @property
    def charging(self) -> bool:
        """Whether current flows into it."""
        ...


class Battery(Protocol):
    """What is asked of a battery."""

    def read(self) -> Reading:
        """A look at it. Raises OnblockError where it does not answer."""
        ...


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written below `folder`. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


@dataclass
class DiskGuard:
    """How long the disk will last at the rate at which the recording grows."""

    limits: LimitsSpec

    def __post_init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def look(self, at_ns: int, written: int, free: int) -> str | None:
        """Why to stop now; None to go on. `written` is the size of the recording, `free` what the disk has left."""
        self._seen.append((at_ns, written))
        while len(self._seen) > 2 and at_ns - self._seen[1][0] >= WINDOW_NS:
            self._seen.popleft()
        if free < self.limits.disk_mib << 20:
            return f"the disk has {free >> 20} MiB left, and {self.limits.disk_mib} MiB are to stay free"
        left = self.left_s(free)
        if left is not None and left < self.limits.disk_left.total_seconds():
            return f"the disk will be full in {left:.0f} s"
        return None

    def left_s(self, free: int) -> float | None:
        """Seconds until the disk is full, as far as can be said."""
        if len(self._seen) < 2:
            return None
        (then, before), (now, after) = self._seen[0], self._seen[-1]
        if now - then < SHORTEST_NS or after <= before:
            return None
        return free / ((after - before) / ((now - then) / 1e9))


@dataclass
class BatteryGuard:
    """Whether the battery still carries the recording."""

    limits: LimitsSpec

    def __post_init__(self) -> None:
        self._low = 0

    def look(self, percent: float, *, charging: bool) -> str | None:
        """Why to stop now; None to go on."""
        self._low = 0 if charging or percent >= self.limits.battery_percent else self._low + 1
        if self._low >= BELOW_FOR:
            return f"the battery has {percent:.0f} % left"
        return None
