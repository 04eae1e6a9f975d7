"""A whole device on simulated wires: button and lights on a GPIO chip, an INA219 on I2C, `nmcli` on PATH, in real time."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from blocks.hardware import wifi
from blocks.hardware.wifi import PROFILE
from deployments.agent.agent import Agent, Wires
from deployments.agent.panel import Signal
from deployments.agent.settings import AgentSettings
from deployments.up import Stop
from tests.agent.test_agent import SETTINGS
from tests.agent.test_recording import until
from tests.hardware.gpio_chip import LiveChip
from tests.hardware.ina219 import Bus, Ina219
from tests.hardware.nmcli import NetworkManagerState, on_path

BUTTON, RED, GREEN, BUZZER = 24, 23, 17, 12


class Device:
    """The agent in threads of this process, and its hardware."""

    def __init__(self, home: Path, folder: Path, **wifi: Any):
        self.chip, self.bus = LiveChip(), Bus(Ina219(bus_v=7.2, current_a=-0.5))
        self.networks = NetworkManagerState(folder)
        self.stop, self.home, self.codes = Stop(), home, []
        settings = AgentSettings.model_validate(
            {**SETTINGS, "gpio": {}, "battery": {}, "wifi": {"interface": "wlan0", **wifi}}
        )
        self.agent = Agent("cam-01", settings, None, None, {}, Wires(self.chip.open, self.open_bus))
        self.thread = threading.Thread(target=lambda: self.codes.append(self.agent.run(self.stop)))

    def open_bus(self, number: int) -> Bus:
        assert number == 1
        self.bus.is_open = True
        return self.bus

    def status(self) -> dict[str, Any]:
        file = self.home / "agent/status.json"
        return json.loads(file.read_text()) if file.exists() else {}

    def told(self, what: str, look: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        return until(what, lambda: (s := self.status()) and look(s) and s)

    def state(self, wanted: str) -> dict[str, Any]:
        return self.told(f"the panel is {wanted}", lambda s: s["state"] == wanted)

    def finger(self, down: bool) -> None:
        """Put it on the button, or take it off; it is slower than a contact bounces."""
        self.chip.drive(BUTTON, not down)
        time.sleep(0.1)

    def press(self) -> None:
        self.finger(True)
        self.finger(False)


@pytest.fixture
def device(onblock_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    one = Device(onblock_home, tmp_path)
    monkeypatch.setenv("PATH", on_path(one.networks.program))
    one.thread.start()
    yield one
    one.stop.ask()
    one.thread.join(120)
    assert one.codes == [0]
    assert not (one.chip.driven[RED] or one.chip.driven[GREEN] or one.chip.driven[BUZZER]) and not one.chip.requests


def test_a_device_from_its_wires_to_its_recording(device: Device):
    status = device.state("idle")
    assert (status["battery"]["percent"], status["battery"]["charging"]) == (50.0, False)
    assert device.told("the network", lambda s: s["network"]["ssid"] == "home")["healthy"]
    until("the green light", lambda: device.chip.driven[GREEN])

    device.press()
    device.told("it records", lambda s: s["recording"].get("battery_percent") == 50.0)  # the recorder knows the battery
    assert device.state("recording")["healthy"]

    device.bus.fails = [errno.EREMOTEIO] * 1000  # the battery goes; the recording goes on
    told = device.told("the battery is missed", lambda s: s["battery"] is None)
    assert "0x42" in told["troubles"]["battery"] and told["state"] == "recording"

    device.press()
    device.state("idle")
    (recorded,) = (device.home / "recordings").glob("*/recording.json")
    until("it is merged", lambda: json.loads(recorded.read_text())["final"])
    assert sum(levels.get(RED, False) for _, levels in device.chip.writes) >= 1


def test_a_panel_that_shows_what_is_not_so_is_put_right(device: Device):
    device.state("idle")
    device.press()
    device.told("frames", lambda s: s["recording"].get("streams", {}).get("left", {}).get("captured", 0) > 0)
    shown: list[str] = []
    device.agent.front._changed = shown.append
    device.agent.front.signal(Signal.FAILED)  # of a start before this one
    until("it is put right", lambda: shown == ["idle", "recording"])
    device.press()
    device.told("it is over", lambda s: s["state"] == "idle" and s["recording"]["state"] == "idle")
    device.agent.front.signal(Signal.STARTED)
    until("it is put right", lambda: shown == ["idle", "recording", "idle", "recording", "idle"])


def test_five_seconds_open_the_wifi_set_up_and_a_press_closes_it(device: Device):
    device.state("idle")
    device.finger(True)
    device.state("wifi_setup")
    device.finger(False)
    until("the network is open", lambda: device.networks.read()["connections"].get(PROFILE, {}).get("active") == "yes")
    password = (device.home / "agent/wifi-password").read_text().strip()
    assert (device.home / "agent/wifi-password").stat().st_mode & 0o777 == 0o600
    assert not [c for c in device.networks.calls if password in " ".join(c["argv"])]
    assert password not in json.dumps(device.status())
    device.press()
    device.state("idle")
    until("it is closed", lambda: list(device.networks.read()["connections"]) == ["home"])


@pytest.mark.parametrize("left", ["", "\n", "short", "caf\u00e9 caf\u00e9"])
def test_a_password_of_our_own_that_is_unfit_is_made_anew(left: str, onblock_home: Path, tmp_path: Path):
    """The power was cut at the first boot."""
    file = onblock_home / "agent/wifi-password"
    file.parent.mkdir(parents=True)
    file.write_text(left, "utf-8")
    first = Device(onblock_home, tmp_path / "1").agent
    made = file.read_text().strip()
    assert len(made) == 12 and file.stat().st_mode & 0o777 == 0o600
    assert first._wifi is not None and "wifi" not in first.status.gather()["troubles"]
    Device(onblock_home, tmp_path / "2")
    assert file.read_text().strip() == made  # one that is fit stays
    assert not list(file.parent.glob(".*"))


@pytest.mark.parametrize("held", [None, "", "s3cret", "s3cret s3cret \u00e9"])
def test_a_password_file_that_is_missing_or_unfit_is_told_and_the_rest_goes_on(
    held: str | None, onblock_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "password"
    if held is not None:
        file.write_text(held, "utf-8")
    one = Device(onblock_home, tmp_path, password_file=str(file))
    monkeypatch.setenv("PATH", on_path(one.networks.program))
    one.thread.start()
    try:
        told = one.state("idle")["troubles"]["wifi"]
        assert str(file) in told and not (held and held in told)
        assert (file.read_text("utf-8") if file.exists() else None) == held  # it is not ours
        file.write_text("s3cret s3cret")  # put right: the button opens it, without a new start
        one.finger(True)
        until("the network is open", lambda: PROFILE in one.networks.read()["connections"])
        one.finger(False)
        one.told("it is well again", lambda s: "wifi" not in s["troubles"])
    finally:
        one.stop.ask()
        one.thread.join(120)
    assert one.codes == [0]


def test_a_network_manager_that_hangs_does_not_stop_the_status(
    onblock_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one = Device(onblock_home, tmp_path)
    one.networks.program.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/pids\nexec sleep 1000\n")
    monkeypatch.setenv("PATH", on_path(one.networks.program))
    monkeypatch.setattr(wifi, "LINK_S", 100)  # longer than this test
    try:
        one.agent.status.gather()
        until("it is asked", lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text().endswith("\n"))
        (pid,) = map(int, (tmp_path / "pids").read_text().split())
        for _ in range(3):
            status = one.agent.status.gather()
            assert (status["device"], status["network"]["ssid"]) == ("cam-01", None)
        assert psutil.pid_exists(pid)  # and is still being asked, once
        assert (tmp_path / "pids").read_text().split() == [str(pid)]
    finally:
        for asked in (tmp_path / "pids").read_text().split():
            os.kill(int(asked), signal.SIGKILL)
    until("that is told", lambda: "nmcli" in one.agent.status.gather()["troubles"].get("wifi link", ""))
