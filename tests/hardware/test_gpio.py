from __future__ import annotations

import errno
import itertools
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.errors import Conflict, NotFound, OnblockError, PermissionRefused, ToolMissing, UnknownError
from blocks.hardware.buttons import DEBOUNCE_NS, Debounce, Edge, GpioButtons
from blocks.hardware.gpio import gpio_failure
from blocks.hardware.lights import FAST, OFF, ON, SLOW, GpioLights, Pattern, beeps
from tests.hardware.gpio_chip import Chip

LINE = 24
MS = 1_000_000


def buttons(chip: Chip, **keys: bool) -> GpioButtons:
    return GpioButtons({"button": LINE}, open_lines=chip.open, clock_ns=chip.clock_ns, **keys)  # type: ignore[arg-type]


def told(one: GpioButtons) -> list[tuple[bool, int]]:
    """All that is told within the next second, in ms since the chip began."""
    found: list[Edge] = []
    for _ in range(4):
        found += one.wait(0.3)
    return [(e.pressed, (e.at_ns - 1_000_000 * MS) // MS) for e in found]


def test_a_press_and_its_release_at_the_times_of_the_kernel():
    chip = Chip()
    one = buttons(chip)
    chip.drive(LINE, False, after_ms=100)  # to ground: pressed
    chip.drive(LINE, True, after_ms=150)
    assert told(one) == [(True, 100), (False, 250)]


def test_a_button_to_the_supply():
    chip = Chip()
    one = buttons(chip, active_low=False)
    chip.drive(LINE, True, after_ms=100)
    chip.drive(LINE, False, after_ms=150)
    assert told(one) == [(True, 100), (False, 250)]


def test_a_contact_that_bounces_is_one_press():
    chip = Chip()
    one = buttons(chip)
    for level in (False, True, False, True, False):
        chip.drive(LINE, level, after_ms=3)
    chip.drive(LINE, True, after_ms=200)
    chip.drive(LINE, False, after_ms=2)
    chip.drive(LINE, True, after_ms=2)
    assert told(one) == [(True, 15), (False, 219)]


def test_a_spike_is_no_press():
    chip = Chip()
    one = buttons(chip)
    chip.drive(LINE, False, after_ms=100)
    chip.drive(LINE, True, after_ms=5)
    assert told(one) == []


def test_a_button_that_is_held_down_when_we_come_is_no_press_until_it_was_let_go():
    chip = Chip()
    chip.driven[LINE] = False
    one = buttons(chip)
    assert told(one) == []
    chip.drive(LINE, True)
    chip.drive(LINE, False, after_ms=100)
    assert [pressed for pressed, _ in told(one)] == [False, True]


def test_when_the_kernel_lost_edges_what_the_line_is_now_counts():
    chip = Chip()
    one = buttons(chip)
    chip.drive(LINE, False, after_ms=100)
    assert told(one) == [(True, 100)]
    for _ in range(20):
        chip.drive(LINE, True, after_ms=1)
        chip.drive(LINE, False, after_ms=1)
    chip.drive(LINE, True, after_ms=1)
    assert [pressed for pressed, _ in told(one)] == [False]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60))))
def test_whatever_the_contact_does_presses_and_releases_alternate_and_the_last_level_wins(
    edges: list[tuple[bool, int]],
):
    contact, now, level, found = Debounce(), 0, False, []
    for pressed, after in edges:
        now += after * MS
        if change := contact.edge(pressed, now):
            found.append(change)
        level = pressed
    if change := contact.settled(now + DEBOUNCE_NS):
        found.append(change)
    assert [pressed for pressed, _ in found] == [n % 2 == 0 for n in range(len(found))]
    assert (found[-1][0] if found else False) == level
    assert all(b[1] - a[1] >= DEBOUNCE_NS for a, b in itertools.pairwise(found))
    assert contact.due_ns is None


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, NotFound), (errno.ENODEV, NotFound), (errno.ENOTTY, NotFound), (errno.EACCES, PermissionRefused),
        (errno.EPERM, PermissionRefused), (errno.EBUSY, Conflict), (errno.EINVAL, NotFound), (errno.EIO, UnknownError),
    ],
)  # fmt: skip
def test_errors_of_a_chip(number: int, kind: type[OnblockError]):
    cause = OSError(number, "as the kernel says it")
    failure = gpio_failure(cause, "/dev/gpiochip0")
    assert type(failure) is kind and failure.__cause__ is cause and failure.todo


