"""Time for a recording: everything is measured on CLOCK_MONOTONIC; wall time is only written down beside it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where a recorder takes its time from."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some moment; never goes back, whatever is done to the machine's date."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since 1970, as the machine believes; may jump."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC, which V4L2 drivers stamp their frames with too."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns()


def boot_id() -> str:
    """Which boot the monotonic times belong to: those of two boots cannot be compared. Empty where nobody tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Grid:
    """The moments at which streams begin a new segment: multiples of `step_ns` after the start of the recording.

    Each stream cuts by itself, at its first packet in a new cell that a player can begin at; nobody waits for another.
    """

    def __init__(self, step_ns: int):
        if step_ns <= 0:
            raise ValueError(f"a segment of {step_ns} ns is none")
        self._step_ns = step_ns

    def cell(self, at_ns: int) -> int:
        """The number of the cell that a moment of the recording (ns after its start) lies in."""
        return max(at_ns, 0) // self._step_ns

    def end(self, cell: int) -> int:
        """The first moment behind a cell."""
        return (cell + 1) * self._step_ns
