from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.errors import Conflict, NotFound, PermissionRefused
from blocks.hardware.gpio import look
from deployments.agent.checks import CAMERA_ERRORS, camera_trouble, examine_device
from deployments.cli import app

ROOT = Path(__file__).parents[2]


def found(home: Path, text: str, dev: Path) -> dict[str, tuple[bool | None, str]]:
    home.mkdir(exist_ok=True)
    (home / "agent.yaml").write_text(text)
    return {what: (ok, said) for what, ok, said in examine_device("cam-01", dev)}


def test_a_machine_with_nothing_is_told_what_is_missing_and_what_to_do(onblock_home: Path, tmp_path: Path):
    capture = "capture: {streams: [{name: a, input: /dev/video-of-nobody}]}\nbattery: {bus: 91}\ngpio: {chip: /dev/gpiochip91}\n"
    told = found(onblock_home, capture, tmp_path)
    assert told["agent settings"][0] is True
    assert told["camera"][0] is False and "plug one in" in told["camera"][1]
    assert (
        told["battery"][0] is False and "raspi-config" in told["battery"][1] and "battery: null" in told["battery"][1]
    )
    assert told["GPIO"][0] is False and "gpiodetect" in told["GPIO"][1]
    assert told["disk"][0] in (True, False) and "GB free" in told["disk"][1]
    assert told["clock"][0] in (True, None)


def test_what_the_settings_say_is_not_there_is_not_missed(onblock_home: Path, tmp_path: Path):
    told = found(onblock_home, "gpio: null\nbattery: null\nwifi: null\n", tmp_path)
    assert [told[what][0] for what in ("camera", "battery", "GPIO", "WiFi set-up")] == [None] * 4


def test_settings_that_are_no_good_do_not_stop_the_other_checks(onblock_home: Path, tmp_path: Path):
    told = found(onblock_home, "camera: 1\n", tmp_path)
    assert told["agent settings"][0] is False and "there is no such key" in told["agent settings"][1]
    assert "disk" in told


def test_each_node_is_opened_and_what_is_no_camera_is_told_apart(onblock_home: Path, tmp_path: Path):
    for name in ("video10", "video2", "video-codec"):
        (tmp_path / name).touch()
    lines = [said for what, _, said in examine_device("cam-01", tmp_path) if what == "camera"]
    assert [line.split()[0] for line in lines] == [f"{tmp_path}/video2", f"{tmp_path}/video10"]


def test_a_camera_that_is_to_be_recorded_and_is_away(onblock_home: Path, tmp_path: Path):
    onblock_home.mkdir()
    (onblock_home / "agent.yaml").write_text("capture: {streams: [{name: a, input: /dev/video-of-nobody}]}")
    lines = [(ok, said) for what, ok, said in examine_device("cam-01", tmp_path) if what == "camera"]
    assert (
        False,
        "/dev/video-of-nobody is to be recorded, and is not there; plug it in, or correct `capture` in agent.yaml",
    ) in lines


@pytest.mark.parametrize("number", [*CAMERA_ERRORS, errno.ENXIO, 0])
def test_errors_of_cameras_say_what_to_do(number: int):
    ok, said = camera_trouble(number, "Cannot {do} it")
    assert said.format(path="/dev/video0")
    assert ok is None or ";" in said


class FakeChip:
    """What is asked of `gpiod.Chip`."""

    def __init__(self, path: str, users: dict[int, str] | None = None, refuses: int = 0):
        if refuses:
            raise OSError(refuses, os.strerror(refuses))
        self.users = users or {}

    def __enter__(self) -> FakeChip:
        return self

    def __exit__(self, *_: Any) -> None: ...

    def get_info(self) -> Any:
        return SimpleNamespace(label="pinctrl-bcm2711", num_lines=58)

    def get_line_info(self, line: int) -> Any:
        return SimpleNamespace(offset=line, used=line in self.users, consumer=self.users.get(line, ""))


def test_what_a_gpio_chip_is():
    said = "/dev/gpiochip0: pinctrl-bcm2711, 58 lines"
    assert look("/dev/gpiochip0", [24, 23], FakeChip) == said
    assert (
        look("/dev/gpiochip0", [24], lambda path: FakeChip(path, {24: "onblock", 5: "other"})) == said
    )  # the agent runs
    with pytest.raises(Conflict, match="line 24 is used by spi0"):
        look("/dev/gpiochip0", [24], lambda path: FakeChip(path, {24: "spi0"}))
    with pytest.raises(NotFound, match="no line 99"):
        look("/dev/gpiochip0", [99], FakeChip)
    with pytest.raises(PermissionRefused, match="group gpio"):
        look("/dev/gpiochip0", [24], lambda path: FakeChip(path, refuses=errno.EACCES))


def test_the_command(onblock_home: Path, capsys: pytest.CaptureFixture[str]):
    onblock_home.mkdir()
    (onblock_home / "agent.yaml").write_text("battery: {bus: 91}")
    with pytest.raises(SystemExit) as end:
        app(["doctor", "--device", "cam-01", "--json"])
    checks = {c["what"]: c for c in json.loads(capsys.readouterr().out)["checks"]}
    assert end.value.code == 1 and checks["battery"]["ok"] is False and {"packages", "disk", "clock"} <= set(checks)


# -- systemd ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "name"), [("onblock-agent@.service", "onblock-agent@cam-01.service"), ("onblock.service", "onblock.service")])  # fmt: skip
def test_units_are_what_systemd_takes(unit: str, name: str, tmp_path: Path):
    text = (ROOT / "deployments/systemd" / unit).read_text()
    installed = "/opt/onblock/.venv/bin/onblock"
    assert text.count(installed) == 1
    program = tmp_path / "onblock"
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    (tmp_path / name).write_text(text.replace(installed, str(program)))
    verify = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")  # it exits with 0 for keys that it does not know

    (tmp_path / name).write_text(text.replace(installed, str(program)).replace("KillMode=", "KillModus="))
    assert "KillModus" in subprocess.run(verify, capture_output=True, text=True, timeout=60).stderr
