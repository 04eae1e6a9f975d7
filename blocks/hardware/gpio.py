"""What buttons and lights share: how lines of a GPIO chip are asked for, and what goes wrong with them.

The lines are those of libgpiod 2 (the extra `device`), numbered as the chip counts them: on a Raspberry Pi the BCM numbers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from blocks.errors import Conflict, NotFound, OnblockError, PermissionRefused, ToolMissing, UnknownError

if TYPE_CHECKING:
    from gpiod.line_request import LineRequest

CHIP = "/dev/gpiochip0"
CONSUMER = "onblock"
"""What `gpioinfo` shows as the user of our lines."""

OpenLines = Callable[[str, "dict[int, Any]"], "LineRequest"]
"""Asks a chip (its path) for lines with settings, as `gpiod.request_lines` does."""

_WHO = "see who (`gpioinfo`), and end it"
_LINES = "check the numbers (`gpioinfo`)"
_CHIP = "check the chip's path (`gpiodetect`)"
GPIO_ERRORS: dict[int, tuple[type[OnblockError], str, str]] = {
    errno.ENOENT: (NotFound, "there is no such GPIO chip", _CHIP),
    errno.ENODEV: (NotFound, "this is no GPIO chip, or it is gone", _CHIP),
    errno.ENOTTY: (NotFound, "this is no GPIO chip", _CHIP),
    errno.EACCES: (PermissionRefused, "the GPIO chip may not be used", "add the account that runs onblock to the group gpio"),
    errno.EPERM: (PermissionRefused, "the GPIO chip may not be used", "add the account that runs onblock to the group gpio"),
    errno.EBUSY: (Conflict, "another program has one of the lines", _WHO),
    errno.EINVAL: (NotFound, "the chip has no such line, or does not take these settings", _LINES),
}  # fmt: skip
"""By errno of open(2) and ioctl(2) on /dev/gpiochip*."""


def gpio_failure(error: OSError, place: str) -> OnblockError:
    """A failure of a chip as an error of the taxonomy, with its cause."""
    cls, what, todo = GPIO_ERRORS.get(error.errno or 0, (UnknownError, f"{type(error).__name__}: {error}", _CHIP))
    failure = cls(what, path=place, remedy=todo)
    failure.__cause__ = error
    return failure


def open_lines(chip: str, lines: dict[int, Any]) -> LineRequest:
    """`gpiod.request_lines` in our name. ToolMissing without gpiod, OSError as the kernel has it."""
    gpiod = library()
    return gpiod.request_lines(chip, config=lines, consumer=CONSUMER)


def library() -> Any:
    """The module gpiod."""
    try:
        import gpiod
    except ImportError as error:
        raise ToolMissing("gpiod is not installed", remedy="`pip install onblock[device]` brings it") from error
    return gpiod


def look(chip: str, lines: Iterable[int], open_chip: Callable[[str], Any] | None = None) -> str:
    """What a chip is, if it has these lines and nobody else uses them. Raises NotFound, Conflict, PermissionRefused."""
    gpiod = library()
    try:
        with (open_chip or gpiod.Chip)(chip) as opened:
            info = opened.get_info()
            if missing := [n for n in lines if n >= info.num_lines]:
                raise NotFound(f"the chip has no line {missing[0]}, it has {info.num_lines}", path=chip, remedy=_LINES)
            for line in map(opened.get_line_info, lines):
                if line.used and line.consumer != CONSUMER:
                    raise Conflict(
                        f"line {line.offset} is used by {line.consumer or 'the kernel'}", path=chip, remedy=_WHO
                    )
            return f"{chip}: {info.label}, {info.num_lines} lines"
    except OSError as error:
        raise gpio_failure(error, chip) from error
