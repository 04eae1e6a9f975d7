"""`agent.yaml`: what a device has and what its button records. Every key may be left out; unknown ones are refused.

capture:                                   # what is recorded: a CaptureSpec, without its device
  streams: [{name: left, input: /dev/video0, format: v4l2, size: 1280x720, fps: 30}]
gpio: {button: 24, red: 23, green: 17, buzzer: 12}        # BCM numbers; null: no panel
battery: {bus: 1, address: 0x42}                          # null: none
wifi: {interface: wlan0}                                  # null: no set-up by the button
network: {host: dns.google, port: 443}                    # what "online" means
jobs: [recordings.yaml]                                   # JOB.yaml files of this device, run on it
worker: {rests_after: 10m}                                # null: it is always there
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError, model_validator

from blocks import names
from blocks.errors import ConfigError
from blocks.hardware.gpio import CHIP
from blocks.home import home
from flows.capture.spec import CaptureSpec
from flows.transfer.form import Duration, Form, explain, read_yaml

SETTINGS = "ONBLOCK_AGENT_SETTINGS"
"""Names the file for what the agent starts."""

Line = Annotated[int, Field(ge=0, le=511)]


class GpioSettings(Form):
    """Lines of a GPIO chip."""

    chip: str = CHIP
    """The chip's device file."""
    button: Line | None = 24
    """The push button."""
    red: Line | None = 23
    """A light."""
    green: Line | None = 17
    """Another."""
    buzzer: Line | None = 12
    """An active buzzer, which sounds while its line is on."""
    button_active_low: bool = True
    """The button connects its line to ground; false: to the supply."""
    lights_active_low: bool = False
    """Lights and buzzer are on while their line is low."""

    @model_validator(mode="after")
    def _apart(self) -> GpioSettings:
        given = [line for line in (self.button, self.red, self.green, self.buzzer) if line is not None]
        if len(given) != len(set(given)):
            raise ValueError("two of button, red, green and buzzer have the same line")
        return self

    def lights(self) -> dict[str, int]:
        """Lines of what is switched, by name."""
        given = {"red": self.red, "green": self.green, "buzzer": self.buzzer}
        return {name: line for name, line in given.items() if line is not None}


class BatterySettings(Form):
    """An INA219 on I2C; as it comes, that of Waveshare's UPS HAT (B)."""

    bus: int = Field(default=1, ge=0)
    """Number of the I2C bus."""
    address: int = Field(default=0x42, ge=0x40, le=0x4F)
    """Address of the chip."""
    empty_v: float = Field(default=6.0, gt=0, lt=32)
    """Voltage that is 0 %."""
    full_v: float = Field(default=8.4, gt=0, lt=32)
    """Voltage that is 100 %."""

    @model_validator(mode="after")
    def _some_charge(self) -> BatterySettings:
        if self.empty_v >= self.full_v:
            raise ValueError("empty_v is below full_v")
        return self


class NetworkSettings(Form):
    """What has to answer for the device to be online."""

    host: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "dns.google"
    """A host; in a network of your own, the Prefect server."""
    port: int = Field(default=443, gt=0, lt=65536)
    """Its TCP port."""


class WifiSettings(Form):
    """The network that the device opens for its set-up."""

    interface: Annotated[str, StringConstraints(max_length=15)] = ""
    """Such as wlan0; chosen by NetworkManager if it is not given."""
    ssid: str = ""
    """Its name; `onblock-DEVICE` if it is not given."""
    password_file: Path | None = None
    """Holds its password; one is made up in `agent/wifi-password` if it is not given."""
    minutes: float = Field(default=10, gt=0, le=1440)
    """It closes by itself after so long: the device is away meanwhile."""


class WorkerSettings(Form):
    """What carries out flow runs on the device. It takes 250 MB; while it rests the agent asks for runs in its place."""

    rests_after: Duration | None = timedelta(minutes=10)
    """It ends when there was nothing to do for so long; the next run begins some seconds later then. null: it stays."""


class AgentSettings(Form):
    """All of it."""

    capture: dict[str, Any] | None = None
    """What the button records: a CaptureSpec, without its device."""
    gpio: GpioSettings | None = Field(default_factory=GpioSettings)
    """The panel; null: there is none."""
    battery: BatterySettings | None = Field(default_factory=BatterySettings)
    """The battery; null: there is none."""
    network: NetworkSettings = Field(default_factory=NetworkSettings)
    """What online means."""
    wifi: WifiSettings | None = Field(default_factory=WifiSettings)
    """WiFi set-up; null: not by the button."""
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    """What carries out flow runs."""
    jobs: list[Path] = Field(default_factory=list)
    """JOB.yaml files, beside this one: deployed to the device's own pool, started by its recordings."""

    def spec(self, device: str) -> CaptureSpec | None:
        """What is recorded on this device; None if nothing is said. Raises ValidationError."""
        return None if self.capture is None else CaptureSpec.model_validate({"device": device, **self.capture})


def pool(device: str) -> str:
    """The device's work pool."""
    return f"device-{device}"


def settings_file() -> Path:
    """ONBLOCK_AGENT_SETTINGS, or agent.yaml in ONBLOCK_HOME."""
    return Path(os.environ.get(SETTINGS) or home() / "agent.yaml")


def load_settings(device: str, file: Path | None = None) -> AgentSettings:
    """Read them; those that hold without a file if there is none and none was named. Raises ConfigError, which names the
    file, the key and what is wrong with it."""
    names.check_label(device, "device")
    named = file is not None or SETTINGS in os.environ
    file = file or settings_file()
    if not named and not file.exists():
        return AgentSettings()
    data = read_yaml(file, "the settings")
    if data is None:
        return AgentSettings()
    if not isinstance(data, dict):
        raise ConfigError("settings are a mapping of keys, such as `capture:` and `gpio:`", path=str(file))
    try:
        settings = AgentSettings.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, "settings"), path=str(file)) from error
    try:
        spec = settings.spec(device)
    except ValidationError as error:
        raise ConfigError(explain(error, "settings", under="capture"), path=str(file)) from error
    if spec is not None and spec.device != device:
        raise ConfigError(f"capture.device is {spec.device!r}, and this is {device!r}: leave it out", path=str(file))
    return settings.model_copy(update={"jobs": [file.parent / job for job in settings.jobs]})