def test_lines_that_cannot_be_had():
    chip = Chip()
    first = buttons(chip)
    with pytest.raises(Conflict, match="/dev/gpiochip0 lines 24: another program has one of the lines"):
        buttons(chip)
    first.close()
    buttons(chip).close()
    with pytest.raises(NotFound, match="no such line"):
        GpioButtons({"button": 99}, open_lines=chip.open)
    with pytest.raises(NotFound, match="no such GPIO chip"):
        GpioLights({"red": 23}, "/dev/gpiochip7", open_lines=chip.open)


def test_without_a_chip_here_the_real_library_says_so():
    with pytest.raises(NotFound, match="/dev/gpiochip91 lines 24: there is no such GPIO chip"):
        GpioButtons({"button": LINE}, "/dev/gpiochip91")
    with pytest.raises(NotFound, match="this is no GPIO chip"):
        GpioLights({"red": 23}, "/dev/null")


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gpiod", None)
    with pytest.raises(ToolMissing, match=r"pip install onblock\[device\]"):
        GpioButtons({"button": LINE})


def test_a_chip_that_goes_away_while_it_is_used():
    chip = Chip()
    one, lights = buttons(chip), GpioLights({"red": 23}, open_lines=chip.open)
    chip.refuses = errno.ENODEV
    with pytest.raises(NotFound):
        one.wait(0.1)
    with pytest.raises(NotFound):
        lights.show({"red": True})
    lights.close()


# -- lights -----------------------------------------------------------------------------------------------------------


def test_lights_are_written_only_when_they_change_and_are_off_in_the_end():
    chip = Chip()
    lights = GpioLights({"red": 23, "green": 17}, open_lines=chip.open)
    lights.show({"red": True, "green": False, "blue": True})
    lights.show({"red": True, "green": False})
    lights.show({"red": False, "green": True})
    assert [levels for _, levels in chip.writes] == [{23: True}, {23: False, 17: True}]
    lights.close()
    assert (chip.driven[23], chip.driven[17]) == (False, False)


def test_lights_that_are_lit_by_a_low_line():
    chip = Chip()
    lights = GpioLights({"red": 23}, open_lines=chip.open, active_low=True)
    assert chip.driven[23] is True
    lights.show({"red": True})
    assert chip.driven[23] is False


@pytest.mark.parametrize(
    ("pattern", "lit"),
    [
        (OFF, []),
        (ON, [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75]),
        (SLOW, [0.0, 0.25, 1.0, 1.25]),
        (beeps(1, 0.3), [0.0, 0.25]),
        (beeps(2, 0.4), [0.0, 0.25, 1.0]),
        (Pattern(()), []),
    ],
)
def test_what_is_lit_when(pattern: Pattern, lit: list[float]):
    assert [t for t in (n * 0.25 for n in range(8)) if pattern.lit(t)] == lit


def test_rates_of_blinking():
    for pattern, hertz in ((SLOW, 1), (FAST, 5)):
        levels = [pattern.lit(n / 1000) for n in range(10_000)]
        assert sum(on and not before for before, on in zip([False, *levels], levels, strict=False)) == hertz * 10


def test_so_many_beeps_and_then_silence():
    five = beeps(5)
    levels = [five.lit(n / 1000) for n in range(3000)]
    assert sum(on and not before for before, on in zip([False, *levels], levels, strict=False)) == 5
    assert five.length_s == pytest.approx(1.0) and not any(levels[1000:]) and not five.lit(-1)
