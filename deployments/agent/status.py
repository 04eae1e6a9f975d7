"""How the device is: one JSON object, written each second, each time as a whole.

What is gathered is decided here, where it comes from in `agent.py`. Readers never see half a file. It is not forced to the
disk: after a power cut it is out of date anyway, and a card wears out by 86,400 writes a day.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blocks.errors import OnblockError
from blocks.hardware.battery import Battery
from blocks.hardware.network import Network
from blocks.hardware.system import SystemMetrics, software_version

log = logging.getLogger("onblock.agent")

EVERY_S = 1.0
LINK_EVERY_S = 15.0
"""The name of the WiFi network is asked of a program; its signal is not."""


def write(file: Path, status: Mapping[str, Any]) -> None:
    """Replace the status file. Raises OSError; the old one stays then."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(status) + "\n")
    part.rename(file)


class Status:
    """Gathers it. A part that fails is told as trouble, the others go on. Of one thread, but for `trouble`."""

    def __init__(
        self, device: str, folder: Path, *, panel: Callable[[], Mapping[str, Any]],
        recording: Callable[[], Mapping[str, Any]], network: Callable[[], Network], battery: Battery | None = None,
        link: Callable[[], Any] | None = None, more: Callable[[], Mapping[str, Any]] = dict,
        metrics: SystemMetrics | None = None, clock: Callable[[], float] = time.monotonic,
    ):  # fmt: skip
        self._device, self._panel, self._recording, self._network = device, panel, recording, network
        self._battery, self._link, self._more, self._clock = battery, link, more, clock
        self._metrics = metrics or SystemMetrics(folder)
        self._version, self._began = software_version(), clock()
        self._lock, self._troubles = threading.Lock(), {}
        self._linked: Any = None
        self._linked_at: float | None = None
        self._linking: threading.Thread | None = None

    def trouble(self, what: str, why: str | None) -> None:
        """Something is not well, or (None) is again. It is told in the status, and logged when it changes."""
        with self._lock:
            before = self._troubles.pop(what, None)
            if why is not None:
                self._troubles[what] = why
        if why is not None and why != before:
            log.warning("%s: %s", what, why)
        elif why is None and before is not None:
            log.info("%s: well again", what)

    def gather(self) -> dict[str, Any]:
        """The status. Bytes, percent, V, A, W, degrees Celsius, seconds."""
        recording = self._part("recording status", self._recording)
        network = self._network()
        told: dict[str, Any] = {
            "device": self._device, "version": self._version, "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "agent_uptime_s": round(self._clock() - self._began, 1), **(self._part("panel status", self._panel) or {}),
            "recording": recording,
            "network": {"reach": network.reach.name, "detail": network.detail,
                        "since_s": round(self._clock() - network.changed_at, 1), **self._wifi()},
            "battery": self._part("battery", self._read_battery) if self._battery else None,
            **self._machine(), **(self._part("agent status", self._more) or {}),
        }  # fmt: skip
        with self._lock:
            told["troubles"] = dict(self._troubles)
        told["healthy"] = not told["troubles"]
        return told

    def _read_battery(self) -> dict[str, Any]:
        assert self._battery is not None
        return self._battery.read()._asdict()

    def _wifi(self) -> dict[str, Any]:
        """What was last heard of it. It is asked beside: a program that hangs does not stop the status."""
        now = self._clock()
        since = LINK_EVERY_S if self._linked_at is None else now - self._linked_at
        if self._linking is not None and self._linking.is_alive():
            if since >= LINK_EVERY_S:
                self._linked = None
                self.trouble("wifi link", "NetworkManager does not answer")
        elif self._link is not None and since >= LINK_EVERY_S:
            self._linked_at = now
            self._linking = threading.Thread(
                target=self._ask_link, args=(self._link,), name="onblock-link", daemon=True
            )
            self._linking.start()
        return {
            "ssid": getattr(self._linked, "ssid", None),
            "signal_percent": getattr(self._linked, "signal_percent", None),
        }

    def _ask_link(self, link: Callable[[], Any]) -> None:
        self._linked = self._part("wifi link", link)

    def _machine(self) -> dict[str, Any]:
        m = self._part("machine", self._metrics.read)
        if m is None:
            return {"storage": None, "cpu": None, "memory": None}
        return {
            "storage": {"total": m.disk_total, "free": m.disk_free},
            "cpu": {"percent": m.cpu_percent, "per_core": m.cpu_per_core, "temperature_c": m.temperature_c},
            "memory": {"total": m.memory_total, "available": m.memory_available},
            "wifi_signal_dbm": m.wifi_signal_dbm, "uptime_s": m.uptime_s,
        }  # fmt: skip

    def _part(self, what: str, read: Callable[[], Any]) -> Any:
        try:
            found = read()
        except (OnblockError, OSError) as error:
            self.trouble(what, str(error))
            return None
        self.trouble(what, None)
        return found


class StatusLoop:
    """Gathers and writes it each second, in a thread of its own, and shows it to `told`."""

    def __init__(self, status: Status, file: Path, told: Callable[[dict[str, Any]], None], every_s: float = EVERY_S):
        self._status, self._file, self._told, self._every = status, file, told, every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onblock-status", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, with a last status."""
        self._stopped.set()
        self._thread.join(10)

    def once(self) -> None:
        """One status."""
        status = self._status.gather()
        try:
            write(self._file, status)
            self._status.trouble("status file", None)
        except OSError as error:
            self._status.trouble("status file", f"{self._file} cannot be written: {error.strerror or error}")
        self._told(status)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stopped.is_set():
            try:
                self.once()
            except Exception:  # whatever it was: the next one may be told again
                log.exception("the status could not be told")
            due = max(due + self._every, time.monotonic())  # a second that was missed is not made up for
            self._stopped.wait(due - time.monotonic())
        self.once()
