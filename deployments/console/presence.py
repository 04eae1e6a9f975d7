"""Devices that come and go: a thread that looks after those the server has blocks for, and hands in what changed.

How one is looked for is in `blocks/devices`. One look costs one question to each device; one that was there when we
began counts as come, since nobody saw it come.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from datetime import UTC, datetime

from pydantic import ValidationError

from blocks.devices import DEVICES, Device
from blocks.devices.watch import Watcher
from blocks.errors import OnblockError
from deployments.console.desk import Desk, message

log = logging.getLogger("onblock.console")

EVERY_S = 5.0
"""Between two looks."""
SEEN_S = 20.0
"""Between two events that say of a device that it is still there."""
SEEN_EVENT = "onblock.device.seen"
SENDER = "onblock (devices)"
"""Who says so: no block can have this name."""


class Presence:
    """The thread."""

    def __init__(self, desk: Desk, every_s: float = EVERY_S):
        self._desk, self._every_s = desk, every_s
        self._blocks: object = None
        self._watcher = Watcher([])
        self.seen: dict[str, bool] = {}
        """Devices that are looked after and whether they are there; replaced as a whole, for whoever reads it."""
        self._there: set[str] = set()
        self._say_at = 0.0
        self._due: dict[str, tuple[bool, str]] = {}  # what changed and was not told: whether it is there, and a key
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="onblock-presence", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """No more; waits for the look under way."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            try:
                self._look()
            except OnblockError as error:
                log.warning("devices: %s; looked for again", error)
            except Exception:
                log.exception("devices could not be looked for")
            if self._stop.wait(self._every_s):
                return

    def _look(self) -> None:
        known = self._desk.api.known()
        if known.blocks != self._blocks:
            self._blocks = known.blocks
            self._watcher.watch(devices := _devices(known.blocks))
            names = {device.device for device in devices}
            self.seen = {name: there for name, there in self.seen.items() if name in names}
        for name, there in self._watcher.poll():
            self.seen = {**self.seen, name: there}
            if there or name in self._there:
                (self._there.add if there else self._there.discard)(name)
                self._due[name] = there, str(uuid.uuid4())
        for name, (there, key) in tuple(self._due.items()):
            try:
                self._changed(name, there, key)
            except OnblockError as error:
                log.warning("device %s: %s; told again", name, error)
                continue
            del self._due[name]
        if time.monotonic() >= self._say_at:
            self._say_at = time.monotonic() + SEEN_S
            self._say_who_is_there()

    def _say_who_is_there(self) -> None:
        """For whoever waits for a sign of them. A hint, and soon followed by the next: none is kept. Raises NetworkError."""
        now = datetime.now(UTC).isoformat()
        events = [
            {
                "id": str(uuid.uuid4()), "event": SEEN_EVENT, "occurred": now, "payload": {"device": name}, "related": [],
                "resource": {"prefect.resource.id": f"onblock.device.{name}", "prefect.resource.name": name},
            }
            for name in sorted(self._watcher.connected())
        ]  # fmt: skip
        if events:
            self._desk.api.call("/events", events)

    def _changed(self, device: str, there: bool, key: str) -> None:
        log.info("device %s is %s", device, "there" if there else "gone")
        payload: dict[str, str] = {}
        flight: str | None = None
        if there:
            if hastened := self._desk.hooks.hasten(device):
                log.info("%d files of %s that were put off are due now", hastened, device)
            if flight := self._desk.hooks.last_flight(device):
                payload["flight"] = flight
        name = "device-connected" if there else "device-disconnected"
        self._desk.hand_in(message(
            SENDER, name, f"{name} {key}", event=f"onblock.device.{'' if there else 'dis'}connected",
            resources=[f"onblock.device.{device}"], payload=payload, flight=flight,
        ))  # fmt: skip


def _devices(blocks: tuple[tuple[str, dict[str, object]], ...]) -> list[Device]:
    found: list[Device] = []
    for kind, fields in blocks:
        try:
            found.append(DEVICES[kind](**fields))  # pyright: ignore[reportArgumentType]
        except ValidationError as error:  # without its values, which may be secrets
            where = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
            log.warning("a block of type %s does not fit this version of onblock: %s", kind, where)
    return found
