from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.errors import Conflict, Corrupt, NetworkError, NotFound, OnblockError, PermissionRefused, UnknownError
from blocks.hardware.battery import BatteryReading, Ina219Battery, ToldBattery, i2c_failure
from tests.hardware.ina219 import Bus, Ina219, Machine


def battery(machine: Machine, **keys: float) -> Ina219Battery:
    return Ina219Battery(open_bus=machine.open, clock=machine.clock, pause=machine.pause, **keys)  # type: ignore[arg-type]


def test_what_the_chip_measures_is_what_is_read():
    machine = Machine({1: Bus(Ina219(bus_v=7.2, current_a=-0.75))})
    assert battery(machine).read() == BatteryReading(7.2, -0.75, 5.4, 50.0, False)


@pytest.mark.parametrize(("volts", "percent"), [(5.2, 0.0), (6.0, 0.0), (6.6, 25.0), (8.4, 100.0), (8.8, 100.0)])
def test_percent_goes_by_the_voltage_and_stays_in_its_bounds(volts: float, percent: float):
    assert battery(Machine({1: Bus(Ina219(bus_v=volts))})).read().percent == percent


@pytest.mark.parametrize(("amperes", "charging"), [(1.2, True), (0.0001, True), (0.0, False), (-0.3, False)])
def test_it_charges_when_the_current_is_positive(amperes: float, charging: bool):
    reading = battery(Machine({1: Bus(Ina219(current_a=amperes))})).read()
    assert (reading.current_a, reading.charging) == (amperes, charging)


@given(st.floats(0.5, 30.0), st.floats(-3.1, 3.1))
def test_any_voltage_and_current_is_told_to_one_count(volts: float, amperes: float):
    reading = battery(Machine({1: Bus(Ina219(bus_v=volts, current_a=amperes))})).read()
    assert reading.voltage_v == pytest.approx(volts, abs=0.0021)
    assert reading.current_a == pytest.approx(amperes, abs=0.00011)
    assert reading.power_w == pytest.approx(abs(volts * amperes), abs=0.01)


def test_a_chip_that_was_reset_is_set_up_again_and_measures_current():
    chip = Ina219(current_a=-0.5)
    one = battery(Machine({1: Bus(chip)}))
    one.read()
    chip.reset()
    assert one.read().current_a == -0.5
    assert chip.registers == {0x00: 0x3EEF, 0x05: 4096}


def test_before_the_first_conversion_the_battery_is_not_called_empty():
    chip = Ina219(bus_v=8.0)
    chip.conversions_until_ready = 3
    assert battery(Machine({1: Bus(chip)})).read().voltage_v == 8.0


def test_a_chip_that_never_measures_is_an_error():
    chip = Ina219()
    chip.conversions_until_ready = 1000
    with pytest.raises(NetworkError, match="measures nothing"):
        battery(Machine({1: Bus(chip)})).read()


@pytest.mark.parametrize("stuck", [0x0000, 0xFFFF])
def test_a_bus_that_is_stuck_is_no_empty_or_full_battery(stuck: int):
    class Stuck(Bus):
        def read_word_data(self, i2c_addr: int, register: int) -> int:
            return stuck

    with pytest.raises(Corrupt, match=r"0x42: .*does not keep its settings"):
        battery(Machine({1: Stuck(Ina219())})).read()


def test_an_overflow_is_not_told_as_a_current():
    chip = Ina219()
    chip.overflow = True
    with pytest.raises(Corrupt, match="beyond"):
        battery(Machine({1: Bus(chip)})).read()


def test_a_battery_that_is_absent_at_boot_is_tried_every_30_seconds():
    machine = Machine()
    one = battery(machine)
    for second in range(29):
        machine.now = 100.0 + second
        with pytest.raises(NotFound, match="/dev/i2c-1 0x42: there is no such I2C bus"):
            one.read()
    assert machine.opened == 1
    machine.busses[1] = Bus(Ina219(bus_v=7.2))
    with pytest.raises(NotFound):
        one.read()
    machine.now = 130.0
    assert one.read().percent == 50.0


def test_one_failed_transfer_costs_no_reading():
    bus = Bus(Ina219(bus_v=7.2))
    one = battery(Machine({1: bus}))
    one.read()
    bus.fails = [errno.EIO]
    assert one.read().percent == 50.0


def test_a_battery_that_goes_away_comes_back():
    bus = Bus(Ina219())
    machine = Machine({1: bus})
    one = battery(machine)
    one.read()
    chip = bus.chips.pop(0x42)
    with pytest.raises(NetworkError, match="nothing answers"):
        one.read()
    before = bus.transfers
    bus.chips[0x42] = chip
    with pytest.raises(NetworkError):
        one.read()
    assert bus.transfers == before and not bus.is_open
    machine.now += 30
    assert one.read().voltage_v == 7.4


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound), (errno.ENODEV, NotFound), (errno.EACCES, PermissionRefused),
        (errno.EPERM, PermissionRefused), (errno.EBUSY, Conflict), (errno.ENXIO, NetworkError),
        (errno.EREMOTEIO, NetworkError), (errno.EIO, NetworkError), (errno.ETIMEDOUT, NetworkError),
        (errno.EAGAIN, NetworkError), (errno.EINVAL, UnknownError),
    ],
)  # fmt: skip
def test_errors_of_the_bus(number: int, kind: type[OnblockError]):
    cause = OSError(number, "as the kernel says it")
    failure = i2c_failure(cause, "/dev/i2c-1 0x42")
    assert type(failure) is kind and failure.__cause__ is cause and failure.todo
    assert str(failure).startswith("/dev/i2c-1 0x42: ")


def test_each_error_of_opening_the_bus_is_of_the_taxonomy():
    machine = Machine()
    machine.refuses = errno.EACCES
    with pytest.raises(PermissionRefused, match="group i2c"):
        battery(machine).read()


def test_without_i2c_here_the_real_driver_says_so(tmp_path: object):
    with pytest.raises(NotFound, match=r"/dev/i2c-91 0x42: there is no such I2C bus"):
        Ina219Battery(bus=91).read()


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", '{"battery": null}', '{"battery": {"volts": 1}}', '{"battery": 3}']
)
def test_a_status_file_that_tells_of_no_battery(text: str, tmp_path: Path):
    file = tmp_path / "status.json"
    with pytest.raises(NotFound):
        ToldBattery(file).read()
    file.write_text(text)
    with pytest.raises(NotFound, match=r"status.json: tells of no battery"):
        ToldBattery(file).read()


def test_the_battery_by_the_status_file_while_that_is_fresh(tmp_path: Path):
    file, reading = tmp_path / "status.json", BatteryReading(7.2, -0.5, 3.6, 50.0, False)
    file.write_text(json.dumps({"battery": reading._asdict()}))
    written = file.stat().st_mtime
    assert ToldBattery(file, clock=lambda: written + 9).read() == reading
    for age in (10, 3600, -3600):
        with pytest.raises(NotFound):
            ToldBattery(file, clock=lambda age=age: written + age).read()
