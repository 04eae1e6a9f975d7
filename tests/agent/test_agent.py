"""The agent as it is run: a process, with test cameras, no server, no GPIO chip and no I2C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from flows.capture.at_work import held
from flows.capture.locks import LOCK
from tests.agent.test_elsewhere import blocked, sealed
from tests.agent.test_recording import alive, until

SETTINGS: dict[str, Any] = {
    "capture": {
        "streams": [{"name": "left", "input": "testsrc2=size=160x120:rate=10,realtime", "format": "lavfi"}],
        "sensors": [{"name": "imu", "kind": "simulated-imu", "rate": 50}],
        "segment": "2s",
    },
    "gpio": None, "battery": None, "wifi": None, "network": {"host": "127.0.0.1", "port": 9},
}  # fmt: skip


class Machine:
    """A device: its home, its agent, and what can be seen of it from outside."""

    def __init__(self, folder: Path, **settings: Any):
        self.home, self.log = folder / "onblock", folder / "agent.log"
        self.home.mkdir(exist_ok=True)
        (self.home / "agent.yaml").write_text(yaml.safe_dump({**SETTINGS, **settings}))
        self.process: subprocess.Popen[bytes] | None = None
        self.told = False

    def start(self, **env: str) -> subprocess.Popen[bytes]:
        self.told = False
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deployments.cli", "agent", "--device", "cam-01"],
                env={**os.environ, "ONBLOCK_HOME": str(self.home), **env}, cwd=Path(__file__).parents[2],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        return self.process

    def status(self) -> dict[str, Any]:
        """The status of the agent that runs now; empty before its first."""
        file = self.home / "agent/status.json"
        if not self.told and not file.exists():
            return {}
        self.told = True
        try:
            return json.loads(file.read_text())  # never half of one, and never none
        except FileNotFoundError:
            there = sorted(p.name for p in (*file.parent.glob("*"), *self.home.glob("*")))
            raise AssertionError(
                f"the status was there, and is not; there are {there}; {self.log.read_text()}"
            ) from None

    def state(self, wanted: str, seconds: float = 60) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            assert self.process is None or self.process.poll() is None, self.log.read_text()
            status = self.status()
            return (
                status if status.get("state") == wanted and status["recording"]["state"] in (wanted, "idle") else None
            )

        return until(f"the panel is {wanted}", look, seconds)

    def press(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    def recording(self) -> dict[str, Any]:
        """Press, and wait until frames are captured; the status then."""
        self.press()
        return until(
            "frames", lambda: (s := self.status()).get("state") == "recording" and _frames(s) > 5 and s
        )  # fmt: skip

    def manifests(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted((self.home / "recordings").glob("*/recording.json"))]

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(p.read_text()) for p in sorted((self.home / "agent/outbox").glob("*.json"))]

    def below(self) -> list[int]:
        assert self.process is not None
        return [p.pid for p in psutil.Process(self.process.pid).children(recursive=True)]

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)


def _frames(status: dict[str, Any]) -> int:
    return status["recording"].get("streams", {}).get("left", {}).get("captured", 0)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(**settings: Any) -> Machine:
        made.append(Machine(tmp_path, **settings))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            try:
                one.end()
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()


def test_the_button_records_without_a_server(machine: Callable[..., Machine]):
    device = machine()
    device.start()
    idle = device.state("idle")
    assert (idle["device"], idle["healthy"], idle["troubles"], idle["battery"]) == ("cam-01", True, {}, None)
    assert idle["storage"]["free"] > 0 and idle["memory"]["total"] > 0 and len(idle["cpu"]["per_core"]) > 0
    status = device.recording()
    assert status["recording"]["streams"]["imu"]["captured"] > 0
    device.press()
    device.state("idle")
    event = until("it is merged, and its event kept", device.events)[0]
    (manifest,) = device.manifests()
    assert manifest["state"] == "sealed" and manifest["streams"]["left"]["written"] > 5
    assert event["event"] == "onblock.recording.completed"
    assert (event["payload"]["recording"], event["payload"]["sha256"]) == (manifest["id"], manifest["final"]["sha256"])
    assert device.end() == 0
    assert device.status()["state"] == "shutdown"


def test_sigterm_seals_what_is_recorded(machine: Callable[..., Machine]):
    device = machine()
    device.start()
    device.state("idle")
    device.recording()
    below = device.below()
    assert device.end() == 0
    (manifest,) = device.manifests()
    assert manifest["state"] == "sealed" and manifest["stopped_because"] == "asked to stop"
    assert not [pid for pid in below if alive(pid)]


def test_when_the_agent_is_killed_the_recording_is_sealed_and_when_all_is_it_is_recovered(
    machine: Callable[..., Machine],
):
    device = machine()
    process = device.start()
    device.state("idle")
    device.recording()
    process.kill()
    process.wait()
    until("it is sealed", lambda: [m["state"] for m in device.manifests()] == ["sealed"])

    (device.home / "agent/status.json").unlink()
    process = device.start()
    device.state("idle")
    device.recording()
    for pid in (process.pid, *device.below()):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    assert [m["state"] for m in device.manifests()] == ["sealed", "recording"]

    (device.home / "agent/status.json").unlink()
    device.start()
    until(
        "it is put in order", lambda: device.manifests()[1]["state"] == "recovered" and device.manifests()[1]["final"]
    )
    until(
        "both are announced",
        lambda: {e["payload"]["recording"] for e in device.events()} == {m["id"] for m in device.manifests()},
    )


def test_a_second_agent_is_refused(machine: Callable[..., Machine], tmp_path: Path):
    device = machine()
    device.start()
    device.state("idle")
    again = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "agent", "--device", "cam-01"], capture_output=True, text=True, timeout=60,
        env={**os.environ, "ONBLOCK_HOME": str(device.home)}, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert again.returncode == 2 and "an agent runs already" in again.stderr


def test_a_camera_that_is_not_there_is_told_and_the_panel_goes_on(machine: Callable[..., Machine]):
    device = machine(capture={
        "streams": [{"name": "left", "input": "/dev/video-of-nobody", "format": "v4l2"}], "ready_within": "500ms",
    })  # fmt: skip
    device.start()
    device.state("idle")
    device.press()
    told = until("it is told", lambda: device.status()["troubles"].get("recording"))
    assert "/dev/video-of-nobody" in told
    assert device.state("idle")["healthy"] is False


def test_nothing_to_record_is_told(machine: Callable[..., Machine]):
    device = machine(capture=None)
    device.start()
    device.state("idle")
    device.press()
    assert "capture:" in until("it is told", lambda: device.status()["troubles"].get("recording"))


@pytest.mark.parametrize("url", ["http://[::", "http://host:port/api"])
def test_an_address_that_is_none_is_told_and_the_device_records_all_the_same(machine: Callable[..., Machine], url: str):
    device = machine()
    device.start(PREFECT_API_URL=url)
    assert "PREFECT_API_URL is no URL" in device.state("idle")["troubles"]["server"]
    device.recording()
    device.press()
    device.state("idle")
    until("its event is kept", device.events)
    assert device.end() == 0


def test_what_cannot_be_merged_is_told_until_it_itself_is(machine: Callable[..., Machine]):
    device = machine()
    (device.home / "recordings").mkdir()
    one = sealed(device.home / "recordings")
    whole = blocked(one)
    process = device.start()
    device.state("idle")

    # what puts it in order is killed
    def mending() -> psutil.Process | None:
        below = psutil.Process(process.pid).children()
        return next((p for p in below if "--mend" in p.cmdline()), None)

    until("the mending is at it", lambda: held(one.folder / LOCK)) and mending().kill()  # type: ignore[union-attr]
    told = until("it is told", lambda: device.status()["troubles"].get("merge"))
    assert "died of signal 9" in told

    # another recording is complete: that does not put it right
    device.recording()
    device.press()
    device.state("idle")
    until("another one is complete", device.events)
    until("nothing more is to be heard of it", lambda: device.status()["recording"].get("merging") == 0)
    for _ in range(2):  # statuses of after that
        before = device.status()["at"]
        status = until("another status", lambda: (s := device.status())["at"] != before and s)  # noqa: B023
        assert status["troubles"].get("merge") == told

    # it itself is, after a new start
    (sidecar,) = one.folder.glob("imu/*.idx")
    sidecar.unlink()
    sidecar.write_bytes(whole)
    assert device.end() == 0
    (device.home / "agent/status.json").unlink()
    device.start()
    device.state("idle")
    until("it is announced", lambda: one.id in {e["payload"]["recording"] for e in device.events()})
    assert "merge" not in device.status()["troubles"]
