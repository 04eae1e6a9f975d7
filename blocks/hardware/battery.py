"""The battery: how full it is, by an INA219 on I2C, as on Waveshare's UPS HAT (B).

When it is too low to go on recording is decided in `flows/capture/guards.py`.

Registers, bits and factors: Texas Instruments, INA219 datasheet SBOS448G, chapters 8.5 and 8.6. Words go over the wire
with the high byte first; SMBus has the low byte first, so each is swapped here.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from blocks.errors import Conflict, Corrupt, NetworkError, NotFound, OnblockError, PermissionRefused, UnknownError

CONFIGURATION, SHUNT_VOLTAGE, BUS_VOLTAGE, POWER, CURRENT, CALIBRATION = range(6)
"""The registers of the chip."""
SETTINGS = 0x3EEF
"""32 V, +-320 mV across the shunt, 12 bits averaged over 32 samples each, measuring all the time. Not what the chip has
after a reset (0x399F): so a reset is seen."""
CALIBRATED = 4096
"""0.04096 / (0.1 mA x 0.1 ohm): one count of CURRENT is then 0.1 mA, one of POWER 2 mW."""
CURRENT_LSB_A, POWER_LSB_W, BUS_LSB_V = 0.0001, 0.002, 0.004
READY, OVERFLOW = 0b10, 0b01
"""Bits of BUS_VOLTAGE: a conversion is there; the arithmetic overflowed."""
CONVERSION_S = 0.035
"""Two conversions of 17.02 ms."""


class BatteryReading(NamedTuple):
    """What a battery tells: V, A (positive while it is charged), W, and percent of its charge from 0 to 100."""

    voltage_v: float
    current_a: float
    power_w: float
    percent: float
    charging: bool

    @property
    def volts(self) -> float:
        """The voltage by the name that the guards of a recording know (`flows/capture/guards.py`)."""
        return self.voltage_v


class Battery(Protocol):
    """A battery that can be asked. `read` raises an OnblockError while there is nothing to be learned from it."""

    def read(self) -> BatteryReading: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class I2cBus(Protocol):
    """What is used of `smbus2.SMBus`."""

    def read_word_data(self, i2c_addr: int, register: int) -> int: ...  # noqa: D102

    def write_word_data(self, i2c_addr: int, register: int, value: int) -> None: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


def open_i2c(number: int) -> I2cBus:
    """The bus /dev/i2c-<number>."""
    from smbus2 import SMBus

    return SMBus(number)


# -- what goes wrong on the bus -----------------------------------------------------------------------------------

_SEATED = "check that the battery's board is plugged in and switched on; asked again by itself"
_ENABLE = "switch I2C on (`raspi-config`, or `dtparam=i2c_arm=on`); asked again by itself"
_GROUP = "add the account that runs onblock to the group i2c"
I2C_ERRORS: dict[int, tuple[type[OnblockError], str, str]] = {
    errno.ENOENT: (NotFound, "there is no such I2C bus", _ENABLE),
    errno.ENODEV: (NotFound, "there is no such I2C bus", _ENABLE),
    errno.EACCES: (PermissionRefused, "the I2C bus may not be used", _GROUP),
    errno.EPERM: (PermissionRefused, "the I2C bus may not be used", _GROUP),
    errno.EBUSY: (Conflict, "a driver of the kernel has this I2C address", "unload that driver, or read the battery through it"),
    errno.ENXIO: (NetworkError, "nothing answers at this I2C address", _SEATED),
    errno.EREMOTEIO: (NetworkError, "nothing answers at this I2C address", _SEATED),
    errno.EIO: (NetworkError, "the I2C transfer failed", _SEATED),
    errno.ETIMEDOUT: (NetworkError, "the I2C bus hangs", _SEATED),
    errno.EAGAIN: (NetworkError, "the I2C bus is busy", _SEATED),
}  # fmt: skip
"""By errno of open(2) and ioctl(2) on /dev/i2c-*: see the kernel's i2c/fault-codes."""


def i2c_failure(error: OSError, place: str) -> OnblockError:
    """A failure on the bus as an error of the taxonomy, with its cause."""
    cls, what, todo = I2C_ERRORS.get(error.errno or 0, (UnknownError, f"{type(error).__name__}: {error}", _SEATED))
    failure = cls(what, path=place, remedy=todo)
    failure.__cause__ = error
    return failure


# -- the chip -------------------------------------------------------------------------------------------------------


