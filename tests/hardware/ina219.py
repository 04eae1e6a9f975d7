"""An INA219 on an I2C bus that is not there: registers and bytes on the wire, as in the datasheet (SBOS448G).

It answers SMBus word transfers as the Linux driver hands them on: the first byte on the wire is the low one. It computes
current and power from the shunt voltage and the calibration register, as the chip does, and forgets all at a reset.
"""

from __future__ import annotations

import errno
import os

RESET_CONFIGURATION = 0x399F
SHUNT_OHM = 0.1


class Ina219:
    """The chip. `bus_v` and `current_a` are what is really there."""

    def __init__(self, address: int = 0x42, bus_v: float = 7.4, current_a: float = -0.5):
        self.address, self.bus_v, self.current_a = address, bus_v, current_a
        self.conversions_until_ready = 0
        self.overflow = False
        self.reset()

    def reset(self) -> None:
        """Power fails for a moment."""
        self.registers = {0x00: RESET_CONFIGURATION, 0x05: 0}
        self.converting = self.conversions_until_ready

    def write(self, pointer: int, high: int, low: int) -> None:
        """Three bytes after the address: the register, then its value, high byte first."""
        value = high << 8 | low
        if pointer == 0x00 and value & 0x8000:
            self.reset()
        elif pointer == 0x00:
            self.registers[0x00], self.converting = value, self.conversions_until_ready
        elif pointer == 0x05:
            self.registers[0x05] = value & 0xFFFE  # the lowest bit is wired to 0

    def read(self, pointer: int) -> tuple[int, int]:
        """The two bytes of a register, high byte first."""
        value = self._value(pointer) & 0xFFFF
        return value >> 8, value & 0xFF

    def _value(self, pointer: int) -> int:
        if pointer in self.registers:
            return self.registers[pointer]
        if pointer == 0x02 and self.converting:
            self.converting -= 1
            return 0  # nothing measured yet, and the ready bit says so
        shunt = round(self.current_a * SHUNT_OHM / 0.00001)
        bus = round(self.bus_v / 0.004)
        current = int(shunt * self.registers[0x05] / 4096)
        return {
            0x01: shunt,
            0x02: bus << 3 | 0b10 | self.overflow,
            0x03: abs(int(current * bus / 5000)),
            0x04: current,
        }.get(pointer, 0xFFFF)


class Bus:
    """A bus with chips on it; no chip, no acknowledgement. `fails` are the errnos of the next transfers."""

    def __init__(self, *chips: Ina219):
        self.chips = {chip.address: chip for chip in chips}
        self.fails: list[int] = []
        self.transfers = 0
        self.is_open = True

    def _chip(self, address: int) -> Ina219:
        assert self.is_open
        self.transfers += 1
        if self.fails and (number := self.fails.pop(0)):
            raise OSError(number, os.strerror(number))
        if address not in self.chips:
            raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
        return self.chips[address]

    def read_word_data(self, i2c_addr: int, register: int) -> int:
        first, second = self._chip(i2c_addr).read(register)
        return second << 8 | first

    def write_word_data(self, i2c_addr: int, register: int, value: int) -> None:
        self._chip(i2c_addr).write(register, value & 0xFF, value >> 8)

    def close(self) -> None:
        self.is_open = False


class Machine:
    """A machine whose I2C busses can be opened, and its clock."""

    def __init__(self, busses: dict[int, Bus] | None = None):
        self.busses, self.now, self.opened, self.refuses = busses or {}, 100.0, 0, 0

    def open(self, number: int) -> Bus:
        self.opened += 1
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses), f"/dev/i2c-{number}")
        if number not in self.busses:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"/dev/i2c-{number}")
        self.busses[number].is_open = True
        return self.busses[number]

    def clock(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
