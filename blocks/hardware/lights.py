"""Lights and a buzzer on GPIO lines, and the patterns they show over time.

A pattern is data: what is lit when is computed from the time since it began, so nobody sleeps between two blinks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from blocks.hardware.gpio import CHIP, OpenLines, gpio_failure, library, open_lines


class Pattern(NamedTuple):
    """Times in seconds, on and off in turn, beginning with on; for ever, or `repeat` times and then off."""

    times: tuple[float, ...]
    repeat: int | None = None

    def lit(self, elapsed_s: float) -> bool:
        """Whether it is on so long after it began."""
        length = sum(self.times)
        if elapsed_s < 0 or (self.repeat is not None and elapsed_s >= length * self.repeat):
            return False
        if not length:
            return False
        rest = elapsed_s % length
        for number, seconds in enumerate(self.times):
            if rest < seconds:
                return number % 2 == 0
            rest -= seconds
        return False

    @property
    def length_s(self) -> float | None:
        """How long it lasts; None for ever."""
        return None if self.repeat is None else sum(self.times) * self.repeat


OFF = Pattern((0.0, 1.0))
ON = Pattern((1.0,))
SLOW = Pattern((0.5, 0.5))
"""1 Hz."""
FAST = Pattern((0.1, 0.1))
"""5 Hz."""


def beeps(count: int, seconds: float = 0.1) -> Pattern:
    """So many beeps, each so long, with pauses as long."""
    return Pattern((seconds, seconds), repeat=count)


class Lights(Protocol):
    """Lights, and a buzzer, by their names."""

    def show(self, lit: Mapping[str, bool]) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class GpioLights:
    """Lights on lines of a GPIO chip, all off at first and at the end. Only what changes is written.

    Raises NotFound, Conflict, PermissionRefused, ToolMissing when the lines cannot be had. Of one thread.
    """

    def __init__(
        self, lines: Mapping[str, int], chip: str = CHIP, *, active_low: bool = False,
        open_lines: OpenLines = open_lines,
    ):  # fmt: skip
        gpiod = library()
        self._lines, self._chip = dict(lines), chip
        self._values = {True: gpiod.line.Value.ACTIVE, False: gpiod.line.Value.INACTIVE}
        settings = gpiod.LineSettings(
            direction=gpiod.line.Direction.OUTPUT, output_value=gpiod.line.Value.INACTIVE, active_low=active_low
        )
        try:
            self._request = open_lines(chip, dict.fromkeys(self._lines.values(), settings))
        except OSError as error:
            raise gpio_failure(error, f"{chip} lines {', '.join(map(str, self._lines.values()))}") from error
        self._lit = dict.fromkeys(self._lines, False)

    def show(self, lit: Mapping[str, bool]) -> None:
        """Switch these; names that have no line are left out."""
        changed = {n: on for n, on in lit.items() if n in self._lit and self._lit[n] != on}
        if not changed:
            return
        try:
            self._request.set_values({self._lines[n]: self._values[on] for n, on in changed.items()})
        except OSError as error:
            raise gpio_failure(error, self._chip) from error
        self._lit.update(changed)

    def close(self) -> None:
        """All off; give the lines back. Without a word where the chip is gone."""
        try:
            self._request.set_values(dict.fromkeys(self._lines.values(), self._values[False]))
        except OSError:
            pass  # nothing to switch any more
        finally:
            self._request.release()
