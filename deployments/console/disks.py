"""Room at places of this machine, looked at where it can do no harm: a share whose server is gone lets nobody go who asks
about it, for as long as it pleases. So each place has a thread of its own, and who has not come back is not sent again.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FRESH_S = 10.0
FIRST_S = 0.2
"""So long a place is waited for that was never looked at."""
SILENT_S = 10.0
"""A place that has not answered for so long is not going to."""


class Room(NamedTuple):
    """Of the file system a path is in: its number, its size and what is free (bytes)."""

    device: int
    total: int
    free: int


class _Place:
    room: Room | None = None  # not mounted, or not known yet
    at = float("-inf")  # when it answered last
    since: float | None = None  # it is being asked


class Disks:
    """They. Shared by threads; never blocks for long."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._places: dict[str, _Place] = {}

    def now(self, paths: Iterable[str]) -> tuple[dict[str, Room], list[str]]:
        """Room by path, of those that are there, as of some seconds ago; and those that do not answer."""
        with self._turn:
            places = {path: self._places.setdefault(path, _Place()) for path in dict.fromkeys(paths)}
            began = time.monotonic()
            for path, place in places.items():
                if place.since is None and began - place.at >= FRESH_S:
                    place.since = began
                    threading.Thread(target=self._look, args=(path, place), name="onblock-disk", daemon=True).start()
            new = [p for p in places.values() if p.at < 0 and p.since == began]
            self._turn.wait_for(lambda: all(p.since is None for p in new), FIRST_S)
            silent = [path for path, p in places.items() if p.since is not None and began - p.since > SILENT_S]
            return {path: p.room for path, p in places.items() if p.room is not None and path not in silent}, silent

    def _look(self, path: str, place: _Place) -> None:
        try:
            device, usage = Path(path).stat().st_dev, shutil.disk_usage(path)
            room = Room(device, usage.total, usage.free)
        except (OSError, ValueError):  # not mounted at the moment; no path at all
            room = None
        with self._turn:
            place.room, place.at, place.since = room, time.monotonic(), None
            self._turn.notify_all()
