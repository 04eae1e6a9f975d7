"""A GPIO chip that is not there: lines with physical levels, and requests that tell edges as libgpiod 2 does.

Events are those of libgpiod itself, with its types, sequence numbers and the time of the edge. The kernel's buffer of a
request holds `buffer` events and loses the oldest. `gpio-sim` needs a kernel module, which a container has not.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from gpiod import EdgeEvent, LineSettings, _ext
from gpiod.line import Bias, Direction, Edge, Value


class Chip:
    """Lines by number, each at its physical level; an input that nobody drives follows its pull."""

    def __init__(self, path: str = "/dev/gpiochip0", lines: int = 54):
        self.path, self.count = path, lines
        self.now_ns = 1_000_000_000_000
        self.driven: dict[int, bool] = {}
        self.requests: dict[int, Request] = {}
        self.refuses = 0
        self.writes: list[tuple[int, dict[int, bool]]] = []

    def clock_ns(self) -> int:
        return self.now_ns

    def open(self, path: str, lines: dict[int, LineSettings]) -> Request:
        """What `gpiod.request_lines` does."""
        number = self.refuses or (errno.ENOENT if path != self.path else 0)
        if any(line >= self.count for line in lines):
            number = number or errno.EINVAL
        if any(line in self.requests for line in lines):
            number = number or errno.EBUSY
        if number:
            raise OSError(number, os.strerror(number))
        request = self.request(lines)
        self.requests |= dict.fromkeys(lines, request)
        return request

    def request(self, lines: dict[int, LineSettings]) -> Request:
        return Request(self, lines)

    def drive(self, line: int, high: bool, after_ms: float = 0) -> None:
        """Put a line to a physical level, that long from now; the clock moves on."""
        self.now_ns += int(after_ms * 1e6)
        before = self.level(line)
        self.driven[line] = high
        if before != high and line in self.requests:
            self.requests[line].tell(line)

    def level(self, line: int) -> bool:
        if line in self.driven:
            return self.driven[line]
        request = self.requests.get(line)
        return request is not None and request.settings[line].bias is Bias.PULL_UP


class Request:
    """The lines of one consumer."""

    buffer = 16

    def __init__(self, chip: Chip, settings: dict[int, LineSettings]):
        self.chip, self.settings, self.events = chip, settings, []
        self.sequence = 0
        self.lines_told = dict.fromkeys(settings, 0)
        self.released = False
        for line, one in settings.items():
            if one.direction is Direction.OUTPUT:
                chip.driven[line] = (one.output_value is Value.ACTIVE) != one.active_low

    def active(self, line: int) -> bool:
        return self.chip.level(line) != self.settings[line].active_low

    def tell(self, line: int) -> None:
        if self.settings[line].edge_detection is not Edge.BOTH:
            return
        self.sequence += 1
        self.lines_told[line] += 1
        kind = _ext.EDGE_EVENT_TYPE_RISING if self.active(line) else _ext.EDGE_EVENT_TYPE_FALLING
        self.events.append(EdgeEvent(kind, self.chip.now_ns, line, self.sequence, self.lines_told[line]))
        del self.events[: -self.buffer]

    def wait_edge_events(self, timeout: float | None = None) -> bool:
        self._check()
        if not self.events and timeout:
            self.chip.now_ns += int(timeout * 1e9)
        return bool(self.events)

    def read_edge_events(self, max_events: int | None = None) -> list[EdgeEvent]:
        self._check()
        told, self.events = self.events, []
        return told

    def get_value(self, line: int) -> Value:
        self._check()
        return Value.ACTIVE if self.active(line) else Value.INACTIVE

    def set_values(self, values: dict[int, Value]) -> None:
        self._check()
        levels = {line: (value is Value.ACTIVE) != self.settings[line].active_low for line, value in values.items()}
        self.chip.driven |= levels
        self.chip.writes.append((self.chip.now_ns, levels))

    def release(self) -> None:
        self.released = True
        for line in self.settings:
            self.chip.requests.pop(line, None)

    def _check(self) -> None:
        if self.chip.refuses:
            raise OSError(self.chip.refuses, os.strerror(self.chip.refuses))
        assert not self.released


class LiveChip(Chip):
    """A chip in real time, for threads that wait for it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        super().__init__()

    @property
    def now_ns(self) -> int:
        return time.monotonic_ns()

    @now_ns.setter
    def now_ns(self, value: int) -> None:
        """Time goes on by itself."""

    def open(self, path: str, lines: dict[int, LineSettings]) -> Request:
        with self.changed:
            return super().open(path, lines)

    def request(self, lines: dict[int, LineSettings]) -> Request:
        return LiveRequest(self, lines)

    def drive(self, line: int, high: bool, after_ms: float = 0) -> None:
        with self.changed:
            super().drive(line, high)
            self.changed.notify_all()


class LiveRequest(Request):
    """Lines that are waited for in real time."""

    chip: LiveChip

    def wait_edge_events(self, timeout: float | None = None) -> bool:
        with self.chip.changed:
            return self.chip.changed.wait_for(lambda: bool(self.events), timeout)

    def read_edge_events(self, max_events: int | None = None) -> list[EdgeEvent]:
        with self.chip.changed:
            return super().read_edge_events(max_events)
