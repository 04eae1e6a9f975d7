from __future__ import annotations

from pathlib import Path

import pytest

from blocks.errors import ConfigError
from deployments.agent.settings import AgentSettings, load_settings


def test_without_a_file_the_usual_hardware_is_expected(onblock_home: Path):
    settings = load_settings("cam-01")
    assert settings == AgentSettings() and settings.spec("cam-01") is None
    assert settings.battery is not None and (settings.battery.bus, settings.battery.address) == (1, 0x42)
    assert settings.gpio is not None and settings.gpio.lights() == {"red": 23, "green": 17, "buzzer": 12}


def test_a_file_says_what_is_recorded_and_what_is_not_there(onblock_home: Path):
    onblock_home.mkdir()
    (onblock_home / "agent.yaml").write_text(
        "capture:\n  streams: [{name: left, input: /dev/video0, format: v4l2}]\ngpio: null\nbattery: {address: 0x43}\n"
    )
    settings = load_settings("cam-01")
    spec = settings.spec("cam-01")
    assert spec is not None and (spec.device, spec.streams[0].input) == ("cam-01", "/dev/video0")
    assert settings.gpio is None and settings.battery is not None and settings.battery.address == 0x43


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("camera: 1", "camera: there is no such key"),
        ("gpio: {button: 23}", "gpio: two of button, red, green and buzzer have the same line"),
        ("gpio: {button: -1}", r"gpio\.button: "),
        ("battery: {address: 0x99}", r"battery\.address: "),
        ("battery: {empty_v: 9}", "battery: empty_v is below full_v"),
        ("capture: {}", "capture: there is nothing to record"),
        ("capture: {device: other, sensors: [{name: imu, kind: simulated-imu}]}", "capture.device is 'other'"),
        ("capture: {streams: [{name: a, input: x, codex: 1}]}", r"capture\.streams\.0\.codex: there is no such key"),
        ("- 1", "a mapping"), ("{", "is not YAML: line 1, column 2: "), ("wifi: {minutes: 0}", r"wifi\.minutes: "),
    ],
)  # fmt: skip
def test_settings_that_are_no_good(text: str, says: str, tmp_path: Path):
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_settings("cam-01", file)
    assert str(caught.value).startswith(str(file))


def test_the_settings_of_the_readme(tmp_path: Path):
    docs = (Path(__file__).parents[2] / "docs/device.md").read_text("utf-8")
    file = tmp_path / "agent.yaml"
    file.write_text(docs.partition("```yaml\n# agent.yaml\n")[2].partition("```")[0])
    settings = load_settings("cam-01", file)
    spec = settings.spec("cam-01")
    assert spec is not None and [s.name for s in spec.streams] == ["left"]
    assert settings.gpio == AgentSettings().gpio and settings.battery == AgentSettings().battery


def test_a_file_that_was_named_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="cannot read the settings: No such file"):
        load_settings("cam-01", tmp_path / "agent.yaml")
    monkeypatch.setenv("ONBLOCK_AGENT_SETTINGS", str(tmp_path / "agent.yaml"))
    with pytest.raises(ConfigError, match="cannot read the settings: No such file"):
        load_settings("cam-01")


def test_a_device_has_a_name_that_can_be_a_folder():
    with pytest.raises(ConfigError):
        load_settings("../cam")


def test_a_password_that_was_refused_is_not_told(tmp_path: Path):
    file = tmp_path / "agent.yaml"
    file.write_text("capture: {streams: [{name: a, input: 'rtsp://u:s3cret@camera/'}]}")
    with pytest.raises(ConfigError, match="password") as caught:
        load_settings("cam-01", file)
    assert "s3cret" not in str(caught.value)
