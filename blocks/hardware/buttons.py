"""Buttons on GPIO lines: clean presses and releases, by the monotonic clock of the kernel.

The kernel tells each edge with the time it was seen at; contacts bounce, so a level counts once it has held for a
while. What presses mean (short, double, long) is decided elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from blocks.hardware.gpio import CHIP, OpenLines, gpio_failure, library, open_lines

DEBOUNCE_NS = 20_000_000


class Edge(NamedTuple):
    """A button went down or up; `at_ns` is CLOCK_MONOTONIC in ns."""

    button: str
    pressed: bool
    at_ns: int


class Buttons(Protocol):
    """Buttons that can be waited for."""

    def wait(self, timeout_s: float) -> list[Edge]:
        """The edges since the last call, in their order; waits for the first one, at most that long."""
        ...

    def close(self) -> None: ...  # noqa: D102


class Debounce:
    """The level of one contact, without its bouncing. A change counts when it has held for `quiet_ns`; its time is
    that of the edge that began the quiet."""

    def __init__(self, quiet_ns: int = DEBOUNCE_NS, pressed: bool = False):
        self._quiet, self._level = quiet_ns, pressed
        self._seen, self._since = pressed, 0

    def edge(self, pressed: bool, at_ns: int) -> tuple[bool, int] | None:
        """Take an edge into account; the change that had become certain before it, if any."""
        certain = self.settled(at_ns)
        if pressed != self._seen:
            self._seen, self._since = pressed, at_ns
        return certain

    def settled(self, now_ns: int) -> tuple[bool, int] | None:
        """The change that has become certain by now, once."""
        if self._seen == self._level or now_ns - self._since < self._quiet:
            return None
        self._level = self._seen
        return self._level, self._since

    @property
    def due_ns(self) -> int | None:
        """When the change that is under way becomes certain; None if there is none."""
        return self._since + self._quiet if self._seen != self._level else None


class GpioButtons:
    """Buttons between a line and ground, with the chip's pull-up; `active_low=False` for those that go to the supply.

    Raises NotFound, Conflict, PermissionRefused, ToolMissing when the lines cannot be had. Of one thread.
    """

    def __init__(
        self, lines: Mapping[str, int], chip: str = CHIP, *, active_low: bool = True, debounce_ns: int = DEBOUNCE_NS,
        open_lines: OpenLines = open_lines, clock_ns: Callable[[], int] = time.monotonic_ns,
    ):  # fmt: skip
        gpiod = library()
        self._chip, self._clock = chip, clock_ns
        self._names = {offset: name for name, offset in lines.items()}
        bias = gpiod.line.Bias.PULL_UP if active_low else gpiod.line.Bias.PULL_DOWN
        settings = gpiod.LineSettings(
            direction=gpiod.line.Direction.INPUT, edge_detection=gpiod.line.Edge.BOTH, bias=bias, active_low=active_low,
            event_clock=gpiod.line.Clock.MONOTONIC,
        )  # fmt: skip
        self._rising = gpiod.EdgeEvent.Type.RISING_EDGE
        self._active = gpiod.line.Value.ACTIVE
        try:
            self._request = open_lines(chip, dict.fromkeys(self._names, settings))
            # held down since before we came: no press of ours, until it was let go
            self._contacts = {o: Debounce(debounce_ns, self._is_down(o)) for o in self._names}
        except OSError as error:
            raise gpio_failure(error, f"{chip} lines {', '.join(map(str, self._names))}") from error
        self._sequence: dict[int, int] = {}  # the last event of each line

    def wait(self, timeout_s: float) -> list[Edge]:
        """See `Buttons`. OnblockError where the chip is gone."""
        due = [d for c in self._contacts.values() if (d := c.due_ns) is not None]
        if due:
            timeout_s = min(timeout_s, max(0, min(due) - self._clock()) / 1e9)
        changes: list[Edge] = []
        try:
            if self._request.wait_edge_events(timeout_s):
                for event in self._request.read_edge_events():
                    changes += self._take(event)
        except OSError as error:
            raise gpio_failure(error, self._chip) from error
        now = self._clock()
        for offset, contact in self._contacts.items():
            if change := contact.settled(now):
                changes.append(Edge(self._names[offset], *change))
        return sorted(changes, key=lambda edge: edge.at_ns)

    def close(self) -> None:
        """Give the lines back."""
        self._request.release()

    def _take(self, event: Any) -> list[Edge]:
        offset = int(event.line_offset)
        pressed = event.event_type is self._rising
        lost = offset in self._sequence and event.line_seqno != self._sequence[offset] + 1
        self._sequence[offset] = int(event.line_seqno)
        change = self._contacts[offset].edge(pressed, event.timestamp_ns)
        found = [Edge(self._names[offset], *change)] if change else []
        if lost:  # the kernel's buffer ran over: what the line is now is the truth
            change = self._contacts[offset].edge(self._is_down(offset), event.timestamp_ns)
            found += [Edge(self._names[offset], *change)] if change else []
        return found

    def _is_down(self, offset: int) -> bool:
        return self._request.get_value(offset) is self._active
