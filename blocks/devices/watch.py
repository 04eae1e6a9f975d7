"""Watching devices come and go: `Watcher.poll()` tells what changed since the last call. No events, no waiting here.

A device is there at the first look that finds it, and away after three in a row that do not: a camera that is busy
misses a question now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from blocks.devices.base import Device

DOWN = 3
"""Looks in a row that must fail before a device counts as gone."""
AT_ONCE = 16
"""Devices that are looked for at the same time."""


class Known:
    """One device, as a state machine: fed with looks, tells changes. The first verdict counts as a change from nothing:
    True for a device that is there, False for one that is not."""

    def __init__(self, down: int = DOWN):
        self.connected: bool | None = None
        self._down, self._missed = down, 0

    def saw(self, there: bool) -> bool | None:
        """Whether it is connected, if that changed; None if not."""
        self._missed = 0 if there else self._missed + 1
        verdict = there or (self.connected is True and self._missed < self._down)
        if verdict == self.connected:
            return None
        self.connected = verdict
        return verdict


class Watcher:
    """Looks after devices by their names. Not shared between threads."""

    def __init__(self, devices: Iterable[Device], *, down: int = DOWN):
        self._down = down
        self._devices: dict[str, Device] = {}
        self._known: dict[str, Known] = {}
        self.watch(devices)

    def watch(self, devices: Iterable[Device]) -> None:
        """These are the devices from now on; of those that were watched before, what is known stays."""
        self._devices = {device.device: device for device in devices}
        self._known = {name: self._known.get(name) or Known(self._down) for name in self._devices}

    def poll(self, look: Callable[[Device], bool] = Device.connected) -> list[tuple[str, bool]]:
        """Look once at each, side by side: (name, connected) of those that changed. Waits no longer than one device's
        patience for each 16 of them; never raises because one is away."""
        if not self._devices:
            return []
        with ThreadPoolExecutor(min(AT_ONCE, len(self._devices)), "onblock-watch") as pool:
            looks = list(pool.map(look, self._devices.values()))
        changes = [(name, self._known[name].saw(there)) for name, there in zip(self._devices, looks, strict=True)]
        return [(name, change) for name, change in changes if change is not None]

    def connected(self) -> set[str]:
        """The devices that are there, as of the last look."""
        return {name for name, known in self._known.items() if known.connected}
