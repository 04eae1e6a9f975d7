"""`onblock agent --device cam-01`: what a device runs. Panel, recording, status, events, worker, each by itself.

    button ----> panel (front.py) ----> hands ----> recording (a process, recording.py), WiFi set-up
    status.json, each second <---- status (status.py) <---- battery, network, machine, recording
    Prefect server <---- outbox (outbox.py): events, kept while it is away
                   <---- worker (keeper.py): a process, begun when the server is there

None of it waits for another: without a server, a battery, a button or a network, the others go on.
SIGUSR1 presses the button once, for devices that have none. SIGTERM seals what is recorded, ends the worker, and leaves.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr

from blocks.errors import ConfigError, Conflict, NetworkError, NotFound, OnblockError
from blocks.hardware.battery import I2cBus, Ina219Battery, open_i2c
from blocks.hardware.buttons import GpioButtons
from blocks.hardware.gpio import OpenLines, open_lines
from blocks.hardware.lights import GpioLights
from blocks.hardware.network import Network, NetworkMonitor, Prober, Reach
from blocks.hardware.wifi import NetworkManager
from blocks.home import home
from deployments import interrupt
from deployments.agent.front import Front
from deployments.agent.keeper import Keeper
from deployments.agent.outbox import Outbox, Server, event
from deployments.agent.panel import Effect, Signal, State
from deployments.agent.preview import Preview
from deployments.agent.record import agent_folder, status_file
from deployments.agent.recording import RECORD, SEALED_WITHIN_S, RecordingProcess
from deployments.agent.settings import (
    SETTINGS,
    AgentSettings,
    BatterySettings,
    GpioSettings,
    WifiSettings,
    load_settings,
    pool,
)
from deployments.agent.status import Status, StatusLoop
from deployments.trust import API_CA
from deployments.up import Stop
from flows.capture import at_work
from flows.capture.manifest import COMPLETED

log = logging.getLogger("onblock.agent")

MEND_EVERY_S = 3600.0
LOOK_EVERY_S = 1.0
SEEN_TWICE = 2
"""Looks in a row before the panel is corrected: what has just changed is on its way."""
STATUS = "onblock.device.status"
MENDING = "(mending)"
"""Among the recordings that are not merged: what puts them in order has failed itself."""
SOON_S = 60.0
"""A worker that rests is begun so long before a run is due, at most."""
SEALING_S = 75.0
"""The hands get so long at the end: what is being begun, and then sealed."""


class Wires(NamedTuple):
    """How the hardware is reached: in trials, a simulated chip and bus."""

    open_lines: OpenLines = open_lines
    open_bus: Callable[[int], I2cBus] = open_i2c


REAL = Wires()


class Agent:
    """All parts of it, put together. `run` returns when it was asked to stop."""

    def __init__(
        self, device: str, settings: AgentSettings, api_url: str | None, login: str | None, env: Mapping[str, str],
        wires: Wires = REAL,
    ):  # fmt: skip
        self.device, self.settings = device, settings
        self.folder = agent_folder()
        self.recordings = home() / "recordings"
        logs = home() / "logs"
        for made in (self.folder, self.recordings, logs):
            made.mkdir(parents=True, exist_ok=True)
        spec = settings.spec(device)
        self._mending: subprocess.Popen[bytes] | None = None
        self._mend_at = 0.0
        self._logs = logs
        self.recording: RecordingProcess | None = None
        self.preview: Preview | None = None
        if spec is not None:
            text = spec.model_dump_json(exclude_unset=True)
            self.recording = RecordingProcess(text, self.recordings, logs / "recording.log", self._heard)
            shown = self.folder / "preview"
            self.preview = Preview(text, shown, logs / "preview.log", lambda: self.front.signal(Signal.PREVIEW_ENDED))
        self._elsewhere: Path | None = None
        self._asked: Path | None = None  # of those elsewhere: to end
        self._asked_until = 0.0
        self._odd = 0
        self._wifi: NetworkManager | None = None
        self._wifi_until = 0.0
        self._unmerged: dict[str, str] = {}  # by recording, and of the mending itself
        self._unmerged_lock = threading.Lock()
        self._leaving = False
        missing: dict[str, str] = {}  # parts that this device has to do without: the others go on
        self.server: Server | None = None
        self.outbox = Outbox(self.folder / "outbox", self._send)
        self.network = NetworkMonitor(Prober(settings.network.host, settings.network.port), self._network_changed)
        self.keeper: Keeper | None = None
        try:
            self._wifi = self._wifi_setup(settings.wifi)
        except ConfigError as error:
            missing["wifi"] = str(error)
        try:
            if api_url:
                ca = env.get(API_CA)
                self.server = Server(api_url, login, ca)
                # another client: this one is asked from the keeper's thread
                asked = Server(api_url, login, ca)
                rests = settings.worker.rests_after
                # not earlier than it would rest again
                soon = SOON_S if rests is None else min(SOON_S, rests.total_seconds())
                self.keeper = Keeper(
                    ["deployments.agent.work", device], env, logs / "worker.log", asked.healthy,
                    lambda: asked.has_runs(pool(device), soon),
                )  # fmt: skip
        except ConfigError as error:
            missing["server"] = str(error)
        self.front = Front(
            self._carry_out, open_buttons=_buttons(settings.gpio, wires), open_lights=_lights(settings.gpio, wires),
            trouble=lambda what, why: self.status.trouble(what, why),
        )  # fmt: skip
        self.status = Status(
            device, home(), panel=self.front.told, recording=self._recording_told, network=lambda: self.network.now,
            battery=_battery(settings.battery, wires),
            link=self._wifi.link if self._wifi else None, more=self._more,
        )  # fmt: skip
        for what, why in missing.items():
            self.status.trouble(what, why)
        self.status_loop = StatusLoop(self.status, status_file(), self._status_told)

    # -- the story --------------------------------------------------------------------------------------------------

    def run(self, stop: Stop) -> int:
        """Run until somebody asks to stop; the exit code."""
        self.front.start()
        self.network.start()
        self.outbox.start()
        self.status_loop.start()
        if self.keeper:
            self.keeper.start()
        self.front.signal(Signal.READY)
        print(f"onblock agent: {self.device} is ready; its status is in {status_file()}", flush=True)
        try:
            while not stop.wait(LOOK_EVERY_S):
                try:
                    self._look()
                    self.status.trouble("agent", None)
                except (OnblockError, OSError) as error:
                    self.status.trouble("agent", str(error))
        finally:
            well = self._end()
        return 0 if well else 1

    def _look(self) -> None:
        """Once a second: whether the panel shows what is so, also of what others record, and what runs out."""
        self._elsewhere = at_work.running(self.recordings, self.device) if not self._recording_here() else None
        ending = self._elsewhere is not None and self._elsewhere == self._asked and time.monotonic() < self._asked_until
        running = self._recording_here() or (self._elsewhere is not None and not ending)
        odd = not self.front.busy and running != (self.front.state is State.RECORDING)
        self._odd = self._odd + 1 if odd else 0
        if self._odd >= SEEN_TWICE:
            self.front.signal(Signal.STARTED if running else Signal.ENDED)
        if self.front.state is State.WIFI_SETUP and self._wifi_until and time.monotonic() > self._wifi_until:
            log.info("the WiFi set-up is over: nobody ended it in time")
            self.front.signal(Signal.TAP)
        self._mend()

    def _end(self) -> bool:
        """Seal, then the worker, then the rest."""
        print("onblock agent: ending", flush=True)
        self._leaving = True
        well = self.front.stop(SEALING_S)
        try:
            if self.recording is not None:
                self.recording.close()
        except OnblockError as error:
            well = False
            log.error("%s", error)
        if self.preview is not None:
            self.preview.stop()
        if self.keeper:
            self.keeper.stop()
        if (mending := self._mending) is not None and mending.poll() is None:
            mending.terminate()  # done anew after the next start
            mending.wait()
        self.network.stop()
        self.status_loop.stop()
        self.outbox.stop()
        return well

    # -- hands --------------------------------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        if effect is Effect.START_RECORDING:
            if self.recording is None:
                raise ConfigError("nothing is said about what to record", remedy="write `capture:` in agent.yaml")
            self.recording.start()
        elif effect is Effect.STOP_RECORDING:
            self._stop_recording()
        elif effect is Effect.START_WIFI:
            self._wifi = self._wifi or self._wifi_setup(self.settings.wifi)  # its password may have been put right
            if self._wifi is None:
                raise ConfigError("this device has no WiFi set-up", remedy="write `wifi:` in agent.yaml")
            self._wifi.start()
            self._wifi_until = time.monotonic() + (self.settings.wifi or WifiSettings()).minutes * 60
        elif effect is Effect.STOP_WIFI:
            if self._wifi is not None:
                self._wifi.stop()
            self.network.wake()
        elif effect is Effect.START_PREVIEW:
            if self.preview is None:
                raise ConfigError("nothing is said about cameras", remedy="write `capture:` in agent.yaml")
            self.preview.start()
        elif effect is Effect.STOP_PREVIEW and self.preview is not None:
            self.preview.stop()

    def _stop_recording(self) -> None:
        if (other := self._elsewhere) is not None and not self._recording_here():
            log.info("asked %s to stop", other.name)
            try:
                at_work.stop(other)
                self._asked, self._asked_until = other, time.monotonic() + SEALED_WITHIN_S
            except OSError as error:
                raise NotFound(f"cannot be asked to stop: {error.strerror}", path=str(other), remedy="") from error
        elif self.recording is not None:
            self.recording.stop()

    def _recording_here(self) -> bool:
        return self.recording is not None and self.recording.state != "idle"

    def _wifi_setup(self, wifi: WifiSettings | None) -> NetworkManager | None:
        """Raises ConfigError where there is no password that a network takes."""
        if wifi is None:
            return None
        ssid = os.fsencode(wifi.ssid or f"onblock-{self.device}")[:32].decode("utf-8", "ignore")
        own = self.folder / "wifi-password"
        file = wifi.password_file or own
        try:
            if wifi.password_file is None:
                try:
                    return NetworkManager(ssid, _password(own), wifi.interface)
                except (ConfigError, OSError, ValueError):  # none yet, or cut off with the power
                    _make_password(own)
            return NetworkManager(ssid, _password(file), wifi.interface)
        except ConfigError as error:
            raise ConfigError(error.what, path=str(file), remedy=f"put a password into {file}") from error
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not ASCII"  # what it holds is told to nobody
            raise ConfigError(f"the password of the WiFi set-up cannot be read: {why}", path=str(file)) from error

    # -- what is heard ------------------------------------------------------------------------------------------------

    def _heard(self, told: dict[str, Any]) -> None:
        """Of our recording, from its thread."""
        state = told.get("state")
        if state == "sealed" and not told["asked"]:
            meant = bool(told.get("meant"))
            self.status.trouble("recording", None if meant else str(told.get("because")))
            self.front.signal(Signal.ENDED if meant else Signal.FAILED)
        elif state == "failed" and told["begun"] and not told["asked"]:
            self.status.trouble("recording", str(told.get("what")))
            self.front.signal(Signal.FAILED)
        elif state == "complete":
            self._merge_trouble(str(told.get("recorded", {}).get("recording")), None)
            self.outbox.wake()  # it lies there
            if self.keeper and self.settings.jobs:
                self.keeper.want()  # the server is about to start them
        elif state == "unmerged":
            self._merge_trouble(str(told.get("id")), str(told.get("what")))
            self.outbox.wake()  # its segments may have been announced

    def _merge_trouble(self, of: str, why: str | None) -> None:
        """Of one recording: what becomes of another does not put it right."""
        with self._unmerged_lock:
            self._unmerged.pop(of, None)
            if why is not None:
                self._unmerged[of] = why
            self.status.trouble("merge", "; ".join(self._unmerged.values()) or None)

    def _network_changed(self, network: Network) -> None:
        if network.reach is not Reach.OFFLINE:
            self._mend_at = 0.0  # what a flow run could not tell
            self.outbox.wake()
            if self.keeper:
                self.keeper.wake()

    def _mend(self) -> None:
        """What a kill or a power cut left is put in order: at the start, and now and then, while nothing is recorded."""
        if self._mending is not None or self.front.state is not State.IDLE or time.monotonic() < self._mend_at:
            return
        self._mend_at = time.monotonic() + MEND_EVERY_S
        with (self._logs / "recording.log").open("ab") as out:
            self._mending = subprocess.Popen(
                [*RECORD, "--mend", str(self.recordings)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self._hear_mending, args=(self._mending,), name="onblock-mend", daemon=True).start()

    def _hear_mending(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        before, left = set(self._unmerged), {MENDING}
        for line in process.stdout:
            try:
                told = json.loads(line)
            except ValueError:
                continue
            log.info("put in order: %s", told)
            left.add(str(told.get("id")))
            self._heard({**told, "asked": True, "begun": True})
        code = process.wait()
        process.stdout.close()
        self._mending = None
        if code == 0:
            for gone in before - left | {MENDING}:  # put in order, or taken away
                self._merge_trouble(gone, None)
        elif not self._leaving:
            how = f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"
            log_file = self._logs / "recording.log"
            self._merge_trouble(
                MENDING, f"what puts recordings in order {how}, and is begun anew later: see {log_file}"
            )

    # -- what is told -------------------------------------------------------------------------------------------------

    def _recording_told(self) -> dict[str, Any]:
        other = self._elsewhere
        if other is not None:
            return {"state": "recording", "id": other.name, "by": "a flow run, or somebody else"}
        return self.recording.health() if self.recording is not None else {"state": "idle"}

    def _more(self) -> dict[str, Any]:
        worker = (
            self.keeper.told() if self.keeper else {"state": "no server that can be asked is named (PREFECT_API_URL)"}
        )
        return {"worker": worker, "events_waiting": self.outbox.waiting, "server_trouble": self.outbox.trouble}

    def _status_told(self, status: dict[str, Any]) -> None:
        if self.server is not None:
            self.outbox.report(event(STATUS, f"onblock.device.{self.device}", status))

    def _send(self, told: dict[str, Any]) -> None:
        if self.server is None:
            raise NetworkError("no server that can be asked is named", remedy="set PREFECT_API_URL")
        (self.server.tell if told["event"] == COMPLETED else self.server.send)(told)


def _password(file: Path) -> SecretStr:
    return SecretStr(file.read_text("ascii").strip())


def _make_password(file: Path) -> None:
    """Make one up. It is there as a whole or not at all, also after a power cut. Raises OSError."""
    part = file.with_name(f".{file.name}.part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as out:
        out.write(secrets.token_hex(6) + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.rename(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _battery(battery: BatterySettings | None, wires: Wires) -> Ina219Battery | None:
    if battery is None:
        return None
    return Ina219Battery(battery.bus, battery.address, battery.empty_v, battery.full_v, open_bus=wires.open_bus)


def _buttons(gpio: GpioSettings | None, wires: Wires) -> Callable[[], GpioButtons] | None:
    if gpio is None or gpio.button is None:
        return None
    lines = {"button": gpio.button}
    return lambda: GpioButtons(lines, gpio.chip, active_low=gpio.button_active_low, open_lines=wires.open_lines)


def _lights(gpio: GpioSettings | None, wires: Wires) -> Callable[[], GpioLights] | None:
    if gpio is None or not gpio.lights():
        return None
    return lambda: GpioLights(gpio.lights(), gpio.chip, active_low=gpio.lights_active_low, open_lines=wires.open_lines)


def run(device: str, settings_file: Path | None = None) -> int:
    """The command. Raises ConfigError, Conflict (an agent of this home runs already)."""
    settings = load_settings(device, settings_file)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("onblock").setLevel(logging.INFO)
    agent_folder().mkdir(parents=True, exist_ok=True)
    stop = Stop()
    with interrupt.heard_by(stop.ask), (agent_folder() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Conflict("an agent runs already", path=str(home()), remedy="end it first") from error
        agent = Agent(
            device, settings, os.environ.get("PREFECT_API_URL"), os.environ.get("PREFECT_API_AUTH_STRING"),
            environment(os.environ, settings_file),
        )  # fmt: skip
        signal.signal(signal.SIGUSR1, lambda *_: agent.front.signal(Signal.TAP))
        return agent.run(stop)


def environment(given: Mapping[str, str], settings_file: Path | None) -> dict[str, str]:
    """The environment of the worker. What the user set stays."""
    env = {
        "ONBLOCK_HOME": str(home()), "PREFECT_HOME": str(home() / "prefect"), "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500", **given,  # see deployments/server_settings.py
    }  # fmt: skip
    if settings_file is not None:
        env[SETTINGS] = str(settings_file.resolve())
    return env


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