class Ina219Battery:
    """A battery behind an INA219. While it does not answer it is tried every `retry_s`; in between, `read` raises what
    was found then, and leaves the bus alone. Of one thread.

    The percentage goes by the voltage: `empty_v` is 0, `full_v` is 100 (two lithium cells: 6.0 and 8.4 V).
    """

    def __init__(
        self, bus: int = 1, address: int = 0x42, empty_v: float = 6.0, full_v: float = 8.4, retry_s: float = 30.0,
        *, open_bus: Callable[[int], I2cBus] = open_i2c, clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ):  # fmt: skip
        self._number, self._address, self._empty, self._full = bus, address, empty_v, full_v
        self._retry, self._open, self._clock, self._pause = retry_s, open_bus, clock, pause
        self._bus: I2cBus | None = None
        self._failure: OnblockError | None = None
        self._next = 0.0

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return f"/dev/i2c-{self._number} 0x{self._address:02x}"

    def read(self) -> BatteryReading:
        """What it says now. A transfer that fails is tried once more at once, then after `retry_s`."""
        if self._failure is not None and self._clock() < self._next:
            raise self._failure.with_traceback(None)
        try:
            try:
                reading = self._measure()
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.ENODEV, errno.EACCES, errno.EPERM):
                    raise
                self.close()
                reading = self._measure()
        except OSError as error:
            self._away(i2c_failure(error, self.place))
            raise self._failure from error  # type: ignore[misc]
        except OnblockError as failure:
            self._away(failure)
            raise
        self._failure = None
        return reading

    def close(self) -> None:
        """Let go of the bus; the next `read` opens it again."""
        if self._bus is not None:
            bus, self._bus = self._bus, None
            bus.close()

    def _away(self, failure: OnblockError) -> None:
        self._failure, self._next = failure, self._clock() + self._retry
        self.close()

    def _measure(self) -> BatteryReading:
        if self._bus is None:
            self._bus = self._open(self._number)
        if self._get(CONFIGURATION) != SETTINGS:  # just switched on, or reset by a sharp load: it measures no current
            self._set(CALIBRATION, CALIBRATED)
            self._set(CONFIGURATION, SETTINGS)
            self._await_conversion()
        raw = self._get(BUS_VOLTAGE)
        if raw & OVERFLOW:
            raise Corrupt("the current is beyond what the chip can measure", path=self.place, remedy=_SEATED)
        voltage = (raw >> 3) * BUS_LSB_V
        current = _signed(self._get(CURRENT)) * CURRENT_LSB_A
        power = self._get(POWER) * POWER_LSB_W
        percent = min(100.0, max(0.0, (voltage - self._empty) / (self._full - self._empty) * 100))
        return BatteryReading(round(voltage, 3), round(current, 4), round(power, 3), round(percent, 1), current > 0)

    def _await_conversion(self) -> None:
        """Wait for the first values: before them the chip says 0 V, which is no empty battery."""
        for _ in range(10):
            self._pause(CONVERSION_S)
            if self._get(CONFIGURATION) != SETTINGS:
                raise Corrupt(
                    "what answers at this I2C address does not keep its settings: it is no INA219, or the bus is disturbed",
                    path=self.place, remedy="check the address (`i2cdetect -y 1`) and the plug",
                )  # fmt: skip
            if self._get(BUS_VOLTAGE) & READY:
                return
        raise NetworkError("the INA219 measures nothing", path=self.place, remedy=_SEATED)

    def _get(self, register: int) -> int:
        assert self._bus is not None
        return _swapped(self._bus.read_word_data(self._address, register))

    def _set(self, register: int, value: int) -> None:
        assert self._bus is not None
        self._bus.write_word_data(self._address, register, _swapped(value))


def _swapped(word: int) -> int:
    return (word & 0xFF) << 8 | word >> 8


def _signed(word: int) -> int:
    return word - 0x10000 if word & 0x8000 else word


class ToldBattery:
    """The battery by what the agent of this device says in its status file, for whoever must not open the chip twice.

    Raises NotFound where there is no battery, or nobody has told of it for `fresh_s`.
    """

    def __init__(self, file: Path, fresh_s: float = 10.0, clock: Callable[[], float] = time.time):
        self._file, self._fresh, self._clock = file, fresh_s, clock

    def read(self) -> BatteryReading:
        """See `Battery`."""
        try:
            age = self._clock() - self._file.stat().st_mtime  # written and looked at by one clock, however wrong it is
            told = json.loads(self._file.read_text())["battery"]
            if told is not None and abs(age) < self._fresh:
                return BatteryReading(**told)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotFound("tells of no battery", path=str(self._file), remedy="is the agent running?") from error
        raise NotFound("tells of no battery now", path=str(self._file), remedy="is the agent running?")

    def close(self) -> None:
        """Nothing is held."""
